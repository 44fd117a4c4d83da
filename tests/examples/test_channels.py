"""Pretraining on images that are not RGB: grey of 16 bits and five bands."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

from dinov2_hf.data import decode_channels

from .test_pretrain import run


@pytest.fixture(scope="session")
def bands(tmp_path_factory):
    """24 .npy files of 5 bands, uint16, in two class folders: which bands are bright tells the class."""
    folder, rng = tmp_path_factory.mktemp("bands"), np.random.default_rng(0)
    for index in range(24):
        kind = ("forest", "water")[index % 2]
        bright = np.where(np.arange(5) < 2, 9000, 3000)[:: 1 if kind == "forest" else -1]
        (folder / kind).mkdir(exist_ok=True)
        np.save(folder / kind / f"{index:02d}.npy", (bright + rng.integers(0, 2000, (20, 24, 5))).astype(np.uint16))
    return folder


@pytest.fixture(scope="session")
def grey(tmp_path_factory):
    """16 PNG files of 16-bit grey, of which 8 bits would leave three shades."""
    folder, rng = tmp_path_factory.mktemp("grey"), np.random.default_rng(0)
    for index in range(16):
        (folder / str(index % 2)).mkdir(exist_ok=True)
        pixels = rng.integers(0, 700, (20, 24)).astype(np.uint16)
        Image.fromarray(pixels).save(folder / str(index % 2) / f"{index:02d}.png")
    return folder


def five_bands(*more: str) -> tuple[str, ...]:
    normalisation = ("--image_mean", *["0.08"] * 5, "--image_std", *["0.05"] * 5)
    return ("--num_channels", "5", *normalisation, *more)


@pytest.mark.usefixtures("with_pictures")
def test_five_bands_from_files_to_features(pretrain, recipe, bands, tmp_path, caplog, capsys):
    caplog.set_level("INFO")
    flags = five_bands("--eval_data", str(bands), "--eval_split", "train", "--color_jitter_probability", "1")
    run(pretrain, recipe, bands, tmp_path / "out", *flags)
    assert "5, without colour jitter, greyscale and solarize" in caplog.text
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["knn"]["after"]["knn_top1_k10"] == 1.0  # the bands alone tell the classes apart
    assert "pipeline" not in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "patch_pca.png") as picture:
        assert min(picture.size) > 200

    folder = tmp_path / "out" / "model"
    processor, model = AutoImageProcessor.from_pretrained(folder), AutoModel.from_pretrained(folder)
    assert model.config.num_channels == 5
    assert not processor.do_convert_rgb
    image = decode_channels(next(bands.rglob("*.npy")), 5)
    pixels = processor(images=[image], input_data_format="channels_last", return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 5, 16, 16)
    assert model(pixels).last_hidden_state.shape == (1, 17, 32)
    centre = processor(
        images=[image], input_data_format="channels_last", return_tensors="pt", do_resize=False
    )["pixel_values"]  # fmt: skip
    expected = (torch.from_numpy(image)[2:18, 4:20] / 255 - 0.08) / 0.05
    torch.testing.assert_close(centre[0], expected.permute(2, 0, 1), atol=1e-4, rtol=1e-4)
    card = (folder / "README.md").read_text()
    assert "pipeline(" not in card
    assert 'decode_channels("image.tif", 5)' in card


def test_grey_continues_from_rgb_weights(pretrain, recipe, images, grey, tmp_path):
    """A frozen backbone is that of the weights, with the three channels of its patches added up."""
    run(pretrain, recipe, images, tmp_path / "rgb", "--max_steps", "2")
    flags = ("--num_channels", "1", "--image_mean", "0.005", "--image_std", "0.003", "--max_steps", "2")
    flags += ("--init_from", str(tmp_path / "rgb" / "model"), "--freeze_backbone_steps", "2", "--warmup_steps", "0")
    run(pretrain, recipe, grey, tmp_path / "out", *flags)
    rgb, own = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("rgb", "out"))
    name = "embeddings.patch_embeddings.projection.weight"
    assert torch.equal(own.pop(name), rgb.pop(name).sum(dim=1, keepdim=True))
    assert all(torch.equal(own[name], rgb[name]) for name in rgb)


def test_a_stream_of_bands(pretrain, recipe, bands, tmp_path):
    run(pretrain, recipe, bands, tmp_path / "out", *five_bands("--streaming", "--max_steps", "2"))
    assert AutoModel.from_pretrained(tmp_path / "out" / "model").config.num_channels == 5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--num_channels", "5"), "num_channels is 5: each must be so many numbers"),
        (five_bands("--num_channels", "4"), "num_channels is 4: each must be so many numbers"),
    ],
)
def test_normalisation_must_fit(pretrain, recipe, bands, tmp_path, flags, message):
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        run(pretrain, recipe, bands, tmp_path / "out", *flags)


def test_images_of_other_channels_stop_the_run_with_the_reason(pretrain, recipe, images, tmp_path):
    with pytest.raises(SystemExit, match=r"^stopped: 20 images in a row .*\(24, 20, 3\), not \(height, width, 5\)"):
        run(pretrain, recipe, images, tmp_path / "out", *five_bands())
