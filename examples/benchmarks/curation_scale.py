"""Time, memory and recall of the curation stages on synthetic vectors; run by `curation.py`.

The synthetic vectors are of width 512, around n/100 centres, with a cosine of 0.31 inside a cluster; a tenth of the
rows are copies of others at a cosine of about 0.9.
"""

import argparse
import os
import tempfile
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import faiss
import numpy as np
from crop_vectors import crop_store

from dinov2_hf.curation.algorithms.clustering import ClusterMembers, assign_clusters, spherical_kmeans
from dinov2_hf.curation.algorithms.deduplication import deduplicate, deduplicate_against, neighbor_edges
from dinov2_hf.curation.algorithms.hierarchical_clustering import balanced_sample, hierarchical_kmeans
from dinov2_hf.curation.algorithms.index_settings import IndexSettings, choose_index
from dinov2_hf.curation.algorithms.neighbors import add_rows, build_index, search, train_index
from dinov2_hf.curation.algorithms.pool_retrieval import combine, retrieve_by_cluster, retrieve_by_sample
from dinov2_hf.curation.algorithms.search_recall import (
    SAMPLED_QUERIES,
    Sample,
    exact_neighbors,
    reach_recall,
    without_own_rows,
)
from dinov2_hf.curation.algorithms.unit_vectors import ArrayEmbeddings, ChosenRows
from dinov2_hf.curation.storage.embeddings import EmbeddingStore, write_shard


WIDTH = 512
SHARD_ROWS = 100_000
NEIGHBORS = 64
QUERIES = 1000  # images of each curated set and of the evaluation set


def run(name: str, args: argparse.Namespace) -> dict:
    """The record of a run for `args.rows` vectors."""
    if args.scratch is not None:
        args.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder, Memory() as memory:
        stages = Stages(memory)
        with stages.timed("write_store"):
            if args.images:
                store = crop_store(Path(folder), args.images, args.model, args.rows, args.image_column)
                references = ArrayEmbeddings(store.read(0, QUERIES))
            else:
                store, references = synthetic_store(Path(folder), args.rows)
        with stages.timed("read_once"):
            read_once(store)
        found = RUNS[name](store, references, stages, args)
    return {
        "rows": args.rows,
        "width": store.width,
        "vectors": f"{Path(args.model).name if args.model else 'patches'} of crops" if args.images else "synthetic",
        "threads": faiss.omp_get_max_threads(),
        "load_average": os.getloadavg()[0],
        "seconds": stages.seconds,
        "cpu_seconds": stages.cpu_seconds,
        "anonymous_memory_gb": stages.memory_gb,
        **found,
    }


def index_settings(args: argparse.Namespace, width: int) -> IndexSettings:
    factory = args.factory or choose_index(args.rows, width).factory
    return IndexSettings(factory, args.num_probes, args.num_candidates)


def tuned(index, store, settings: IndexSettings, args, floor: float = -1.0, sample: Sample | None = None):
    """How the index is searched: as it is told, or with what reaches the recall on a sample; and what that finds."""
    if args.num_probes is not None or settings.factory == "Flat":
        return settings, None
    sample = sample or sampled(store)
    return reach_recall(index, store, sample, settings, args.recall, floor=floor)


def sampled(store) -> Sample:
    """Some rows of the pool, with their neighbours."""
    rows = np.sort(np.random.default_rng(0).choice(len(store), min(SAMPLED_QUERIES, len(store)), replace=False))
    found = exact_neighbors(store, store.take(rows), NEIGHBORS + 1, 0, len(store))
    return Sample(ChosenRows(store, rows), without_own_rows(found, rows), rows)


def settings_record(settings: IndexSettings, recall) -> dict:
    return {**vars(settings), "recall_of_the_sample": recall and vars(recall)}


