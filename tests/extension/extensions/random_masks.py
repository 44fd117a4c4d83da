"""Masks of single patches, wherever they lie, in place of blocks."""

import numpy as np


def random_masks(grid_size, num_masked, rng):
    mask = np.zeros(grid_size, dtype=bool)
    mask.flat[rng.sample(range(mask.size), num_masked)] = True
    return mask
