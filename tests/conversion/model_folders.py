"""Small models with random weights on disk, and a Python without this package to load them in."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image

from dinov2_hf import DINOv2Config, DINOv2ImageProcessor


PATCH_SIZE, IMAGE_SIZE = 14, 28


def write_model(model_class, folder: Path, **fields):
    """
    A model of `model_class` that was saved to `folder` with its image processor. Every parameter matters: none is 0,
    as positions and registers nearly are after an initialisation.
    """
    config = DINOv2Config(
        **{
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            **fields,
        }
    )
    model = model_class(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.save_pretrained(folder)
    if config.num_channels == 3:
        processor = DINOv2ImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28})
        processor.save_pretrained(folder)
    return model


def write_photograph(path: Path) -> Path:
    """A picture of noise, 40 x 60 pixels."""
    pixels = torch.randint(0, 256, (40, 60, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    Image.fromarray(pixels.numpy()).save(path)
    return path


def run_without_package(code: str, folder: Path) -> str:
    """Run Python in `folder` where `import dinov2_hf` fails; what it printed comes back."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(folder / "huggingface"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    # An installed package (`pip install --editable`) needs no PYTHONPATH, so its import is blocked; those too that
    # come with it and not with transformers.
    done = subprocess.run(
        [sys.executable, "-c", 'import sys\nsys.modules |= dict.fromkeys(["dinov2_hf", "datasets"])\n' + code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
