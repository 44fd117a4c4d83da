"""One image gives one result, whichever way it comes in: features, image processors, pipelines."""

import base64
import copy
import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    BitImageProcessor,
    Dinov2Config,
    Dinov2Model,
    ImageFeatureExtractionPipeline,
    pipeline,
)

from dinov2_hf import (
    DINOv2Config,
    DINOv2ForDepthEstimation,
    DINOv2ForImageClassification,
    DINOv2ForSemanticSegmentation,
    DINOv2ImageProcessor,
    DINOv2ImageProcessorPil,
    DINOv2Model,
)
from dinov2_hf.data import UndecodableImage, decode_channels
from dinov2_hf.features import FeatureExtractor, process_images


TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
SIZES = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}


def smooth(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    """uint8 colours that change over the image, so that a wrong orientation or a lost channel shows."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, channels), dtype=np.uint8)
    planes = [
        Image.fromarray(coarse[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(channels)
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def with_orientation(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(Image.fromarray(smooth(40, 60, 3)), exif=exif)


def palette_with_transparency() -> bytes:
    image = Image.fromarray(smooth(40, 60, 3)).quantize(16)
    return encode(image, transparency=bytes(range(0, 256, 16)))


FILES = {
    "RGB": encode(Image.fromarray(smooth(40, 60, 3))),
    "JPEG": encode(Image.fromarray(smooth(40, 60, 3)), "JPEG"),
    "grey": encode(Image.fromarray(smooth(40, 60, 1)[..., 0])),
    "16-bit": encode(Image.fromarray(smooth(40, 60, 1)[..., 0].astype(np.uint16) * 257)),
    "32-bit float": encode(Image.fromarray(smooth(40, 60, 1)[..., 0].astype(np.float32) / 255), "TIFF"),
    "RGBA": encode(Image.fromarray(smooth(40, 60, 4), "RGBA")),
    "LA": encode(Image.fromarray(smooth(40, 60, 2), "LA")),
    "P with transparency": palette_with_transparency(),
    "CMYK": encode(Image.fromarray(smooth(40, 60, 4), "CMYK"), "JPEG"),
    **{f"EXIF {orientation}": with_orientation(orientation) for orientation in range(1, 9)},
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DINOv2Model(DINOv2Config(**TINY)).eval()


@pytest.mark.parametrize("processor_class", [DINOv2ImageProcessor, DINOv2ImageProcessorPil])
@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_every_way_in_gives_the_features_of_the_dataset(model, processor_class, content, tmp_path):
    path = tmp_path / "image.file"
    path.write_bytes(content)
    processor = processor_class(**SIZES)
    row = {"image": {"bytes": content, "path": None}}
    expected = FeatureExtractor(model, processor).features([row]).values[0]
    pipe = pipeline("image-feature-extraction", model=model, image_processor=processor, device="cpu")
    text = base64.b64encode(content).decode()
    ways = [str(path), text, f"data:image/png;base64,{text}", Image.open(io.BytesIO(content))]
    with torch.no_grad():
        for way in ways:
            pixel_values = processor(way, return_tensors="pt")["pixel_values"]
            assert torch.equal(model(pixel_values).last_hidden_state[0, 0], expected)
            assert torch.equal(pipe(way, return_tensors=True)[0, 0], expected)


@pytest.mark.parametrize("processor_class", [DINOv2ImageProcessor, DINOv2ImageProcessorPil])
@pytest.mark.parametrize("name", ["RGB", "grey", "16-bit", "RGBA", "LA"])
@pytest.mark.parametrize("channels_first", [False, True])
def test_arrays_of_what_a_file_holds(processor_class, name, channels_first):
    image = Image.open(io.BytesIO(FILES[name]))
    array = np.array(image)
    if name == "16-bit":
        array = array.astype(np.uint16)  # Pillow before 11 opens it with 32 bits
    array = array if array.ndim == 3 else array[..., None]
    if channels_first:
        array = np.moveaxis(array, -1, 0)
    processor = processor_class(**SIZES)
    expected = processor(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(array, return_tensors="pt")["pixel_values"], expected)


@pytest.mark.parametrize("processor_class", [DINOv2ImageProcessor, DINOv2ImageProcessorPil])
@pytest.mark.parametrize("num_channels", [1, 4])
def test_other_numbers_of_channels(processor_class, num_channels, tmp_path):
    content = FILES["16-bit" if num_channels == 1 else "RGBA"]
    path = tmp_path / "image.png"
    path.write_bytes(content)
    processor = processor_class(
        **SIZES, image_mean=[0.5] * num_channels, image_std=[0.2] * num_channels, do_convert_rgb=False
    )
    expected = process_images(processor, [decode_channels(content, num_channels)])
    assert expected.shape == (1, num_channels, 28, 28)
    for way in (str(path), Image.open(path)):
        assert torch.equal(processor(way, return_tensors="pt")["pixel_values"], expected)


def test_an_array_of_many_channels_has_them_first_or_last():
    """Each channel is what it is alone. (Pillow, in the other processor, resizes no more than four.)"""
    bands = smooth(40, 60, 6)
    processor = DINOv2ImageProcessor(**SIZES, image_mean=[0.5] * 6, image_std=[0.2] * 6, do_convert_rgb=False)
    one = DINOv2ImageProcessor(**SIZES, image_mean=[0.5], image_std=[0.2], do_convert_rgb=False)
    alone = [one(bands[..., c : c + 1], return_tensors="pt")["pixel_values"] for c in range(6)]
    for array in (bands, np.moveaxis(bands, -1, 0)):
        torch.testing.assert_close(processor(array, return_tensors="pt")["pixel_values"], torch.cat(alone, dim=1))


def test_ordinary_pictures_are_as_in_the_stock_processor():
    stock = BitImageProcessor(**SIZES, resample=3, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    image = Image.fromarray(smooth(40, 60, 3))
    for value in (image, np.asarray(image), torch.from_numpy(np.array(image)).permute(2, 0, 1)):
        found = DINOv2ImageProcessor(**SIZES)(value, return_tensors="pt")["pixel_values"]
        assert torch.equal(found, stock(value, return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize("processor_class", [DINOv2ImageProcessor, DINOv2ImageProcessorPil])
def test_what_cannot_be_decoded(processor_class, tmp_path):
    (tmp_path / "broken.png").write_bytes(FILES["RGB"][:100])
    processor = processor_class(**SIZES)
    for way in (str(tmp_path / "broken.png"), str(tmp_path / "none.png"), Image.new("L", (20_000, 1))):
        with pytest.raises(UndecodableImage):
            processor(way, return_tensors="pt")


@pytest.mark.parametrize(
    ("task", "model_class", "answer"),
    [
        ("image-classification", DINOv2ForImageClassification, lambda found: [one["score"] for one in found]),
        (
            "image-segmentation",
            DINOv2ForSemanticSegmentation,
            lambda found: [np.asarray(one["mask"]) for one in found],
        ),
        ("depth-estimation", DINOv2ForDepthEstimation, lambda found: [found["predicted_depth"].numpy()]),
    ],
)
def test_the_pipelines_of_the_heads_decode_alike(task, model_class, answer, tmp_path):
    torch.manual_seed(0)
    head = model_class(DINOv2Config(**TINY, num_labels=3)).eval()
    path = tmp_path / "image.png"
    path.write_bytes(FILES["RGBA"])
    pipe = pipeline(task, model=head, image_processor=DINOv2ImageProcessor(**SIZES), device="cpu")
    whole = Image.open(path).convert("RGBA")
    on_white = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("RGB")
    for found, expected in zip(answer(pipe(str(path))), answer(pipe(on_white)), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_pipelines_of_other_models_stay_what_they_are(model, tmp_path):
    stock = Dinov2Model(Dinov2Config(**TINY))
    processor = BitImageProcessor(**SIZES)
    pipe = pipeline("image-feature-extraction", model=stock, image_processor=processor, device="cpu")
    assert type(pipe) is ImageFeatureExtractionPipeline
    ours = pipeline("image-feature-extraction", model=model, image_processor=DINOv2ImageProcessor(**SIZES))
    assert isinstance(ours, ImageFeatureExtractionPipeline)
    assert type(copy.copy(ours)) is type(ours)
    ours.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))  # no code to be trusted
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is DINOv2ImageProcessor
    assert type(pipeline("image-feature-extraction", model=str(tmp_path))) is type(ours)
