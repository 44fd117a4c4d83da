"""The edges that a search found: `edges.npz` in each shard of its stage."""

from pathlib import Path

import numpy as np

from ..algorithms.deduplication import Edges
from .manifests import StageFolder


FILE = "edges.npz"


def save_edges(edges: Edges, folder: Path) -> None:
    """Write them to the folder of a shard."""
    np.savez(folder / FILE, rows=edges.rows, others=edges.others, similarities=edges.similarities)


def load_edges(stage: StageFolder) -> Edges:
    """The edges of all shards."""
    parts = []
    for path in stage.files(FILE):
        with np.load(path) as arrays:
            parts.append(Edges(arrays["rows"], arrays["others"], arrays["similarities"]))
    return Edges.joined(parts)
