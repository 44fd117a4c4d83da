"""Reads and decodes images once, for everything that needs their pixels: facts, filters, and the input of an embedder.

Loader workers read, decode and process a batch while the model runs over the one before. Large JPEG files are decoded
at a smaller size if nothing needs all of their pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ...data.decoded_images import process_images
from ...data.decoding.file_content import is_url, outside_path
from ...data.decoding.rgb import decode_image, format_of
from ...data.decoding.undecodable import UndecodableImage
from ...data.loader_workers import leave_interruption_to_parent
from ...public_names import without_secrets
from ..algorithms.image_hashes import content_hash, perceptual_hash
from ..pixels import reduction
from ..storage.image_reading import UnreadableFile, read_image_file
from ..storage.sources import OpenSources


@dataclass
class ReadImage:
    """
    Attributes:
        row_id: of the image.
        facts: `path`; if the image could be decoded also `width`, `height`, `num_bytes`, `format` and the hashes.
        reason: why it could not be decoded; None: it could.
        is_unreadable: the file could not be read, and may be readable another time.
        image: the picture, if the caller wants it.
        pixel_values: the input of the embedder, (1, ...), if a worker has made it.
    """

    row_id: int
    facts: dict[str, Any]
    reason: str | None = None
    is_unreadable: bool = False
    image: Image.Image | None = None
    pixel_values: np.ndarray | None = None


def read_images(
    sources: OpenSources,
    row_ids: Sequence[int],
    *,
    is_reduced: bool,
    batch_size: int,
    num_workers: int = 0,
    process: Callable | None = None,
    keeps_images: bool = True,
) -> Iterator[list[ReadImage]]:
    """Read and decode images, in batches, in their order.

    Args:
        is_reduced: decode large JPEG files at a smaller size, see `pixels`.
        num_workers: processes that read and decode. 0: this process does it.
        process: makes the input of an embedder from a list of pictures, in the process that decodes them.
        keeps_images: return the pictures too; from other processes that takes time.
    """
    loader = DataLoader(
        _Images(sources, row_ids, is_reduced),
        batch_size=batch_size,
        num_workers=num_workers,
        worker_init_fn=leave_interruption_to_parent,
        collate_fn=partial(_processed, process, keeps_images),
        generator=torch.Generator(),  # its own: the loader draws a seed
    )
    return iter(loader)


class _Images(Dataset):
    def __init__(self, sources: OpenSources, row_ids: Sequence[int], is_reduced: bool):
        self.sources, self.row_ids, self.is_reduced = sources, row_ids, is_reduced

    def __len__(self) -> int:
        return len(self.row_ids)

    def __getitem__(self, place: int) -> ReadImage:
        found = ReadImage(int(self.row_ids[place]), {"path": None})
        try:
            value = self.sources.image(found.row_id)
            found.facts["path"] = _shown_path(value and value["path"])
            content = read_image_file(value)
            found.image, (width, height) = self._decoded(content)
        except (UndecodableImage, UnreadableFile) as error:
            found.reason, found.is_unreadable = str(error), isinstance(error, UnreadableFile)
            return found
        found.facts |= {
            "width": width, "height": height, "num_bytes": len(content), "content_hash": content_hash(content),
            "perceptual_hash": perceptual_hash(found.image), "format": format_of(content),
        }  # fmt: skip
        return found

    def _decoded(self, content: bytes) -> tuple[Image.Image, tuple[int, int]]:
        """The picture, and the width and height that it has in its file, upright."""
        stored: list[tuple[int, int]] = []

        def noted(width: int, height: int) -> int:
            stored.append((width, height))
            return reduction(width, height)

        image = decode_image(content, reduction=noted if self.is_reduced else None)
        if not stored:
            return image, image.size
        width, height = stored[0]
        is_turned = (image.width < image.height) != (width < height)
        return image, (height, width) if is_turned else (width, height)


def _shown_path(path: str | None) -> str | None:
    """The name of a file for records, without the mark of a forbidden file and without the signature of an address."""
    if path is None:
        return None
    path = outside_path(path) or path
    return without_secrets(path) if is_url(path) else path


def _processed(process: Callable | None, keeps_images: bool, batch: list[ReadImage]) -> list[ReadImage]:
    for found in batch:
        if process is not None and found.image is not None:
            # As an array: each tensor from another process would hold a file open here.
            found.pixel_values = process_images(process, [found.image]).numpy()
        if not keeps_images:
            found.image = None
    return batch
