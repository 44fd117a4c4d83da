"""What turns an image into a vector: no model, a TorchScript file, any `AutoModel`, or vectors that are there."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from pyarrow import parquet
from torch import Tensor, nn
from torchvision.transforms import v2
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..feature_kinds import vision_part
from ..features import iterate_features
from ..model_source import find_model
from .algorithms.perceptual_descriptor import OneToken, PatchSums, PerceptualDescriptor
from .storage.sources import OpenSources


PERCEPTUAL = "perceptual"
VECTOR_COLUMNS = ("features", "embedding", "embeddings", "vector")
DESCRIPTOR_FILE = "descriptor.pt"


def kind_of_embedder(spec: str) -> str:
    """ "perceptual", "torchscript", "precomputed" or "model", by the form of the name.

    Raises:
        ValueError: it is a path of none of these.
    """
    if spec == PERCEPTUAL:
        return "perceptual"
    path = Path(spec).expanduser()
    if path.suffix in (".parquet", ".npy"):
        if not path.exists():
            raise ValueError(f"embedder is {spec!r}, a file that does not exist.")
        return "precomputed"
    if path.is_dir() and not any((folder / "config.json").exists() for folder in (path, path / "model")):
        if any(file.suffix in (".parquet", ".npy") for file in path.iterdir()):
            return "precomputed"
        raise ValueError(f"embedder is {spec!r}, a folder with neither a model (config.json) nor vectors.")
    if path.is_file():
        return "torchscript"
    if not path.is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", spec):
        raise ValueError(
            f"embedder is {spec!r}, which does not exist; give 'perceptual', a TorchScript file, a model folder or Hub"
            " name, or vectors in .parquet or .npy files."
        )
    return "model"


def refuse_untrusted(spec: str, *, trust_torchscript: bool) -> None:
    """That the code in a TorchScript file is run only where the user says so.

    Raises:
        ValueError: the embedder is one, and `trust_torchscript` is not set.
    """
    if kind_of_embedder(spec) == "torchscript" and not trust_torchscript:
        raise ValueError(
            f"embedder is {spec!r}, a TorchScript file, which is a program that can read and overwrite any file of"
            " yours; give --trust_torchscript if you trust where it comes from."
        )


@dataclass
class ModelEmbedder:
    """A network and how images are prepared for it, as `features.iterate_features` takes them.

    Args:
        model, image_processor, kind: as there.
        batch_size: images in a forward pass.
    """

    model: nn.Module
    image_processor: Any
    kind: str = "cls"
    batch_size: int = 64

    def vectors(
        self, images: Sequence[dict], *, device: str, bf16: bool, num_workers: int, progress: bool, description: str
    ) -> tuple[list[int], np.ndarray, dict[int, str]]:
        """Vectors of undecoded images.

        Args:
            images: rows `{"image": {"bytes", "path"}}`, with random access.

        Returns:
            (rows, vectors, reasons): which of the images have a vector, ascending, their vectors
            (len(rows), D) float32, and why the others have none.
        """
        reasons: dict[int, str] = {}
        rows, vectors = [], []
        batches = iterate_features(
            self.model,
            images,
            self.image_processor,
            kind=self.kind,
            batch_size=self.batch_size,
            device=device,
            autocast_dtype=torch.bfloat16 if bf16 else None,
            num_workers=num_workers,
            progress=progress,
            description=description,
            undecodable_rows=reasons,
        )
        for batch_rows, features in batches:
            rows += batch_rows
            vectors.append(features.numpy())
        return rows, np.concatenate(vectors), reasons


def load_model_embedder(
    spec: str,
    *,
    descriptor: Path | None,
    feature_kind: str,
    torchscript_size: Sequence[int],
    batch_size: int,
    trust_torchscript: bool = False,
) -> ModelEmbedder:
    """An embedder of the kinds that compute.

    Args:
        spec: as in `kind_of_embedder`.
        descriptor: the file of `fit_descriptor`, for the perceptual one.
        feature_kind: of an `AutoModel`.
        torchscript_size: (shorter side,), image by image; or (height, width), in batches.
        batch_size: images in a forward pass.
        trust_torchscript: whether a TorchScript file, which is a program, may be run.

    Raises:
        ValueError: the model cannot be loaded, or is a TorchScript file that is not trusted.
    """
    refuse_untrusted(spec, trust_torchscript=trust_torchscript)
    kind = kind_of_embedder(spec)
    if kind == "perceptual":
        model = PerceptualDescriptor()
        model.load_state_dict(torch.load(descriptor, weights_only=True))
        return ModelEmbedder(model, PatchSums(), batch_size=batch_size)
    if kind == "torchscript":
        try:
            network = torch.jit.load(str(Path(spec).expanduser()), map_location="cpu")
        except RuntimeError as error:
            raise ValueError(
                f"embedder is {spec!r}, which is no TorchScript file: {str(error).splitlines()[0]}"
            ) from None
        # Images that keep their shapes cannot share a batch.
        batch_size = batch_size if len(torchscript_size) == 2 else 1
        return ModelEmbedder(VectorModel(network), TorchScriptInput(torchscript_size), batch_size=batch_size)
    from ..conversion.saved_models import load_image_processor, load_network

    try:
        source = find_model(spec)
        # Not `AutoModel`, which fills what is missing in a file with random numbers, and of MAE hides random patches.
        model, image_processor = vision_part(load_network(source)), load_image_processor(source)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"embedder is {spec!r}, which cannot be loaded: {' '.join(str(error).split())}") from None
    return ModelEmbedder(model, image_processor, feature_kind, batch_size)


class VectorModel(nn.Module):
    """A network that gives (B, D) for (B, 3, h, w), in the form of one with a single token."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.placed = nn.Parameter(torch.zeros(()), requires_grad=False)  # tells the device, if nothing else does

    def forward(self, pixel_values: Tensor) -> OneToken:
        output = self.network(pixel_values)
        if not isinstance(output, Tensor) or output.ndim != 2:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"embedder gives {shape} for a batch of images, but (images, width) is needed.")
        return OneToken(output[:, None])


