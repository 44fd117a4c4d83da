"""Features of the images of a dataset, by a frozen model: all in memory, or batch by batch.

Which feature of an image that is, `feature_kinds` says.

Shapes: `n` rows of the dataset; `...` the shape of one feature.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from .data.decoding.channels import image_decoder
from .data.decoding.undecodable import UndecodableImage
from .data.loader_workers import check_shared_memory, leave_interruption_to_parent
from .feature_kinds import (
    CLS_RULE,
    FEATURE_FUNCTIONS,
    ONE_TOKEN_RULE,
    cls_features,
    feature_with_rule,
    last_layers_and_mean_patch_features,
    last_layers_features,
    mean_patch_features,
    patch_grid_features,
    patch_size_of,
    vision_part,
)


__all__ = [
    "DecodedImages", "FEATURE_FUNCTIONS", "cls_features", "evaluation_mode", "extract_features", "iterate_features",
    "last_layers_and_mean_patch_features", "last_layers_features", "mean_patch_features", "patch_grid_features",
    "patch_size_of", "process_images", "require_column",
]  # fmt: skip
logger = logging.getLogger(__name__)
MAX_UNDECODABLE_AT_START = 256


def extract_features(
    model: nn.Module,
    dataset: datasets.Dataset | Sequence[dict[str, Any]],
    image_processor: Any,
    *,
    kind: str = "cls",
    num_layers: int = 4,
    image_column: str = "image",
    batch_size: int = 64,
    device: torch.device | str | None = None,
    autocast_dtype: torch.dtype | None = None,
    num_workers: int = 0,
    progress: bool = False,
    description: str = "Extracting features",
    processes: PartialState | None = None,
    decode: Callable[[Any], Any] | None = None,
    undecodable_rows: list[int] | None = None,
    rule: list[str] | None = None,
) -> Tensor:
    """The feature of every image of a dataset, in the order of its rows, in memory.

    Args:
        model, dataset, image_processor, kind, num_layers, image_column, batch_size, device, autocast_dtype,
            num_workers, progress, description, processes, decode, rule: as in `iterate_features`.
        undecodable_rows: a list to be filled with the rows whose image cannot be decoded, which are then left out of
            the result. None: such a row is an error.

    Returns:
        (n, ...) float32 on the CPU, with the feature's shape for the dots; row i is the feature of row i of the
        dataset (of those that could be decoded).

    Raises:
        ValueError: what `iterate_features` raises.
    """
    undecodable = None if undecodable_rows is None else {}
    batches = iterate_features(
        model,
        dataset,
        image_processor,
        kind=kind,
        num_layers=num_layers,
        image_column=image_column,
        batch_size=batch_size,
        device=device,
        autocast_dtype=autocast_dtype,
        num_workers=num_workers,
        progress=progress,
        description=description,
        processes=processes,
        decode=decode,
        undecodable_rows=undecodable,
        rule=rule,
    )
    features = torch.cat([features for _, features in batches])
    if undecodable_rows is not None:
        undecodable_rows.extend(undecodable)
    return features


def iterate_features(
    model: nn.Module,
    dataset: datasets.Dataset | Sequence[dict[str, Any]],
    image_processor: Any,
    *,
    kind: str = "cls",
    num_layers: int = 4,
    image_column: str = "image",
    batch_size: int = 64,
    device: torch.device | str | None = None,
    autocast_dtype: torch.dtype | None = None,
    num_workers: int = 0,
    progress: bool = False,
    description: str = "Extracting features",
    processes: PartialState | None = None,
    decode: Callable[[Any], Any] | None = None,
    undecodable_rows: dict[int, str] | None = None,
    rule: list[str] | None = None,
) -> Iterator[tuple[list[int], Tensor]]:
    """The features of a dataset batch by batch, so that they need not fit in memory.

    Args:
        model: any vision `AutoModel`; of a model of images and texts, its `vision_model` is used. In eval mode for
            each forward pass, after which every submodule gets its mode back.
        dataset: a map-style `datasets.Dataset` or a sequence of dict rows. The image is a PIL image or an undecoded
            `{"bytes", "path"}` dict. A format or transform set on a `datasets.Dataset` is not applied.
        image_processor: called as `image_processor(images=list_of_pil, return_tensors="pt")`; where
            `model.config.num_channels` is not 3, with arrays of `decode_channels` in place of PIL images.
        kind: "cls", "mean_patch", "patch_grid", "last_layers" or "last_layers_and_mean_patch", see `feature_kinds`.
        num_layers: blocks of the last two; of no meaning to the others.
        image_column: name of the column that holds the images.
        batch_size: images in one forward pass.
        device: where to run; the model is moved there and stays. None: where the model is.
        autocast_dtype: run the forward pass under autocast to this dtype. None: no autocast.
        num_workers: processes that decode and process images. 0: this process.
        progress: show a progress bar with the time left, labelled `description`.
        processes: those that share the work, all of which call this with the same arguments but `device`, and all of
            which get all features. None: this process alone.
        decode: turns a value of the image column into what `image_processor` takes, or raises `UndecodableImage`.
            None: `image_decoder` for the channels of the model.
        undecodable_rows: a mapping to be filled, before the batch that they would have been in, with the rows whose
            image cannot be decoded and the reason; these are then left out. None: such a row is an error.
        rule: a list to be filled, before the first batch, with one text: how the feature was taken from the output of
            the model. None: it is logged as a warning, where "cls" is not a final-normed CLS token.

    Yields:
        (rows, features): at most `batch_size` rows of the dataset, ascending, and their features, float32 on the CPU
        of shape (len(rows), ...). Between batches nothing of the caller's is changed (gradients, autocast, modes).

    Raises:
        ValueError: at once, where `kind` is unknown, `batch_size` or `num_workers` too small, the dataset is empty,
            streamed or a dict of splits, or the column is missing; while iterating, where an image cannot be decoded
            and nobody asked for those, none can be, features differ in shape between batches, the model cannot give
            this kind, or draws random numbers.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is too small; at least 1 image is needed in a forward pass.")
    if num_workers < 0:
        raise ValueError(f"num_workers={num_workers} is too small; 0 stands for no other processes.")
    features_of = feature_with_rule(kind, num_layers)
    network = vision_part(model)
    num_channels = getattr(getattr(network, "config", None), "num_channels", None) or 3
    images = DecodedImages(dataset, image_column, decode or image_decoder(num_channels))
    world_size, rank = (processes.num_processes, processes.process_index) if processes is not None else (1, 0)
    batches_of_rows = torch.arange(len(images)).split(batch_size)
    own_rows = [rows.tolist() for rows in batches_of_rows[rank::world_size]]
    if num_workers and own_rows:
        batch_bytes = len(own_rows[0]) * _image_bytes(images, image_processor)
        check_shared_memory(num_workers, batch_bytes, num_batches=len(own_rows))
    loader = DataLoader(
        images,
        batch_sampler=own_rows,
        num_workers=num_workers,
        worker_init_fn=leave_interruption_to_parent,
        collate_fn=partial(_process_images, image_processor),
        pin_memory=torch.device(device or next(model.parameters()).device).type == "cuda",
        # Its own: the loader draws a seed, and evaluation must not move the random numbers of a training around it.
        generator=torch.Generator(),
    )
    if device is not None:
        model.to(device)
    device = next(model.parameters()).device

    def own_batches() -> Iterator[tuple[list[int], Tensor | None, list[tuple[int, str]]]]:
        words = None
        for rows, pixel_values, failures in loader:
            features = None
            if rows:
                autocast = torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None)
                randomness = nullcontext() if words else _no_random_numbers(network, device)
                with evaluation_mode(model), torch.no_grad(), autocast, randomness:
                    features, words_of_batch = features_of(network, pixel_values.to(device, non_blocking=True))
                if words is None:
                    words = words_of_batch
                    if rule is not None:
                        rule.append(words)
                    elif kind == "cls" and words not in (CLS_RULE, ONE_TOKEN_RULE):
                        _warn_once(f"the feature of an image is {words}")
                # A copy: a CLS token is a view that would keep all tokens of its batch in memory, 257 times its size.
                features = features.to("cpu", torch.float32, copy=True)
            yield rows, features, failures

    # A generator of its own, so that the checks above are made by the call and not by the first batch.
    def batches() -> Iterator[tuple[list[int], Tensor]]:
        shape = None
        found = own_batches() if world_size == 1 else _shared_batches(own_batches(), len(batches_of_rows), processes)
        for rows, features, failures in tqdm(
            found, desc=description, unit="batch", total=len(batches_of_rows), disable=not progress
        ):
            for row, reason in failures:
                if undecodable_rows is None:
                    raise ValueError(
                        f"image_column={image_column!r} of row {row} cannot be decoded ({reason}); repair it or "
                        "remove the row from the dataset."
                    )
                undecodable_rows[row] = reason
            if shape is None and not rows and len(undecodable_rows) >= MAX_UNDECODABLE_AT_START:
                break  # of millions of images of the wrong kind, it is not worth to look at all
            if not rows:
                continue
            if shape is not None and features.shape[1:] != shape:
                raise ValueError(
                    f"kind={kind!r} gives features of shape {tuple(features.shape[1:])} for row {rows[0]} and of "
                    f"{tuple(shape)} for earlier ones, but all must be alike: use an image processor that gives "
                    "every image the same size."
                )
            shape = features.shape[1:]
            yield rows, features
        if shape is None:
            row, reason = next(iter(undecodable_rows.items()))
            raise ValueError(
                f"image_column={image_column!r} holds no image that can be decoded, from row {row} on ({reason})."
            )

    return batches()


