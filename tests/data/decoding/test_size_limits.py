"""Images beyond the limits are refused by their headers; Pillow never warns of the others."""

import io
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from dinov2_hf.data import UndecodableImage, decode_channels, decode_image
from dinov2_hf.data.decoding.size_limits import VARIABLE, max_image_pixels, set_max_image_pixels
from tests.data.conftest import encode, noise_image


@pytest.fixture(autouse=True)
def own_limit(monkeypatch):
    monkeypatch.setenv(VARIABLE, "178956970")


def png_of(width: int, height: int) -> bytes:
    """A PNG file that says to be of this size, and holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def tiff_of(width: int, height: int, tags: dict[int, int] | None = None, next_page: int = 0) -> bytes:
    """A TIFF file of one directory, in little-endian order; `tags` replace or add to those of 4 bands of 8 bits."""
    values = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 4, 278: height, 279: 0, 284: 1}
    values |= tags or {}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(values.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + struct.pack("<I", next_page)


@pytest.mark.parametrize("decode", [decode_image, lambda value: decode_channels(value, 1)])
@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [
        (100_000, 1, "one side may be at most 100 times the other"),
        (1, 20_000, "one side may be at most 100 times the other"),
        (20_000, 20_000, "more pixels than the 178956970 that `--max_image_pixels` allows"),
        (16_000, 16_000, "16000 x 16000 pixels, more than the 178956970 that `--max_image_pixels`"),
    ],
)
def test_sizes_beyond_the_limits_are_refused_by_the_header(decode, width, height, reason):
    with pytest.raises(UndecodableImage, match=reason):
        decode(png_of(width, height))


def test_one_option_sets_the_limit_here_and_in_other_processes():
    image = encode(noise_image(0, 32, 32))
    set_max_image_pixels(32 * 32 - 1)
    with pytest.raises(UndecodableImage, match="1023 that `--max_image_pixels` allows"):
        decode_image(image)
    with pytest.raises(UndecodableImage, match="1023 that `--max_image_pixels` allows"):
        decode_image(Image.open(io.BytesIO(image)))
    script = "from dinov2_hf.data.decoding.size_limits import max_image_pixels; print(max_image_pixels())"
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "1023\n"
    set_max_image_pixels(32 * 32)
    assert decode_image(image).size == (32, 32)
    set_max_image_pixels(None)
    assert max_image_pixels() == 1024
    with pytest.raises(ValueError, match="--max_image_pixels` is 0, but it must be at least 1"):
        set_max_image_pixels(0)


def test_an_allowed_image_gives_no_warning_at_any_crop(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = decode_image(encode(noise_image(0, 50, 50)))
        image.crop((0, 0, 49, 49))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff_of(20_000, 20_000), "20000 x 20000 pixels, more than"),
        (tiff_of(10_000, 10_000, {277: 9}), "in 9 channels, more than 4 times"),
        (tiff_of(100, 100, {277: 60_000}), "60000 channels or pages, more than the 1024"),
        (tiff_of(100_000, 1), "one side may be at most 100 times"),
        (tiff_of(100, 100, next_page=8), "its list of pages is a circle"),
        (tiff_of(100, 100, next_page=9999), "ends in the middle of its list of pages"),
        (tiff_of(1000, 1000, {278: 1}), "failed to read"),
        (tiff_of(1000, 1000, {279: 4_000_000}), "larger together than the file"),
        (tiff_of(1000, 1000, {322: 1, 323: 1, 324: 8, 325: 0}), "tiles are 1 x 1 pixels, less than 16"),
    ],
)
def test_tiff_files_that_claim_too_much(content, reason):
    pytest.importorskip("tifffile")
    with pytest.raises(UndecodableImage, match=reason):
        decode_channels(content, 4)


def test_a_strip_may_not_unpack_to_more_than_its_part():
    tifffile = pytest.importorskip("tifffile")
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer, np.zeros((32, 32, 4), np.uint8), photometric="minisblack", planarconfig="contig", compression="zlib"
    )
    content = buffer.getvalue()
    assert decode_channels(content, 4).shape == (32, 32, 4)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages[0]
        offset, size = page.tags[273], page.tags[279]
    bomb = zlib.compress(bytes(10_000_000))
    changed = bytearray(content + bomb)
    for tag, value in ((offset, len(content)), (size, len(bomb))):
        struct.pack_into("<I" if tag.dtype == 4 else "<H", changed, tag.valueoffset, value)
    with pytest.raises(UndecodableImage, match="unpacks to more than its part"):
        decode_channels(bytes(changed), 4)


@pytest.mark.parametrize("format", ["EPS", "ICO", "PCX", "TGA"])
def test_other_formats_of_pillow_are_not_opened(format, monkeypatch):
    image = Image.new("RGB", (16, 16), "red")
    content = encode(image, format)
    with pytest.raises(UndecodableImage, match="not an image in a format that is read .AVIF, BMP"):
        decode_image(content)
    with pytest.raises(UndecodableImage, match="not an image in a format that is read"):
        decode_channels(content, 1)


@pytest.mark.parametrize("format", ["AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"])
def test_the_formats_of_the_docs_are_opened(format):
    if format not in Image.SAVE and (Image.init() or format not in Image.SAVE):
        pytest.skip(f"this Pillow has no {format}")
    options = {"append_images": [Image.new("RGB", (24, 16))], "save_all": True} if format == "MPO" else {}
    assert decode_image(encode(Image.new("RGB", (24, 16), "red"), format, **options)).size == (24, 16)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (
            np.linspace(0, 255, 64, dtype=np.float32).reshape(8, 8),
            "floats from 0 to 255, but floats are",
        ),
        (np.full((8, 8), -40.0), "floats from -40 to -40"),
        (np.full((8, 8), np.nan), "NaN or infinite"),
        (np.full((8, 8), np.inf, np.float16), "NaN or infinite"),
    ],
)
def test_floats_of_another_scale_are_refused(array, reason):
    buffer = io.BytesIO()
    np.save(buffer, array)
    with pytest.raises(UndecodableImage, match=reason):
        decode_channels(buffer.getvalue(), 1)


def test_a_header_of_numpy_cannot_ask_for_more_than_the_file_holds():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((10, 10, 4), np.uint8))
    for shape in (b"(99, 90, 4)", b"(999, 1, 4)"):
        changed = buffer.getvalue().replace(b"(10, 10, 4)", shape)
        with pytest.raises(UndecodableImage, match="too short|at most 100 times"):
            decode_channels(changed, 4)
