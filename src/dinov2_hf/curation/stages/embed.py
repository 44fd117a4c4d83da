"""Stages that turn images into vectors: `<role>.npy` and `<role>.ids.npy` of each shard, read by `EmbeddingStore`."""

import bisect
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from ...data.decoding.undecodable import UndecodableImage
from ...devices import find_device
from ..arguments import CurationArguments
from ..embedders import Embedder, fitted_module, kind_of_embedder, load_embedder
from ..run_context import Curation
from ..storage.dropped_images import Dropped
from ..storage.embeddings import problems_of, write_shard
from ..storage.file_fingerprints import file_fingerprint
from ..storage.image_reading import UnreadableFile, read_image_file, refuse_unread
from ..storage.manifests import UnfinishedShard
from ..storage.precomputed_vectors import PrecomputedVectors
from ..storage.sources import OpenSources
from .stage import POOL, image_shards, stage
from .stand_ins import FILE as STAND_INS
from .stand_ins import find_stand_ins


RETRIEVAL = "retrieval_embed"
# The mean and 512 variances change little with more.
FITTED_SAMPLE = 1000
# What the vectors of an embedder depend on beside its name and files.
OPTIONS_OF_KIND = {"model": ("feature_kind", "bf16"), "torchscript": ("torchscript_size", "bf16")}


class RowsOfSources(Sequence):
    """Undecoded images of some row ids, as rows of a dataset."""

    def __init__(self, sources: OpenSources, row_ids: np.ndarray):
        sources.refuse_changed(row_ids)
        self.sources, self.row_ids = sources, row_ids

    def __len__(self) -> int:
        return len(self.row_ids)

    def __getitem__(self, place: int) -> dict:
        try:
            content = read_image_file(self.sources.image(int(self.row_ids[place])))
        except (UndecodableImage, UnreadableFile):  # an error would end a process of a loader; the reason is asked for
            content = b""
        return {"image": {"bytes": content, "path": None}}

    def why_not(self, place: int, reason: str) -> str:
        """Why there is no picture at a place, which may be that its file cannot be read."""
        try:
            read_image_file(self.sources.image(int(self.row_ids[place])))
        except (UndecodableImage, UnreadableFile) as error:
            return str(error)
        return reason


def specs_of(arguments: CurationArguments) -> list[str]:
    """The embedders of a curation, each once."""
    return list(dict.fromkeys([arguments.embedder, arguments.retrieval_embedder or arguments.embedder]))


def load_embedder_of(arguments: CurationArguments, spec: str, **run: Any) -> Embedder:
    """An embedder that computes, as these arguments want it; `run`: as in `load_embedder`, with `fitted`."""
    return load_embedder(
        spec,
        feature_kind=arguments.feature_kind,
        torchscript_size=arguments.torchscript_size,
        batch_size=arguments.batch_size,
        trust_torchscript=arguments.trust_torchscript,
        autocast_dtype=torch.bfloat16 if arguments.bf16 else None,
        **run,
    )


def _fitted(curation: Curation) -> list[str]:
    return [spec for spec in specs_of(curation.arguments) if fitted_module(spec) is not None]


def _fitted_file(spec: str) -> str:
    return f"{spec.replace(':', '.')}.pt"


@stage(
    "fit_descriptor",
    step="embed",
    is_wanted=lambda curation: bool(_fitted(curation)),
    config=lambda curation: {"embedders": _fitted(curation)},
)
def fit_descriptor(curation: Curation, shard: UnfinishedShard, *, seed: int) -> None:
    """Fit what embedders learn from a sample of the pool, as the perceptual descriptor its mean."""
    row_ids = curation.array("hash_deduplicate", "uncurated")
    if not len(row_ids):
        raise curation.nothing_left("hash_deduplicate")
    sample = np.sort(np.random.default_rng(seed).choice(row_ids, min(FITTED_SAMPLE, len(row_ids)), replace=False))
    rows, arguments = RowsOfSources(curation.sources, sample), curation.arguments
    for spec in _fitted(curation):
        embedder = load_embedder_of(arguments, spec, **_workers(arguments, "cpu"))
        found = embedder(rows, f"fit {spec}")
        _refuse_unread(curation, rows, found.undecodable_rows)
        module = fitted_module(spec)().fit(found.values)
        torch.save(module.state_dict(), shard.folder / _fitted_file(spec))
    shard.rows = len(sample)


def _what_decides(spec: str, roles: Sequence[str], arguments: CurationArguments) -> dict[str, Any]:
    options = {name: getattr(arguments, name) for name in OPTIONS_OF_KIND.get(kind_of_embedder(spec), ())}
    return {"embedder": spec, "roles": list(roles), "files": file_fingerprint(spec), **options}


def _roles(curation: Curation) -> list[str]:
    """Of which images `embed` makes vectors."""
    arguments = curation.arguments
    queries = arguments.how_selected == "retrieval" and len(specs_of(arguments)) == 1
    curated = queries or arguments.compares_curated
    return ["uncurated", *(["curated"] if curated else []), *(["benchmark"] if arguments.benchmarks else [])]


