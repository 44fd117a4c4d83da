"""Stages that turn images into vectors: `<role>.npy` and `<role>.ids.npy` of each shard, read by `EmbeddingStore`."""

import bisect
import os
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from ...data.decoding.size_limits import UndecodableImage
from ...devices import find_device
from ..embedders import (
    DESCRIPTOR_FILE,
    PrecomputedVectors,
    fit_descriptor,
    kind_of_embedder,
    load_model_embedder,
)
from ..run_context import Curation
from ..storage.dropped_images import write_dropped
from ..storage.embeddings import problems_of, write_shard
from ..storage.image_reading import UnreadableFile, read_image_file, refuse_unread
from ..storage.manifests import UnfinishedShard, shard_range
from ..storage.sources import OpenSources
from .stand_ins import FILE as STAND_INS
from .stand_ins import find_stand_ins


RETRIEVAL = "retrieval_embed"
# The mean and 512 variances change little with more.
DESCRIPTOR_SAMPLE = 1000


class RowsOfSources(Sequence):
    """Undecoded images of some row ids, as rows of a dataset."""

    def __init__(self, sources: OpenSources, row_ids: np.ndarray):
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


def fit_descriptor_shard(curation: Curation, rank: int, world_size: int, shard: UnfinishedShard) -> None:
    """Centre the perceptual descriptor on a sample of the pool."""
    row_ids = curation.array("hash_deduplicate", "uncurated")
    if not len(row_ids):
        raise curation.nothing_left("hash_deduplicate")
    generator = np.random.default_rng(curation.arguments.seed)
    sample = np.sort(generator.choice(row_ids, min(DESCRIPTOR_SAMPLE, len(row_ids)), replace=False))
    rows = RowsOfSources(curation.sources, sample)
    descriptor, unread = fit_descriptor(
        rows,
        num_workers=_num_workers(curation.arguments.num_workers, "cpu"),
        progress=curation.arguments.progress,
    )
    _refuse_unread(curation, rows, unread)
    torch.save(descriptor.state_dict(), shard.folder / DESCRIPTOR_FILE)
    shard.rows = len(sample)


def embed_shard(
    stage: str, spec: str, roles: tuple[str, ...], curation: Curation, rank: int, world_size: int,
    shard: UnfinishedShard,
) -> None:  # fmt: skip
    """Vectors of the images of a range of rows, and of copies in the place of those of the pool that have none.

    Args:
        stage: "embed", or "retrieval_embed", which leaves out what deduplication dropped from the pool.
        spec: the embedder.
        roles: whose images.
    """
    rows = shard_range(len(curation.sources), rank, world_size)
    embed = partial(_usable_vectors, curation, spec, f"{stage} {rank + 1}/{world_size}")
    reasons: dict[int, str] = {}
    stand_ins = np.empty((0, 2), np.int64)
    for role in roles:
        of_pool = role == "uncurated"
        ids = curation.survivors() if of_pool and stage == RETRIEVAL else curation.array("hash_deduplicate", role)
        wanted = np.array(ids[bisect.bisect_left(ids, rows.start) : bisect.bisect_left(ids, rows.stop)])
        found, vectors = embed(wanted, reasons)
        if of_pool and stage != RETRIEVAL:
            failed = wanted[~np.isin(wanted, found)]
            copies = curation.array("hash_deduplicate", "copies")
            stand_ins, others = find_stand_ins(failed, copies, lambda tried: embed(tried, {}))
            if len(stand_ins):
                found = np.concatenate([found, stand_ins[:, 0]])
                vectors = np.concatenate([vectors, others]) if len(vectors) else others
        if len(found):
            shard.rows += write_shard(shard.folder, role, vectors, found).num_rows
    np.save(shard.folder / STAND_INS, stand_ins)
    dropped = np.array(sorted(reasons), dtype=np.int64)
    write_dropped(curation.dropped(stage, dropped, [reasons[row] for row in dropped.tolist()]), shard.folder)


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
        ids = [curation.sources.image_id(int(row)) for row in row_ids]
        return PrecomputedVectors(spec, curation.sources).vectors(row_ids, ids)
    descriptor = curation.folders.get("fit_descriptor")
    embedder = load_model_embedder(
        spec,
        descriptor=descriptor and descriptor.shard(0) / DESCRIPTOR_FILE,
        feature_kind=arguments.feature_kind,
        torchscript_size=arguments.torchscript_size,
        batch_size=arguments.batch_size,
        trust_torchscript=arguments.trust_torchscript,
    )
    device = str(find_device(arguments.device))
    rows = RowsOfSources(curation.sources, row_ids)
    places, vectors, reasons = embedder.vectors(
        rows,
        device=device,
        bf16=arguments.bf16,
        num_workers=_num_workers(arguments.num_workers, device),
        progress=arguments.progress,
        description=description,
    )
    return places, vectors, _refuse_unread(curation, rows, reasons)


def _refuse_unread(curation: Curation, rows: RowsOfSources, reasons: dict[int, str]) -> dict[int, str]:
    """The reasons, by place, for images that were read before and cannot be now, if such are left out."""
    found = {}
    for place, reason in reasons.items():
        reason, image_id = rows.why_not(place, reason), curation.sources.image_id(int(rows.row_ids[place]))
        refuse_unread(image_id, reason, skip_unreadable=curation.arguments.skip_unreadable)
        found[place] = f"cannot be read again: {reason}"
    return found


def _num_workers(asked: int | None, device: str) -> int:
    """Decoding must not keep an accelerator waiting; on a CPU it would compete with the network."""
    if asked is not None:
        return asked
    return 0 if device == "cpu" else min(8, os.cpu_count() or 1)