def synthetic_store(folder: Path, num_rows: int) -> tuple[EmbeddingStore, ArrayEmbeddings]:
    """The pool in shards, and `QUERIES` references of which half are copies of rows of its first shard."""
    generator = np.random.default_rng(0)
    centers = normals(generator, max(num_rows // 100, 10))
    references = None
    for shard, start in enumerate(range(0, num_rows, SHARD_ROWS)):
        count = min(SHARD_ROWS, num_rows - start)
        vectors = centers[generator.integers(len(centers), size=count)] + 1.5 * normals(generator, count)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        copies = count // 10
        vectors[:copies] = vectors[generator.integers(copies, count, size=copies)] + 0.5 * normals(generator, copies)
        write_shard(folder, f"{shard:05d}", vectors, np.arange(start, start + count))
        if references is None:
            half = QUERIES // 2
            near = vectors[generator.integers(copies, count, size=half)] + 0.5 * normals(generator, half)
            far = centers[generator.integers(len(centers), size=half)] + 1.5 * normals(generator, half)
            references = ArrayEmbeddings(np.concatenate([near, far]))
    return EmbeddingStore(folder), references


def normals(generator: np.random.Generator, num_rows: int) -> np.ndarray:
    """Gaussian vectors of a length near 1."""
    return generator.standard_normal((num_rows, WIDTH), dtype=np.float32) / np.float32(WIDTH**0.5)


def read_once(store: EmbeddingStore) -> None:
    for start in range(0, len(store), 8192):
        store.read(start, min(start + 8192, len(store)))


def run_deduplicate(store, references, stages, args) -> dict:
    """Search of the whole pool by itself, both deduplications, and retrieval by sample."""
    settings = index_settings(args, store.width)
    with stages.timed("train_index"):
        index = train_index(store, settings, training_rows=args.training_rows)
    with stages.timed("fill_index"):
        index = add_rows(index, store)
    with stages.timed("find_the_recall"):
        settings, recall = tuned(index, store, settings, args, floor=0.45)
    num_queries = round(len(store) * args.query_share)
    with stages.timed("search"):
        neighbors = search(
            index, store, store, NEIGHBORS, settings, stop=num_queries, floor=0.45, own_rows=np.arange(len(store))
        )
    for times in (stages.seconds, stages.cpu_seconds):
        times["search_of_all_rows"] = times["search"] / args.query_share
    with stages.timed("components"):
        edges = neighbor_edges(neighbors, 0.45)
        itself = deduplicate(store, edges, threshold=0.6)
    with stages.timed("search_references"):
        flat = IndexSettings("Flat")
        near = search(build_index(references, flat), references, store, 1, flat, floor=0.45)
    with stages.timed("components_of_references"):
        against = deduplicate_against(store, references, edges.between(itself.kept), neighbor_edges(near, 0.45))
    with stages.timed("retrieve_by_sample"):
        retrieved = combine({"sample": retrieve_by_sample(search(index, store, references, 4, settings))})
    report = {name: value for name, value in itself.report.items() if name != "largest_components"}
    return {
        **settings_record(settings, recall),
        "searched_rows": num_queries,
        "deduplicate": report,
        "deduplicate_against": against.report,
        "retrieved": retrieved.report,
    }


def run_cluster(store, references, stages, args) -> dict:
    """K-means, retrieval by cluster, and the hierarchical alternative."""
    num_clusters = max(len(store) // 1000, 10)
    options = {"num_iterations": 10, "training_rows": 100 * num_clusters}
    with stages.timed("kmeans"):
        kmeans = spherical_kmeans(store, num_clusters, **options)
    with stages.timed("assign"):
        clusters, _ = assign_clusters(store, kmeans.centroids)
    with stages.timed("retrieve_by_cluster"):
        members = ClusterMembers(clusters, num_clusters)
        by_cluster = retrieve_by_cluster(members, assign_clusters(references, kmeans.centroids)[0])
    with stages.timed("hierarchical_kmeans"):
        levels = [num_clusters, max(num_clusters // 10, 2)]
        hierarchy = hierarchical_kmeans(store, levels, num_resamplings=1, **options)
    with stages.timed("balanced_sample"):
        balanced_sample(hierarchy, len(store) // 10)
    return {"num_clusters": num_clusters, "retrieved": combine({"cluster": by_cluster}).report}


def run_beside_faiss(store, references, stages, args, num_queries: int = 5000) -> dict:
    """Our search and those of faiss with all in memory, in turns: the least CPU time of five. All visit as many lists,
    and rank as many candidates again, as reach the recall."""
    settings = index_settings(args, store.width)
    num_queries = min(num_queries, len(store) // 2)
    with stages.timed("build_index"):
        index = add_rows(train_index(store, settings, training_rows=args.training_rows), store)
    with stages.timed("find_the_recall"):
        sample = sampled(store)
        settings, recall = tuned(index, store, settings, args, sample=sample)
    # A tenth of them are copies, as of the pool, which has them in the first tenth of each shard.
    start = max(0, min(len(store), SHARD_ROWS) // 10 - num_queries // 10)
    queries = store.read(start, start + num_queries)
    our_search = partial(
        search,
        index,
        store,
        store,
        NEIGHBORS,
        settings,
        start=start,
        stop=start + num_queries,
        own_rows=np.arange(len(store)),
    )
    if settings.num_lists:
        faiss.extract_index_ivf(index).nprobe = settings.num_probes
    candidates = settings.candidates(NEIGHBORS + 1)
    calls = {
        "faiss, candidates alone": lambda: index.search(queries, candidates),
        "ours, 64 neighbours": our_search,
        "ours, 64 neighbours above 0.45": partial(our_search, floor=0.45),
    }
    recalls = {}
    if not settings.is_exact and len(store) <= 1_000_000:
        # What faiss has for exact similarities: all vectors once more in memory.
        exact = faiss.IndexScalarQuantizer(store.width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        for first in range(0, len(store), 8192):
            exact.add(store.read(first, min(first + 8192, len(store))))
        refined = faiss.IndexRefine(index, exact)
        refined.k_factor = candidates / (NEIGHBORS + 1)
        calls["faiss, refined in memory"] = lambda: refined.search(queries, NEIGHBORS + 1)
        asked = sample.queries.read(0, len(sample.queries))
        recalls["faiss, candidates alone"] = sample_recall(sample, index.search(asked, NEIGHBORS + 1)[1])
        recalls["faiss, refined in memory"] = sample_recall(sample, refined.search(asked, NEIGHBORS + 1)[1])
        ours = search(index, store, sample.queries, NEIGHBORS + 1, settings)
        recalls["ours, 64 neighbours"] = sample_recall(sample, ours.rows)
    seconds = {name: [] for name in calls}
    for _ in range(5):
        for name, call in calls.items():
            began = time.process_time()
            call()
            seconds[name].append(time.process_time() - began)
    best = {name: min(values) for name, values in seconds.items()}
    beside = best.get("faiss, refined in memory", best["faiss, candidates alone"])
    return {
        **settings_record(settings, recall),
        "queries": num_queries,
        "recall": recalls,
        "cpu_ms_of_a_query": {name: 1000 * value / num_queries for name, value in best.items()},
        "ratio": {name: value / beside for name, value in best.items()},
    }


def sample_recall(sample: Sample, rows: np.ndarray) -> float:
    """The share of the true neighbours that are among the rows that were found."""
    pairs = zip(sample.truth.rows, rows, strict=True)
    return float(np.mean([np.isin(truth, found).mean() for truth, found in pairs]))


def run_recall(store, references, stages, args) -> dict:
    """The quantised index against exhaustive search, for a thousand queries that it was not tuned with."""
    queries = ArrayEmbeddings(store.read(0, 1000))
    with stages.timed("exhaustive"):
        flat = IndexSettings("Flat")
        exact = search(build_index(store, flat), store, queries, NEIGHBORS, flat)
    settings = index_settings(args, store.width)
    with stages.timed("train_index"):
        index = train_index(store, settings, training_rows=args.training_rows)
    with stages.timed("fill_index"):
        index = add_rows(index, store)
    with stages.timed("find_the_neighbors_of_a_sample"):
        sample = sampled(store)
    rows = {}
    for name, floor in {"all 64 neighbours": -1.0, "edges above 0.45": 0.45, "edges above 0.6": 0.6}.items():
        with stages.timed(f"find_the_recall: {name}"):
            found, recall = tuned(index, store, settings, args, floor, sample)
        began = time.process_time()
        neighbors = search(index, store, queries, NEIGHBORS, found, floor=floor)
        rows[name] = {
            **settings_record(found, recall),
            "recall": graph_recall(exact, neighbors, floor),
            "cpu_ms_of_a_query": time.process_time() - began,
        }
    return {"searches": rows}


def graph_recall(exact, found, threshold: float) -> float:
    """The share of exact edges above a threshold that were found."""
    expected = neighbor_edges(exact, threshold)
    edges = neighbor_edges(found, threshold)
    pairs = [set(zip(e.rows.tolist(), e.others.tolist(), strict=True)) for e in (expected, edges)]
    return len(pairs[0] & pairs[1]) / max(len(pairs[0]), 1)


def run_large(store, references, stages, args) -> dict:
    """The index of a pool beyond memory, and the searches of a share of its rows."""
    settings = index_settings(args, store.width)
    with stages.timed("train_index"):
        index = train_index(store, settings, training_rows=args.training_rows)
    with stages.timed("fill_index"):
        index = add_rows(index, store, progress=True)
    with stages.timed("find_the_recall"):
        settings, recall = tuned(index, store, settings, args, floor=0.45)
    count = round(len(store) * args.query_share)
    with stages.timed("search"):
        found = search(
            index,
            store,
            store,
            NEIGHBORS,
            settings,
            stop=count,
            floor=0.45,
            own_rows=np.arange(len(store)),
            progress=True,
        )
    edges = neighbor_edges(found, 0.6)
    exact_queries = ArrayEmbeddings(store.read(0, 256))
    exact = exhaustive_neighbors(store, exact_queries)
    few = search(index, store, exact_queries, NEIGHBORS, settings, floor=0.45)
    return {
        **settings_record(settings, recall),
        "index_bytes": index.ntotal * (faiss.extract_index_ivf(index).code_size + 8),
        "store_bytes": len(store) * store.width * 2,
        "edges": len(edges),
        "edge_recall_0.6": graph_recall(exact, few, 0.6),
        "searched_rows": count,
        "search_of_all_extrapolated": stages.seconds["search"] / args.query_share,
    }


def exhaustive_neighbors(store, queries):
    """Exact neighbours without an index, block by block of the store."""
    from faiss.contrib.exhaustive_search import knn_ground_truth

    from dinov2_hf.curation.algorithms.neighbors import Neighbors

    blocks = (store.read(start, min(start + 65_536, len(store))) for start in range(0, len(store), 65_536))
    similarities, rows = knn_ground_truth(queries.vectors, blocks, NEIGHBORS, metric_type=faiss.METRIC_INNER_PRODUCT)
    return Neighbors(rows, similarities)


class Memory:
    """The largest anonymous memory of this process: without pages of mapped files, which the system takes back."""

    def __enter__(self):
        self.peak, self._stopped = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self):
        while not self._stopped.wait(0.05):
            self.peak = max(self.peak, anonymous_bytes())

    def __exit__(self, *_):
        self._stopped.set()
        self._thread.join()


def anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


class Stages:
    def __init__(self, memory: Memory):
        self.memory, self.seconds, self.cpu_seconds, self.memory_gb = memory, {}, {}, {}

    @contextmanager
    def timed(self, name: str):
        self.memory.peak = 0
        began, cpu_began = time.perf_counter(), time.process_time()
        yield
        self.seconds[name] = time.perf_counter() - began
        self.cpu_seconds[name] = time.process_time() - cpu_began  # of all threads: what a busy machine changes least
        self.memory_gb[name] = max(self.memory.peak, anonymous_bytes()) / 1e9
        print(
            f"{name}: {self.seconds[name]:.1f} s, CPU {self.cpu_seconds[name]:.1f} s, {self.memory_gb[name]:.2f} GB",
            flush=True,
        )


def growth_exponents(records: list[dict]) -> dict[str, float]:
    """The slope of log CPU time over log rows, by least squares, of each stage."""
    names = set.intersection(*(set(record["cpu_seconds"]) for record in records))
    rows = np.log([record["rows"] for record in records])
    slopes = {}
    for name in sorted(names):
        seconds = np.log([max(record["cpu_seconds"][name], 1e-3) for record in records])
        slopes[name] = round(float(np.polyfit(rows, seconds, 1)[0]), 2)
    return slopes


RUNS = {
    "deduplicate": run_deduplicate,
    "beside_faiss": run_beside_faiss,
    "cluster": run_cluster,
    "recall": run_recall,
    "large": run_large,
}
