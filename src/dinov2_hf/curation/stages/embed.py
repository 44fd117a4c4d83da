"""Stages that turn images into vectors.

The output of an embedder for an image is kept by source. What the embedder learns from a sample of the pool, and which
images of the pool are left, depends on all sources. A second step applies this to the output, and reads no image.
"""

import bisect
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from ...data.decoding.rgb import decode_image
from ...data.decoding.undecodable import UndecodableImage
from ...devices import find_device
from .. import pixels
from ..algorithms.unit_vectors import row_blocks
from ..arguments import CurationArguments
from ..embedders import EMBEDDERS, Embedder, fitted_module, kind_of_embedder, load_embedder
from ..run_context import Curation, Piece
from ..storage.code_fingerprints import fingerprint_of_named
from ..storage.dropped_images import Dropped
from ..storage.embeddings import problems_of, stored_form
from ..storage.file_fingerprints import file_fingerprint
from ..storage.image_reading import UnreadableFile, read_image_file, refuse_unread
from ..storage.manifests import UnfinishedShard, link_or_copy
from ..storage.precomputed_vectors import PrecomputedVectors
from ..storage.sources import OpenSources
from .first_vectors import first_vectors
from .stage import POOL, source_shards, stage
from .stand_ins import FILE as STAND_INS
from .stand_ins import find_stand_ins


FITTED_FILE = "fitted.pt"
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
        except (UndecodableImage, UnreadableFile):  # an error would end a loader's process; `why_not` tells it
            content = b""
        return {"image": {"bytes": content, "path": None}}

    def why_not(self, place: int, reason: str) -> str:
        """Why there is no picture at a place: the error of reading its file, or `reason` if the file can be read."""
        try:
            read_image_file(self.sources.image(int(self.row_ids[place])))
        except (UndecodableImage, UnreadableFile) as error:
            return str(error)
        return reason


def specs_of(arguments: CurationArguments) -> list[str]:
    """The embedders of a curation, each once."""
    return list(dict.fromkeys([arguments.copy_embedder, arguments.retrieval_embedder or arguments.copy_embedder]))


def spec_of(arguments: CurationArguments, of: str) -> str | None:
    """The embedder that the field "embedder" or "retrieval_embedder" stands for."""
    return arguments.copy_embedder if of == "embedder" else arguments.retrieval_embedder


def load_embedder_of(arguments: CurationArguments, spec: str, **run: Any) -> Embedder:
    """Load an embedder that computes vectors, as these arguments ask; `run`: as in `load_embedder`, with `fitted`."""
    return load_embedder(
        spec,
        feature_kind=arguments.feature_kind,
        torchscript_size=arguments.torchscript_size,
        batch_size=arguments.batch_size,
        trust_torchscript=arguments.trust_torchscript,
        autocast_dtype=torch.bfloat16 if arguments.bf16 else None,
        **run,
    )


def embedder_at_work(arguments: CurationArguments, spec: str) -> Embedder:
    """Load an embedder that computes vectors on the device of this process, of images decoded as it needs them."""
    embedder = load_embedder_of(arguments, spec, **workers_of(arguments))
    if pixels.is_reduced(arguments, spec) and embedder.extractor.num_channels == 3:
        embedder.extractor.decode = partial(decode_image, reduction=pixels.reduction)
    return embedder


def what_decides_vectors(spec: str, arguments: CurationArguments) -> dict[str, Any]:
    """What the vectors of an embedder depend on, beside the images."""
    options = {name: getattr(arguments, name) for name in OPTIONS_OF_KIND.get(kind_of_embedder(spec), ())}
    options |= pixels.what_decides(arguments, spec)
    return {
        "embedder": spec,
        "files": file_fingerprint(spec),
        "code": fingerprint_of_named(EMBEDDERS, spec),
        **options,
    }


def roles_of(curation: Curation, of: str) -> list[str]:
    """The roles of the images that get vectors."""
    arguments = curation.arguments
    if of == "retrieval_embedder":
        return ["uncurated", *(["curated"] if arguments.how_selected == "retrieval" else [])]
    queries = arguments.how_selected == "retrieval" and len(specs_of(arguments)) == 1
    curated = queries or arguments.compares_curated
    return ["uncurated", *(["curated"] if curated else []), *(["benchmark"] if arguments.benchmarks else [])]


