"""Evenly spaced frames of videos: files, or lists of images."""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from .damaged_files import DAMAGE, cause_of, load_saved
from .image_bounds import check_size
from .image_dataset import roots_of
from .image_decoding import UndecodableImage, decode_image, read_content
from .row_paths import confined


# Formats that hold their frames themselves. Others, such as playlists, name files and addresses to be read.
ONLY_VIDEO_FILES = {"format_whitelist": "asf,avi,flv,gif,matroska,mov,mp4,mpeg,mpegts,ogg,webm"}


def load_video_dataset(
    path_or_name: str, *, split: str = "train", video_column: str | None = None
) -> tuple[datasets.Dataset, str]:
    """Load videos, leaving them undecoded.

    Args:
        path_or_name: a folder of video files in class folders, a folder written by `save_to_disk`, a parquet file or a
            folder of them, or the name of a data set on the Hub.
        split: the split to load; train[:1000] is a part of one.
        video_column: the column of the videos; by default the first of type `Video`, or else of lists of images.

    Returns:
        The data set, and the name of its column of videos.

    Raises:
        ValueError: it cannot be loaded, or has no such column; the message lists the columns.
    """
    path = os.path.expanduser(path_or_name)
    try:
        if os.path.exists(os.path.join(path, "dataset_dict.json")):
            dataset = load_saved(path)[split]
        elif os.path.exists(os.path.join(path, "state.json")):
            dataset = load_saved(path)
        elif Path(path).suffix == ".parquet":
            name = split.partition("[")[0]
            dataset = datasets.load_dataset("parquet", data_files={name: path}, split=split)
        else:
            dataset = datasets.load_dataset(path, split=split)
    except (*DAMAGE, FileNotFoundError, ConnectionError, KeyError, ValueError) as error:
        raise ValueError(
            f"the data set {path_or_name!r} of split {split!r} cannot be loaded: {cause_of(error)}"
        ) from error
    found = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Video)]
    found += [name for name, feature in dataset.features.items() if _is_list_of_images(feature)]
    if video_column is not None and video_column not in dataset.features:
        raise ValueError(f"video_column is {video_column!r}, but the data set has {', '.join(dataset.features)}.")
    if video_column is None and not found:
        raise ValueError(
            f"video_column is not given, and no column holds videos or lists of images: {', '.join(dataset.features)}."
        )
    video_column = video_column or found[0]
    return confined(without_decoding(dataset, video_column), roots_of(path)), video_column


def without_decoding(dataset: datasets.Dataset, video_column: str) -> datasets.Dataset:
    """The data set, whose videos or frames `datasets` then leaves as they are stored."""
    feature = dataset.features[video_column]
    if isinstance(feature, datasets.Video):
        return dataset.cast_column(video_column, datasets.Video(decode=False))
    if _is_list_of_images(feature):
        return dataset.cast_column(video_column, datasets.List(datasets.Image(decode=False)))
    return dataset


def decode_frames(
    value: Mapping[str, Any] | bytes | str | os.PathLike | Sequence[Any], num_frames: int
) -> list[Image.Image]:
    """`num_frames` evenly spaced frames of a video, each the middle one of an equal part of it.

    A video of fewer frames gives some of them more than once.

    Args:
        value: a video file, as mapping of `bytes` and `path`, bytes or path, read by PyAV (the extra `evaluation`); or
            a sequence of frames, each as in `decode_image`.

    Raises:
        UndecodableImage: the video or a wanted frame cannot be decoded, or there are no frames.
        ImportError: a video file without PyAV.
    """
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if len(value) == 0:
            raise UndecodableImage("the video has no frames")
        return [decode_image(value[index]) for index in frame_indices(len(value), num_frames)]
    content = read_content(value)
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "video files need PyAV, which is not installed: pip install dinov2_hf[evaluation]."
        ) from error
    try:
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
        # A stream may hold a packet or two more than frames.
        return [frames[index] if index in frames else frames[max(frames)] for index in wanted]
    except UndecodableImage:
        raise
    except Exception as error:  # as in `decode_image`
        raise UndecodableImage(f"{type(error).__name__}: {error}") from error


def frame_indices(count: int, num_frames: int) -> list[int]:
    """The middle frame of each of `num_frames` equal parts of `count` frames."""
    return [int(index) for index in (np.arange(num_frames) + 0.5) * count / num_frames]


def _is_list_of_images(feature: Any) -> bool:
    return isinstance(feature, datasets.List | datasets.LargeList) and isinstance(feature.feature, datasets.Image)
