"""Every number of an image file arrives, on the scale of 8 bits."""

import builtins
import io

import numpy as np
import pytest
from PIL import Image

from dinov2_hf.data import UndecodableImage, decode_channels, decode_image, image_decoder
from tests.data.conftest import encode, noise_image


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def numbers(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    generator = np.random.default_rng(0)
    if dtype == "float32":
        return generator.normal(size=shape).astype(dtype)
    return generator.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


@pytest.mark.parametrize(
    ("dtype", "unit"), [("uint8", 1), ("uint16", 1 / 257), ("int16", 255 / 32767), ("float32", 255)]
)
def test_types_share_one_scale(dtype, unit):
    array = numbers(dtype, (6, 7, 5))
    decoded = decode_channels(npy(array), 5)
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, array.astype(np.float64) * unit, rtol=1e-6)


def test_grey():
    array = numbers("uint8", (6, 7))
    assert (decode_channels(encode(Image.fromarray(array)), 1) == array[..., None]).all()
    assert (decode_channels(npy(array), 1) == array[..., None]).all()
    deep = numbers("uint16", (6, 7))
    for format in ("PNG", "TIFF"):
        decoded = decode_channels(encode(Image.fromarray(deep), format), 1)
        np.testing.assert_allclose(decoded, deep[..., None] / 257, rtol=1e-6)
        assert len(np.unique(decoded)) > 40  # of 42; 8 bits would keep apart about 39 of these
    colour = noise_image(0)
    assert (decode_channels(encode(colour), 1)[..., 0] == np.asarray(colour.convert("L"))).all()
    assert (decode_channels(colour, 1)[..., 0] == np.asarray(colour.convert("L"))).all()


def test_grey_is_turned_upright():
    image = Image.fromarray(numbers("uint8", (6, 9)))
    exif = Image.Exif()
    exif[0x0112] = 3
    decoded = decode_channels(encode(image, exif=exif), 1)
    assert (decoded[..., 0] == np.asarray(image)[::-1, ::-1]).all()


def test_four_channels_of_a_picture():
    array = numbers("uint8", (6, 7, 4))
    assert (decode_channels(encode(Image.fromarray(array, "RGBA")), 4) == array).all()


@pytest.mark.parametrize("planes", ["contig", "separate", "pages"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_tiff_of_many_bands(planes, dtype):
    tifffile = pytest.importorskip("tifffile")
    array, buffer = numbers(dtype, (6, 9, 8)), io.BytesIO()
    if planes == "pages":
        tifffile.imwrite(buffer, array.transpose(2, 0, 1), photometric="minisblack")
    else:
        pixels = array if planes == "contig" else array.transpose(2, 0, 1)
        tifffile.imwrite(buffer, pixels, photometric="minisblack", planarconfig=planes)
    expected = decode_channels(npy(array), 8)
    assert (decode_channels(buffer.getvalue(), 8) == expected).all()
    assert (decode_channels({"bytes": buffer.getvalue(), "path": "8_bands.tif"}, 8) == expected).all()


def test_three_channels_are_rgb():
    assert image_decoder(3) is decode_image
    assert image_decoder(1)(encode(noise_image(0))).shape == (24, 32, 1)


@pytest.mark.parametrize(
    ("content", "num_channels", "message"),
    [
        (npy(np.zeros((4, 4, 3))), 5, r"shape \(4, 4, 3\), not \(height, width, 5\)"),
        (npy(np.zeros((2, 4, 4, 3))), 3, r"shape \(2, 4, 4, 3\)"),
        (npy(np.zeros((4, 4, 2), dtype=complex)), 2, "type complex128"),
        (encode(noise_image(0)), 4, r"shape \(24, 32, 3\), not"),
        (b"", 4, "the file is empty"),
        (b"not an image", 1, "not an image in a format that is read"),
        (npy(np.zeros((4, 4, 5)))[:150], 5, "too short"),
    ],
)
def test_what_cannot_be_decoded(content, num_channels, message):
    with pytest.raises(UndecodableImage, match=message):
        decode_channels(content, num_channels)


def test_pickles_are_not_opened():
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UndecodableImage, match="type object"):
        decode_channels(buffer.getvalue(), 1)


def test_a_missing_library_is_no_broken_image(monkeypatch):
    real_import = builtins.__import__

    def without_tifffile(name, *args, **kwargs):
        if name == "tifffile":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_tifffile)
    content = encode(noise_image(0), "TIFF")
    with pytest.raises(ValueError, match="TIFF files of several bands need tifffile") as error:
        decode_channels(content, 4)
    assert not isinstance(error.value, UndecodableImage)
