"""Image files and pictures as others may see them in the dataset and in the report: without faces and metadata."""

import io

from PIL import Image

from ...data.decoding.rgb import decode_image, open_image
from ..arguments import CurationArguments
from ..model_filters import FaceBlur
from .image_reading import read_image_file
from .metadata_stripping import without_metadata


JPEG_QUALITY = 95


def load_face_blur(arguments: CurationArguments) -> FaceBlur | None:
    """The model that blurs faces, if the arguments ask for it."""
    if arguments.face_model is None:
        return None
    return FaceBlur(arguments.face_model, arguments.face_label, arguments.face_threshold, arguments.device)


def published_content(
    content: bytes, *, image_format: str | None, blur: FaceBlur | None, strip_metadata: bool
) -> bytes:
    """An image file as the dataset will hold it: unchanged, unless an option asks for more.

    Args:
        content: the file.
        image_format: "jpeg" or "webp" to encode it anew; None: only if this is needed.
        blur: for faces.
        strip_metadata: see `metadata_stripping`.

    Raises:
        UndecodableImage: it must be decoded, but cannot be.
    """
    if image_format is not None or blur is not None:
        image = decode_image(content)
        blurred = image if blur is None else blur(image)
        # In an animation, only the first frame was looked at for faces.
        if image_format is not None or blurred is not image or _num_frames(content) > 1:
            return _encoded(blurred, image_format or "jpeg", JPEG_QUALITY)
    return without_metadata(content) if strip_metadata else content


def thumbnail(value: dict, side: int, blur: FaceBlur | None) -> bytes:
    """A small JPEG of an image.

    Args:
        value: an undecoded image, `{"bytes", "path"}`.
        side: the longer side, in pixels.
        blur: for faces.

    Returns:
        A file without metadata.

    Raises:
        UndecodableImage, UnreadableFile: the image cannot be read.
    """
    image = decode_image(read_image_file(value))
    if blur is not None:
        image = blur(image)
    image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    if max(image.size) < side // 2:  # tiny images are shown enlarged, pixel by pixel
        scale = side // max(image.size)
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    return _encoded(image, "jpeg", 80)


def _encoded(image: Image.Image, image_format: str, quality: int) -> bytes:
    image = image.copy()
    image.info = {}  # Pillow writes comments and the like into the new file
    buffer = io.BytesIO()
    image.save(buffer, image_format, quality=quality)
    return buffer.getvalue()


def _num_frames(content: bytes) -> int:
    return getattr(open_image(content), "n_frames", 1)