@stage(
    "embed",
    title="embedded",
    writes_left=True,
    needs=[POOL, "fit_descriptor"],
    num_shards=image_shards,
    config=lambda curation: _what_decides(curation.arguments.embedder, _roles(curation), curation.arguments),
)
def embed(curation: Curation, shard: UnfinishedShard) -> Dropped:
    """Vectors of a range of the images; copies in the place of those of the pool that have none: `stand_ins.npy`."""
    usable = partial(_usable_vectors, curation, curation.arguments.embedder, f"embed {shard.label}")
    reasons: dict[int, str] = {}
    stand_ins = np.empty((0, 2), np.int64)
    for role in _roles(curation):
        wanted = _in_range(curation, shard, curation.array("hash_deduplicate", role))
        found, vectors = usable(wanted, reasons)
        if role == "uncurated":
            failed = wanted[~np.isin(wanted, found)]
            copies = curation.array("hash_deduplicate", "copies")
            stand_ins, others = find_stand_ins(failed, copies, lambda tried: usable(tried, {}))
            if len(stand_ins):
                found = np.concatenate([found, stand_ins[:, 0]])
                vectors = np.concatenate([vectors, others]) if len(vectors) else others
        _save(shard, role, found, vectors)
    np.save(shard.folder / STAND_INS, stand_ins)
    return _dropped(reasons)


def _retrieval_roles(curation: Curation) -> list[str]:
    return ["uncurated", *(["curated"] if curation.arguments.how_selected == "retrieval" else [])]


@stage(
    "retrieval_embed",
    title="embedded for retrieval",
    writes_left=True,
    needs=[POOL, "fit_descriptor"],
    step="retrieve",
    num_shards=image_shards,
    is_wanted=lambda curation: len(specs_of(curation.arguments)) > 1 and curation.arguments.how_selected != "all",
    config=lambda curation: _what_decides(
        curation.arguments.retrieval_embedder, _retrieval_roles(curation), curation.arguments
    ),
)
def retrieval_embed(curation: Curation, shard: UnfinishedShard) -> Dropped:
    """Vectors of a range of what is left of the pool, and of curated images."""
    spec = curation.arguments.retrieval_embedder
    reasons: dict[int, str] = {}
    for role in _retrieval_roles(curation):
        row_ids = curation.left()[0] if role == "uncurated" else curation.array("hash_deduplicate", role)
        wanted = _in_range(curation, shard, row_ids)
        _save(shard, role, *_usable_vectors(curation, spec, f"retrieval_embed {shard.label}", wanted, reasons))
    return _dropped(reasons)


def _in_range(curation: Curation, shard: UnfinishedShard, row_ids: np.ndarray) -> np.ndarray:
    rows = shard.rows_of(len(curation.sources))
    return np.array(row_ids[bisect.bisect_left(row_ids, rows.start) : bisect.bisect_left(row_ids, rows.stop)])


def _save(shard: UnfinishedShard, role: str, row_ids: np.ndarray, vectors: np.ndarray) -> None:
    if len(row_ids):
        write_shard(shard.folder, role, vectors, row_ids)
        shard.rows += len(row_ids)


def _dropped(reasons: Mapping[int, str]) -> Dropped:
    rows = sorted(reasons)
    return Dropped(np.array(rows, dtype=np.int64), [reasons[row] for row in rows])


def _usable_vectors(
    curation: Curation, spec: str, description: str, row_ids: np.ndarray, reasons: dict[int, str]
) -> tuple[np.ndarray, np.ndarray]:
    """The row ids that have a vector with a direction, and their vectors; the others get a reason."""
    if not len(row_ids):
        return row_ids, np.empty((0, 1), np.float32)
    places, vectors, failures = _vectors(curation, spec, row_ids, description)
    reasons.update((int(row_ids[place]), reason) for place, reason in failures.items())
    found = row_ids[places]
    problems = np.array(problems_of(vectors), dtype=object)
    reasons.update((int(row), f"its vector is {problems[n]}") for n, row in enumerate(found) if problems[n])
    is_good = problems == ""
    return found[is_good], vectors[is_good]


def _vectors(curation: Curation, spec: str, row_ids: np.ndarray, description: str):
    arguments = curation.arguments
    if kind_of_embedder(spec) == "precomputed":
        return PrecomputedVectors(spec, curation.sources).vectors(row_ids)
    fitted = None
    if fitted_module(spec) is not None:
        fitted = curation.folders["fit_descriptor"].shard(0) / _fitted_file(spec)
    device = str(find_device(arguments.device))
    rows = RowsOfSources(curation.sources, row_ids)
    embedder = load_embedder_of(arguments, spec, fitted=fitted, **_workers(arguments, device))
    found = embedder(rows, description)
    return found.rows.numpy(), found.values.numpy(), _refuse_unread(curation, rows, found.undecodable_rows)


def _refuse_unread(curation: Curation, rows: RowsOfSources, reasons: dict[int, str]) -> dict[int, str]:
    """The reasons, by place, for images that were read before and cannot be now, if such are left out."""
    found = {}
    for place, reason in reasons.items():
        reason, image_id = rows.why_not(place, reason), curation.sources.image_id(int(rows.row_ids[place]))
        refuse_unread(image_id, reason, skip_unreadable=curation.arguments.skip_unreadable)
        found[place] = f"cannot be read again: {reason}"
    return found


def _workers(arguments: CurationArguments, device: str) -> dict[str, Any]:
    """Where and by how many processes. Decoding must not keep an accelerator waiting; on a CPU it would compete with
    the network."""
    num_workers = arguments.num_workers
    if num_workers is None:
        num_workers = 0 if device == "cpu" else min(8, os.cpu_count() or 1)
    return {"device": device, "num_workers": num_workers, "progress": arguments.progress}
