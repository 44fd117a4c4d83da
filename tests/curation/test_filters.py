"""Scores by which images are left out, and faces that are blurred."""

import dataclasses

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from transformers import (
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)

from dinov2_hf.curation import CurationArguments
from dinov2_hf.curation.filters import FILTERS, Columns, FilterChain, planned_filters
from dinov2_hf.curation.model_filters import Classifier, FaceBlur, blur_boxes
from dinov2_hf.curation.storage.image_source import read_source
from dinov2_hf.curation.storage.sources import OpenSources

from .scenes import encoded, scene


def height_over_width(images, columns, *, scale=1.0):
    return [scale * image.height / image.width for image in images]


class Widths:
    def __init__(self, unit: int = 1):
        self.unit = unit

    def __call__(self, images, columns):
        return np.array([image.width // self.unit for image in images])


def caption_words(images, columns):
    return [len((caption or "").split()) for caption in columns["caption"]]


def planned(*filters, **values):
    return planned_filters(CurationArguments(uncurated="pool", filters=list(filters), **values))


def asked(filters, images, **facts):
    """Scores and reasons; facts are those of all images."""
    facts = [{"width": image.width, "height": image.height, **facts} for image in images]
    return FilterChain(filters)(images, lambda places: Columns(None, [facts[place] for place in places]))


@pytest.mark.parametrize(
    ("size", "num_bytes", "reason"),
    [
        ((32, 64), 10, None),
        ((96, 32), 20, None),
        ((31, 64), 10, "shorter_side below 32"),
        ((32, 97), 10, "aspect_ratio above 3"),
        ((32, 64), 9, "file_bytes below 10"),
        ((32, 64), 21, "file_bytes above 20"),
    ],
)
def test_sizes(size, num_bytes, reason):
    filters = planned(min_side=32, max_aspect_ratio=3.0, min_bytes=10, max_bytes=20)
    assert asked(filters, [Image.new("RGB", size)], num_bytes=num_bytes)[1] == [reason]
    assert planned() == []


def test_filters_by_name_in_turn():
    """Each with its options; a later one does not see what is dropped, and one without limits drops nothing."""
    filters = planned(
        {f"{__name__}:height_over_width": {"max": 2, "scale": 2}}, {f"{__name__}:Widths": {"min": 2, "unit": 10}},
        f"{__name__}:Widths",
    )  # fmt: skip
    images = [Image.new("RGB", size) for size in ((30, 40), (40, 30), (10, 5))]
    scores, reasons = asked(filters, images)
    assert reasons == ["height_over_width above 2", None, "Widths below 2"]
    assert scores == [
        {"height_over_width": pytest.approx(8 / 3)},
        {"height_over_width": 1.5, "Widths": 4, "Widths-2": 40},
        {"height_over_width": 1.0, "Widths": 1},
    ]


def test_columns_of_the_sources_are_read_when_they_are_asked_for(tmp_path):
    images = [{"bytes": encoded(scene(seed)), "path": None} for seed in range(3)]
    rows = {"image": images, "caption": ["a b", None, "one"], "label": [1, 2, 3]}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(tmp_path / "pool.parquet")
    sources = OpenSources([("uncurated", read_source(str(tmp_path / "pool.parquet")))])
    columns = Columns(sources, [{"row_id": row, "id": str(row)} for row in (2, 1)])
    assert columns["caption"] == ["one", None]
    assert caption_words([None, None], columns) == [1, 0]
    assert list(columns) == ["row_id", "id", "image", "caption", "label"]
    with pytest.raises(ValueError, match="a filter asks for the column 'text', which no source has; .*caption, label"):
        columns["text"]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("nowhere:filter", "there is no module nowhere"),
        (f"{__name__}:nothing", "it has no 'nothing'"),
        ("shorter_sides", "no filter 'shorter_sides'. Did you mean `shorter_side`"),
        (f"{__name__}:__name__", "which cannot be called"),
        ({f"{__name__}:Widths": {"units": 2}}, "has no option 'units'. Did you mean `unit`"),
    ],
)
def test_a_filter_that_is_not_there(named, message):
    with pytest.raises(ValueError, match=message):
        planned(named)


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
    scores = Classifier(str(tmp_path), "nsfw")(images, {})
    assert scores == pytest.approx(2 * [0.8808], abs=1e-3)
    for threshold, reason in ((0.88, "classifier above 0.88"), (0.89, None)):
        filters = planned(nsfw_model=str(tmp_path), nsfw_threshold=threshold)
        assert asked(filters, images)[1] == [reason] * 2
    with pytest.raises(ValueError, match="label is 'porn', but the labels of .* are safe, nsfw"):
        Classifier(str(tmp_path), "porn")
    with pytest.raises(ValueError, match="model is 'nowhere', which cannot be loaded for image-classification"):
        Classifier("nowhere", "nsfw")
    assert FILTERS.find("classifier") is Classifier


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
    with pytest.raises(ValueError, match="label is 'nose'"):
        FaceBlur(str(tmp_path), "nose")


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (True, r"returned True \(bool\)"),
        (0.25, r"returned 0.25 \(float\)"),
        (None, r"returned None \(NoneType\)"),
        ("ab", r"returned 'ab' \(str\)"),
        ({0: None, 1: None}, r"returned \{0: None, 1: None\} \(dict\)"),
        (["a reason", None], r"returned \['a reason', None\] \(list\)"),
        ([0.1], "gave 1 scores for 2 images"),
        ([0.1, float("nan")], "gave nan for an image"),
    ],
)
def test_a_filter_must_answer_with_scores(answer, found):
    filters = planned(f"{__name__}:height_over_width")
    filters = [dataclasses.replace(filters[0], object=lambda images, columns: answer)]
    with pytest.raises(ValueError, match=f"the filter 'height_over_width' {found}, but must return a finite number"):
        asked(filters, [scene(0), scene(1)])


def says_why(images, columns):
    return ["because"] * len(images)


def test_a_wrong_filter_is_found_before_an_image_is_read(planted):
    with pytest.raises(ValueError, match=r"the filter 'says_why' returned \['because'\] \(list\), but must return"):
        planted.curate(filters=[f"{__name__}:says_why"])
    assert not (planted.folder / "out").exists()


def test_scores_are_kept(planted):
    """In the folder of the stage, and as a histogram with its threshold in the report."""
    curation = planted.curate("ingest", filters=[{f"{__name__}:Widths": {"min": 1}}], num_shards=2)
    tables = [parquet.read_table(path) for path in curation.folders["ingest"].files("scores.parquet")]
    assert [table.to_pylist() for table in tables] == [
        [{"row": row, "Widths": 96.0} for row in rows] for rows in (range(6), range(6, 12), [], [], [])
    ]
