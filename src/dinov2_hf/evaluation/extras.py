"""Packages that only some protocols need: what is missing is named before any work."""

import importlib.util
from typing import Any


PIP_NAMES = {"sklearn": "scikit-learn", "torchmetrics": "torchmetrics", "av": "PyAV (av)"}


def check_extras(
    protocol: str, *, pca_dimensions: int | None = None, video_files: bool = False, **others: Any
) -> None:
    """
    That what a protocol imports can be imported.

    Args:
        protocol: a name such as "segmentation".
        pca_dimensions: that option of the protocol, where it has it; the other options ask for nothing.
        video_files: whether there are videos to be read, and not lists of frames.

    Raises:
        ImportError: with the line that installs it.
    """
    module = {"logistic_regression": "sklearn", "segmentation": "torchmetrics"}.get(protocol)
    if pca_dimensions is not None:
        module = "sklearn"
    if video_files:
        module = "av"
    if module is not None and importlib.util.find_spec(module) is None:
        option = " with `pca_dimensions`" if pca_dimensions is not None else " of files" if video_files else ""
        raise ImportError(
            f"{protocol}{option} needs {PIP_NAMES[module]}, which is not installed: pip install"
            ' "dinov2_hf[evaluation]".'
        )
