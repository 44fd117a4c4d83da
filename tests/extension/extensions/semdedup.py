"""SemDeDup (Abbas et al. 2023): in each cluster of the pool, of images that mean the same one stays."""

import numpy as np

from dinov2_hf.curation import Dropped, histogram, save_histogram, stage
from dinov2_hf.curation.algorithms.clustering import ClusterMembers, assign_together, spherical_kmeans


@stage("semdedup", title="no semantic duplicates", after="relative_deduplicate", collective=True)
def semdedup(curation, shard, *, threshold=0.95, clusters=100, seed):
    row_ids, vectors = curation.candidates()
    centroids = spherical_kmeans(vectors, min(clusters, len(row_ids)), seed=seed).centroids
    cluster_of, typical = assign_together(vectors, centroids)
    if not shard.is_kept:  # what the other processes of a launch make
        return None
    dropped, nearest, cosines = [], [], np.full(len(row_ids), -np.inf)
    for rows in filter(len, ClusterMembers(cluster_of, len(centroids))):
        rows = rows[np.argsort(typical[rows])]  # the least typical image stays
        found, stays = vectors.take(rows), [0]
        for place in range(1, len(rows)):
            alike = found[stays] @ found[place]
            cosines[rows[place]] = alike.max()
            if alike.max() > threshold:
                dropped.append(rows[place])
                nearest.append(rows[stays[alike.argmax()]])
            else:
                stays.append(place)
    title = "Nearest image that stays in its cluster"
    save_histogram(histogram(cosines, threshold, title, label="dropped above"), shard.folder)
    reason = f"semantic duplicate (cosine > {threshold})"
    return Dropped(row_ids[dropped], reason, row_ids[nearest], cosines[dropped])
