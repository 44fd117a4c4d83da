"""Packages that only some protocols need: what is missing is named before any work."""

import importlib.util
from typing import Any


PIP_NAMES = {"sklearn": "scikit-learn", "torchmetrics": "torchmetrics"}


def check_extras(protocol: str, *, pca_dimensions: int | None = None, **others: Any) -> None:
    """
    That what a protocol imports can be imported.

    Args:
        protocol: a name such as "segmentation".
        pca_dimensions: that option of the protocol, where it has it; the other options ask for nothing.

    Raises:
        ImportError: with the line that installs it.
    """
    module = {"logistic_regression": "sklearn", "segmentation": "torchmetrics"}.get(protocol)
    if pca_dimensions is not None:
        module = "sklearn"
    if module is not None and importlib.util.find_spec(module) is None:
        option = "" if pca_dimensions is None else " with `pca_dimensions`"
        raise ImportError(
            f"{protocol}{option} needs {PIP_NAMES[module]}, which is not installed: pip install"
            ' "dinov2_hf[evaluation]".'
        )
