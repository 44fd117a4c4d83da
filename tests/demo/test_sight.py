"""What the demo draws, without a browser."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from dinov2_hf.cli.backbone import load_backbone
from dinov2_hf.demo.dense_heads import depth_picture, load_head, segmentation_picture
from dinov2_hf.demo.sight import SIDE, attention_pictures, compare, look, pca_pictures
from dinov2_hf.features import image_features
from dinov2_hf.pictures.attention_maps import attention_maps, colour_map
from dinov2_hf.pictures.patch_pca import patch_pca
from dinov2_hf.pictures.patch_similarity import similarity_map


@pytest.fixture
def eyes(folders):
    return load_backbone(str(folders["backbone"]))


def noise(seed: int, width: int = 60, height: int = 44) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8))


def test_a_sight_is_what_the_model_gives(eyes):
    model, processor = eyes
    sight = look(model, processor, noise(0))
    assert (sight.grid, sight.picture.size) == ((4, 4), (SIDE, SIDE))
    pixels = processor(images=[noise(0)], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = image_features(model, pixels, "patch_grid")[0]
    torch.testing.assert_close(sight.features.float(), expected)
    assert look(model, processor, noise(0), image_size=64).grid == (8, 8)


def test_colours_and_attention_are_those_of_visualize(eyes):
    model, processor = eyes
    sights = [look(model, processor, noise(seed)) for seed in (0, 1)]
    colours = patch_pca(model, torch.cat([sight.pixel_values for sight in sights]))
    for picture, expected in zip(pca_pictures(sights), colours, strict=True):
        middles = np.asarray(picture)[SIDE // 8 :: SIDE // 4, SIDE // 8 :: SIDE // 4]
        np.testing.assert_allclose(middles, expected * 255, atol=0.51)
    heads = attention_maps(model, sights[0].pixel_values)[0]
    found = attention_pictures(model, sights[0])
    assert [name for _, name in found] == ["mean of heads", "head 0", "head 1"]
    middles = np.asarray(found[2][0])[SIDE // 8 :: SIDE // 4, SIDE // 8 :: SIDE // 4]
    np.testing.assert_allclose(middles, colour_map(heads[1]) * 255, atol=0.51)
    larger = look(model, processor, noise(0), image_size=64)
    assert pca_pictures([sights[0], larger])[0].tobytes() == pca_pictures([sights[0]])[0].tobytes()


def test_without_pictures_there_is_nothing_to_colour():
    assert pca_pictures([]) == []


def test_matches_are_the_most_similar_patches_of_the_other_picture(eyes):
    model, processor = eyes
    first, second = (look(model, processor, noise(seed)) for seed in (0, 1))
    found = compare(first, (1, 2), second)
    similarity = similarity_map(first.features[1, 2], second.features)
    assert found.matches[0] == (*np.unravel_index(similarity.argmax(), (4, 4)), similarity.max())
    cosines = [cosine for _, _, cosine in found.matches]
    assert cosines == sorted(cosines, reverse=True)
    assert found.own.size == found.other.size == (SIDE, SIDE)
    assert np.asarray(found.own)[SIDE // 4 + 5, SIDE // 2].tolist() == [255, 255, 255]  # the frame of the patch
    alone = compare(first, (1, 2))
    assert (alone.other, alone.matches) == (None, [])


def test_a_picture_is_its_own_best_match(eyes):
    sight = look(*eyes, noise(0))
    for patch in ((0, 0), (2, 3)):
        assert compare(sight, patch, sight).matches[0] == (*patch, pytest.approx(1.0))


def test_depth_and_classes_are_those_of_the_pipelines(folders):
    image = noise(3, 32, 32)  # which is seen whole
    answer = pipeline("depth-estimation", model=str(folders["depth"]))(image)["predicted_depth"]
    picture, (low, high) = depth_picture(load_head(folders["depth"], "depth"), image)
    assert (low, high) == pytest.approx((answer.min().item(), answer.max().item()))
    assert picture.size == (64, 32)
    assert picture.crop((0, 0, 32, 32)).tobytes() == image.tobytes()
    picture, legend = segmentation_picture(load_head(folders["segmentation"], "segmentation"), image)
    for part in pipeline("image-segmentation", model=str(folders["segmentation"]))(image):
        colour, share = legend[part["label"]]
        mask = np.asarray(part["mask"]) > 0
        assert share == pytest.approx(mask.mean())
        painted = np.asarray(picture)[:, 32:][mask]
        assert (painted == [int(colour[place : place + 2], 16) for place in (1, 3, 5)]).all()
    assert sum(share for _, share in legend.values()) == pytest.approx(1.0)


def test_a_folder_without_the_head_is_refused(folders):
    with pytest.raises(ValueError, match="decode_head"):
        load_head(folders["backbone"], "depth")
