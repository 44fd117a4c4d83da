"""Frozen features, measured (paper section 7). Every function takes any `AutoModel`.

Each protocol is one file with one function, and knows no other:
`evaluate_<protocol>(model, train_dataset, eval_dataset, image_processor, *, ..., output_dir=None)`, which returns a
`dict[str, float]`. A protocol is imported when it is first asked for.
"""

from importlib import import_module
from typing import Any

from ..pictures.attention_maps import attention_maps, draw_attention_maps
from ..pictures.nearest_images import draw_nearest_images, nearest_images
from ..pictures.patch_matching import draw_patch_matches, match_patches
from ..pictures.patch_pca import draw_patch_pca, patch_pca, save_patch_pca


_MODULE_OF = {
    "evaluate_copy_detection": "copy_detection",
    "evaluate_depth": "depth",
    "evaluate_knn": "knn",
    "evaluate_linear": "linear",
    "evaluate_logistic_regression": "logistic_regression",
    "evaluate_retrieval": "retrieval",
    "evaluate_segmentation": "segmentation",
    "evaluate_video": "video",
    "knn_class_scores": "knn",
}
__all__ = [
    "attention_maps", "draw_attention_maps", "draw_nearest_images", "draw_patch_matches", "draw_patch_pca",
    "evaluate_copy_detection", "evaluate_depth", "evaluate_knn", "evaluate_linear", "evaluate_logistic_regression",
    "evaluate_retrieval", "evaluate_segmentation", "evaluate_video", "knn_class_scores", "match_patches",
    "nearest_images", "patch_pca", "save_patch_pca",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
