"""The data (paper section 3): dataset in, dataset out, and a reason kept for every image dropped."""

from importlib import import_module
from typing import Any

from .arguments import CurationArguments, read_arguments


# Imported when they are asked for: they need faiss, which other commands of `dinov2-hf` do not.
_PLACES = {
    "CuratedImages": "builder",
    "Dropped": "storage.dropped_images",
    "EMBEDDERS": "embedders",
    "FILTERS": "filters",
    "PerceptualDescriptor": "algorithms.perceptual_descriptor",
    "curate": "launch",
    "histogram": "algorithms.histograms",
    "save_histogram": "storage.histogram_files",
    "stage": "stages.stage",
}
__all__ = ["CurationArguments", "read_arguments", *_PLACES]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{_PLACES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name not in ("faiss", "scipy", "sklearn"):
            raise
        raise ImportError(
            f'curation needs the extra `curation`: pip install "dinov2_hf[curation]" ({error})'
        ) from None
