import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model, ResNetConfig, ResNetModel, ViTConfig, ViTModel

from dinov2_hf.data import decode_image
from dinov2_hf.features import cls_features, evaluation_mode, extract_features


TINY = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 28,
    "patch_size": 14,
}


@pytest.fixture
def processor():
    return BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})


@pytest.fixture(params=["dinov2", "vit"])
def model(request):
    torch.manual_seed(0)
    if request.param == "vit":
        return ViTModel(ViTConfig(**TINY))
    return Dinov2Model(Dinov2Config(**TINY, drop_path_rate=0.5))


def make_images(count: int) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (30 + i, 40, 3), dtype=np.uint8)) for i in range(count)]


def make_dataset(images: list[Image.Image]) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    return datasets.Dataset.from_dict({"image": images, "label": list(range(len(images)))}, features=features)


def png_bytes(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **options)
    return buffer.getvalue()


def one_by_one(model, images, processor) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return torch.cat(
            [model(**processor(images=image, return_tensors="pt")).last_hidden_state[:, 0] for image in images]
        )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_row_i_is_the_final_normed_cls_token_of_image_i(model, processor, num_workers):
    images = make_images(7)
    features = extract_features(model, make_dataset(images), processor, batch_size=3, num_workers=num_workers)
    assert features.shape == (7, 12)
    assert features.dtype == torch.float32
    assert features.device.type == "cpu"
    assert not features.requires_grad
    torch.testing.assert_close(features, one_by_one(model, images, processor))


def test_every_form_of_the_image_column_gives_the_same_features(model, processor, tmp_path):
    images = make_images(3)
    dataset = make_dataset(images)
    expected = extract_features(model, dataset, processor)

    undecoded = dataset.cast_column("image", datasets.Image(decode=False))
    images[0].save(tmp_path / "0.png")
    rows = [
        {"picture": {"bytes": None, "path": str(tmp_path / "0.png")}},
        {"picture": {"bytes": png_bytes(images[1]), "path": None}},
        {"picture": images[2]},
    ]
    torch.testing.assert_close(extract_features(model, undecoded, processor), expected)
    torch.testing.assert_close(extract_features(model, dataset.with_format("torch"), processor), expected)
    torch.testing.assert_close(extract_features(model, rows, processor, image_column="picture"), expected)


def test_rows_follow_the_dataset_order_after_a_shuffle(model, processor):
    dataset = make_dataset(make_images(5))
    order = [3, 0, 4, 1, 2]
    features = extract_features(model, dataset, processor)
    torch.testing.assert_close(extract_features(model, dataset.select(order), processor), features[order])


def test_every_submodule_gets_its_mode_back_even_after_an_error(model, processor):
    model.train()
    model.encoder.eval() if hasattr(model, "encoder") else model.layernorm.eval()
    modes = [module.training for module in model.modules()]
    extract_features(model, make_dataset(make_images(2)), processor)
    assert [module.training for module in model.modules()] == modes

    def fail():
        with evaluation_mode(model):
            assert not any(module.training for module in model.modules())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [module.training for module in model.modules()] == modes


def test_autocast_features_are_float32_of_half_precision_values(model, processor):
    dataset = make_dataset(make_images(4))
    full = extract_features(model, dataset, processor)
    half = extract_features(model, dataset, processor, autocast_dtype=torch.bfloat16)
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    torch.testing.assert_close(half, full, atol=0.05, rtol=0.05)


def test_the_model_can_be_trained_after_extraction(model, processor):
    extract_features(model, make_dataset(make_images(2)), processor)
    cls_features(model, torch.randn(2, 3, 28, 28)).square().sum().backward()
    assert any(parameter.grad is not None for parameter in model.parameters())


def test_an_image_is_upright_and_rgb():
    picture = Image.new("L", (20, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: turned by a quarter.
    picture.paste(255, (0, 0, 10, 10))
    stored = png_bytes(picture, exif=exif.tobytes())
    for value in ({"bytes": stored, "path": None}, Image.open(io.BytesIO(stored))):
        image = decode_image(value)
        assert (image.mode, image.size) == ("RGB", (10, 20))
        assert image.getpixel((5, 2)) == (255, 255, 255)
        assert image.getpixel((5, 17)) == (0, 0, 0)


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("broken", ["no image", "truncated", "missing file", "null"])
def test_a_broken_image_is_an_error_that_names_the_row(model, processor, decode, broken):
    dataset = make_dataset(make_images(4)).cast_column("image", datasets.Image(decode=False))
    rows = dataset.to_list()
    intact = rows[2]["image"]["bytes"]
    rows[2]["image"] = {
        "no image": {"bytes": b"text", "path": None},
        "truncated": {"bytes": intact[: len(intact) // 2], "path": None},
        "missing file": {"bytes": None, "path": "missing.png"},
        "null": None,
    }[broken]
    dataset = datasets.Dataset.from_list(rows, features=dataset.features)
    dataset = dataset.cast_column("image", datasets.Image(decode=decode))
    with pytest.raises(ValueError, match="'image' of row 2 cannot be decoded"):
        extract_features(model, dataset, processor, batch_size=2)


def test_user_mistakes_are_named(model, processor):
    dataset = make_dataset(make_images(2))
    with pytest.raises(ValueError, match=r"image_column='img' is not a column .*\['image', 'label'\]"):
        extract_features(model, dataset, processor, image_column="img")
    with pytest.raises(ValueError, match="0 rows"):
        extract_features(model, dataset.select([]), processor)
    with pytest.raises(ValueError, match="DatasetDict, but one split"):
        extract_features(model, datasets.DatasetDict(train=dataset), processor)
    with pytest.raises(ValueError, match="IterableDataset, but one split"):
        extract_features(model, dataset.to_iterable_dataset(), processor)
    with pytest.raises(ValueError, match="row 0 cannot be decoded"):
        extract_features(model, dataset, processor, image_column="label")


def test_a_model_without_tokens_is_refused():
    resnet = ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4, 4], depths=[1, 1], layer_type="basic"))
    with pytest.raises(ValueError, match="last_hidden_state of shape"):
        cls_features(resnet, torch.randn(1, 3, 32, 32))
