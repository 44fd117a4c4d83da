"""Frozen features, measured (paper section 7). Every function takes any `AutoModel`.

Each protocol is one file with one function, and knows no other:
`evaluate_<protocol>(model, train_dataset, eval_dataset, image_processor, *, ..., output_dir=None)`, which returns a
`dict[str, float]`.
"""

from .attention_maps import attention_maps, draw_attention_maps
from .knn import evaluate_knn, knn_class_scores
from .linear import evaluate_linear
from .logistic_regression import evaluate_logistic_regression
from .nearest_images import draw_nearest_images, nearest_images
from .patch_matching import draw_patch_matches, match_patches
from .video import evaluate_video
from .visualization import draw_patch_pca, patch_pca, save_patch_pca


__all__ = [
    "attention_maps", "draw_attention_maps", "draw_nearest_images", "draw_patch_matches", "draw_patch_pca",
    "evaluate_knn", "evaluate_linear", "evaluate_logistic_regression", "evaluate_video", "knn_class_scores",
    "match_patches", "nearest_images", "patch_pca", "save_patch_pca",
]  # fmt: skip
