from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import (
    BitImageProcessor,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)

from dinov2_hf.pictures.patch_pca import draw_patch_pca, patch_pca, save_patch_pca


TINY = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}


class PixelsAsFeatures(nn.Module):
    """Its patch features are a fixed linear map of the mean colour of the patch; its other tokens are far away."""

    def __init__(self, patch_size, num_register_tokens=0, size=10):
        super().__init__()
        self.config = SimpleNamespace(patch_size=patch_size, num_register_tokens=num_register_tokens)
        sides = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
        self.pool = nn.AvgPool2d(sides)
        basis = torch.linalg.qr(torch.randn(size, 3, generator=torch.Generator().manual_seed(0))).Q
        self.basis = nn.Parameter(basis.T)

    def forward(self, pixel_values):
        patches = self.pool(pixel_values).flatten(2).transpose(1, 2) @ self.basis + 3.0
        others = torch.full((len(patches), 1 + self.config.num_register_tokens, patches.shape[2]), 1e3)
        return SimpleNamespace(last_hidden_state=torch.cat([others, patches], dim=1))


def pixels_of(colours: np.ndarray, patch_height: int, patch_width: int) -> torch.Tensor:
    grid = torch.as_tensor(colours, dtype=torch.float32).permute(0, 3, 1, 2)
    return grid.repeat_interleave(patch_height, dim=2).repeat_interleave(patch_width, dim=3)


@pytest.mark.parametrize(("patch_size", "registers"), [(4, 0), (4, 3), ((4, 2), 0)])
def test_the_components_recover_known_structure(patch_size, registers):
    # Three independent channels of clearly different spread: the components are these channels, up to sign and scale.
    colours = np.random.default_rng(0).uniform(-1, 1, (5, 12, 16, 3)) * np.array([9.0, 3.0, 1.0])
    sides = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    pca = patch_pca(PixelsAsFeatures(patch_size, registers), pixels_of(colours, *sides))
    assert pca.shape == (5, 12, 16, 3)
    assert pca.min() == 0.0
    assert pca.max() == 1.0
    for channel in range(3):
        correlation = np.corrcoef(pca[..., channel].ravel(), colours[..., channel].ravel())[0, 1]
        assert abs(correlation) > 0.99


def test_components_are_shared_across_images():
    # One image is dark and one is bright. Alone, each would fill [0, 1]; together, they keep apart.
    generator = np.random.default_rng(0)
    colours = np.stack([generator.normal(0, 0.1, (8, 8, 3)), generator.normal(5, 0.1, (8, 8, 3))])
    pca = patch_pca(PixelsAsFeatures(4), pixels_of(colours, 4, 4))
    first, second = pca[0, ..., 0], pca[1, ..., 0]
    assert first.max() < 0.2 or second.max() < 0.2
    assert abs(first.mean() - second.mean()) > 0.8

    # The same patch has the same colour in whichever image it is.
    colours[1, 0, 0] = colours[0, 3, 4]
    pca = patch_pca(PixelsAsFeatures(4), pixels_of(colours, 4, 4))
    np.testing.assert_allclose(pca[1, 0, 0], pca[0, 3, 4], atol=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        Dinov2Model(Dinov2Config(**TINY, drop_path_rate=0.9)),
        Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**TINY, num_register_tokens=4)),
    ],
    ids=["dinov2", "with_registers"],
)
def test_any_auto_model_is_deterministic_and_keeps_its_mode(model):
    model.train()
    pixel_values = torch.randn(3, 3, 42, 56, generator=torch.Generator().manual_seed(0))
    pca = patch_pca(model, pixel_values)
    assert pca.shape == (3, 3, 4, 3)
    np.testing.assert_array_equal(pca, patch_pca(model, pixel_values))
    assert model.training


def test_constant_features_are_drawn_without_a_division_by_zero():
    pca = patch_pca(PixelsAsFeatures(4), torch.ones(2, 3, 8, 8))
    assert np.isfinite(pca).all()


def test_a_wrong_token_count_is_named():
    model = PixelsAsFeatures(4)
    model.config.num_register_tokens = 0
    model.config.patch_size = 8
    with pytest.raises(ValueError, match=r"gives 17 tokens for .* 16 x 16 pixels, .* 2 x 2 patches of 8 x 8 pixels"):
        patch_pca(model, torch.ones(1, 3, 16, 16))


