"""Whether the crops of a recipe suit its network and objective, before anything is computed."""

from transformers import PreTrainedConfig

from ..pretraining.images_together import check_group_size
from ..pretraining.terms import term_options
from .pretraining_arguments import PreTrainingArguments


LEAST_PATCHES = 4  # a side: the smallest grid in which the original's blocks of at least 4 masked patches fit


def check_crops(args: PreTrainingArguments, config: PreTrainedConfig) -> None:
    """`ValueError` where local crops are not whole patches, or KoLeo has no two images to compare."""
    patch_size = config.backbone_config.patch_size
    if args.num_local_crops and args.local_crop_size % patch_size:
        raise ValueError(
            f"`local_crop_size` is {args.local_crop_size}, which is not a multiple of `patch_size` ({patch_size});"
            f" the nearest that fits is {max(1, round(args.local_crop_size / patch_size)) * patch_size}."
        )
    if args.per_device_train_batch_size < 2 and config.koleo_loss_weight > 0 and config.koleo_group_size is None:
        raise ValueError(
            "`per_device_train_batch_size` is 1, but KoLeo compares the images of a device with each other; use at"
            " least 2, or set `koleo_loss_weight` to 0."
        )


def check_groups(args: PreTrainingArguments, config: PreTrainedConfig, num_processes: int) -> None:
    """`ValueError` where images cannot be cut into the groups that terms compare, or KoLeo has too few of them."""
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
    """`ValueError` where a global crop of this network has too few patches to mask blocks of them."""
    patch_size, image_size = backbone.patch_size, backbone.image_size
    side = image_size // patch_size
    if side < LEAST_PATCHES:
        raise ValueError(
            f"`image_size` is {image_size}, which is {side} x {side} patches of `patch_size` ({patch_size}), too few"
            f" to mask blocks of them; use an image size of at least {LEAST_PATCHES * patch_size}, or smaller patches."
        )
