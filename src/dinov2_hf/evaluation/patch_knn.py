"""Segmentation by the nearest patches of other images: nothing is trained (Balažević et al. 2023, "Towards In-context
Scene Understanding", dense nearest-neighbour retrieval).

A patch of the bank has a share of each class: the share of its pixels. The shares of a patch to segment are the mean
over the `k` patches of the bank with the highest cosine similarity, weighted by the softmax of the similarities
divided by the temperature. The shares are upsampled to pixels, and each pixel gets the class with the largest share.

Shapes: an image (C, H, W) of `h` x `w` patches of `P` pixels a side, `D` hidden size, `K` classes, `n` patches of the
bank.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.functional import interpolate, normalize
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

from ..features import DatasetOrRows, FeatureExtractor, image_features
from ..pictures.figures import draw_beside_numbers
from ..pictures.masks_and_depths import draw_masks
from ..value_ranges import ABOVE_ZERO, AT_LEAST_ONE
from .cosine_neighbors import check_finite, cosine_neighbors
from .dense.mask_metrics import mask_counts, mask_metrics, miou_standard_error
from .dense.patch_features import check_image_size, square_patch_size
from .dense.pixel_pairs import PixelNormalization, PixelPairs, pairs_to_measure
from .dense.segmentation_masks import MaskedImages
from .environment import image_size_of
from .metrics import Metrics
from .protocols import folder_of_main, protocol


SOURCES = ("the bank", "the evaluation data")


@protocol("patch_knn", task="image-segmentation", metrics={"patch_knn_miou": "mean_iou"})
def evaluate_patch_knn(
    extractor: FeatureExtractor,
    train_dataset: DatasetOrRows,
    eval_dataset: DatasetOrRows,
    *,
    mask_column: str = "annotation",
    class_names: Sequence[str] | None = None,
    ignore_index: int = 255,
    do_reduce_labels: bool = False,
    image_size: int | None = None,
    k: Annotated[int, AT_LEAST_ONE] = 30,
    temperature: Annotated[float, ABOVE_ZERO] = 0.02,
    output_dir: str | Path | None = None,
) -> Metrics:
    """Segment the images of `eval_dataset` by the nearest patches of the images of `train_dataset`, the bank.

    All masks and images are read first, and refused if they cannot be used. The patches of the bank are held in
    memory, 4 * n * D bytes: if there are many or large images, give a part of the split.

    Args:
        extractor: the frozen model, and how it is run, image by image. Its image processor gives the mean and
            deviation of the pixels, and the default of `image_size`.
        train_dataset: images with masks whose patches make up the bank.
        eval_dataset: images with masks to measure on.
        mask_column: a class number for each pixel: images of one channel or of a palette, or arrays (H, W).
        class_names: in the order of their numbers. None: as many as the masks use.
        ignore_index: the number of pixels that do not count. A patch of nothing else is not in the bank.
        do_reduce_labels: 0 in the masks does not count, and class c is stored as c + 1 (ADE20K).
        image_size: short side that images and masks are resized to, in pixels; both sides become whole patches. It is
            measured at this size. None: the side of the crops of the image processor.
        k: neighbours of a patch; all of a bank that has fewer patches.
        temperature: of the softmax over similarities.
        output_dir: a folder for `patch_knn.png`, masks beside the truth. None: no picture.

    Returns:
        In [0, 1]: `patch_knn_miou`, `patch_knn_mean_accuracy`, `patch_knn_pixel_accuracy` and `patch_knn_iou_{class}`,
        see `mask_metrics`; and `patch_knn_miou_stderr`, see `miou_standard_error`.

    Raises:
        ValueError: a column is missing, an image or mask cannot be decoded or they differ in size, a mask holds an
            unknown number, the bank has fewer than two classes, `image_size` is smaller than a patch, an option is out
            of range, or the model takes images with another number of channels or gives features that are not finite.
    """
    if image_size is None:
        sides = image_size_of(extractor.image_processor)
        if sides is None:
            raise ValueError("`image_size` is not given, and the image processor does not crop; give it in pixels.")
        image_size = min(sides)
    check_image_size(image_size, extractor.model, "image_size")
    PixelNormalization(extractor.image_processor, extractor.num_channels)
    masks = MaskedImages.of(
        extractor, train_dataset, eval_dataset, mask_column=mask_column, ignore_index=ignore_index,
        do_reduce_labels=do_reduce_labels, sources=SOURCES,
    )  # fmt: skip
    extractor.begin()
    names = masks.read_classes(class_names, open_set=True, with_train_images=True)
    metrics, pictures = measure_patch_knn(extractor, masks, names, image_size=image_size, k=k, temperature=temperature)
    folder = folder_of_main(extractor, output_dir)
    draw = partial(draw_masks, names=names, ignore_index=ignore_index)
    draw_beside_numbers(folder, "patch_knn.png", draw, pictures)
    return metrics


def measure_patch_knn(
    extractor: FeatureExtractor,
    masks: MaskedImages,
    names: Sequence[str],
    *,
    image_size: int,
    k: int = 30,
    temperature: float = 0.02,
) -> tuple[Metrics, list[tuple[Tensor, Tensor, Tensor]]]:
    """`evaluate_patch_knn` for masks that have been read.

    Processes share the images, and all get the metrics. These equal those of one process exactly, because each image
    has separate forward passes and products.

    Args:
        masks, names: as in `MaskedImages.read_classes`.

    Returns:
        The metrics, and a few images (of this process) with their masks as (image, truth, prediction).
    """
    extractor.begin()
    look = PatchesOfImage(extractor, image_size)
    bank, shares = _bank(extractor, masks.train, look, len(names), masks.ignore_index)
    counts, pictures = [], []
    for image, mask, drawn in pairs_to_measure(extractor, masks.eval, "Segmenting"):
        image, mask, features = look(image, mask)
        queries = normalize(features.flatten(0, 1), dim=1)
        similarities, neighbors = cosine_neighbors(bank, queries, min(k, len(bank)), chunk_size=1024)
        weights = (similarities / temperature).softmax(dim=1)
        scores = torch.einsum("qk,qkc->cq", weights, shares[neighbors]).unflatten(1, features.shape[:2])
        prediction = interpolate(scores.unsqueeze(0), mask.shape, mode="bilinear")[0].argmax(dim=0).cpu()
        own = mask_counts(mask, prediction, len(names), masks.ignore_index)
        counts.append(own if features.isfinite().all() else None)
        if drawn:
            pictures.append((image, mask, prediction))
    counted = _in_order_of_rows(extractor, counts)
    not_finite = [row for row, found in enumerate(counted) if found is None]
    if not_finite:  # raised by all: an error in only one process would leave the others waiting
        raise ValueError(
            f"the features of row {not_finite[0]} of {masks.eval.source} are not finite; the model that made them may"
            " have diverged."
        )
    all_counts = torch.stack(counted)
    metrics = Metrics(
        mask_metrics("patch_knn", all_counts.sum(dim=0), names),
        image_size=image_size,
        class_names=list(names),
        num_classes=len(names),
        num_bank_patches=len(bank),
    )
    metrics["patch_knn_miou_stderr"] = miou_standard_error(all_counts)
    return metrics, pictures


class PatchesOfImage:
    """Image and mask in whole patches, and the features of the patches: the final-normed tokens of the last block.

    Args:
        image_size: short side in pixels.
    """

    def __init__(self, extractor: FeatureExtractor, image_size: int):
        self.extractor, self.image_size = extractor, image_size
        self.patch_size = square_patch_size(extractor.model)
        self.normalize = PixelNormalization(extractor.image_processor, extractor.num_channels)

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image (C, H, W) and mask (H, W) to those of another size, (C, h * P, w * P) and (h * P, w * P), and features
        (h, w, D) on the device of the model."""
        ratio = self.image_size / min(mask.shape) / self.patch_size
        size = [max(1, round(side * ratio)) * self.patch_size for side in mask.shape]
        image = resize(image, size, antialias=True)
        mask = resize(mask.unsqueeze(0), size, InterpolationMode.NEAREST_EXACT)[0]
        pixel_values = self.normalize(image).unsqueeze(0).to(self.extractor.device)
        with self.extractor.frozen():
            features = image_features(self.extractor.model, pixel_values, "patch_grid")
        return image, mask, features[0].float()


