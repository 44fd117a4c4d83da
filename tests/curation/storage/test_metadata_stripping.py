"""What an image file says beside its pixels is gone; the pixels are the same, and the right way up."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin

from dinov2_hf.curation.storage.metadata_stripping import without_metadata
from dinov2_hf.data import UndecodableImage, decode_image
from tests.curation.scenes import encoded, scene


SECRET = b"GPS-48.2-16.4"
ORIENTATION = 0x0112


def exif(orientation: int | None) -> Image.Exif:
    """With a secret in a description, a camera and a place, and a preview."""
    tags = Image.Exif()
    tags[0x010E] = SECRET.decode()
    tags[0x010F] = "Camera"
    tags.get_ifd(0x8825).update({1: "N", 2: (48.0, 12.0, 0.0), 29: SECRET.decode()})
    if orientation is not None:
        tags[ORIENTATION] = orientation
    return tags


def xmp() -> bytes:
    return b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>" + SECRET + b"</x:xmpmeta>"


def jpeg(orientation=None, **options) -> bytes:
    content = encoded(scene(0), "JPEG", exif=exif(orientation), comment=SECRET, xmp=xmp(), **options)
    iptc = b"\xff\xed" + struct.pack(">H", 2 + 14 + len(SECRET)) + b"Photoshop 3.0\0" + SECRET
    second = b"\xff\xe2" + struct.pack(">H", 2 + 4 + len(SECRET)) + b"MPF\0" + SECRET
    return content[:2] + iptc + second + content[2:] + SECRET


def png(orientation=None, **options) -> bytes:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", SECRET.decode())
    texts.add_itxt("XML:com.adobe.xmp", xmp().decode())
    texts.add_text("Author", SECRET.decode(), zip=True)
    texts.add(b"prVt", SECRET)
    return encoded(scene(0), "PNG", exif=exif(orientation), pnginfo=texts, **options) + SECRET


def webp(orientation=None, **options) -> bytes:
    return encoded(scene(0), "WEBP", exif=exif(orientation), xmp=xmp(), **options)


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(decode_image(content))


@pytest.mark.parametrize("orientation", [None, 1, *range(2, 9)])
@pytest.mark.parametrize(
    "write",
    [
        jpeg, lambda o: jpeg(o, progressive=True), lambda o: jpeg(o, restart_marker_rows=1), png, webp,
        lambda o: webp(o, lossless=True),
    ],
    ids=["jpeg", "progressive", "restarts", "png", "webp", "lossless webp"],
)  # fmt: skip
def test_pixels_stay_and_the_rest_goes(write, orientation):
    content = write(orientation)
    assert SECRET in content
    stripped = without_metadata(content)
    np.testing.assert_array_equal(pixels(stripped), pixels(content))
    assert SECRET not in stripped
    opened = Image.open(io.BytesIO(stripped))
    assert opened.format == Image.open(io.BytesIO(content)).format
    assert opened.size == scene(0).size  # stored as before
    expected = {} if orientation in (None, 1) else {ORIENTATION: orientation}
    assert dict(opened.getexif()) == expected
    assert not {"comment", "xmp", "photoshop", "Comment", "Author"} & set(opened.info)
    assert without_metadata(stripped) == stripped


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "WEBP"])
def test_a_file_without_metadata_stays_as_it_is(suffix):
    content = encoded(scene(0), suffix)
    assert without_metadata(content) == content


def test_what_tells_colours_stays():
    profile = b"\0" * 128
    for write in (jpeg, png, webp):
        opened = Image.open(io.BytesIO(without_metadata(write(6, icc_profile=profile))))
        assert opened.info["icc_profile"] == profile
    cmyk = encoded(scene(0).convert("CMYK"), "JPEG", exif=exif(3))
    np.testing.assert_array_equal(pixels(without_metadata(cmyk)), pixels(cmyk))
    grey = scene(0).convert("P")
    content = encoded(grey, "PNG", transparency=3, exif=exif(5))
    np.testing.assert_array_equal(pixels(without_metadata(content)), pixels(content))


def test_a_preview_in_the_header_goes():
    content = encoded(scene(0), "JPEG")
    header = b"JFIF\0\x01\x01\0\0\x01\0\x01\x02\x01" + b"\xab\xcd\xef\x12\x34\x56"
    assert content[2:4] == b"\xff\xe0"
    content = content[:2] + b"\xff\xe0" + struct.pack(">H", len(header) + 2) + header + content[20:]
    stripped = without_metadata(content)
    np.testing.assert_array_equal(pixels(stripped), pixels(content))
    assert b"\xab\xcd\xef\x12\x34\x56" not in stripped


def sixteen_bits() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 65536, (72, 96), dtype=np.uint16))


@pytest.mark.parametrize(
    ("image", "suffix", "becomes"),
    [
        (scene(0), "TIFF", "PNG"), (scene(0), "BMP", "PNG"), (scene(0).convert("P"), "GIF", "PNG"),
        (sixteen_bits(), "TIFF", "PNG"), (scene(0).convert("CMYK"), "TIFF", "TIFF"),
        (scene(0).convert("F"), "TIFF", "TIFF"), (scene(0), "JPEG2000", "PNG"), (scene(0).convert("L"), "PPM", "PNG"),
    ],
)  # fmt: skip
def test_other_formats_are_written_anew_without_loss(image, suffix, becomes):
    options = {"TIFF": {"exif": exif(6)}, "GIF": {"comment": SECRET}}.get(suffix, {})
    content = encoded(image, suffix, **options)
    assert (SECRET in content) == bool(options)
    stripped = without_metadata(content)
    np.testing.assert_array_equal(pixels(stripped), pixels(content))
    assert SECRET not in stripped
    opened = Image.open(io.BytesIO(stripped))
    assert opened.format == becomes
    assert opened.getexif().get(ORIENTATION, 1) == 1
    assert not set(opened.getexif()) - set(range(0x0100, 0x011D)) - {TiffImagePlugin.EXTRASAMPLES, 339}


@pytest.mark.parametrize("write", [jpeg, png, webp])
def test_damaged_files_end_in_a_picture_or_a_reason(write):
    """Cut at any place, or with any byte changed: never an error of another kind, never the secret."""
    content, generator = write(6), np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(content)
        if generator.random() < 0.5:
            damaged = damaged[: int(generator.integers(2, len(content)))]
        for place in generator.integers(2, len(damaged), 2):
            damaged[place] = int(generator.integers(256))
        damaged = bytes(damaged)
        try:
            before = pixels(damaged)
        except UndecodableImage:
            continue
        try:
            stripped = without_metadata(damaged)
        except UndecodableImage:
            continue
        np.testing.assert_array_equal(pixels(stripped), before)
        assert SECRET not in stripped
