"""Frozen features, measured (paper section 7). Every protocol takes a `FeatureExtractor` of any `AutoModel`.

Each is one file with one function, and knows no other: see `protocols`. It is imported when it is first asked for.
"""

from importlib import import_module
from typing import Any

from ..features import FeatureExtractor
from ..pictures.attention_maps import attention_maps, draw_attention_maps
from ..pictures.nearest_images import draw_nearest_images, nearest_images
from ..pictures.patch_matching import draw_patch_matches, match_patches
from ..pictures.patch_pca import draw_patch_pca, patch_pca, save_patch_pca
from .classification.labels import match_labels
from .metrics import Metrics
from .protocols import PROTOCOLS, protocol


_PROTOCOLS = {f"evaluate_{name}": name for name in PROTOCOLS.names()}
__all__ = [
    "FeatureExtractor", "Metrics", "attention_maps", "draw_attention_maps", "draw_nearest_images",
    "draw_patch_matches", "draw_patch_pca", "knn_class_scores", "match_labels", "match_patches", "nearest_images",
    "patch_pca", "protocol", "save_patch_pca", *_PROTOCOLS,
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "knn_class_scores":
        return import_module(".knn", __name__).knn_class_scores
    if name in _PROTOCOLS:
        return PROTOCOLS.find(_PROTOCOLS[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