def _shared_batches(own_batches, num_batches: int, processes: PartialState) -> Iterator[tuple]:
    """The batches of all processes in their order, on every one of them, from those of this one.

    Process p has the batches p, p + W, p + 2W, ...; each round of W batches is exchanged when it is done, so that no
    process holds more than a round.
    """
    world_size = processes.num_processes
    for first in range(0, num_batches, world_size):
        rows, features, failures = next(own_batches, ([], None, []))
        shape = None if features is None else tuple(features.shape)
        round_of_batches = gather_object([(rows, shape, failures)])
        largest = max((math.prod(shape) for _, shape, _ in round_of_batches if shape is not None), default=0)
        # Flat and of one length, because a collective takes nothing else.
        flat = torch.zeros(largest, device=processes.device)
        if features is not None:
            flat[: features.numel()] = features.flatten()
        everybodys = gather(flat).view(world_size, largest).cpu() if largest else None
        for process, (rows, shape, failures) in enumerate(round_of_batches[: num_batches - first]):
            features = None if shape is None else everybodys[process, : math.prod(shape)].view(shape).clone()
            yield rows, features, failures


@contextmanager
def _no_random_numbers(model: nn.Module, device: torch.device) -> Iterator[None]:
    """`ValueError` where the block draws random numbers: a model that does has other features at every call."""

    def states() -> list[Tensor]:
        return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]

    before = states()
    yield
    if not all(map(torch.equal, before, states())):
        raise ValueError(
            f"model ({type(model).__name__}) draws random numbers although it is in evaluation mode, as networks do"
            " that hide patches at random: its features would differ at every call; take another model."
        )


