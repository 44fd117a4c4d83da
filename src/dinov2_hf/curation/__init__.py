"""Curation of the data (paper section 3): from datasets to a dataset, with a reason for every dropped image."""

from typing import TYPE_CHECKING, Any

from ..lazy_names import lazy_names


if TYPE_CHECKING:
    from .algorithms.histograms import histogram
    from .algorithms.perceptual_descriptor import PerceptualDescriptor
    from .arguments import CurationArguments, read_arguments
    from .builder import CuratedImages
    from .embedders import EMBEDDERS
    from .filters import FILTERS
    from .launch import curate
    from .stages.stage import stage
    from .storage.dropped_images import Dropped
    from .storage.histogram_files import save_histogram

_find, __dir__, __all__ = lazy_names(__name__)


def __getattr__(name: str) -> Any:
    try:
        return _find(name)
    except ModuleNotFoundError as error:
        if error.name not in ("faiss", "scipy", "sklearn"):
            raise
        raise ImportError(
            f'curation needs the extra `curation`: pip install "dinov2_hf[curation]" ({error})'
        ) from None
