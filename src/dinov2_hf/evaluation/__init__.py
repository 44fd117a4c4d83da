"""Evaluation of frozen features (paper section 7). Every protocol takes a `FeatureExtractor` of any `AutoModel`.

Each protocol is one file with one function, independent of the others: see `protocols`.
"""

from typing import TYPE_CHECKING

from ..lazy_names import lazy_names


if TYPE_CHECKING:
    from ..features import FeatureExtractor
    from ..pictures.attention_maps import attention_maps, draw_attention_maps
    from ..pictures.nearest_images import draw_nearest_images, nearest_images
    from ..pictures.patch_matching import draw_patch_matches, match_patches
    from ..pictures.patch_pca import draw_patch_pca, patch_pca, save_patch_pca
    from .classification.labels import match_labels
    from .copy_detection import evaluate_copy_detection
    from .depth import evaluate_depth
    from .knn import evaluate_knn, knn_class_scores
    from .linear import evaluate_linear
    from .logistic_regression import evaluate_logistic_regression
    from .metrics import Metrics
    from .patch_knn import evaluate_patch_knn
    from .protocols import protocol
    from .retrieval import evaluate_retrieval
    from .segmentation import evaluate_segmentation
    from .video import evaluate_video

__getattr__, __dir__, __all__ = lazy_names(__name__)
