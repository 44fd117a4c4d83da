"""Image files without what they say about people and places: EXIF with GPS and previews, XMP, IPTC, comments, texts.

JPEG, PNG and WebP files lose those parts and keep all others byte for byte, so their pixels are the same. A picture
that is stored on its side stays as it is, and keeps its orientation as the only EXIF tag. Other formats are written
anew without loss. What follows the end of an image in its file (a second picture, a film) is removed too.
"""

import io
import re
import zlib

from PIL import ExifTags, Image

from ...data.decoding.rgb import open_image, turn_upright
from ...data.decoding.undecodable import UndecodableImage


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Chunks beside the critical ones that change how pixels look, or hold the frames of an animation.
PNG_KEPT = frozenset(
    b"tRNS cHRM gAMA iCCP sBIT sRGB cICP mDCV cLLI bKGD hIST pHYs acTL fcTL fdAT".split()
)  # fmt: skip
PNG_CRITICAL = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND"))
PNG_MODES = frozenset(("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B"))
WEBP_KEPT = frozenset((b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP"))
WEBP_HAS_EXIF, WEBP_HAS_XMP = 0x08, 0x04
# The next marker in the entropy-coded data of a JPEG: FF 00 is a byte of data, FF D0 to FF D7 restart the decoder.
JPEG_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")


def without_metadata(content: bytes) -> bytes:
    """An image file without metadata, which decodes to the same pixels.

    Args:
        content: a file that `decode_image` reads. Animated images in other formats than PNG and WebP keep only their
            first frame, which is the frame that `decode_image` reads.

    Raises:
        UndecodableImage: it must be written anew, but cannot be decoded.
    """
    for signature, strip in ((b"\xff\xd8", _strip_jpeg), (PNG_SIGNATURE, _strip_png), (b"RIFF", _strip_webp)):
        if content.startswith(signature):
            try:
                return strip(content, _orientation(content))
            except (_Unusual, OSError, ValueError, SyntaxError):  # a file with errors that decoders put up with
                break
    return _written_anew(content)


class _Unusual(Exception):
    """A file is not built as its format says."""


def _orientation(content: bytes) -> int:
    """2 to 8 if a picture must be turned or mirrored, otherwise 1; it is read as in decoding."""
    if content.startswith(PNG_SIGNATURE) and not any(name in content for name in (b"eXIf", b"iTXt", b"tEXt", b"zTXt")):
        return 1  # Pillow would decode the whole picture to find that it has none
    with Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP")) as image:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    return found if found in range(2, 9) else 1


def _exif(orientation: int) -> bytes:
    """A TIFF directory of one tag."""
    tag = ExifTags.Base.Orientation.to_bytes(2, "little") + b"\x03\0\x01\0\0\0" + orientation.to_bytes(4, "little")
    return b"II*\0\x08\0\0\0" + b"\x01\0" + tag + b"\0\0\0\0"


def _strip_jpeg(content: bytes, orientation: int) -> bytes:
    head, parts, place = [b"\xff\xd8"], [], 2
    while True:
        while content[place : place + 2] == b"\xff\xff":
            place += 1
        marker = content[place : place + 2]
        if marker == b"\xff\xd9":
            break
        end = place + 2 + int.from_bytes(content[place + 2 : place + 4], "big")
        if len(marker) < 2 or marker[0] != 0xFF or marker[1] < 0xC0 or 0xD0 <= marker[1] <= 0xD8:
            raise _Unusual
        if end < place + 4 or end > len(content):
            raise _Unusual
        kind, payload = marker[1], content[place + 4 : end]
        if kind == 0xE0 and payload.startswith(b"JFIF\0") and len(payload) >= 14:
            head.append(b"\xff\xe0\0\x10" + payload[:12] + b"\0\0")  # without its preview
        elif not (0xE0 <= kind <= 0xEF or kind == 0xFE) or _changes_colours(kind, payload):
            parts.append(content[place:end])
        place = end
        if kind == 0xDA:
            found = JPEG_MARKER.search(content, place)
            if found is None:
                raise _Unusual
            parts.append(content[place : found.start()])
            place = found.start()
    if orientation != 1:
        payload = b"Exif\0\0" + _exif(orientation)
        head.append(b"\xff\xe1" + (len(payload) + 2).to_bytes(2, "big") + payload)
    return b"".join([*head, *parts, b"\xff\xd9"])


def _changes_colours(kind: int, payload: bytes) -> bool:
    """Whether an APP segment of a JPEG says what its numbers mean: an ICC profile, or the colours of Adobe's files."""
    return (kind == 0xE2 and payload.startswith(b"ICC_PROFILE\0")) or (kind == 0xEE and payload.startswith(b"Adobe"))


def _strip_png(content: bytes, orientation: int) -> bytes:
    parts, place, name = [PNG_SIGNATURE], len(PNG_SIGNATURE), b""
    while name != b"IEND":
        length, name = int.from_bytes(content[place : place + 4], "big"), content[place + 4 : place + 8]
        end = place + 12 + length
        is_critical = name[:1].isupper()
        if end > len(content) or (is_critical and name not in PNG_CRITICAL):
            raise _Unusual
        if is_critical or name in PNG_KEPT:
            parts.append(content[place:end])
        if name == b"IHDR" and orientation != 1:
            data = b"eXIf" + _exif(orientation)
            parts.append((len(data) - 4).to_bytes(4, "big") + data + zlib.crc32(data).to_bytes(4, "big"))
        place = end
    return b"".join(parts)


def _strip_webp(content: bytes, orientation: int) -> bytes:
    end_of_file = 8 + int.from_bytes(content[4:8], "little")
    if content[8:12] != b"WEBP" or end_of_file > len(content):
        raise _Unusual
    parts, place, is_extended = [b"WEBP"], 12, False
    while place + 8 <= end_of_file:
        name, length = content[place : place + 4], int.from_bytes(content[place + 4 : place + 8], "little")
        end = place + 8 + length + length % 2
        if place + 8 + length > len(content):
            raise _Unusual
        part = content[place:end]
        if name == b"VP8X":
            is_extended = True
            flags = part[8] & ~(WEBP_HAS_EXIF | WEBP_HAS_XMP) | (WEBP_HAS_EXIF if orientation != 1 else 0)
            part = part[:8] + bytes([flags]) + part[9:]
        if name in WEBP_KEPT:
            parts.append(part)
        place = end
    if orientation != 1:
        if not is_extended:
            raise _Unusual
        data = _exif(orientation)
        parts.append(b"EXIF" + len(data).to_bytes(4, "little") + data + b"\0" * (len(data) % 2))
    data = b"".join(parts)
    return b"RIFF" + len(data).to_bytes(4, "little") + data


def _written_anew(content: bytes) -> bytes:
    """The pixels in a new file: PNG, or TIFF if PNG cannot hold them (floats, 32 bits, CMYK)."""
    try:
        image = turn_upright(open_image(content)).copy()
        image.info = {name: image.info[name] for name in ("icc_profile", "transparency") if name in image.info}
        buffer = io.BytesIO()
        image.save(buffer, "PNG" if image.mode in PNG_MODES else "TIFF")
    except UndecodableImage:
        raise
    except Exception as error:  # decoders raise nearly anything
        raise UndecodableImage(f"{type(error).__name__}: {error}") from error
    return buffer.getvalue()