@cache
def _warn_once(text: str) -> None:
    logger.warning(text)


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
        split = getattr(dataset, "split", None)
        where = f"the dataset (split {split})" if split else "the dataset"
        raise ValueError(f"{field}={column!r} is not a column of {where}, which has {', '.join(columns)}.")


class DecodedImages(Dataset):
    """Row numbers and what `decode` makes of the image, or the `UndecodableImage` that it raises."""

    def __init__(self, dataset, image_column: str, decode: Callable[[Any], Any]):
        require_column(dataset, image_column, "image_column")
        if isinstance(dataset, datasets.Dataset):
            dataset = dataset.select_columns([image_column]).with_format(None)
            # Undecoded, so that a broken image fails here, where the row is known, and not inside `datasets`.
            if isinstance(dataset.features[image_column], datasets.Image):
                dataset = dataset.cast_column(image_column, datasets.Image(decode=False))
        self.dataset = dataset
        self.image_column = image_column
        self.decode = decode

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> tuple[int, Image.Image | np.ndarray | UndecodableImage]:
        try:
            return row, self.decode(self.dataset[row][self.image_column])
        except UndecodableImage as reason:
            return row, reason


def _process_images(image_processor, rows: list[tuple[int, Image.Image | np.ndarray | UndecodableImage]]):
    """The rows that have an image, the pixel values of these or None, and (row, reason) of the others."""
    decoded = {row: image for row, image in rows if not isinstance(image, UndecodableImage)}
    failures = [(row, str(reason)) for row, reason in rows if isinstance(reason, UndecodableImage)]
    pixel_values = None
    if decoded:
        pixel_values = process_images(image_processor, list(decoded.values()))
    return list(decoded), pixel_values, failures


def _image_bytes(images: DecodedImages, image_processor: Any) -> int:
    """Of the pixel values of the first image that can be decoded; 0 where none of the first few can."""
    for row in range(min(len(images), 8)):
        pixel_values, _ = _process_images(image_processor, [images[row]])[1:]
        if pixel_values is not None:
            return pixel_values.nbytes
    return 0


def process_images(image_processor: Any, images: Sequence[Image.Image | np.ndarray], **options) -> Tensor:
    """Pixel values (B, channels, height, width) of pictures, or of arrays (height, width, channels)."""
    if isinstance(images[0], np.ndarray):  # of 4 or 5 channels a processor could not tell that they are channels
        options["input_data_format"] = "channels_last"
    return image_processor(images=list(images), return_tensors="pt", **options)["pixel_values"]