def _to_embed(curation: Curation, piece: Piece, of: str, *, alone: bool) -> np.ndarray:
    """Row ids of the images of a piece that need vectors, ascending.

    Args:
        alone: include copies of images of other sources, so that other sources change nothing.
    """
    role = curation.sources.roles[piece.source]
    if role not in roles_of(curation, of):
        return np.empty(0, np.int64)
    if of == "retrieval_embedder" and role == "uncurated":
        row_ids = curation.left()[0]
    else:
        row_ids = curation.array("hash_deduplicate", "to_embed" if alone and of == "embedder" else role)
    begin, end = (bisect.bisect_left(row_ids, row) for row in (piece.row_ids.start, piece.row_ids.stop))
    return np.array(row_ids[begin:end])


def _copies_of(curation: Curation, of: str, name: str) -> np.ndarray:
    """(m, 2) copies; one of them is embedded if the image that stays has no vector."""
    return curation.array("hash_deduplicate", name) if of == "embedder" else np.empty((0, 2), np.int64)


def _describe(curation: Curation, shard: UnfinishedShard, *, of: str) -> None:
    """Write what the embedder gives for a piece of a source.

    `vectors.npy` is in single precision if the vectors are brought to their last form later. `rows.npy` has their rows
    within the source, and `failures.json` the reasons by row. A copy takes the place of an image without a vector, if
    there is one in the source.
    """
    piece, spec = curation.pieces[shard.rank], spec_of(curation.arguments, of)
    usable = partial(_usable_vectors, curation, spec, f"{of} {shard.label}")
    reasons: dict[int, str] = {}
    wanted = _to_embed(curation, piece, of, alone=True)
    row_ids, vectors = usable(wanted, reasons)
    failed = wanted[~np.isin(wanted, row_ids)]
    copies = _copies_of(curation, of, "copies_in_source")
    stand_ins, others = find_stand_ins(failed, copies, lambda tried: usable(tried, {}))
    row_ids, vectors = _joined(row_ids, vectors, stand_ins[:, 0], others)
    np.save(shard.folder / "rows.npy", row_ids - piece.begin)
    np.save(shard.folder / "vectors.npy", vectors if fitted_module(spec) else stored_form(vectors))
    failures = {row_id - piece.begin: reason for row_id, reason in sorted(reasons.items())}
    (shard.folder / "failures.json").write_text(json.dumps(failures))
    shard.rows = len(row_ids)


def _what_it_reads(curation: Curation, rank: int, *, of: str) -> bytes:
    """Bytes that tell which images of a piece are described."""
    piece = curation.pieces[rank]
    wanted = _to_embed(curation, piece, of, alone=True)
    copies = _copies_of(curation, of, "copies_in_source")
    begin, end = np.searchsorted(copies[:, 1], (piece.row_ids.start, piece.row_ids.stop))
    return (wanted - piece.begin).tobytes() + (copies[begin:end] - piece.begin).tobytes()


def _described(curation: Curation, row_ids: np.ndarray, of: str) -> tuple[np.ndarray, np.ndarray]:
    """Which of some images have been described, ascending, and what the embedder gave for them."""
    found, vectors = np.empty(0, np.int64), np.empty((0, 1), np.float32)
    wanted_sources = {curation.sources.locate(row)[0] for row in row_ids.tolist()}
    for rank, piece in enumerate(curation.pieces):
        if piece.source in wanted_sources:  # a stand-in can lie in another piece of its source
            shard = curation.folders[DESCRIBE[of]].shard(rank)
            rows = np.load(shard / "rows.npy", mmap_mode="r") + piece.begin
            places = np.flatnonzero(np.isin(rows, row_ids) & ~np.isin(rows, found))
            if len(places):
                some = np.load(shard / "vectors.npy", mmap_mode="r")[places]
                found, vectors = _joined(found, vectors, rows[places], some)
    order = np.argsort(found)
    return found[order], vectors[order]


def _fit(curation: Curation, shard: UnfinishedShard, *, of: str, seed: int) -> None:
    """Fit what the embedder learns from a sample of the pool, such as the mean of the perceptual descriptor."""
    row_ids = curation.array("hash_deduplicate", "uncurated") if of == "embedder" else curation.left()[0]
    sample = np.random.default_rng(seed).choice(row_ids, min(FITTED_SAMPLE, len(row_ids)), replace=False)
    found, vectors = _described(curation, sample, of)
    if not len(found):
        raise curation.nothing_left(DESCRIBE[of] if len(row_ids) else "hash_deduplicate")
    module = fitted_module(spec_of(curation.arguments, of))().fit(torch.from_numpy(vectors))
    torch.save(module.state_dict(), shard.folder / FITTED_FILE)
    shard.rows = len(found)


