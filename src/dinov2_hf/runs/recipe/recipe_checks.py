"""Checks, before anything is computed, that the crops of a recipe fit its network and objective."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from ...named_objects import did_you_mean
from ...pretraining.images_together import check_group_size
from ...pretraining.terms import term_options
from ..pretraining_arguments import PreTrainingArguments


CROP_SIZES = ("global_crop_size", "local_crop_size", "weight")
LEAST_PATCHES = 4  # a side: the smallest grid in which the original's blocks of at least 4 masked patches fit


def check_crops(args: PreTrainingArguments, config: PreTrainedConfig) -> None:
    """`ValueError` if local crops do not consist of whole patches, or KoLeo has no two images to compare."""
    patch_size = config.backbone_config.patch_size
    local_sizes = [("`local_crop_size`", args.local_crop_size)]
    for sizes in args.crop_sizes or ():
        _check_sizes(sizes, patch_size)
        local_sizes.append(("`local_crop_size` of `crop_sizes`", sizes.get("local_crop_size", args.local_crop_size)))
    for name, size in local_sizes:
        if args.num_local_crops and size % patch_size:
            raise ValueError(
                f"{name} is {size}, which is not a multiple of `patch_size` ({patch_size}); the nearest that fits is"
                f" {max(1, round(size / patch_size)) * patch_size}."
            )
    if args.per_device_train_batch_size < 2 and config.koleo_loss_weight > 0 and config.koleo_group_size is None:
        raise ValueError(
            "`per_device_train_batch_size` is 1, but KoLeo compares the images of a device with each other; use at"
            " least 2, or set `koleo_loss_weight` to 0."
        )


def _check_sizes(sizes: Mapping[str, Any], patch_size: int) -> None:
    """`ValueError` if an entry of `crop_sizes` has other keys, or global crops that are not whole patches."""
    for key, value in sizes.items():
        if key not in CROP_SIZES:
            near = did_you_mean(str(key), CROP_SIZES) or f" It may have {', '.join(CROP_SIZES)}."
            raise ValueError(f"`crop_sizes` has the unknown key `{key}`.{near}")
        is_number = isinstance(value, int if key != "weight" else int | float) and not isinstance(value, bool)
        if not (is_number and 0 < value < float("inf")):
            raise ValueError(f"`{key}` of `crop_sizes` is {value}; it must be a number above 0, and whole if a size.")
    size = sizes.get("global_crop_size", 0)
    if size < LEAST_PATCHES * patch_size or size % patch_size:
        raise ValueError(
            f"`global_crop_size` of `crop_sizes` is {size or 'missing'}; it must be a multiple of `patch_size`"
            f" ({patch_size}), and at least {LEAST_PATCHES * patch_size}."
        )


def check_groups(args: PreTrainingArguments, config: PreTrainedConfig, num_processes: int) -> None:
    """`ValueError` if images cannot be split into the groups that terms compare, or KoLeo has too few images."""
    num_images = args.per_device_train_batch_size * num_processes
    sizes = {name: own.get("group_size") for name, own in term_options(args.loss_terms or {}).items()}
    if config.koleo_loss_weight > 0:
        sizes["koleo_group_size"] = config.koleo_group_size
        compared = num_images if config.koleo_group_size == 0 else config.koleo_group_size
        compared = compared or args.per_device_train_batch_size
        if compared <= config.koleo_num_neighbors:
            raise ValueError(
                f"`koleo_num_neighbors` is {config.koleo_num_neighbors}, but KoLeo compares only {compared} images"
                " with each other; lower it, or compare more (`koleo_group_size`, `per_device_train_batch_size`)."
            )
    for name, size in sizes.items():
        if size is not None:
            check_group_size(size, num_images, name)


def check_mask_grid(backbone: PreTrainedConfig) -> None:
    """`ValueError` if a global crop of this network has too few patches for masks of blocks."""
    patch_size, image_size = backbone.patch_size, backbone.image_size
    side = image_size // patch_size
    if side < LEAST_PATCHES:
        raise ValueError(
            f"`image_size` is {image_size}, which is {side} x {side} patches of `patch_size` ({patch_size}), too few"
            f" to mask blocks of them; use an image size of at least {LEAST_PATCHES * patch_size}, or smaller patches."
        )