@pytest.mark.slow
@pytest.mark.parametrize(("count", "bands", "columns"), [(1, 1, 1), (6, 1, 6), (12, 2, 6)])
def test_the_png_shows_every_picture_over_its_colours(tmp_path, count, bands, columns):
    # Picture i is grey of a level of its own; its colours are a red of a level of its own.
    levels = [20 + 18 * i for i in range(count)]
    pictures = [Image.new("RGB", (50, 50), (level,) * 3) for level in levels]
    pca = np.zeros((count, 4, 4, 3))
    pca[..., 0] = np.array(levels)[:, None, None] / 255
    path = tmp_path / "made" / "pca.png"
    draw_patch_pca(pictures, pca, path)

    drawn = np.asarray(Image.open(path).convert("RGB"))
    height, width = drawn.shape[:2]
    assert 200 < width / columns < 450
    assert 400 < height / bands < 800
    seen = {tuple(int(channel) for channel in colour) for colour in np.unique(drawn.reshape(-1, 3), axis=0)}
    assert seen >= {(level, level, level) for level in levels} | {(level, 0, 0) for level in levels}
    assert [file.name for file in path.parent.iterdir()] == ["pca.png"]


def test_the_rows_of_the_png_say_what_they_are(tmp_path):
    """Pictures and colours are white: whatever is dark is a label, at the left of each of the four rows."""
    draw_patch_pca([Image.new("RGB", (9, 9), "white")] * 12, np.ones((12, 3, 3, 3)), tmp_path / "pca.png")
    dark = np.asarray(Image.open(tmp_path / "pca.png").convert("L")) < 100
    assert dark.any(axis=0).nonzero()[0].max() < dark.shape[1] / 10
    rows = np.array_split(dark.any(axis=1), 4)
    assert [row.any() for row in rows] == [True] * 4


def test_the_title_makes_the_picture_taller(tmp_path):
    pictures, pca = [Image.new("RGB", (8, 8))], np.zeros((1, 2, 2, 3))
    draw_patch_pca(pictures, pca, tmp_path / "plain.png")
    draw_patch_pca(pictures, pca, tmp_path / "titled.png", title="Step 100")
    assert Image.open(tmp_path / "titled.png").height > Image.open(tmp_path / "plain.png").height


def test_save_patch_pca_from_pictures_of_any_shape(tmp_path):
    model = Dinov2Model(Dinov2Config(**TINY))
    processor = BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28})
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 255, (40, 30 + 9 * i, 3), dtype=np.uint8)) for i in range(3)]
    for image_size in (None, 56):
        path = save_patch_pca(model, images, processor, tmp_path / f"{image_size}.png", image_size=image_size)
        assert path == tmp_path / f"{image_size}.png"
        assert Image.open(path).width > 600

    with pytest.raises(ValueError, match=r"`image_size` is 60, but must be a multiple of the patch size, 14 x 14"):
        save_patch_pca(model, images, processor, tmp_path / "x.png", image_size=60)
    with pytest.raises(ValueError, match="images has 0 pictures"):
        save_patch_pca(model, [], processor, tmp_path / "x.png")
    with pytest.raises(ValueError, match="2 pictures and pca 3 maps"):
        draw_patch_pca(images[:2], np.zeros((3, 2, 2, 3)), tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_components_have_the_order_and_signs_of_earlier_colours():
    """Of other images of the same patches they differ; of an earlier picture, turned and mirrored, it comes back."""
    rng = np.random.default_rng(0)
    pixels = pixels_of(rng.random((2, 6, 5, 3)) * [3, 2, 1], 4, 4)
    pca = patch_pca(PixelsAsFeatures(4), pixels)
    earlier = 1 - pca[..., [2, 0, 1]]
    earlier[..., 1] = 1 - earlier[..., 1]
    np.testing.assert_allclose(patch_pca(PixelsAsFeatures(4), pixels, like=earlier), earlier, atol=1e-9)
    np.testing.assert_array_equal(patch_pca(PixelsAsFeatures(4), pixels, like=pca), pca)


def test_earlier_colours_that_do_not_differ_say_nothing():
    pixels = pixels_of(np.random.default_rng(0).random((1, 4, 4, 3)), 4, 4)
    found = patch_pca(PixelsAsFeatures(4), pixels, like=np.ones((1, 4, 4, 3)))
    np.testing.assert_array_equal(found, patch_pca(PixelsAsFeatures(4), pixels))
