"""Stages that make an index of vectors: it is trained once, filled in shards, and merged.

A shard that fills a part of an index also finds the exact neighbours of a sample of queries in that part. The merged
index is tried on this sample, which tells how much of it a search must look at for the recall that is asked for.

An exhaustive index is not kept on disk: it would be a copy of the vectors, and it is made from them in a second.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from ..algorithms.faiss_gpus import gpus_for_faiss
from ..algorithms.index_settings import IndexSettings, choose_index
from ..algorithms.neighbors import (
    Neighbors,
    add_rows,
    build_index,
    load_index,
    merge_indexes,
    nearest_of_parts,
    save_index,
    train_index,
)
from ..algorithms.search_recall import Sample, exact_neighbors, reach_recall, without_own_rows
from ..algorithms.unit_vectors import RowRange, UnitVectors, shard_range
from ..run_context import Curation
from ..storage.manifests import UnfinishedShard
from .pool_parts import hash_of_vectors, index_groups, rows_of_pieces, searches_exhaustively
from .queries import crowded_survivors, floor_of, neighbors_wanted, pool_of, sampled_queries
from .stage import POOL, Stage, stage


INDEX_FILE, SETTINGS_FILE, SAMPLE_FILE = "pool.faiss", "settings.json", "sample.npz"
SEARCH_FILE = "search.json"  # how much a search looks at, and what it finds of the sample
ROWS_OF_PART = 1_000_000  # every part has all centroids in it, and takes half a minute


@dataclass(frozen=True)
class OpenIndex:
    """A finished index.

    Attributes:
        index: the index of faiss.
        settings: how it is searched.
        held: the vectors in it.
        first: the row of the pool at which a part of the pool begins.
    """

    index: faiss.Index
    settings: IndexSettings
    held: UnitVectors
    first: int = 0


def open_index(curation: Curation, of: str) -> OpenIndex:
    """Open an index of a kind that has only one."""
    return _opened(curation, of, 0, pool_of(curation, of))


def open_copies_indexes(curation: Curation, parts: Sequence[range]) -> Iterator[OpenIndex]:
    """Open the indexes of the pool, one after the other.

    Args:
        parts: the pieces in each, as from `searched_parts`.
    """
    pool, rows = pool_of(curation, "copies"), rows_of_pieces(curation)
    starts = [group.start for group in index_groups(curation)]
    for part in parts:
        first, stop = int(rows[part.start]), int(rows[part.stop])
        if first < stop:
            yield _opened(curation, "copies", starts.index(part.start), RowRange(pool, first, stop), first)


def _opened(curation: Curation, of: str, number: int, held: UnitVectors, first: int = 0) -> OpenIndex:
    settings = _settings(curation, of, "merge", number)
    if settings.factory == "Flat":
        return OpenIndex(build_index(held, settings), settings, held, first)
    index = load_index(curation.folders[f"{of}_merge_index"].shard(number) / INDEX_FILE)
    return OpenIndex(index, settings, held, first)


def how_copies_are_searched(curation: Curation, parts: Sequence[range]) -> list[Any]:
    """Plain values: the vectors of parts of the pool, and how much of their indexes a search looks at."""
    starts = [group.start for group in index_groups(curation)]
    settings = [vars(_settings(curation, "copies", "merge", starts.index(part.start))) for part in parts]
    hashes = [hash_of_vectors(curation, part) for part in parts]
    return [[part.start, part.stop, *pair] for part, *pair in zip(parts, hashes, settings, strict=True)]


def how_benchmarks_are_searched(curation: Curation) -> list[Any]:
    """Plain values: the vectors of the benchmarks, and how much of their index a search looks at."""
    hashes = [one for one in curation.checksums("embed", "benchmark.npy") if one is not None]
    return [hashes, vars(_settings(curation, "benchmarks", "merge", 0))]


def searches(curation: Curation) -> Iterator[tuple[str, dict[str, Any]]]:
    """For each index that is searched, what it holds and what its `search.json` says."""
    for name, folder in curation.folders.items():
        if name.endswith("_merge_index"):
            for path in folder.files(SEARCH_FILE):
                if path.exists():  # an index in which nothing is searched has none
                    yield name.removesuffix("_merge_index"), json.loads(path.read_text())


def _held(curation: Curation, of: str, number: int) -> UnitVectors:
    """The vectors that one of the indexes `of` holds."""
    pool = pool_of(curation, of)
    if of != "copies":
        return pool
    group, rows = index_groups(curation)[number], rows_of_pieces(curation)
    return RowRange(pool, int(rows[group.start]), int(rows[group.stop]))


def _settings(curation: Curation, of: str, verb: str, number: int) -> IndexSettings:
    path = curation.folders[f"{of}_{verb}_index"].shard(number) / SETTINGS_FILE
    return IndexSettings(**json.loads(path.read_text()))


def _save_settings(settings: IndexSettings, shard: UnfinishedShard) -> None:
    (shard.folder / SETTINGS_FILE).write_text(json.dumps(vars(settings)))


def _train(
    curation: Curation, shard: UnfinishedShard, *, of: str, index: str | None, index_memory_gb: float,
    index_probes: int | None, search_recall: float, seed: int,
) -> None:  # fmt: skip
    """Choose the index, unless the user gives one for the pool. Train and save it if it is an inverted file."""
    held, gpus = _held(curation, of, shard.rank), gpus_for_faiss(curation.arguments.device)
    is_given = index is not None and of != "benchmarks"
    if of == "survivors" and not len(crowded_survivors(curation)):
        settings = IndexSettings("Flat")  # nothing will be searched
    elif is_given:
        settings = IndexSettings(index)
    elif search_recall == 1 or (of == "copies" and searches_exhaustively(curation)):
        settings = IndexSettings("Flat")
    else:
        settings = choose_index(len(held), held.width, index_memory_gb * 1e9, for_gpus=bool(gpus))
    if index_probes is not None:
        settings = dataclasses.replace(settings, num_probes=index_probes)
    _save_settings(settings, shard)
    if settings.factory != "Flat":
        save_index(train_index(held, settings, seed=seed, gpus=gpus), shard.folder / INDEX_FILE)
    shard.rows = len(held)


def _fill(curation: Curation, shard: UnfinishedShard, *, of: str, seed: int) -> None:
    """Add a range of the pool to a copy of the trained index, and find the neighbours of the sample in that range."""
    number, part, num_parts = _parts(curation, of)[shard.rank]
    held = _held(curation, of, number)
    rows = shard_range(len(held), part, num_parts)
    shard.rows = len(rows)
    if _settings(curation, of, "train", number).factory != "Flat":
        trained = load_index(curation.folders[f"{of}_train_index"].shard(number) / INDEX_FILE)
        gpus, progress = gpus_for_faiss(curation.arguments.device), curation.arguments.progress
        filled = add_rows(trained, held, rows.start, rows.stop, gpus=gpus, progress=progress)
        save_index(filled, shard.folder / INDEX_FILE)
        queries, own_rows = sampled_queries(curation, of, held, seed)
        k = min(neighbors_wanted(curation.arguments, of) + (own_rows is not None), len(held))
        found = exact_neighbors(held, queries.read(0, len(queries)), k, rows.start, rows.stop, gpus=gpus)
        np.savez(shard.folder / SAMPLE_FILE, rows=found.rows, similarities=found.similarities)


def _merge(
    curation: Curation, shard: UnfinishedShard, *, of: str, index_probes: int | None, search_recall: float, seed: int
) -> None:
    """Merge the parts, and find out how much of the index a search must look at: `search.json`."""
    held, settings = _held(curation, of, shard.rank), _settings(curation, of, "train", shard.rank)
    shard.rows = len(held)
    facts: dict[str, Any] = {"images": len(held), "index": settings.factory}
    if settings.factory != "Flat":
        folder = curation.folders[f"{of}_fill_index"]
        parts = [folder.shard(rank) for rank, part in enumerate(_parts(curation, of)) if part[0] == shard.rank]
        merged = merge_indexes((load_index(part / INDEX_FILE) for part in parts), len(held))
        save_index(merged, shard.folder / INDEX_FILE)
        sample = _sample(parts, *sampled_queries(curation, of, held, seed))
        settings, recall = reach_recall(
            merged, held, sample, settings, search_recall, floor=floor_of(curation.arguments, of),
            fixed_probes=index_probes is not None, gpus=gpus_for_faiss(curation.arguments.device),
        )  # fmt: skip
        visited = min(settings.num_probes, settings.num_lists)
        facts |= {"lists": settings.num_lists, "lists_visited": visited, "candidates": settings.num_candidates}
        facts |= {"recall": dataclasses.asdict(recall)}
    _save_settings(settings, shard)
    if len(held) and (of != "survivors" or len(crowded_survivors(curation))):
        (shard.folder / SEARCH_FILE).write_text(json.dumps(facts))


def _sample(parts: Sequence[Path], queries: UnitVectors, own_rows: np.ndarray | None) -> Sample:
    """The queries, and their neighbours in all parts."""
    found = []
    for part in parts:
        with np.load(part / SAMPLE_FILE) as arrays:
            found.append(Neighbors(arrays["rows"], arrays["similarities"]))
    truth = nearest_of_parts(found, found[0].rows.shape[1])
    return Sample(queries, truth if own_rows is None else without_own_rows(truth, own_rows), own_rows)


def _parts(curation: Curation, of: str) -> list[tuple[int, int, int]]:
    """(number of the index, part of it, how many parts it has) for each shard that fills an index."""
    images = [curation.sources.rows_of("uncurated")]
    if of == "benchmarks":
        images = [0]
    elif of == "copies":
        images = [
            sum(len(piece.rows) for piece in curation.pieces[group.start : group.stop])
            for group in index_groups(curation)
        ]
    counts = [max(1, min(-(-count // ROWS_OF_PART), curation.num_shards)) for count in images]
    return [(number, part, count) for number, count in enumerate(counts) for part in range(count)]


def _what_a_group_reads(curation: Curation, rank: int, *, filling: bool) -> bytes:
    """The vectors of a group of sources of the pool."""
    number, *part = _parts(curation, "copies")[rank] if filling else (rank,)
    return json.dumps([hash_of_vectors(curation, index_groups(curation)[number]), *part]).encode()


def index_stages(of: str, step: str, needs: str, is_wanted) -> tuple[Stage, Stage, Stage]:
    """The three stages of the index `of`, see `pool_of`; `needs`: the stage that leaves what it holds.

    "copies" has an index for each group of sources. It stays as it is when other sources come.
    """
    names = [f"{of}_{verb}_index" for verb in ("train", "fill", "merge")]
    alike: dict[str, Any] = {"step": step, "is_wanted": is_wanted, "given": {"of": of}}
    each: dict[str, Any] = {}
    filling: dict[str, Any] = {"num_shards": lambda curation: len(_parts(curation, of))}
    if of == "copies":
        each = {"num_shards": lambda curation: len(index_groups(curation))}
        each["reads"] = partial(_what_a_group_reads, filling=False)
        filling["reads"] = partial(_what_a_group_reads, filling=True)
    return (
        stage(names[0], needs=[needs], **each, **alike)(_train),
        stage(
            names[1], needs=names[:1], **filling, **alike,
            config=lambda curation: {"num_neighbors": neighbors_wanted(curation.arguments, of)},
        )(_fill),
        stage(
            names[2], needs=names[1:2], **each, **alike,
            config=lambda curation: {"floor": floor_of(curation.arguments, of)},
        )(_merge),
    )  # fmt: skip


COPIES_INDEX = index_stages("copies", "deduplicate", "embed", lambda curation: True)


def _has_benchmarks(curation: Curation) -> bool:
    return bool(curation.arguments.benchmarks)


BENCHMARKS_INDEX = index_stages("benchmarks", "relative_deduplicate", "embed", _has_benchmarks)
SURVIVORS_INDEX = index_stages("survivors", "relative_deduplicate", POOL, _has_benchmarks)
RETRIEVAL_INDEX = index_stages(
    "retrieval", "retrieve", POOL, lambda curation: "sample" in curation.arguments.retrieval_modes
)
