"""The images of a dataset by row, decoded one by one, and in the form that an image processor takes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import datasets
import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .decoding.undecodable import UndecodableImage


DatasetOrRows: TypeAlias = datasets.Dataset | Sequence[dict[str, Any]]


def require_column(dataset: DatasetOrRows, column: str, field: str, *, of: str = "dataset", hint: str = "") -> None:
    """Check that `dataset` is finite, indexable and not empty, and that its rows have `column`.

    Args:
        field: the user's name for the argument `column`, for the message.
        of: what the message calls the dataset.
        hint: what to do about a missing column.

    Raises:
        ValueError: one of these is not true. For a missing column, the message lists the existing columns.
    """
    if isinstance(dataset, dict) or not hasattr(dataset, "__len__"):
        raise ValueError(
            f"dataset is a {type(dataset).__name__}, but one split that is not streamed is needed: a map-style "
            "datasets.Dataset or a sequence of dict rows."
        )
    if len(dataset) == 0:
        raise ValueError("dataset has 0 rows, but at least 1 is needed.")
    columns = dataset.column_names if isinstance(dataset, datasets.Dataset) else list(dataset[0])
    if column not in columns:
        split = getattr(dataset, "split", None)
        where = f"the {of} (split {split})" if split else f"the {of}"
        advice = f"; {hint}" if hint else ""
        raise ValueError(f"{field}={column!r} is not a column of {where}, which has {', '.join(columns)}{advice}.")


def undecoded_columns(dataset: DatasetOrRows, columns: Mapping[str, str]) -> DatasetOrRows:
    """
    Only these columns, without a format, with images as they are stored. So a broken image fails where its row is
    known, and not inside `datasets`.

    Args:
        columns: columns by the user's names of the arguments.

    Raises:
        ValueError: as `require_column`.
    """
    for field, column in columns.items():
        require_column(dataset, column, field)
    if isinstance(dataset, datasets.Dataset):
        dataset = dataset.select_columns(list(columns.values())).with_format(None)
        for column in columns.values():
            if isinstance(dataset.features[column], datasets.Image):
                dataset = dataset.cast_column(column, datasets.Image(decode=False))
    return dataset


class DecodedImages(Dataset):
    """Row numbers with the image that `decode` returns, or the `UndecodableImage` that it raises."""

    def __init__(self, dataset, image_column: str, decode: Callable[[Any], Any]):
        self.dataset = undecoded_columns(dataset, {"image_column": image_column})
        self.image_column = image_column
        self.decode = decode

    def __len__(self) -> int:
        return len(self.dataset)

    def image(self, row: int) -> Image.Image | np.ndarray:
        """The decoded image of a row.

        Raises:
            UndecodableImage: with the name of the file, if the row has one.
        """
        value = self.dataset[row][self.image_column]
        try:
            return self.decode(value)
        except UndecodableImage as reason:
            path = value.get("path") if isinstance(value, Mapping) else None
            if not path or path in str(reason):
                raise
            raise UndecodableImage(f"{path}: {reason}") from reason

    def __getitem__(self, row: int) -> tuple[int, Image.Image | np.ndarray | UndecodableImage]:
        try:
            return row, self.image(row)
        except UndecodableImage as reason:
            return row, reason


def process_images(image_processor: Any, images: Sequence[Image.Image | np.ndarray], **options) -> Tensor:
    """Pixel values (B, channels, height, width) of pictures, or of arrays (height, width, channels)."""
    if isinstance(images[0], np.ndarray):  # a processor could not recognise 4 or 5 channels as channels
        options["input_data_format"] = "channels_last"
    return image_processor(images=list(images), return_tensors="pt", **options)["pixel_values"]