def _in_last_form(
    curation: Curation, row_ids: np.ndarray, vectors: np.ndarray, of: str
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """The last form of what the embedder gave: what was fitted is applied, if anything was. As `_with_direction`."""
    if FIT[of] not in curation.folders or not len(vectors):
        return row_ids, vectors, {}
    module = fitted_module(spec_of(curation.arguments, of))()
    module.load_state_dict(torch.load(curation.folders[FIT[of]].shard(0) / FITTED_FILE, weights_only=True))
    with torch.inference_mode():
        parts = [module(torch.from_numpy(np.array(vectors[slice(*part)]))) for part in row_blocks(0, len(vectors))]
    return _with_direction(row_ids, torch.cat(parts).numpy())


def _embed(curation: Curation, shard: UnfinishedShard, *, of: str) -> Dropped:
    """Write the vectors of what is left of a piece: `<role>.npy` and `<role>.ids.npy`, which `EmbeddingStore` reads.
    `stand_ins.npy` names the copies that take the place of images of the pool without a vector."""
    piece, described = curation.pieces[shard.rank], curation.folders[DESCRIBE[of]].shard(shard.rank)
    wanted = _to_embed(curation, piece, of, alone=False)
    stand_ins, reasons = np.empty((0, 2), np.int64), {}
    if len(wanted):
        known = json.loads((described / "failures.json").read_text())
        row_ids = np.load(described / "rows.npy") + piece.begin
        is_wanted = np.isin(row_ids, wanted)
        row_ids, vectors = row_ids[is_wanted], np.load(described / "vectors.npy", mmap_mode="r")
        if not is_wanted.all():
            vectors = vectors[is_wanted]
        row_ids, vectors, problems = _in_last_form(curation, row_ids, vectors, of)
        failed = wanted[~np.isin(wanted, row_ids)]
        reasons = {row: problems[row] if row in problems else known[str(row - piece.begin)] for row in failed.tolist()}

        def embedded(tried: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return _in_last_form(curation, *_described(curation, tried, of), of)[:2]

        stand_ins, others = find_stand_ins(failed, _copies_of(curation, of, "copies"), embedded)
        role = curation.sources.roles[piece.source]
        if len(stand_ins) or not is_wanted.all() or FIT[of] in curation.folders:
            row_ids, vectors = _joined(row_ids, vectors, stand_ins[:, 0], others)
            if len(row_ids):
                np.save(shard.folder / f"{role}.npy", stored_form(vectors))
        elif len(row_ids):
            link_or_copy(described / "vectors.npy", shard.folder / f"{role}.npy")
        if len(row_ids):
            np.save(shard.folder / f"{role}.ids.npy", row_ids)
        shard.rows = len(row_ids)
    np.save(shard.folder / STAND_INS, stand_ins)
    rows = sorted(reasons)
    return Dropped(np.array(rows, dtype=np.int64), [reasons[row] for row in rows])


def _stages(of: str, names: tuple[str, str, str], title: str, is_wanted: Callable[[Curation], bool], **facts: Any):
    """The three stages of an embedder: what it gives for each image, what it learns from a sample, and the vectors.

    The first depends on each source alone, so it stays when others come or go.
    """

    def spec(curation: Curation) -> str:
        return spec_of(curation.arguments, of)

    def is_fitted(curation: Curation) -> bool:
        return is_wanted(curation) and fitted_module(spec(curation)) is not None

    describe, fit, embed = names
    alike = {"given": {"of": of}, **facts}
    return (
        stage(
            describe, needs=[POOL, "ingest"], num_shards=source_shards, by_source=True, is_wanted=is_wanted,
            reads=partial(_what_it_reads, of=of),
            config=lambda curation: what_decides_vectors(spec(curation), curation.arguments), **alike,
        )(_describe),
        stage(fit, needs=[POOL, describe], is_wanted=is_fitted, **alike)(_fit),
        stage(
            embed, title=title, writes_left=True, needs=[POOL, describe, fit], num_shards=source_shards,
            is_wanted=is_wanted, config=lambda curation: {"roles": roles_of(curation, of)}, **alike,
        )(_embed),
    )  # fmt: skip


EMBED = _stages("embedder", ("describe", "fit_descriptor", "embed"), "embedded", lambda curation: True, step="embed")
RETRIEVAL_EMBED = _stages(
    "retrieval_embedder",
    ("retrieval_describe", "retrieval_fit_descriptor", "retrieval_embed"),
    "embedded for retrieval",
    lambda curation: len(specs_of(curation.arguments)) > 1 and curation.arguments.how_selected != "all",
    step="retrieve",
)
DESCRIBE = {"embedder": EMBED[0].name, "retrieval_embedder": RETRIEVAL_EMBED[0].name}
FIT = {"embedder": EMBED[1].name, "retrieval_embedder": RETRIEVAL_EMBED[1].name}


def _joined(
    row_ids: np.ndarray, vectors: np.ndarray, others: np.ndarray, their_vectors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Images with their vectors, and further ones after them. The vectors of no images have no width."""
    if not len(others):
        return row_ids, vectors
    vectors = np.concatenate([vectors, their_vectors.astype(vectors.dtype)]) if len(row_ids) else their_vectors
    return np.concatenate([row_ids, others]), vectors


def _with_direction(row_ids: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """The images whose vectors have a direction, these vectors, and why the others have none."""
    problems = np.array(problems_of(vectors), dtype=object)
    is_good = problems == ""
    if is_good.all():
        return row_ids, vectors, {}
    reasons = {int(row): f"its vector is {problem}" for row, problem in zip(row_ids, problems, strict=True) if problem}
    return row_ids[is_good], vectors[is_good], reasons


def _usable_vectors(
    curation: Curation, spec: str, description: str, row_ids: np.ndarray, reasons: dict[int, str]
) -> tuple[np.ndarray, np.ndarray]:
    """The row ids that have a vector with a direction, and their vectors; the others get a reason."""
    if not len(row_ids):
        return row_ids, np.empty((0, 1), np.float32)
    places, vectors, failures = _vectors(curation, spec, row_ids, description)
    reasons.update((int(row_ids[place]), reason) for place, reason in failures.items())
    found, vectors, problems = _with_direction(row_ids[places], vectors)
    reasons.update(problems)
    return found, vectors


def _vectors(curation: Curation, spec: str, row_ids: np.ndarray, description: str):
    arguments = curation.arguments
    if kind_of_embedder(spec) == "precomputed":
        return PrecomputedVectors(spec, curation.sources).vectors(row_ids)
    places, vectors = _known_vectors(curation, spec, row_ids)
    others = np.setdiff1d(np.arange(len(row_ids)), places)
    if not len(others):
        return places, vectors, {}
    rows = RowsOfSources(curation.sources, row_ids[others])
    found = embedder_at_work(arguments, spec)(rows, description)
    failures = _refuse_unread(curation, rows, found.undecodable_rows)
    failures = {int(others[place]): reason for place, reason in failures.items()}
    places, vectors = _joined(places, vectors, others[found.rows.numpy()], found.values.numpy())
    order = np.argsort(places)
    return places[order], vectors[order], failures


def _known_vectors(curation: Curation, spec: str, row_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of images whose vectors were made when the images were first read, ascending, and these vectors."""
    decided_by, shards = what_decides_vectors(spec, curation.arguments), curation.shards_of(row_ids)
    found, vectors = np.empty(0, np.int64), np.empty((0, 1), np.float32)
    for shard in np.unique(shards).tolist():
        rows, known = first_vectors(curation.folders["ingest"].shard(shard), decided_by)
        places = np.flatnonzero(shards == shard)
        _, in_shard, of_known = np.intersect1d(
            row_ids[places] - curation.pieces[shard].begin, rows, return_indices=True
        )
        found, vectors = _joined(found, vectors, places[in_shard], np.array(known[of_known]))
    order = np.argsort(found)
    return found[order], vectors[order]


def _refuse_unread(curation: Curation, rows: RowsOfSources, reasons: dict[int, str]) -> dict[int, str]:
    """The reasons, by place, for images that were read before and cannot be read now, if the user leaves these out."""
    found = {}
    for place, reason in reasons.items():
        reason, image_id = rows.why_not(place, reason), curation.sources.image_id(int(rows.row_ids[place]))
        refuse_unread(image_id, reason, skip_unreadable=curation.arguments.skip_unreadable)
        found[place] = f"cannot be read again: {reason}"
    return found


def workers_of(arguments: CurationArguments) -> dict[str, Any]:
    """The device, and the number of processes that decode. Decoding must not keep an accelerator waiting; on a CPU it
    would compete with the network."""
    device, num_workers = str(find_device(arguments.device)), arguments.num_workers
    if num_workers is None:
        num_workers = 0 if device == "cpu" else min(8, os.cpu_count() or 1)
    return {"device": device, "num_workers": num_workers, "progress": arguments.progress}
