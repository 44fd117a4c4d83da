"""Run a frozen model over a dataset: one feature vector per image.

The feature is the CLS token after the final norm, which the paper uses for k-NN, logistic regression and retrieval
(section 7).

Shapes: `B` images in a batch, `n` rows of the dataset, `D` hidden size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import datasets
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from .data.image_decoding import UndecodableImage, decode_image


def cls_features(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """The final-normed CLS token of each image.

    Args:
        model: any model whose output has `last_hidden_state` of shape (B, tokens, D) with the CLS token first.
        pixel_values: (B, channels, height, width), on the device of the model.

    Returns:
        (B, D) in the dtype of the model's output. Gradients flow; mode and device of the model are left as they are.

    Raises:
        ValueError: `last_hidden_state` is not a sequence of tokens (a convolutional network).
    """
    hidden_state = model(pixel_values).last_hidden_state
    if hidden_state.ndim != 3:
        raise ValueError(
            f"model gives a last_hidden_state of shape {tuple(hidden_state.shape)}, but a vision transformer's "
            "(images, tokens, hidden size) with the CLS token first is needed."
        )
    return hidden_state[:, 0]


def extract_features(
    model: nn.Module,
    dataset: datasets.Dataset | Sequence[dict[str, Any]],
    image_processor: Any,
    *,
    image_column: str = "image",
    batch_size: int = 64,
    device: torch.device | str | None = None,
    autocast_dtype: torch.dtype | None = None,
    num_workers: int = 0,
    progress: bool = False,
    description: str = "Extracting features",
    undecodable_rows: list[int] | None = None,
) -> Tensor:
    """The CLS feature of every image of a dataset, in the order of its rows.

    Args:
        model: any `AutoModel` with a CLS token; in eval mode for the call, then every submodule gets its mode back.
        dataset: a map-style `datasets.Dataset` or a sequence of dict rows. The image is a PIL image or an undecoded
            `{"bytes", "path"}` dict. A format or transform set on a `datasets.Dataset` is not applied.
        image_processor: called as `image_processor(images=list_of_pil, return_tensors="pt")`.
        image_column: name of the column that holds the images.
        batch_size: images in one forward pass.
        device: where to run; the model is moved there and stays. None: where the model is.
        autocast_dtype: run the forward pass under autocast to this dtype. None: no autocast.
        num_workers: processes that decode and process images. 0: this process.
        progress: show a progress bar with the time left, labelled `description`.
        undecodable_rows: a list to be filled with the rows whose image cannot be decoded, which are then left out of
            the result. None: such a row is an error.

    Returns:
        (n, D) float32 on the CPU; row i is the feature of row i of the dataset (of those that could be decoded).

    Raises:
        ValueError: the dataset is empty, streamed or a dict of splits; the column is missing; an image cannot be
            decoded and nobody asked for a list of those; or no image can be.
    """
    loader = DataLoader(
        _DecodedImages(dataset, image_column),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=partial(_process_images, image_processor),
        # Its own: the loader draws a seed, and evaluation must not move the random numbers of a training around it.
        generator=torch.Generator(),
    )
    if device is not None:
        model.to(device)
    device = next(model.parameters()).device
    autocast = torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None)
    batches = []
    with evaluation_mode(model), torch.no_grad(), autocast:
        for pixel_values, failures in tqdm(loader, desc=description, unit="batch", disable=not progress):
            for row, reason in failures:
                if undecodable_rows is None:
                    raise ValueError(
                        f"image_column={image_column!r} of row {row} cannot be decoded ({reason}); repair it or "
                        "remove the row from the dataset."
                    )
                undecodable_rows.append(row)
            if pixel_values is not None:
                batches.append(cls_features(model, pixel_values.to(device)).float().cpu())
    if not batches:
        raise ValueError(f"image_column={image_column!r} holds no image that can be decoded.")
    return torch.cat(batches)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put `model` in eval mode, and give every submodule its own former mode back at the end."""
    training_modules = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training_modules:
            module.training = True


def require_column(dataset: datasets.Dataset | Sequence[dict[str, Any]], column: str, field: str) -> None:
    """Check that `dataset` is finite, indexable and not empty, and that its rows have `column`.

    Args:
        field: the name under which the user passed `column`, for the message.

    Raises:
        ValueError: one of these does not hold; a missing column is answered with the columns there are.
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
        raise ValueError(f"{field}={column!r} is not a column of the dataset, which has {columns}.")


class _DecodedImages(Dataset):
    def __init__(self, dataset, image_column: str):
        require_column(dataset, image_column, "image_column")
        if isinstance(dataset, datasets.Dataset):
            dataset = dataset.select_columns([image_column]).with_format(None)
            # Undecoded, so that a broken image fails here, where the row is known, and not inside `datasets`.
            if isinstance(dataset.features[image_column], datasets.Image):
                dataset = dataset.cast_column(image_column, datasets.Image(decode=False))
        self.dataset = dataset
        self.image_column = image_column

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> tuple[int, Image.Image | UndecodableImage]:
        try:
            return row, decode_image(self.dataset[row][self.image_column])
        except UndecodableImage as reason:
            return row, reason


def _process_images(image_processor, rows: list[tuple[int, Image.Image | UndecodableImage]]):
    """Pixel values of the images that there are, or None, and (row, reason) of the others."""
    images = [image for _, image in rows if isinstance(image, Image.Image)]
    failures = [(row, str(reason)) for row, reason in rows if isinstance(reason, UndecodableImage)]
    return image_processor(images=images, return_tensors="pt")["pixel_values"] if images else None, failures
