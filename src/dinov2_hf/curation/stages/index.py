"""Stages that make an index of vectors: trained once, filled in shards, merged.

An exhaustive index is not kept on disk: it would be a copy of the vectors, and is made of them in a second.
"""

import dataclasses
import json

import faiss
import numpy as np

from ..algorithms.deduplication import crowded_rows
from ..algorithms.faiss_gpus import gpus_for_faiss
from ..algorithms.neighbors import (
    IndexSettings,
    add_rows,
    build_index,
    choose_index,
    load_index,
    merge_indexes,
    save_index,
    train_index,
)
from ..algorithms.unit_vectors import ChosenRows, UnitVectors
from ..run_context import Curation
from ..storage.edge_files import load_edges
from ..storage.manifests import UnfinishedShard
from .stage import POOL, Stage, stage


INDEX_FILE = "pool.faiss"
ROWS_OF_PART = 1_000_000  # every part has all centroids in it, and takes half a minute


def pool_of(curation: Curation, of: str) -> UnitVectors:
    """What an index holds.

    Args:
        of: "copies" for the whole pool, "survivors" for what deduplication left of it, "benchmarks" for the evaluation
            images, "retrieval" for what is left of the pool, by the embedder of retrieval.

    Raises:
        ValueError: there is no such image.
    """
    if of == "copies":
        return curation.pool_vectors()
    if of == "survivors":
        return ChosenRows(curation.pool_vectors(), curation.left()[1])
    if of == "retrieval":
        return curation.candidates()[1]
    references = curation.vectors("embed", "benchmark")
    if references is None:
        raise ValueError("benchmarks hold no image that could be read and embedded.")
    return references


def crowded_survivors(curation: Curation) -> np.ndarray:
    """Rows of the pool that is left whose 64 neighbours may hide others that are left; see `crowded_rows`."""
    arguments, pool = curation.arguments, curation.pool_vectors()
    kept = np.zeros(len(pool), bool)
    kept[curation.left()[1]] = True
    if arguments.num_neighbors >= len(pool) - 1:  # the lists hold all
        return np.empty(0, np.int64)
    edges = load_edges(curation.folders["search_copies"])
    return crowded_rows(edges, kept, arguments.num_neighbors, arguments.benchmark_threshold)


def open_index(curation: Curation, of: str) -> tuple[faiss.Index, IndexSettings]:
    """A finished index, and how it is searched."""
    settings = _settings(curation, of)
    if settings.factory == "Flat":
        return build_index(pool_of(curation, of), settings), settings
    return load_index(curation.folders[f"{of}_merge_index"].shard(0) / INDEX_FILE), settings


def _settings(curation: Curation, of: str) -> IndexSettings:
    path = curation.folders[f"{of}_train_index"].shard(0) / "settings.json"
    return IndexSettings(**json.loads(path.read_text()))


def _train(
    curation: Curation, shard: UnfinishedShard, *, of: str, index: str | None, index_memory_gb: float,
    index_probes: int | None, seed: int,
) -> None:  # fmt: skip
    """Choose the index, unless it is given for the pool; an inverted file is trained and saved."""
    pool, gpus = pool_of(curation, of), gpus_for_faiss(curation.arguments.device)
    if of == "survivors" and not len(crowded_survivors(curation)):
        settings = IndexSettings("Flat")  # nothing will be searched
    elif index is None or of == "benchmarks":
        settings = choose_index(len(pool), pool.width, index_memory_gb * 1e9, for_gpus=bool(gpus))
    else:
        settings = IndexSettings(index)
    if index_probes is not None:
        settings = dataclasses.replace(settings, num_probes=index_probes)
    (shard.folder / "settings.json").write_text(json.dumps(vars(settings)))
    if settings.factory != "Flat":
        save_index(train_index(pool, settings, seed=seed, gpus=gpus), shard.folder / INDEX_FILE)
    shard.rows = len(pool)


def _fill(curation: Curation, shard: UnfinishedShard, *, of: str) -> None:
    """Add a range of the pool to a copy of the trained index."""
    pool = pool_of(curation, of)
    rows = shard.rows_of(len(pool))
    shard.rows = len(rows)
    if _settings(curation, of).factory != "Flat":
        trained = load_index(curation.folders[f"{of}_train_index"].shard(0) / INDEX_FILE)
        gpus, progress = gpus_for_faiss(curation.arguments.device), curation.arguments.progress
        filled = add_rows(trained, pool, rows.start, rows.stop, gpus=gpus, progress=progress)
        save_index(filled, shard.folder / INDEX_FILE)


def _merge(curation: Curation, shard: UnfinishedShard, *, of: str) -> None:
    """Merge the parts."""
    pool = pool_of(curation, of)
    shard.rows = len(pool)
    if _settings(curation, of).factory != "Flat":
        parts = (load_index(path) for path in curation.folders[f"{of}_fill_index"].files(INDEX_FILE))
        save_index(merge_indexes(parts, len(pool)), shard.folder / INDEX_FILE)


def _num_parts(curation: Curation) -> int:
    return max(1, min(-(-curation.sources.rows_of("uncurated") // ROWS_OF_PART), curation.num_shards))


def index_stages(of: str, step: str, needs: str, is_wanted) -> tuple[Stage, Stage, Stage]:
    """The three stages of the index `of`, as of `pool_of`; `needs`: the stage that leaves what it holds."""
    names = [f"{of}_{verb}_index" for verb in ("train", "fill", "merge")]
    alike = {"step": step, "is_wanted": is_wanted, "given": {"of": of}}
    parts = {} if of == "benchmarks" else {"num_shards": _num_parts}
    return (
        stage(names[0], needs=[needs], **alike)(_train),
        stage(names[1], needs=names[:1], **parts, **alike)(_fill),
        stage(names[2], needs=names[1:2], **alike)(_merge),
    )


COPIES_INDEX = index_stages("copies", "deduplicate", "embed", lambda curation: True)


def _has_benchmarks(curation: Curation) -> bool:
    return bool(curation.arguments.benchmarks)


BENCHMARKS_INDEX = index_stages("benchmarks", "relative_deduplicate", "embed", _has_benchmarks)
SURVIVORS_INDEX = index_stages("survivors", "relative_deduplicate", POOL, _has_benchmarks)
RETRIEVAL_INDEX = index_stages(
    "retrieval", "retrieve", POOL, lambda curation: "sample" in curation.arguments.retrieval_modes
)
