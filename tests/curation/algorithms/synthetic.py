"""Vectors with a known structure."""

import numpy as np


def clustered_vectors(num_rows: int, width: int, *, num_clusters: int, noise: float, seed: int = 0):
    """Unit vectors around random centres, and the centre of each: cosines in a cluster are near 1/(1 + noise^2)."""
    generator = np.random.default_rng(seed)
    centers = unit(generator.standard_normal((num_clusters, width)))
    labels = generator.integers(num_clusters, size=num_rows)
    steps = generator.standard_normal((num_rows, width)) * noise / width**0.5
    return unit(centers[labels] + steps).astype(np.float32), labels


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def at_angles(degrees) -> np.ndarray:
    """Unit vectors in the plane."""
    radians = np.deg2rad(np.asarray(degrees, dtype=np.float64))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)
