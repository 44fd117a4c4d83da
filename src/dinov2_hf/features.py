"""Features of images from a frozen model: how it is run over a dataset, in one process or several.

`feature_kinds` defines the feature of an image.

Shapes: `n` rows of the dataset, `m` of them with an image; `...` the shape of one feature.
"""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .data.decoded_images import DatasetOrRows, DecodedImages, process_images, require_column
from .data.decoding.channels import image_decoder
from .data.decoding.undecodable import UndecodableImage
from .data.loader_workers import check_shared_memory, leave_interruption_to_parent
from .feature_kinds import CLS_RULE, ONE_TOKEN_RULE, FeatureKind, image_features, take_features, vision_part
from .fingerprints import dataset_fingerprint, processor_values, weights_fingerprint
from .keyed_tensors import keep_tensors, read_tensors
from .progress import Progress


__all__ = [
    "DatasetOrRows", "DecodedImages", "FeatureBatches", "FeatureExtractor", "Features", "evaluation_mode",
    "image_features", "process_images", "require_column",
]  # fmt: skip
logger = logging.getLogger(__name__)
BATCH_SIZE = 64
MAX_UNDECODABLE_AT_START = 256


@dataclass(frozen=True)
class Features:
    """The features of a dataset, in the order of its rows.

    Attributes:
        values: (m, ...) float32 on the CPU.
        rows: (m,) their rows; all n, if every image can be decoded.
        undecodable_rows: the other rows, and why their image cannot be decoded.
        rule: how the feature was taken from the output of the model, in words; see `feature_kinds`.
    """

    values: Tensor
    rows: Tensor
    undecodable_rows: dict[int, str]
    rule: str


class _WorkBegins(BaseException):
    """Ends a protocol after its checks, if only the checks are wanted. `except Exception` must not catch it."""


@dataclass
class _Session:
    """State shared by an extractor and its copies: whether only checks are wanted, and which features are needed."""

    only_checks: bool = False
    needs: set[tuple[str, FeatureKind]] = field(default_factory=set)


