"""Features of a frozen vision transformer: of a batch of images, and of a whole dataset.

| kind | feature of one image | used by the paper (section 7) for |
|---|---|---|
| `cls` | the CLS token | k-NN, logistic regression, retrieval |
| `mean_patch` | the mean over the patch tokens | with `cls`, the classification head |
| `patch_grid` | the patch tokens in their places | segmentation, depth, matching |
| `last_layers` | the CLS tokens of the last blocks, concatenated | the linear probe |
| `last_layers_and_mean_patch` | the two together | the linear probe |

All are taken after the final norm, and none contains register tokens.

Shapes: `B` images in a batch, `n` rows of the dataset, `D` hidden size, `h` x `w` patches, `R` register tokens, `T`
tokens in the order CLS, registers, patches row by row.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
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

from .data.channel_decoding import image_decoder
from .data.image_decoding import UndecodableImage


MAX_UNDECODABLE_AT_START = 256


def cls_features(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """The final-normed CLS token of each image.

    Args:
        model: any model whose output has `last_hidden_state` of shape (B, T, D) with the CLS token first.
        pixel_values: (B, channels, height, width), on the device of the model.

    Returns:
        (B, D) in the dtype of the model's output. Gradients flow; mode and device of the model are left as they are.

    Raises:
        ValueError: there is no `last_hidden_state` (a model with a head), or it is not a sequence of tokens (a
            convolutional network).
    """
    return _tokens(model, model(pixel_values))[:, 0]


def mean_patch_features(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """The mean of the final-normed patch tokens of each image, CLS and registers left out.

    Args:
        model, pixel_values: as in `patch_grid_features`.

    Returns:
        (B, D).

    Raises:
        ValueError: as `patch_grid_features`: a count of tokens that is not understood would give a wrong mean.
    """
    return patch_grid_features(model, pixel_values).mean(dim=(1, 2))


def patch_grid_features(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """The final-normed patch tokens of each image in their places, CLS and registers left out.

    Args:
        model: as in `cls_features`; its `config` has `patch_size` (pixels, or a pair of height and width) and, where
            the model has registers, `num_register_tokens`.
        pixel_values: (B, channels, height, width), on the device of the model.

    Returns:
        (B, h, w, D), where `h` and `w` are the height and width over those of a patch, rounded down.

    Raises:
        ValueError: `config.patch_size` is missing, the tokens are not `1 + R + h * w` (another token order, such as
            that of a model with a distillation token), or what `cls_features` raises.
    """
    patch_size_of(model)  # or it would complain only after the forward pass
    return _patch_grid(model, _tokens(model, model(pixel_values)), pixel_values)


def last_layers_features(model: nn.Module, pixel_values: Tensor, num_layers: int = 4) -> Tensor:
    """The CLS tokens after each of the last blocks, concatenated: the input of the paper's linear probe.

    Args:
        model: one with `get_intermediate_layers`, such as `DINOv2Model`, or any as in `cls_features` that can output
            its hidden states and keeps its final norm as `layernorm` or `norm`.
        pixel_values: (B, channels, height, width), on the device of the model.
        num_layers: how many blocks, at least 1; the paper takes 1 or 4.

    Returns:
        (B, num_layers * D): each block's CLS token through the final norm, from the shallowest block to the last.

    Raises:
        ValueError: the model has fewer blocks or does not say how many (`config.num_hidden_layers`), or has neither
            the method nor a final norm.
    """
    cls_tokens, _ = _last_layers(model, pixel_values, num_layers)
    return torch.cat(cls_tokens, dim=-1)


def last_layers_and_mean_patch_features(model: nn.Module, pixel_values: Tensor, num_layers: int = 4) -> Tensor:
    """`last_layers_features`, and after them the mean of the patch tokens of the last block, in one forward pass.

    Returns:
        (B, (num_layers + 1) * D).

    Raises:
        ValueError: as `last_layers_features` and `patch_grid_features`.
    """
    cls_tokens, tokens = _last_layers(model, pixel_values, num_layers)
    # Without registers and CLS already, where the model has the method.
    patches = (
        tokens if hasattr(model, "get_intermediate_layers") else _patch_grid(model, tokens, pixel_values).flatten(1, 2)
    )
    return torch.cat([*cls_tokens, patches.mean(dim=1)], dim=-1)


def _last_layers(model: nn.Module, pixel_values: Tensor, num_layers: int) -> tuple[list[Tensor], Tensor]:
    """The normed CLS tokens of the last blocks, each (B, D), and the normed tokens of the last: with the method of the
    model its patches (B, N, D), and otherwise all (B, T, D)."""
    depth = _config_field(model, "num_hidden_layers")
    if depth is None:
        raise ValueError("model has no config.num_hidden_layers, which is needed to know its last blocks.")
    if not 1 <= num_layers <= depth:
        raise ValueError(f"num_layers is {num_layers}, but must be from 1 to the {depth} blocks of the model.")
    # Keeps the tokens of these blocks only; all hidden states of a ViT-L, 64 images at 518 pixels, are 9 GB.
    if hasattr(model, "get_intermediate_layers"):
        layers = model.get_intermediate_layers(pixel_values, n=num_layers, return_class_token=True)
        return [cls_tokens for _, cls_tokens in layers], layers[-1][0]
    norm = getattr(model, "layernorm", None) or getattr(model, "norm", None)
    if norm is None:
        raise ValueError(
            f"model ({type(model).__name__}) has no get_intermediate_layers and no final norm called layernorm or "
            "norm, one of which is needed for the features of its last blocks."
        )
    output = model(pixel_values, output_hidden_states=True)
    # The last is taken from the output: whether the last hidden state is already normed differs between models.
    last = _tokens(model, output)
    earlier = output.hidden_states[depth + 1 - num_layers : depth]
    cls_tokens = [*(norm(hidden_state[:, 0]) for hidden_state in earlier), last[:, 0]]
    return cls_tokens, last


FEATURE_FUNCTIONS = {
    "cls": cls_features,
    "mean_patch": mean_patch_features,
    "patch_grid": patch_grid_features,
    "last_layers": last_layers_features,
    "last_layers_and_mean_patch": last_layers_and_mean_patch_features,
}


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
) -> Tensor:
    """The feature of every image of a dataset, in the order of its rows, in memory.

    Args:
        model, dataset, image_processor, kind, num_layers, image_column, batch_size, device, autocast_dtype,
            num_workers, progress, description, processes, decode: as in `iterate_features`.
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
) -> Iterator[tuple[list[int], Tensor]]:
    """The features of a dataset batch by batch, so that they need not fit in memory.

    Args:
        model: any `AutoModel` with a CLS token; in eval mode for each forward pass, after which every submodule gets
            its mode back.
        dataset: a map-style `datasets.Dataset` or a sequence of dict rows. The image is a PIL image or an undecoded
            `{"bytes", "path"}` dict. A format or transform set on a `datasets.Dataset` is not applied.
        image_processor: called as `image_processor(images=list_of_pil, return_tensors="pt")`; where
            `model.config.num_channels` is not 3, with arrays of `decode_channels` in place of PIL images.
        kind: "cls", "mean_patch", "patch_grid", "last_layers" or "last_layers_and_mean_patch", see the functions of
            these names.
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

    Yields:
        (rows, features): at most `batch_size` rows of the dataset, ascending, and their features, float32 on the CPU
        of shape (len(rows), ...). Between batches nothing of the caller's is changed (gradients, autocast, modes).

    Raises:
        ValueError: at once, where `kind` is unknown, the dataset is empty, streamed or a dict of splits, or the
            column is missing; while iterating, where an image cannot be decoded and nobody asked for those, none can
            be, features differ in shape between batches, or the model cannot give this kind.
    """
    features_of = _feature_function(kind, num_layers)
    images = DecodedImages(dataset, image_column, decode or image_decoder(_config_field(model, "num_channels") or 3))
    world_size, rank = (processes.num_processes, processes.process_index) if processes is not None else (1, 0)
    batches_of_rows = torch.arange(len(images)).split(batch_size)
    loader = DataLoader(
        images,
        batch_sampler=[rows.tolist() for rows in batches_of_rows[rank::world_size]],
        num_workers=num_workers,
        collate_fn=partial(_process_images, image_processor),
        pin_memory=torch.device(device or next(model.parameters()).device).type == "cuda",
        # Its own: the loader draws a seed, and evaluation must not move the random numbers of a training around it.
        generator=torch.Generator(),
    )
    if device is not None:
        model.to(device)
    device = next(model.parameters()).device

    def own_batches() -> Iterator[tuple[list[int], Tensor | None, list[tuple[int, str]]]]:
        for rows, pixel_values, failures in loader:
            features = None
            if rows:
                autocast = torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None)
                with evaluation_mode(model), torch.no_grad(), autocast:
                    features = features_of(model, pixel_values.to(device, non_blocking=True))
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


