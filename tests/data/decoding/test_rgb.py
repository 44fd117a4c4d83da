import numpy as np
import pytest
from PIL import Image

from dinov2_hf.data.decoding.rgb import decode_image
from dinov2_hf.data.decoding.undecodable import UndecodableImage
from tests.data.conftest import encode, noise_image


RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    """Top left, top right, bottom left."""
    return [image.getpixel(position) for position in ((0, 0), (image.width - 1, 0), (0, image.height - 1))]


def flag() -> Image.Image:
    """24 wide, 16 high; red at the top left, green at the top right, blue below."""
    image = Image.new("RGB", (24, 16), BLUE)
    image.paste(RED, (0, 0, 12, 8))
    image.paste(GREEN, (12, 0, 24, 8))
    return image


def test_a_picture_is_kept_exactly():
    image = noise_image(0)
    content = encode(image)
    assert (np.asarray(decode_image(content)) == np.asarray(image)).all()


def test_every_way_to_hand_over_an_image(tmp_path):
    content = encode(flag())
    path = tmp_path / "flag.png"
    path.write_bytes(content)
    for value in (
        content,
        path,
        str(path),
        f"file://{path}",
        flag(),
        {"bytes": content, "path": None},
        {"bytes": None, "path": str(path)},
        {"bytes": content, "path": "not/there.png"},
    ):
        image = decode_image(value)
        assert image.mode == "RGB"
        assert corners(image) == [RED, GREEN, BLUE]


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [RED, GREEN, BLUE]),
        (2, [GREEN, RED, BLUE]),
        (3, [BLUE, BLUE, GREEN]),
        (6, [BLUE, RED, BLUE]),
        (8, [GREEN, BLUE, RED]),
    ],
)
def test_exif_orientation_is_applied(orientation, expected):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(encode(flag(), exif=exif))
    assert image.size == ((24, 16) if orientation < 5 else (16, 24))
    assert corners(image) == expected


def test_cmyk():
    image = decode_image(encode(flag().convert("CMYK"), "JPEG", quality=95))
    assert image.mode == "RGB"
    assert np.allclose(corners(image), [RED, GREEN, BLUE], atol=12)


def test_grey():
    image = decode_image(encode(Image.new("L", (4, 4), 77)))
    assert corners(image) == [(77, 77, 77)] * 3


def test_16_bit_grey_is_scaled_and_not_clipped():
    ramp = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    image = decode_image(encode(Image.fromarray(ramp)))
    assert np.asarray(image)[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 100, 255]], dtype=np.int32), [0, 100, 255]),
        (np.array([[0, 1, 1]], dtype=np.int32), [0, 1, 1]),
        (np.array([[0, 25700, 65535]], dtype=np.int32), [0, 100, 255]),
        (np.array([[-100, 0, 100]], dtype=np.int32), [0, 128, 255]),
        (np.array([[0.0, 0.4, 1.0]], dtype=np.float32), [0, 102, 255]),
        (np.array([[0.0, 40.0, 255.0]], dtype=np.float32), [0, 40, 255]),
        (np.array([[5e6, 5e6, 5e6]], dtype=np.float32), [0, 0, 0]),
    ],
)
def test_32_bit_grey_is_scaled_to_the_range_it_uses(values, expected):
    image = decode_image(encode(Image.fromarray(values), "TIFF"))
    assert np.asarray(image)[0, :, 0].tolist() == expected


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_composited_on_white(mode):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    decoded = decode_image(encode(image.convert(mode)))
    assert corners(decoded) == [WHITE, (0, 0, 0), (0, 0, 0)]


def test_palette_with_transparency():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((0, 0), 0)
    decoded = decode_image(encode(image, transparency=0))
    assert corners(decoded) == [WHITE, RED, RED]


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    content = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert corners(decode_image(content)) == [RED] * 3


def test_an_image_in_memory_is_left_as_it_is():
    image = flag().convert("RGBA")
    decode_image(image)
    assert image.mode == "RGBA"


@pytest.mark.parametrize(
    ("format", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("GIF", {})]
)
def test_truncated_files_are_errors(format, options):
    content = encode(noise_image(0, 64, 64), format, **options)
    with pytest.raises(UndecodableImage):
        decode_image(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "empty"),
        ({"bytes": b"", "path": "a.jpg"}, "empty"),
        (b"just a text", "not an image"),
        ({"bytes": None, "path": "not/there.jpg"}, "FileNotFoundError"),
        ({"bytes": None, "path": None}, "no image"),
        (None, "no image"),
    ],
)
def test_what_is_no_image_is_an_error_with_a_reason(value, reason):
    with pytest.raises(UndecodableImage, match=reason):
        decode_image(value)
