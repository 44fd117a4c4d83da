"""Damaged and hostile files: each is decoded within bounds, or refused as an `UndecodableImage`.

Seeded, so that a failure comes again; the failing file is printed in hex. `make fuzz` runs it for minutes. The files
are decoded in a process of their own, whose memory is limited, and which is ended when one file takes too long.
"""

import io
import multiprocessing
import os
import resource
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from dinov2_hf.data import UndecodableImage, decode_channels, decode_image
from tests.data.conftest import encode, noise_image

from .test_channels import npy
from .test_size_limits import png_of, tiff_of


# DINOV2_HF_FUZZ_SECONDS is set by `make fuzz`.
SECONDS = float(os.environ.get("DINOV2_HF_FUZZ_SECONDS", 0))
PNG_BEGINNING = b"\x89PNG\r\n\x1a\n"
FILES_OF_THE_SUITE = 150  # of each format
MEMORY_BYTES = 2 * 2**30  # above what the process has when it starts
# One file may not hang; what a machine under load needs is far less.
MAX_SECONDS_PER_FILE = 60


def tiff(array: np.ndarray, **options) -> bytes:
    tifffile = pytest.importorskip("tifffile")
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **{"photometric": "minisblack"} | options)
    return buffer.getvalue()


def seeds_of(format: str) -> list[bytes]:
    """Whole files to damage."""
    picture = noise_image(0, 20, 24)
    bands = np.random.default_rng(0).integers(0, 256, (32, 48, 4), dtype=np.uint8)
    if format == "NPY":
        return [npy(bands), npy(bands.astype(np.float32) / 255), npy(bands[..., 0].astype(np.uint16))]
    if format == "TIFF":
        exif = Image.Exif()
        exif[0x0112] = 6
        planes = bands.transpose(2, 0, 1)
        return [
            tiff(bands, planarconfig="contig"),
            tiff(planes, planarconfig="separate", compression="zlib"),
            tiff(planes, compression="lzma"),
            tiff(planes, ome=True),
            tiff(planes, imagej=True),
            tiff(bands, planarconfig="contig", tile=(16, 16), bigtiff=True),
            tiff(planes, byteorder=">"),
            encode(picture, "TIFF", compression="tiff_lzw", exif=exif),
            tiff_of(30, 20),
            tiff_of(30, 20, next_page=8),
            tiff_of(9000, 9000),
        ]
    if format == "PNG":
        return [
            encode(picture),
            encode(picture.convert("RGBA")),
            encode(picture.quantize(16), transparency=3),
            encode(Image.fromarray(bands[..., 0].astype(np.uint16) * 257)),
            png_of(9000, 9000),
        ]
    if format == "JPEG":
        exif = Image.Exif()
        exif[0x0112] = 3
        return [encode(picture, format, exif=exif), encode(picture.convert("CMYK"), format, progressive=True)]
    if format == "GIF":
        return [encode(picture.quantize(16), format, save_all=True, append_images=[picture.quantize(8)])]
    return [encode(picture, format)]


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """One of the ways in which files are wrong: bits, extreme numbers, cuts, repeats and exchanges."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        way, place = int(rng.integers(7)), int(rng.integers(len(data)))
        # Headers decide, so half of the damage is done there.
        place = place % 128 if rng.random() < 0.5 else place
        place = min(place, len(data) - 1)
        if way == 0:
            data[place] ^= 1 << int(rng.integers(8))
        elif way == 1:
            data[place] = int(rng.integers(256))
        elif way in (2, 3):
            extremes = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, len(data), 20_000, 100_000)
            value = extremes[int(rng.integers(len(extremes)))]
            order, code = ("<", ">")[int(rng.integers(2))], "HI"[int(value > 0xFFFF or way == 3)]
            packed = struct.pack(order + code, value)
            data[place : place + len(packed)] = packed
        elif way == 4:
            del data[place:]
            data = data or bytearray(b"\0")
        elif way == 5:
            length = int(rng.integers(1, 64))
            data[place:place] = data[place : place + length]
        else:
            length, other = int(rng.integers(1, 32)), int(rng.integers(len(data)))
            data[place : place + length] = data[other : other + length]
    # A decoder that checks sums would look no further.
    return with_right_sums(bytes(data)) if content.startswith(PNG_BEGINNING) and rng.random() < 0.7 else bytes(data)


def with_right_sums(content: bytes) -> bytes:
    """A PNG file whose chunks have right checksums, as far as it is one."""
    data, place = bytearray(content), len(PNG_BEGINNING)
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            break
        struct.pack_into(">I", data, end, zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return bytes(data)


def decode_all(contents, connection) -> None:
    """In the process of its own: says which file it is at, and what went wrong with one."""
    with open("/proc/self/statm") as file:
        in_use = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY_BYTES, resource.RLIM_INFINITY))
    for number, content in enumerate(contents):
        connection.send(("at", number))
        for channels in (3, 1, 4):
            try:
                picture = decode_image(content) if channels == 3 else decode_channels(content, channels)
            except UndecodableImage as reason:
                if "MemoryError" in str(reason):
                    connection.send(("wrong", f"{channels} channels: {reason}"))
            except BaseException as error:
                connection.send(("wrong", f"{channels} channels: {type(error).__name__}: {error}"))
            else:
                connection.send(("decoded", channels))
                shape = (*picture.size[::-1], 3) if channels == 3 else picture.shape
                if shape[2] != channels or min(shape) < 1:
                    connection.send(("wrong", f"{channels} channels: shape {shape}"))
    connection.send(("end", None))


def check(contents: list[bytes]) -> int:
    """How many times a file was decoded; fails where one did anything else than that or raise `UndecodableImage`."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=decode_all, args=(contents, theirs), daemon=True)
    process.start()
    theirs.close()
    at, problem, num_decoded = 0, None, 0
    try:
        while problem is None:
            if not ours.poll(MAX_SECONDS_PER_FILE):
                problem = f"took more than {MAX_SECONDS_PER_FILE} seconds"
                break
            word, value = ours.recv()
            if word == "end":
                return num_decoded
            num_decoded += word == "decoded"
            at = value if word == "at" else at
            problem = value if word == "wrong" else None
    except EOFError:
        process.join()
        problem = f"ended the process with {process.exitcode}"
    finally:
        process.kill()
        process.join()
    pytest.fail(f"file {at} {problem}: {contents[at][:4000].hex()}")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork") or not os.path.exists("/proc/self/statm"), reason="needs fork and /proc")