def process_images(image_processor: Any, images: Sequence[Image.Image | np.ndarray], **options) -> Tensor:
    """Pixel values (B, channels, height, width) of pictures, or of arrays (height, width, channels)."""
    if isinstance(images[0], np.ndarray):  # of 4 or 5 channels a processor could not tell that they are channels
        options["input_data_format"] = "channels_last"
    return image_processor(images=list(images), return_tensors="pt", **options)["pixel_values"]


def _feature_function(kind: str, num_layers: int) -> Callable[[nn.Module, Tensor], Tensor]:
    if kind not in FEATURE_FUNCTIONS:
        raise ValueError(f"kind={kind!r} is no kind of features, which are {', '.join(map(repr, FEATURE_FUNCTIONS))}.")
    function = FEATURE_FUNCTIONS[kind]
    return partial(function, num_layers=num_layers) if kind.startswith("last_layers") else function


def _tokens(model: nn.Module, output: Any) -> Tensor:
    """`last_hidden_state` (B, T, D) of a model's output."""
    hidden_state = getattr(output, "last_hidden_state", None)
    if hidden_state is None:
        raise ValueError(
            f"model ({type(model).__name__}) gives no last_hidden_state: a vision transformer without a head, as "
            "AutoModel loads it, is needed."
        )
    if hidden_state.ndim != 3:
        raise ValueError(
            f"model gives a last_hidden_state of shape {tuple(hidden_state.shape)}, but a vision transformer's "
            "(images, tokens, hidden size) with the CLS token first is needed."
        )
    return hidden_state


