"""Weights as a NumPy archive, for a program that has neither torch nor safetensors."""

from pathlib import Path

import numpy as np

from dinov2_hf.atomic_files import new_folder
from dinov2_hf.conversion.model_folder import load_model_folder


def numpy_archive(folder, output_dir, *, compressed: bool = False, overwrite=False):
    """
    Args:
        compressed: write a smaller file, slower.
    """
    with new_folder(output_dir, "model", overwrite=overwrite, sources=[folder]) as new:
        weights = {name: tensor.float().numpy() for name, tensor in load_model_folder(folder).state_dict().items()}
        (np.savez_compressed if compressed else np.savez)(new / "weights.npz", **weights)
    return f"{len(weights)} arrays in {Path(output_dir) / 'weights.npz'}"
