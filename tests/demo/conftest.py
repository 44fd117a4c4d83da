"""A model folder, one with each dense head, and a folder of images: some of them hostile."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinov2_hf import (
    DINOv2Config,
    DINOv2ForDepthEstimation,
    DINOv2ForSemanticSegmentation,
    DINOv2ImageProcessor,
    DINOv2Model,
)


SIDE = 32  # of what the models see: 4 x 4 patches


def config() -> DINOv2Config:
    return DINOv2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=8,
        layerscale_value=1.0, id2label={0: "sky", 1: "ground"}, max_depth=10.0,
    )  # fmt: skip


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Model folders, by "backbone", "depth" and "segmentation"."""
    torch.manual_seed(0)
    processor = DINOv2ImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    kinds = {"backbone": DINOv2Model, "depth": DINOv2ForDepthEstimation, "segmentation": DINOv2ForSemanticSegmentation}
    found = {}
    for name, kind in kinds.items():
        model = kind(config())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        found[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(found[name])
        processor.save_pretrained(found[name])
    return found


@pytest.fixture(scope="session")
def gallery_folder(tmp_path_factory) -> Path:
    """9 pictures of one colour and some noise each, and a file that is none."""
    folder, rng = tmp_path_factory.mktemp("gallery"), np.random.default_rng(0)
    for number in range(9):
        pixels = rng.integers(0, 256, 3) + rng.integers(-20, 20, (40, 52, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    return folder


def bomb() -> bytes:
    """A PNG of 200 bytes that says it has 30000 x 30000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")
    )
