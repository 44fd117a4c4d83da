"""How evenly the pool and the dataset are spread over concepts (clusters of the pool), for the report."""

import json

import numpy as np

from ..algorithms.clustering import assign_together, spherical_kmeans
from ..algorithms.pruning import effective_number
from ..algorithms.unit_vectors import ChosenRows
from ..run_context import Curation
from ..storage.manifests import UnfinishedShard
from .select import where_to_cluster
from .stage import stage


MOST_CONCEPTS = 100
IMAGES_PER_CONCEPT = 20  # smaller pools have fewer concepts
SAMPLED_IMAGES = 200_000  # of the pool, and of the dataset
SHOWN_IMAGES = 4


@stage("concepts", needs=["build"], step="build", collective=True)
def concepts(curation: Curation, shard: UnfinishedShard, *, seed: int) -> None:
    """Cluster the pool that was embedded, and count the images of the dataset in each cluster: `report.json`.

    The vectors are those that serve retrieval. The report names the most typical images of each cluster: images of the
    dataset, or of the pool if the dataset has none there.
    """
    store = curation.pool_vectors(curation.retrieval_stage)
    count = min(MOST_CONCEPTS, len(store) // IMAGES_PER_CONCEPT)
    report = {}
    if count >= 2:
        generator = np.random.default_rng(seed)
        where = where_to_cluster(curation)
        before = ChosenRows(store, _sample(np.arange(len(store)), generator))
        centroids = spherical_kmeans(before, count, seed=seed, **where).centroids
        written = np.concatenate([np.load(path) for path in curation.folders["build"].files("written.npy")])
        after = ChosenRows(store, _sample(np.flatnonzero(np.isin(store.ids, written)), generator))
        found = [(rows, *assign_together(rows, centroids, **where)) for rows in (before, after)]
        counts = [np.bincount(clusters, minlength=count) for _, clusters, _ in found]
        order = np.argsort(-counts[0], kind="stable")
        report = {
            "clusters": count,
            "pool": {"effective_number": effective_number(counts[0]), "images": counts[0][order].tolist()},
            "dataset": {"effective_number": effective_number(counts[1]), "images": counts[1][order].tolist()},
            "typical": [_typical(store.ids, found[1 if counts[1][cluster] else 0], cluster) for cluster in order],
        }
    (shard.folder / "report.json").write_text(json.dumps(report, indent=1))
    shard.rows = len(store)


def _sample(rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return np.sort(generator.choice(rows, min(len(rows), SAMPLED_IMAGES), replace=False))


def _typical(ids: np.ndarray, found: tuple[ChosenRows, np.ndarray, np.ndarray], cluster: int) -> list[int]:
    """Row ids of the images nearest to the centroid."""
    vectors, clusters, cosines = found
    inside = np.flatnonzero(clusters == cluster)
    nearest = inside[np.argsort(-cosines[inside], kind="stable")[:SHOWN_IMAGES]]
    return ids[vectors.rows[nearest]].tolist()
