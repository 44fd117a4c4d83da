"""Scores of the filters that the package has, held to formulas and to pictures of which the answer is known."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from pyarrow import parquet
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from dinov2_hf.curation import CurationArguments, curate
from dinov2_hf.curation.filters import FILTERS
from dinov2_hf.curation.model_filters import Aesthetic, ClipScore

from .scenes import encoded, scene


def test_a_blurred_picture_is_less_sharp():
    sharpness = FILTERS.find("sharpness")
    blurred = [scene(0).filter(ImageFilter.GaussianBlur(radius)) for radius in (0, 1, 2, 4)]
    assert np.all(np.diff(sharpness(blurred, {})) < 0)
    (found,) = sharpness([scene(0)], {})
    grey = np.asarray(scene(0).convert("L"), dtype=float)
    loop = [
        grey[y - 1, x] + grey[y + 1, x] + grey[y, x - 1] + grey[y, x + 1] - 4 * grey[y, x]
        for y in range(1, 71)
        for x in range(1, 95)
    ]
    assert found == pytest.approx(np.var(loop))
    assert sharpness([Image.new("RGB", (500, 1))], {}) == [0]


def test_brightness_and_information():
    brightness, information = FILTERS.find("brightness"), FILTERS.find("information")
    plain = [Image.new("RGB", (9, 9), colour) for colour in ("black", "white")]
    assert brightness(plain, {}) == [0, 1]
    assert information(plain, {}) == [0, 0]
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (8, 4)))  # +255 four times, -255 three times
    share = np.array([4, 3]) / 7
    assert information([stripes], {}) == pytest.approx([-(share * np.log2(share)).sum()])
    assert information([scene(0)], {})[0] > 1
    assert FILTERS.find("pixels")(plain, {"width": [9, 9], "height": [9, 2]}).tolist() == [81, 18]


def test_lists(tmp_path):
    listed = FILTERS.find("listed")
    columns = {"license": ["CC0", "cc-by-4.0 ", None, "unknown"]}
    assert listed("license", ["cc0", "CC-BY-4.0"])([None] * 4, columns) == [1, 1, 0, 0]
    path = tmp_path / "list.txt"
    path.write_text("cc0\n\nunknown\n")
    assert listed("license", str(path))([None] * 4, columns) == [1, 0, 0, 1]
    with pytest.raises(ValueError, match="values is empty"):
        listed("license", [])
    with pytest.raises(ValueError, match="values is .*none.txt', which is not a readable text file"):
        listed("license", str(tmp_path / "none.txt"))
    urls = [
        "https://www.Example.org/a.jpg",
        "example.org",
        "http://notexample.org/",
        None,
        "ftp://a.b.example.org:21/x",
    ]
    assert FILTERS.find("domain_listed")(["example.org"])([None] * 5, {"url": urls}) == [1, 1, 0, 0, 1]


def test_a_score_by_a_model_of_one_number(tmp_path):
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    for labels in (1, 2):
        config = ViTConfig(**size, image_size=16, patch_size=8, num_labels=labels)
        ViTForImageClassification(config).save_pretrained(tmp_path / str(labels))
        ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / str(labels))
    images = [scene(seed) for seed in range(2)]
    found = Aesthetic(str(tmp_path / "1"))(images, {})
    network = ViTForImageClassification.from_pretrained(tmp_path / "1").eval()
    pixels = ViTImageProcessor.from_pretrained(tmp_path / "1")(images, return_tensors="pt")
    np.testing.assert_allclose(found, network(**pixels).logits[:, 0].detach(), rtol=1e-5)
    with pytest.raises(ValueError, match="has the labels LABEL_0, LABEL_1, .* use the filter classifier"):
        Aesthetic(str(tmp_path / "2"))


@pytest.fixture
def clip(tmp_path) -> str:
    (tmp_path / "vocab.json").write_text(
        '{"a</w>": 0, "cat</w>": 1, "<|startoftext|>": 2, "<|endoftext|>": 3, "c": 4, "a": 5, "t</w>": 6, "at</w>": 7}'
    )
    (tmp_path / "merges.txt").write_text("#version: 0.2\na t</w>\nc at</w>\n")
    tokenizer = CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), model_max_length=8)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = {**size, "vocab_size": 8, "max_position_embeddings": 8, "bos_token_id": 2, "eos_token_id": 3}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(text_config=text, vision_config={**size, "image_size": 16, "patch_size": 8}, projection_dim=8)
    )
    model.save_pretrained(tmp_path / "clip")
    pictures = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(pictures, tokenizer).save_pretrained(tmp_path / "clip")
    return str(tmp_path / "clip")


def test_a_score_by_a_text(clip):
    images, texts = [scene(seed) for seed in range(3)], ["a cat", None, "cat"]
    found = ClipScore(clip, column="caption")(images, {"caption": texts})
    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    for image, text, score in zip(images, texts, found, strict=True):
        inputs = processor(text=[text or ""], images=[image], return_tensors="pt", padding="max_length")
        output = model(**inputs)
        assert score == pytest.approx((output.image_embeds * output.text_embeds).sum().item(), abs=1e-5)
    same = ClipScore(clip, text="cat")(images, {})
    assert same[2] == pytest.approx(found[2])
    for wrong in ({}, {"column": "caption", "text": "cat"}):
        with pytest.raises(ValueError, match="the filter clip_score needs one of them"):
            ClipScore(clip, **wrong)


def test_filters_in_a_curation(tmp_path):
    """A picture of one colour, one without the licence, one of a blocked site, and one that stays."""
    images = [scene(0), Image.new("RGB", (96, 72), "grey"), scene(2), scene(3)]
    rows = {
        "image": [{"bytes": encoded(image), "path": None} for image in images],
        "license": ["cc0", "cc0", None, "CC0"],
        "url": ["https://a.org/1.png", "https://a.org/2.png", "https://a.org/3.png", "https://img.bad.net/4.png"],
    }
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(tmp_path / "pool.parquet")
    np.save(tmp_path / "vectors.npy", np.eye(4, dtype=np.float32))
    curation = curate(
        CurationArguments(
            uncurated=str(tmp_path / "pool.parquet"), output_dir=str(tmp_path / "out"), progress=False,
            embedder=str(tmp_path / "vectors.npy"),
            filters=[
                {"information": {"min": 0.5}},
                {"listed": {"column": "license", "values": ["cc0"], "min": 1}},
                {"domain_listed": {"values": ["bad.net"], "max": 0}},
                "brightness",
            ],
        )
    )  # fmt: skip
    rows = parquet.read_table(curation.output_dir / "dropped.parquet").to_pylist()
    assert {row["id"]: row["reason"] for row in rows} == {
        "pool/1": "information below 0.5", "pool/2": "listed below 1", "pool/3": "domain_listed above 0",
    }  # fmt: skip
    (scores,) = curation.folders["ingest"].files("scores.parquet")
    table = parquet.read_table(scores)
    assert table.column_names == ["row", "information", "listed", "domain_listed", "brightness"]
    assert table["brightness"].null_count == 3  # dropped before it was asked