@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP", "PPM", "JPEG2000", "AVIF", "NPY"])
def test_damaged_files_are_decoded_within_bounds_or_refused(format):
    Image.init()
    if format != "NPY" and format not in Image.SAVE:
        pytest.skip(f"this Pillow has no {format}")
    begin = time.monotonic()
    wholes = seeds_of(format)
    assert check(wholes)
    num_decoded = 0
    # The suite uses round 0; `make fuzz` goes on until its time is over.
    for round in range(1 if not SECONDS else 2**31):
        rng = np.random.default_rng([round, *format.encode()])
        num_decoded += check([damaged(wholes[i % len(wholes)], rng) for i in range(FILES_OF_THE_SUITE)])
        if SECONDS and time.monotonic() - begin > SECONDS:
            break
    assert num_decoded, "the damage is so great that decoders see nothing of the files"


def test_what_is_wrong_is_found(monkeypatch):
    """Of a decoder that takes too much memory, raises something else, or ends the process."""
    whole = encode(noise_image(0))
    assert check([whole]) == 2
    for fault, message in (
        (lambda content: bytearray(4 * MEMORY_BYTES), "MemoryError"),
        (lambda content: [][0], "IndexError"),
        (lambda content: os._exit(7), "ended the process with 7"),
    ):
        monkeypatch.setattr(f"{__name__}.decode_image", fault)
        with pytest.raises(pytest.fail.Exception, match=f"file 0 .*{message}.*: {whole[:8].hex()}"):
            check([whole])