def patch_size_of(model: nn.Module) -> tuple[int, int]:
    """Height and width of a patch in pixels, by `config.patch_size`; `ValueError` where the model has none."""
    patch_size = _config_field(model, "patch_size")
    if patch_size is None:
        raise ValueError("model has no config.patch_size, which is needed to know the grid of its patch tokens.")
    return (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)


def _patch_grid(model: nn.Module, tokens: Tensor, pixel_values: Tensor) -> Tensor:
    """The patches (B, h, w, D) of all tokens (B, T, D), checked against the size of the images."""
    patch_height, patch_width = patch_size_of(model)
    height, width = pixel_values.shape[-2:]
    grid = height // patch_height, width // patch_width
    num_registers = _config_field(model, "num_register_tokens") or 0
    if tokens.shape[1] != 1 + num_registers + grid[0] * grid[1]:
        raise ValueError(
            f"model gives {tokens.shape[1]} tokens for an image of {height} x {width} pixels, but 1 CLS, "
            f"{num_registers} registers and {grid[0]} x {grid[1]} patches of {patch_height} x {patch_width} pixels "
            f"are {1 + num_registers + grid[0] * grid[1]}."
        )
    return tokens[:, 1 + num_registers :].unflatten(1, grid)


def _config_field(model: nn.Module, field: str) -> Any:
    return getattr(getattr(model, "config", None), field, None)
