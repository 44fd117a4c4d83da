"""Reasons to leave an image out."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)

from dinov2_hf.curation.image_filters import file_reason, filter_reasons, load_filter, size_reason
from dinov2_hf.curation.model_filters import ClassifierFilter, FaceBlur, blur_boxes

from .scenes import scene


def no_portraits(images):
    return ["portrait" if image.height > image.width else None for image in images]


class NoTinyOnes:
    def __call__(self, images):
        return ["tiny" if image.width < 20 else None for image in images]


@pytest.mark.parametrize(
    ("num_bytes", "reason"),
    [(9, "file smaller than min_bytes (10)"), (10, None), (20, None), (21, "file larger than max_bytes (20)")],
)
def test_bytes(num_bytes, reason):
    assert file_reason(num_bytes, min_bytes=10, max_bytes=20) == reason


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((32, 64), None),
        ((31, 64), "side shorter than min_side (32)"),
        ((32, 97), "longer than max_aspect_ratio (3.0) allows"),
        ((96, 32), None),
    ],
)
def test_sizes(size, reason):
    assert size_reason(*size, min_side=32, max_aspect_ratio=3.0) == reason
    assert size_reason(*size, min_side=None, max_aspect_ratio=None) is None


def test_filters_by_name_in_turn():
    filters = [load_filter(f"{__name__}:no_portraits"), load_filter(f"{__name__}:NoTinyOnes")]
    images = [Image.new("RGB", size) for size in ((30, 40), (40, 30), (10, 5), (5, 10))]
    assert filter_reasons(filters, images) == ["portrait", None, "tiny", "portrait"]


@pytest.mark.parametrize("name", ["nowhere:filter", f"{__name__}:nothing", "no_colon"])
def test_a_filter_that_is_not_there(name):
    with pytest.raises(ValueError, match="filters has .*package.module:name"):
        load_filter(name)


def test_a_filter_must_answer_for_every_image():
    with pytest.raises(ValueError, match="gave 1 answers for 2 images"):
        filter_reasons([lambda images: [None]], [scene(0), scene(1)])


def test_an_image_classifier_as_a_filter(tmp_path):
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=32, patch_size=16,
        id2label={0: "safe", 1: "NSFW"}, label2id={"safe": 0, "NSFW": 1},
    )  # fmt: skip
    model = ViTForImageClassification(config)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 2.0]))  # probability of NSFW: 0.881
    model.save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    images = [scene(0), scene(1)]
    assert ClassifierFilter(str(tmp_path), "nsfw", 0.88)(images) == ["classified as nsfw"] * 2
    assert ClassifierFilter(str(tmp_path), "nsfw", 0.89)(images) == [None, None]
    with pytest.raises(ValueError, match="nsfw_label is 'porn', but the labels of .* are safe, nsfw"):
        ClassifierFilter(str(tmp_path), "porn")
    with pytest.raises(ValueError, match="nsfw_model is 'nowhere', which cannot be loaded for image-classification"):
        ClassifierFilter("nowhere")


def test_blur_is_confined_to_the_boxes():
    image = scene(3, width=80, height=60)
    blurred = blur_boxes(image, [(20, 20, 40, 40)])
    assert blur_boxes(image, []) is image
    changed = [(x, y) for x in range(80) for y in range(60) if image.getpixel((x, y)) != blurred.getpixel((x, y))]
    assert changed
    assert all(18 <= x < 42 and 18 <= y < 42 for x, y in changed)  # the box, grown by a tenth


def test_an_object_detector_finds_what_is_blurred(tmp_path):
    config = YolosConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=[64, 64],
        patch_size=16, num_detection_tokens=2, id2label={0: "face"}, label2id={"face": 0},
    )  # fmt: skip
    YolosForObjectDetection(config).save_pretrained(tmp_path)
    YolosImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    image = scene(4)
    everything, nothing = FaceBlur(str(tmp_path), threshold=0.0), FaceBlur(str(tmp_path), threshold=1.0)
    assert nothing(image) is image
    assert everything(image).tobytes() != image.tobytes()
    with pytest.raises(ValueError, match="face_label is 'nose'"):
        FaceBlur(str(tmp_path), "nose")


class Sharpness:
    def __call__(self, images):
        return [0.5] * len(images)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (lambda images: True, r"returned True \(bool\)"),
        (lambda images: 0.25, r"returned 0.25 \(float\)"),
        (lambda images: None, r"returned None \(NoneType\)"),
        (lambda images: "ab", r"returned 'ab' \(str\)"),
        (lambda images: {0: None, 1: None}, r"returned \{0: None, 1: None\} \(dict\)"),
        (lambda images: [True, False], r"answered True \(bool\) for an image"),
        (lambda images: np.array([0.1, 0.2]), r"answered .*0.1.* \(float64\) for an image"),
        (lambda images: [None, ""], r"answered '' \(str\) for an image"),
        (Sharpness(), r"test_image_filters:Sharpness answered 0.5 \(float\) for an image"),
    ],
)
def test_a_filter_must_answer_with_reasons(answer, found):
    message = f"the filter {__name__.split('.')[0]}.*{found}, but must return a list with a reason .text. or None for"
    with pytest.raises(ValueError, match=message) as error:
        filter_reasons([answer], [scene(0), scene(1)])
    assert "\n" not in str(error.value)


def test_a_wrong_filter_is_found_before_an_image_is_read(planted):
    with pytest.raises(ValueError, match=r"the filter .*:Sharpness answered 0.5 \(float\) for an image"):
        planted.curate(filters=[f"{__name__}:Sharpness"])
    assert not (planted.folder / "out").exists()