@dataclass(eq=False)
class FeatureExtractor:
    """A frozen model, and how it is run over images.

    Features of a `datasets.Dataset` are made once: `features` keeps them in memory for later calls, and in `folder`
    for later programs. So neither the weights of the model nor image files may change in between.

    Args:
        model: any vision `AutoModel`; for a model of images and texts, its `vision_model` is used. It is put into eval
            mode for each forward pass; afterwards every submodule gets its mode back.
        image_processor: called as `image_processor(images=list_of_pil, return_tensors="pt")`; if
            `model.config.num_channels` is not 3, with arrays of `decode_channels` instead of PIL images.
        image_column: name of the column that holds the images, in every dataset.
        batch_size: images in one forward pass. None: 64, or the default of a protocol with large inputs.
        device: where to run; the model is moved there when work begins, and stays there. None: where the model is.
        autocast_dtype: run the forward pass under autocast to this dtype. None: no autocast.
        num_workers: processes that decode and process images. 0: this process.
        processes: the processes that share the work. All make the same calls, and all get all features. None: only
            this process.
        progress: show progress bars with the time left.
        folder: where features are also kept as files; only if images are decoded in the default way.
        decode: turns a value of the image column into what `image_processor` takes, or raises `UndecodableImage`.
            None: `image_decoder` for the channels of the model.

    Raises:
        ValueError: `batch_size` or `num_workers` is too small, or the model needs other inputs than images.
    """

    model: nn.Module
    image_processor: Any
    _: KW_ONLY
    image_column: str = "image"
    batch_size: int | None = None
    device: torch.device | str | None = None
    autocast_dtype: torch.dtype | None = None
    num_workers: int = 0
    processes: PartialState | None = None
    progress: bool = False
    folder: Path | str | None = None
    decode: Callable[[Any], Any] | None = None
    session: _Session = field(default_factory=_Session, repr=False)

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} is too small; at least 1 image is needed in a pass.")
        if self.num_workers < 0:
            raise ValueError(f"num_workers={self.num_workers} is too small; 0 stands for no other processes.")
        self.model = vision_part(self.model)
        own = next(self.model.parameters(), torch.empty(0)).device
        self.device = own if self.device is None else torch.device(self.device)
        self._kept: dict[tuple[str, FeatureKind], Features] = {}

    @property
    def device_type(self) -> str:
        """Kind of `device`, such as "cuda"."""
        return torch.device(self.device or "cpu").type

    @property
    def num_channels(self) -> int:
        """Channels of the images that the model takes."""
        return getattr(getattr(self.model, "config", None), "num_channels", None) or 3

    @property
    def world_size(self) -> int:
        return 1 if self.processes is None else self.processes.num_processes

    @property
    def rank(self) -> int:
        return 0 if self.processes is None else self.processes.process_index

    @property
    def is_main_process(self) -> bool:
        return self.processes is None or self.processes.is_main_process

    def alone(self) -> "FeatureExtractor":
        """The same extractor for this process alone, with the features that are already kept in memory."""
        other = replace(self, processes=None)
        other._kept = self._kept
        return other

    @contextmanager
    def only_checks(self) -> Iterator[None]:
        """Inside this context, a protocol ends where its work would begin, so that its errors are known before any
        work.

        Raises:
            ValueError: the protocol raised it, or did its work without a call of `features`, `batches` or `begin`.
        """
        self.session.only_checks = True
        try:
            yield
        except _WorkBegins:
            return
        finally:
            self.session.only_checks = False
        raise ValueError(
            "only the checks of the protocol were wanted, but it did its work: between its checks and its work it must"
            " call `extractor.begin()`, unless its work begins with `extractor.features`."
        )

    def begin(self, *needed: DatasetOrRows, kind: str = "cls", num_layers: int = 4) -> None:
        """Mark where the work of a protocol begins, after all its checks. The first call of `features` does this too.

        Args:
            needed, kind, num_layers: the datasets whose features will be needed, and their kind. If another protocol
                needs a part of these features earlier, it is taken from them.

        Raises:
            ValueError: `require_column` refuses the column of images.
        """
        for dataset in needed:
            require_column(dataset, self.image_column, "image_column")
            fingerprint = dataset_fingerprint(dataset)
            if fingerprint is not None:
                self.session.needs.add((fingerprint, FeatureKind(kind, num_layers)))
        if self.session.only_checks:
            raise _WorkBegins
        self.model.to(self.device)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside this context, the model is in eval mode, under its autocast and without gradients."""
        autocast = torch.autocast(self.device_type, self.autocast_dtype, enabled=self.autocast_dtype is not None)
        with evaluation_mode(self.model), torch.no_grad(), autocast:
            yield

    def of_batch(self, pixel_values: Tensor, kind: FeatureKind) -> tuple[Tensor, str]:
        """Features, float32 on the CPU, from the output of the image processor for some images, and their rule."""
        with self.frozen():
            features, rule = take_features(self.model, pixel_values.to(self.device, non_blocking=True), kind)
        # A copy: as a view, a CLS token would keep all tokens of its batch in memory, 257 times its size.
        return features.to("cpu", torch.float32, copy=True), rule

    def batches(
        self,
        dataset: DatasetOrRows,
        *,
        kind: str = "cls",
        num_layers: int = 4,
        skip_undecodable: bool = False,
        description: str = "Extracting features",
    ) -> "FeatureBatches":
        """The features of a dataset, batch by batch, so that they need not fit in memory. They are not kept.

        Args:
            dataset: a map-style `datasets.Dataset` or a sequence of dict rows. The image is a PIL image or an
                undecoded `{"bytes", "path"}` dict. A format or transform set on a `datasets.Dataset` is not applied.
            kind: "cls", "mean_patch", "patch_grid", "last_layers" or "last_layers_and_mean_patch"; see
                `feature_kinds`.
            num_layers: blocks of the last two kinds; the others ignore it.
            skip_undecodable: leave out rows whose image cannot be decoded. False: such a row is an error.
            description: text of the progress bar.

        Raises:
            ValueError: there is no such kind or column, or the dataset is empty, streamed or a dict of splits.
        """
        self.begin()
        return FeatureBatches(self, dataset, FeatureKind(kind, num_layers), skip_undecodable, description)

    def features(
        self,
        dataset: DatasetOrRows,
        *,
        kind: str = "cls",
        num_layers: int = 4,
        skip_undecodable: bool = False,
        description: str = "Extracting features",
    ) -> Features:
        """The feature of every image of a dataset. Those of a `datasets.Dataset` are made once.

        Args:
            dataset, kind, num_layers, skip_undecodable, description: as in `batches`.

        Raises:
            ValueError: as `batches` and its iteration.
        """
        self.begin(dataset, kind=kind, num_layers=num_layers)
        asked, fingerprint = FeatureKind(kind, num_layers), dataset_fingerprint(dataset)
        found = self._part_of_kept(fingerprint, asked)
        if found is None:
            # The features that another protocol needs may contain these as some of their columns.
            needed = [kind for other, kind in self.session.needs if other == fingerprint and self._holds(kind, asked)]
            made = max([asked, *needed], key=lambda kind: kind.num_tokens)
            found = self._read_or_made(
                dataset, made, FeatureBatches(self, dataset, made, skip_undecodable, description)
            )
            if fingerprint is not None:  # the rows of a list may be changed later
                self._kept[fingerprint, made] = found
                found = self._part_of_kept(fingerprint, asked) or found
        if found.undecodable_rows and not skip_undecodable:
            raise ValueError(_complaint(self.image_column, found.undecodable_rows))
        return found

    def depends_on(self, dataset: DatasetOrRows) -> dict[str, Any]:
        """Everything that the features of a dataset depend on, as JSON values."""
        return {
            "weights": weights_fingerprint(self.model),
            "image_processor": processor_values(self.image_processor),
            "dataset": dataset_fingerprint(dataset),
            "image_column": self.image_column,
            "precision": str(self.autocast_dtype),
        }

    def _read_or_made(self, dataset: DatasetOrRows, kind: FeatureKind, batches: "FeatureBatches") -> Features:
        if self.folder is None or self.decode is not None or dataset_fingerprint(dataset) is None:
            return batches.all()
        depends_on = {**self.depends_on(dataset), "kind": [kind.name, kind.num_layers]}
        digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
        path = Path(self.folder) / f"{digest[:24]}.safetensors"
        kept = read_tensors(path, depends_on)
        if self.processes is not None and not all(gather_object([kept is not None])):
            kept = None  # only some processes have it on their disk
        if kept is not None:
            tensors, said = kept
            reasons = {int(row): reason for row, reason in said["undecodable_rows"].items()}
            return Features(tensors["values"], tensors["rows"], reasons, said["rule"])
        found = batches.all()
        if self.is_main_process:
            said = {"undecodable_rows": found.undecodable_rows, "rule": found.rule}
            keep_tensors(path, {"values": found.values, "rows": found.rows}, depends_on, **said)
        return found

    def _holds(self, kind: FeatureKind, asked: FeatureKind) -> bool:
        """Whether features of one kind contain those of another. This needs a model that returns its own blocks."""
        return kind == asked or (asked in kind and hasattr(self.model, "get_intermediate_layers"))

    def _part_of_kept(self, fingerprint: str | None, asked: FeatureKind) -> Features | None:
        for (other, kind), found in self._kept.items():
            if other == fingerprint and self._holds(kind, asked):
                part = found.values if kind == asked else found.values[:, kind.columns(asked, found.values.shape[1])]
                return replace(found, values=part)
        return None


class FeatureBatches(Iterator[tuple[list[int], Tensor]]):
    """The batches of `FeatureExtractor.batches`: at most `batch_size` rows of the dataset, ascending, and their
    features, float32 on the CPU of shape (rows, ...). Between batches the state of the caller (gradients, modes) is
    unchanged.

    Attributes:
        undecodable_rows: the rows that were left out so far, and why. They are known before the batch that they would
            have been in.
        rule: from the first batch on, how the feature was taken, in words. If "cls" is not a final-normed CLS token,
            it is also logged as a warning.

    Raises:
        ValueError: while iterating, if an image cannot be decoded and `skip_undecodable` is off, no image can be
            decoded, features differ in shape between batches, or the model cannot give this kind or draws random
            numbers.
    """

    def __init__(
        self, extractor: FeatureExtractor, dataset: Any, kind: FeatureKind, skip_undecodable: bool, description: str
    ):
        self.extractor, self.kind, self.skip_undecodable = extractor, kind, skip_undecodable
        self.undecodable_rows: dict[int, str] = {}
        self.rule: str | None = None
        images = DecodedImages(
            dataset, extractor.image_column, extractor.decode or image_decoder(extractor.num_channels)
        )
        all_rows = torch.arange(len(images)).split(extractor.batch_size or BATCH_SIZE)
        own_rows = [rows.tolist() for rows in all_rows[extractor.rank :: extractor.world_size]]
        if extractor.num_workers and own_rows:
            batch_bytes = len(own_rows[0]) * _image_bytes(images, extractor.image_processor)
            check_shared_memory(extractor.num_workers, batch_bytes, num_batches=len(own_rows))
        self.loader = DataLoader(
            images,
            batch_sampler=own_rows,
            num_workers=extractor.num_workers,
            worker_init_fn=leave_interruption_to_parent,
            collate_fn=partial(_process_images, extractor.image_processor),
            pin_memory=extractor.device_type == "cuda",
            # A separate generator: the loader draws a seed, and evaluation must not change the random numbers of
            # training.
            generator=torch.Generator(),
        )
        batches = self._own_batches()
        if extractor.world_size > 1:
            batches = _shared_batches(batches, len(all_rows), extractor.processes)
        bar = Progress(batches, desc=description, unit="batch", total=len(all_rows), disable=not extractor.progress)
        self._batches = self._checked(bar)

    def __next__(self) -> tuple[list[int], Tensor]:
        return next(self._batches)

    def all(self) -> Features:
        """All remaining features, in memory."""
        rows, values = zip(*self, strict=True)
        return Features(torch.cat(values), torch.tensor(sum(rows, [])), self.undecodable_rows, self.rule or "")

    def _own_batches(self) -> Iterator[tuple[list[int], Tensor | None, list[tuple[int, str]], str | None]]:
        extractor, rule = self.extractor, None
        for rows, pixel_values, failures in self.loader:
            features = None
            if rows:
                randomness = nullcontext() if rule else _no_random_numbers(extractor)
                with randomness:
                    features, rule = extractor.of_batch(pixel_values, self.kind)
            yield rows, features, failures, rule

    def _checked(self, batches: Iterable) -> Iterator[tuple[list[int], Tensor]]:
        shape = None
        for rows, features, failures, rule in batches:
            self.undecodable_rows |= dict(failures)
            if failures and not self.skip_undecodable:
                raise ValueError(_complaint(self.extractor.image_column, self.undecodable_rows))
            if shape is None and not rows and len(self.undecodable_rows) >= MAX_UNDECODABLE_AT_START:
                break  # with millions of images of the wrong kind, looking at all of them is a waste
            if not rows:
                continue
            if shape is None:
                self.rule = rule
                if self.kind.name == "cls" and rule not in (CLS_RULE, ONE_TOKEN_RULE):
                    _warn_once(f"the feature of an image is {rule}")
            elif features.shape[1:] != shape:
                raise ValueError(
                    f"kind={self.kind.name!r} gives features of shape {tuple(features.shape[1:])} for row {rows[0]}"
                    f" and of {tuple(shape)} for earlier ones, but all must be equal: use an image processor that"
                    " gives every image the same size."
                )
            shape = features.shape[1:]
            yield rows, features
        if shape is None:
            row, reason = next(iter(self.undecodable_rows.items()))
            raise ValueError(
                f"image_column={self.extractor.image_column!r} holds no image that can be decoded, from row {row} on"
                f" ({reason})."
            )


def _complaint(image_column: str, undecodable_rows: Mapping[int, str]) -> str:
    row, reason = next(iter(undecodable_rows.items()))
    return (
        f"image_column={image_column!r} of row {row} cannot be decoded ({reason}); repair it or remove the row from"
        " the dataset."
    )


def _shared_batches(own_batches, num_batches: int, processes: PartialState) -> Iterator[tuple]:
    """The batches of all processes, in order and on every process, from the batches of this process.

    Process p has the batches p, p + W, p + 2W, ...; each round of W batches is exchanged when it is done, so that no
    process holds more than a round.
    """
    world_size = processes.num_processes
    for first in range(0, num_batches, world_size):
        rows, features, failures, rule = next(own_batches, ([], None, [], None))
        shape = None if features is None else tuple(features.shape)
        round_of_batches = gather_object([(rows, shape, failures, rule)])
        largest = max((math.prod(shape) for _, shape, *_ in round_of_batches if shape is not None), default=0)
        # Flat and of one length, because a collective takes nothing else.
        flat = torch.zeros(largest, device=processes.device)
        if features is not None:
            flat[: features.numel()] = features.flatten()
        everybodys = gather(flat).view(world_size, largest).cpu() if largest else flat[None]
        for process, (rows, shape, *rest) in enumerate(round_of_batches[: num_batches - first]):
            features = None if shape is None else everybodys[process, : math.prod(shape)].view(shape).clone()
            yield rows, features, *rest


@contextmanager
def _no_random_numbers(extractor: FeatureExtractor) -> Iterator[None]:
    """`ValueError` if the block draws random numbers: such a model gives different features at every call."""

    def states() -> list[Tensor]:
        of_gpu = [torch.cuda.get_rng_state(extractor.device or "cuda")] if extractor.device_type == "cuda" else []
        return [torch.get_rng_state(), *of_gpu]

    before = states()
    yield
    if not all(map(torch.equal, before, states())):
        raise ValueError(
            f"model ({type(extractor.model).__name__}) draws random numbers in evaluation mode, as networks do that"
            " hide patches at random: its features would differ at every call; use another model."
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


def _process_images(image_processor, rows: list[tuple[int, Image.Image | np.ndarray | UndecodableImage]]):
    """The rows that have an image, the pixel values of these or None, and (row, reason) of the others."""
    decoded = {row: image for row, image in rows if not isinstance(image, UndecodableImage)}
    failures = [(row, str(reason)) for row, reason in rows if isinstance(reason, UndecodableImage)]
    pixel_values = None
    if decoded:
        pixel_values = process_images(image_processor, list(decoded.values()))
    return list(decoded), pixel_values, failures


def _image_bytes(images: DecodedImages, image_processor: Any) -> int:
    """Bytes of the pixel values of the first image that can be decoded; 0 if none of the first few can."""
    for row in range(min(len(images), 8)):
        pixel_values, _ = _process_images(image_processor, [images[row]])[1:]
        if pixel_values is not None:
            return pixel_values.nbytes
    return 0
