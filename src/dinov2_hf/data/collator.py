"""Makes a batch from the crops of single images: stacked crops, block masks and their flat indices.

Letters: B images, C channels, G=2 global crops, L local crops, N patches of a global crop, M masked patches in the
batch.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.utils.data import default_collate

from .masking import MASKS, check_mask_settings, draw_masks, most_masked
from .stream_positions import Positions, StreamPosition


class SkippedImage(NamedTuple):
    """An image that could not be decoded, and why."""

    row_id: str
    reason: str


class PreTrainingSample(NamedTuple):
    """The crops of one image.

    `global_crops` is (G, C, S, S) and `local_crops` (L, C, s, s), of the type that the augmentation gives; `row_id`
    names the image for people; `seed` is the seed of the sample; `skipped` are images that were tried before this one;
    `distortions` (G + L, numbers) are the distortions that remain for the device, if any; `positions` are the
    positions of the worker of a stream after this sample, in each of its data sets.
    """

    global_crops: torch.Tensor
    local_crops: torch.Tensor
    row_id: str
    seed: int
    skipped: tuple[SkippedImage, ...]
    distortions: torch.Tensor | None = None
    positions: list[StreamPosition] | None = None


class BatchReport(NamedTuple):
    """The origin of a batch: the id of each image, the images that could not be decoded, and the positions of the
    workers of a stream, see `build_loader`.
    """

    row_ids: list[str]
    skipped: list[SkippedImage]
    positions: Positions | None = None


class PreTrainingCollator:
    """Stacks samples and draws the masks of the student's global crops (DINOv2, section 4).

    The masks are drawn from the first sample's seed, so a batch is a function of its samples.

    Args:
        patch_size: side of a patch in pixels; divides the side of a global crop.
        masks: one of `MASKS`, or "package.module:function".
        mask_probability: share of the global crops that are masked.
        mask_ratio: smallest and largest share of masked patches in such a crop.
        pad_masked: give every batch the same number of masked patches, the maximum, where the last ones have weight 0.
            A compiled step needs this, because it is compiled for one number, and so does an exchange of images.

    Raises:
        ValueError: there are no such masks, or the probability or the ratios are out of range.
    """

    def __init__(
        self,
        patch_size: int,
        *,
        masks: str = "block",
        mask_probability: float = 0.5,
        mask_ratio: tuple[float, float] = (0.1, 0.5),
        pad_masked: bool = False,
    ):
        check_mask_settings(mask_probability, mask_ratio)
        self.patch_size = patch_size
        self.masks = MASKS.find(masks)
        self.mask_probability = mask_probability
        self.mask_ratio = mask_ratio
        self.pad_masked = pad_masked

    def __call__(self, samples: Sequence[PreTrainingSample]) -> tuple[dict[str, torch.Tensor], BatchReport]:
        """Make one batch.

        Returns:
            The batch and its report. The batch holds `global_crops` (G, B, C, S, S) and `local_crops` (L, B, C, s, s),
            of the samples' type; `bool_masked_pos` (G*B, N), True where a patch is masked; row g*B + i is global crop
            g of image i; `masked_indices` (M,), int64, the flat positions of the True entries of `bool_masked_pos`;
            `masked_weights` (M,), float32, one over the number of masked patches of the entry's crop; `num_masked` (),
            int64, if the batch is padded: how many of the M come before the padding, which has index 0 and weight 0;
            `distortions` (G + L, B, numbers), if samples have them.

        Raises:
            ValueError: a kind of masks masks more patches than asked for, so that there is no room for padding.
        """
        # A worker writes only once, into memory that is shared with the training process.
        crops = {
            name: default_collate([getattr(sample, name) for sample in samples]).transpose(0, 1)
            for name in ("global_crops", "local_crops", "distortions")
            if getattr(samples[0], name) is not None
        }
        num_global_crops, num_images, _, height, width = crops["global_crops"].shape
        masks = draw_masks(
            num_global_crops * num_images,
            (height // self.patch_size, width // self.patch_size),
            masks=self.masks,
            mask_probability=self.mask_probability,
            mask_ratio=self.mask_ratio,
            rng=random.Random(samples[0].seed),
        )
        indices = masks.flatten().nonzero().squeeze(1)
        weights = (1.0 / masks.sum(dim=1, keepdim=True)).expand_as(masks)[masks]
        batch = crops | {"bool_masked_pos": masks, "masked_indices": indices, "masked_weights": weights}
        if self.pad_masked:
            batch |= self._padded(indices, weights, masks.shape)
        skipped = [image for sample in samples for image in sample.skipped]
        positions = None if samples[-1].positions is None else [samples[-1].positions]
        return batch, BatchReport([sample.row_id for sample in samples], skipped, positions)

    def _padded(self, indices: torch.Tensor, weights: torch.Tensor, shape: torch.Size) -> dict[str, torch.Tensor]:
        crops, patches = shape
        most = most_masked(crops, patches, mask_probability=self.mask_probability, mask_ratio=self.mask_ratio)
        missing = most - len(indices)
        if missing < 0:
            raise ValueError(
                f"the masks of {self.masks.__qualname__} hide {len(indices)} patches of a batch, but at most"
                f" {len(indices) + missing} were asked for; mask no more, which `compile: step` and students with"
                " `num_processes` need, or do without these."
            )
        padded = {
            name: torch.nn.functional.pad(values, (0, missing))
            for name, values in {"masked_indices": indices, "masked_weights": weights}.items()
        }
        return padded | {"num_masked": torch.tensor(len(indices))}
