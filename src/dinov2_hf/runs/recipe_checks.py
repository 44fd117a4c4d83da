"""Whether the crops of a recipe suit its network and objective, before anything is computed."""

from transformers import PreTrainedConfig

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
    if args.per_device_train_batch_size < 2 and config.koleo_loss_weight > 0:
        raise ValueError(
            "`per_device_train_batch_size` is 1, but KoLeo compares the images of a device with each other; use at"
            " least 2, or set `koleo_loss_weight` to 0."
        )


def check_mask_grid(backbone: PreTrainedConfig) -> None:
    """`ValueError` where a global crop of this network has too few patches to mask blocks of them."""
    patch_size, image_size = backbone.patch_size, backbone.image_size
    side = image_size // patch_size
    if side < LEAST_PATCHES:
        raise ValueError(
            f"`image_size` is {image_size}, which is {side} x {side} patches of `patch_size` ({patch_size}), too few"
            f" to mask blocks of them; use an image size of at least {LEAST_PATCHES * patch_size}, or smaller patches."
        )
