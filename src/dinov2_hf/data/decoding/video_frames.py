"""Evenly spaced frames of videos, from files or from lists of images."""

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from .file_content import read_content
from .rgb import decode_image
from .size_limits import check_size
from .undecodable import UndecodableImage, undecodable_on_error


# Formats that contain their frames. Others, such as playlists, name files and addresses that would be read.
ONLY_VIDEO_FILES = {"format_whitelist": "asf,avi,flv,gif,matroska,mov,mp4,mpeg,mpegts,ogg,webm"}


def decode_frames(
    value: Mapping[str, Any] | bytes | str | os.PathLike | Sequence[Any], num_frames: int
) -> list[Image.Image]:
    """`num_frames` evenly spaced frames of a video, each the middle one of an equal part of it.

    If a video has fewer frames, some of them are returned more than once.

    Args:
        value: a video file, as mapping of `bytes` and `path`, bytes or path, read by PyAV (the extra `evaluation`); or
            a sequence of frames, each as in `decode_image`.

    Raises:
        UndecodableImage: the video or a needed frame cannot be decoded, or there are no frames.
        ImportError: it is a video file, and PyAV is not installed.
    """
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        images: Sequence[Any] = value
        if len(images) == 0:
            raise UndecodableImage("the video has no frames")
        return [decode_image(images[index]) for index in frame_indices(len(images), num_frames)]
    content = read_content(value)
    try:
        import av
    except ImportError as error:
        raise ImportError(
            'video files need PyAV, which is not installed: pip install "dinov2_hf[evaluation]".'
        ) from error
    with undecodable_on_error():
        with av.open(io.BytesIO(content), options=ONLY_VIDEO_FILES) as container:
            stream = container.streams.video[0]
            check_size(stream.width, stream.height)
            count = sum(1 for packet in container.demux(stream) if packet.size)  # counted without decoding
        wanted = frame_indices(count, num_frames)
        frames = {}
        with av.open(io.BytesIO(content), options=ONLY_VIDEO_FILES) as container:
            container.streams.video[0].thread_type = "AUTO"
            for index, frame in enumerate(container.decode(video=0)):
                if index in wanted:
                    frames[index] = frame.to_image()
                if index >= wanted[-1]:
                    break
        # A stream may have one or two packets more than frames.
        return [frames[index] if index in frames else frames[max(frames)] for index in wanted]


def frame_indices(count: int, num_frames: int) -> list[int]:
    """The middle frame of each of `num_frames` equal parts of `count` frames."""
    return [int(index) for index in (np.arange(num_frames) + 0.5) * count / num_frames]
