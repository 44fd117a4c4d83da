"""Frozen features, measured (paper section 7). Every function takes any `AutoModel`.

Each protocol is one file with one function, and knows no other:
`evaluate_<protocol>(model, train_dataset, eval_dataset, image_processor, *, ..., output_dir=None)`, which returns a
`dict[str, float]`.
"""

from .knn import evaluate_knn, knn_class_scores
from .visualization import draw_patch_pca, patch_pca, save_patch_pca


__all__ = ["draw_patch_pca", "evaluate_knn", "knn_class_scores", "patch_pca", "save_patch_pca"]