def patch_shares(mask: Tensor, patch_size: int, num_classes: int, ignore_index: int) -> Tensor:
    """The share of each class among the counted pixels of each patch, (h * w, K); NaN if no pixel counts.

    Args:
        mask: (h * P, w * P) class numbers.
        patch_size: P.
    """
    patches = mask.unfold(0, patch_size, patch_size).unfold(1, patch_size, patch_size).flatten(2).flatten(0, 1)
    numbers = patches.where(patches != ignore_index, num_classes)
    counts = torch.zeros(len(numbers), num_classes + 1).scatter_add_(1, numbers, torch.ones(numbers.shape))
    return counts[:, :num_classes] / counts[:, :num_classes].sum(dim=1, keepdim=True)


def _bank(
    extractor: FeatureExtractor, pairs: PixelPairs, look: PatchesOfImage, num_classes: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Features (n, D) and shares of classes (n, K) of all patches with a pixel that counts, on every process."""
    own = []
    for image, mask, _ in pairs_to_measure(extractor, pairs, "Features of the bank"):
        _, mask, features = look(image, mask)
        shares = patch_shares(mask, look.patch_size, num_classes, ignore_index)
        labelled = shares.isfinite().all(dim=1)
        own.append((features.flatten(0, 1).cpu()[labelled], shares[labelled]))
    features, shares = (torch.cat(parts) for parts in zip(*_in_order_of_rows(extractor, own), strict=True))
    check_finite(features, "the features of the bank")
    return features.to(extractor.device), shares.to(extractor.device)


def _in_order_of_rows(extractor: FeatureExtractor, own: list) -> list:
    """The results of all processes for their images, in the order of all rows."""
    if extractor.processes is None:
        return own
    parts = gather_object([own])
    return [parts[row % len(parts)][row // len(parts)] for row in range(sum(map(len, parts)))]