class TorchScriptInput:
    """Resizing and normalisation as published for SSCD: the shorter side to 288, ImageNet's mean and deviation.

    Args:
        size: (shorter side,) or (height, width), in pixels; SSCD's are (288,), and (320, 320) for batches.
    """

    def __init__(self, size: Sequence[int]):
        self.transform = v2.Compose(
            [
                v2.ToImage(),
                v2.Resize(list(size), antialias=True),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)),
            ]
        )

    def __call__(self, images: list[Image.Image], return_tensors: str = "pt") -> dict[str, Tensor]:
        return {"pixel_values": torch.stack([self.transform(image) for image in images])}


def fit_descriptor(
    images: Sequence[dict], *, num_workers: int, progress: bool
) -> tuple[PerceptualDescriptor, dict[int, str]]:
    """The perceptual descriptor, centred on a sample of undecoded images (rows `{"image": ...}`), and why some of
    them were left out, by row."""
    unfitted = ModelEmbedder(VectorModel(nn.Identity()), PatchSums())
    _, sums, reasons = unfitted.vectors(
        images, device="cpu", bf16=False, num_workers=num_workers, progress=progress, description="fit descriptor"
    )
    return PerceptualDescriptor().fit(torch.from_numpy(sums)), reasons


class PrecomputedVectors:
    """Vectors that a user brings.

    | file | vector of an image |
    |---|---|
    | `vectors.npy` | row `row_id`: all sources in their order, uncurated, curated, benchmarks |
    | `vectors.parquet` with `id` | the row whose id is `<source>/<row>` (or `<source>/<value of id_column>`) |
    | `vectors.parquet` with `row` | as `dinov2-hf features` writes; one source only |
    | a folder | `<source>.npy` or `<source>.parquet` for each source, by rows of that source |

    Args:
        spec: the file or folder.
        sources: to know names and numbers.

    Raises:
        ValueError: a file is missing or cannot be read, has no column of vectors or the wrong number of rows, or
            repeats an id.
    """

    def __init__(self, spec: str, sources: OpenSources):
        self.path = Path(spec).expanduser()
        self.sources = sources
        if self.path.suffix == ".npy":
            self._array(self.path, len(sources))
        for number, source in enumerate(sources.sources if self.path.is_dir() else ()):
            file = self.path / f"{source.name}.npy"
            if file.exists():
                self._array(file, len(sources.range_of(number)))

    def vectors(self, row_ids: np.ndarray, ids: Sequence[str]) -> tuple[list[int], np.ndarray, dict[int, str]]:
        """As `ModelEmbedder.vectors`, for images given by row id and id."""
        found: dict[int, np.ndarray] = {}
        for place, vector in self._found(np.asarray(row_ids), list(ids)):
            if place in found:
                raise ValueError(f"embedder {str(self.path)!r} has more than one vector for {ids[place]!r}.")
            found[place] = vector
        places = sorted(found)
        for place in places:
            if found[place].shape != found[places[0]].shape:
                raise ValueError(
                    f"embedder {str(self.path)!r} has a vector of shape {found[place].shape} for {ids[place]!r}, but"
                    f" one of {found[places[0]].shape} for {ids[places[0]]!r}: all must have one width."
                )
        reasons = {place: "has no precomputed vector" for place in range(len(ids)) if place not in found}
        vectors = np.stack([found[place] for place in places]) if places else np.empty((0, 1))
        return places, vectors.astype(np.float32), reasons

    def _found(self, row_ids: np.ndarray, ids: list[str]) -> Iterator[tuple[int, np.ndarray]]:
        """(place among the ids, vector) of those that are there."""
        if self.path.suffix == ".npy":
            array = self._array(self.path, len(self.sources))
            yield from ((place, array[row]) for place, row in enumerate(row_ids))
        elif self.path.suffix == ".parquet":
            columns = self._column_names(self.path)
            if "id" in columns:
                place_of = {id: place for place, id in enumerate(ids)}
                yield from self._from_table(self.path, "id", ids, place_of)
            elif len(self.sources.sources) == 1:
                yield from self._from_table(self.path, "row", row_ids.tolist(), _places(row_ids))
            else:
                raise ValueError(
                    f"embedder {str(self.path)!r} has no column 'id', by which vectors of several sources are told"
                    " apart; give a folder with a file for each source."
                )
        else:
            for number, source in enumerate(self.sources.sources):
                of_source = self.sources.range_of(number)
                inside = (row_ids >= of_source.start) & (row_ids < of_source.stop)
                if not inside.any():
                    continue
                rows = row_ids[inside] - of_source.start
                place_of = dict(zip(rows.tolist(), np.flatnonzero(inside).tolist(), strict=True))
                npy, table = self.path / f"{source.name}.npy", self.path / f"{source.name}.parquet"
                if npy.exists():
                    array = self._array(npy, len(of_source))
                    yield from ((place, array[row]) for row, place in place_of.items())
                elif table.exists():
                    yield from self._from_table(table, "row", rows.tolist(), place_of)
                else:
                    raise ValueError(f"embedder {str(self.path)!r} has no {npy.name} or {table.name}.")

    def _from_table(self, path: Path, key: str, wanted: list, place_of: dict) -> Iterator[tuple[int, np.ndarray]]:
        names = self._column_names(path)
        column = next((name for name in VECTOR_COLUMNS if name in names), None)
        if column is None or key not in names:
            raise ValueError(
                f"embedder {str(path)!r} has the columns {names}, but {key!r} and one of {', '.join(VECTOR_COLUMNS)}"
                " are needed."
            )
        # Row groups whose range of keys holds none of those wanted are not read.
        try:
            table = parquet.read_table(
                path, columns=[key, column], filters=[(key, ">=", min(wanted)), (key, "<=", max(wanted))]
            )
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            kind = "integers" if key == "row" else "text"
            raise ValueError(f"embedder {str(path)!r} needs {kind} in the column {key!r}: {error}") from None
        for batch in table.to_batches():
            vectors = batch.column(1)
            for name, vector in zip(batch.column(0).to_pylist(), vectors, strict=True):
                if name in place_of and vector.is_valid:
                    values = vector.values
                    yield place_of[name], np.asarray(values if isinstance(values, pa.Array) else vector.as_py())

    @staticmethod
    def _column_names(path: Path) -> list[str]:
        try:
            return parquet.read_schema(path).names
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"embedder {str(path)!r} is no readable parquet file: {error}") from None

    @staticmethod
    def _array(path: Path, rows: int) -> np.ndarray:
        """A file of vectors as a memory map, checked."""
        try:
            array = np.load(path, mmap_mode="r")
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"embedder {str(path)!r} is no readable .npy file of numbers: {error}") from None
        if array.ndim != 2 or len(array) != rows:
            raise ValueError(f"embedder {str(path)!r} has the shape {array.shape}, but {rows} vectors are needed.")
        return array


def _places(row_ids: np.ndarray) -> dict[int, int]:
    return dict(zip(row_ids.tolist(), range(len(row_ids)), strict=True))
