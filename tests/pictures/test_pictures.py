"""Attention maps, patch matching, neighbours and the pictures of them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from dinov2_hf.pictures.attention_maps import attention_maps, colour_map, draw_attention_maps
from dinov2_hf.pictures.grid import Cell, PictureGrid, shortened
from dinov2_hf.pictures.nearest_images import draw_nearest_images, nearest_images, square_picture
from dinov2_hf.pictures.patch_matching import draw_patch_matches, match_patches
from dinov2_hf.pictures.patch_pca import foreground_mask, patch_pca


class ColourModel(nn.Module):
    """The feature of a patch is its mean colour."""

    def __init__(self, patch_size=4):
        super().__init__()
        self.config = SimpleNamespace(patch_size=patch_size)
        self.nothing = nn.Parameter(torch.zeros(0))

    def forward(self, pixel_values):
        patches = nn.functional.avg_pool2d(pixel_values, self.config.patch_size).flatten(2).transpose(1, 2)
        return SimpleNamespace(last_hidden_state=torch.cat([patches[:, :1] * 0, patches], dim=1))


def patches_to_pixels(colours, side=4):
    grid = torch.as_tensor(colours, dtype=torch.float32).permute(0, 3, 1, 2)
    return grid.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)


@pytest.mark.parametrize("kind", ["ours", "stock with registers"])
def test_attention_maps_are_the_weights_written_out(model, kind):
    if kind != "ours":
        torch.manual_seed(0)
        model = Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(
                hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
            )
        ).eval()
    pixels = torch.randn(2, 3, 32, 24)
    maps = attention_maps(model, pixels, layer=1)
    assert maps.shape == (2, 2, 4, 3)
    assert model.config._attn_implementation == "sdpa"
    np.testing.assert_array_equal(maps, attention_maps(model, pixels))
    layer = model.encoder.layer[1]
    with torch.no_grad():
        tokens = layer.norm1(model(pixels, output_hidden_states=True).hidden_states[1])
        if kind == "ours":
            project_query, project_key = layer.attention.attention.query, layer.attention.attention.key
        else:
            project_query, project_key = layer.attention.q_proj, layer.attention.k_proj
        size = tokens.shape[2] // 2
        for head in range(2):
            part = slice(head * size, (head + 1) * size)
            query, key = project_query(tokens)[..., part], project_key(tokens)[..., part]
            weights = (query[:, :1] @ key.transpose(1, 2) / size**0.5).softmax(dim=-1)[:, 0]
            expected = weights[:, -12:].reshape(2, 4, 3)
            np.testing.assert_allclose(maps[:, head], expected.numpy(), atol=1e-6)
    with pytest.raises(ValueError, match="`layer` is 2, but the model has the blocks 0 to 1"):
        attention_maps(model, pixels, layer=2)


def test_a_model_without_attentions_is_named():
    class Silent(ColourModel):
        def forward(self, pixel_values, output_attentions):
            return super().forward(pixel_values)

    with pytest.raises(ValueError, match="Silent. outputs no attentions"):
        attention_maps(Silent(), torch.zeros(1, 3, 8, 8))


def test_matches_find_the_moved_patches():
    generator = np.random.default_rng(0)
    first = generator.uniform(-1, 1, (6, 6, 3))
    second = np.roll(first, (2, 1), axis=(0, 1))
    matches = match_patches(
        ColourModel(), patches_to_pixels([first, second]), foreground=False, max_matches=99, min_distance=0
    )
    assert len(matches.first) == 36
    assert matches.grid == (6, 6)
    np.testing.assert_array_equal((matches.first + (2, 1)) % 6, matches.second)
    np.testing.assert_allclose(matches.similarity, 1)


def test_matches_are_mutual_spread_and_limited():
    generator = np.random.default_rng(1)
    colours = generator.normal(size=(2, 8, 8, 3))
    pixels = patches_to_pixels(colours)
    every = match_patches(ColourModel(), pixels, foreground=False, max_matches=99, min_distance=0)
    units = colours / np.linalg.norm(colours, axis=-1, keepdims=True)
    similarity = units[0].reshape(64, 3) @ units[1].reshape(64, 3).T
    expected = {(a, similarity[a].argmax()) for a in range(64) if similarity[:, similarity[a].argmax()].argmax() == a}
    found = {(8 * a[0] + a[1], 8 * b[0] + b[1]) for a, b in zip(every.first, every.second, strict=True)}
    assert found == expected
    assert list(every.similarity) == sorted(every.similarity, reverse=True)
    spread = match_patches(ColourModel(), pixels, foreground=False, max_matches=5, min_distance=3)
    assert len(spread.first) <= 5
    for patches in (spread.first, spread.second):
        for index, patch in enumerate(patches):
            assert all(np.hypot(*(patch - other)) >= 3 for other in patches[:index])


def object_on_background():
    """A red square in the middle of blue, with a little noise."""
    colours = np.random.default_rng(0).normal(0, 0.02, (2, 8, 8, 3)) + (0, 0, 1)
    colours[:, 2:6, 2:6] += (1, 0, -1)
    return colours


def test_the_foreground_is_the_object():
    expected = np.zeros((2, 8, 8), dtype=bool)
    expected[:, 2:6, 2:6] = True
    np.testing.assert_array_equal(foreground_mask(torch.from_numpy(object_on_background())), expected)
    np.testing.assert_array_equal(foreground_mask(torch.from_numpy(1 - object_on_background())), expected)
    assert foreground_mask(torch.ones(1, 4, 4, 3, dtype=torch.float64)).all()
    pca = patch_pca(ColourModel(), patches_to_pixels(object_on_background()), foreground=True)
    assert (pca[~expected] == 0).all()
    assert pca[expected].std(axis=0).min() > 0.1  # the object has the whole range of colours
    matches = match_patches(ColourModel(), patches_to_pixels(object_on_background()))
    assert all(expected[0][tuple(patch)] for patch in matches.first)
    assert all(expected[1][tuple(patch)] for patch in matches.second)


def test_wrong_numbers_of_images_are_named(tmp_path):
    with pytest.raises(ValueError, match="holds 3 images, but 2 are needed"):
        match_patches(ColourModel(), torch.zeros(3, 3, 8, 8))
    with pytest.raises(ValueError, match="`max_matches` is 0"):
        match_patches(ColourModel(), torch.zeros(2, 3, 8, 8), max_matches=0)
    with pytest.raises(ValueError, match="0 pictures and maps 1"):
        draw_attention_maps([], np.zeros((1, 2, 4, 4)), tmp_path / "x.png")


def test_nearest_images_are_a_sorted_loop():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(20, 5, generator=generator)
    found = nearest_images(features[[3, 7]], features, k=4, own_rows=[3, 7])
    for query, row in enumerate([3, 7]):
        cosines = torch.nn.functional.cosine_similarity(features[row], features)
        order = [index for index in cosines.argsort(descending=True).tolist() if index != row]
        assert found.rows[query].tolist() == order[:4]
        torch.testing.assert_close(found.similarities[query], cosines[order[:4]])
    assert nearest_images(features[[3]], features, k=1).rows.tolist() == [[3]]
    with pytest.raises(ValueError, match="`k` is 20"):
        nearest_images(features[[3]], features, k=20, own_rows=[3])


def test_the_drawings_show_what_they_are_given(tmp_path):
    red, green = (Image.new("RGB", (48, 48), colour) for colour in ("red", "green"))
    maps = np.zeros((1, 2, 4, 4))
    maps[0, :, 0, 0] = 1
    with Image.open(draw_attention_maps([red], maps, tmp_path / "attention.png", title="Heads")) as picture:
        assert picture.width > 3.5 * picture.height * 0.6
    pixels = patches_to_pixels(np.random.default_rng(0).uniform(size=(2, 6, 6, 3)))
    matches = match_patches(ColourModel(), pixels, foreground=False)
    with Image.open(draw_patch_matches((red, green), matches, tmp_path / "matches.png")) as picture:
        assert picture.getpixel((picture.width // 4, 40))[:3] == (255, 0, 0)
        assert picture.getpixel((picture.width - 40, 40))[:3] == (0, 128, 0)
    path = tmp_path / "neighbors.png"
    labels = [["a", "b", "c"]]
    with Image.open(
        draw_nearest_images([red], [[green, red]], torch.tensor([[0.9, 0.8]]), path, labels=labels)
    ) as one:
        middle = [one.convert("RGB").getpixel((round(one.width * x), one.height // 2)) for x in (0.17, 0.5, 0.83)]
    assert middle == [(255, 0, 0), (0, 128, 0), (255, 0, 0)]


def test_small_tools(tmp_path):
    colours = colour_map(np.arange(16.0).reshape(4, 4))
    assert colours[0, 0].sum() < 0.1
    assert colours[3, 3].sum() > 2
    assert np.isfinite(colour_map(np.ones((2, 2)))).all()
    assert square_picture(Image.new("RGB", (90, 30))).size == (256, 256)
    assert square_picture(np.random.default_rng(0).random((9, 12, 4), dtype=np.float32)).mode == "RGB"
    assert shortened("x" * 40 + "\n0.9").splitlines() == ["x" * 25 + "…", "0.9"]
    plain = PictureGrid([[Cell(np.zeros((2, 2, 3)))]]).save(tmp_path / "plain.png")
    captioned = PictureGrid([[Cell(np.zeros((2, 2, 3)), "two\nlines")]]).save(tmp_path / "captioned.png")
    assert Image.open(captioned).height > Image.open(plain).height + 20
