"""An endless sequence of pretraining batches that can be entered anywhere.

What a batch holds depends on the run's seed and the position of its samples only. It does not depend on how often the
run was interrupted and, for data sets with random access, not on the number of workers either.
"""

import inspect
import itertools
import logging
import warnings
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ..options import options_of, values_for
from .collator import PreTrainingCollator
from .device_batches import Batches, batches_on_device
from .loader_workers import check_shared_memory, describe_workers, outlive_preemption
from .multi_crop import AUGMENTATIONS, MultiCropTransform
from .pretraining_images import PreTrainingImages, PreTrainingStream, Transform
from .reading.image_columns import find_image_column
from .sample_order import PreTrainingBatchSampler


logger = logging.getLogger(__name__)


def build_batches(
    dataset: datasets.Dataset | datasets.IterableDataset,
    recipe: Any,
    network: Any,
    *,
    rank: int = 0,
    world_size: int = 1,
    start_sample: int = 0,
    has_masks: bool = True,
    pad_masked: bool = False,
    device: torch.device | str = "cpu",
) -> Batches:
    """The batches of one process, as a recipe says, on its device and ready for the network; see `build_loader`.

    Args:
        dataset: the images, from `load_image_dataset`, streamed or not.
        recipe: arguments of a run: those of data, crops and masks are read here.
        network: the configuration of a backbone, whose `image_size`, `patch_size` and `num_channels` the crops have.
        rank, world_size: this process and the number of processes.
        start_sample: images that all processes together have seen before.
        has_masks: whether the objective reads masks; without it none are drawn.
        pad_masked: as in `PreTrainingCollator`.
        device: where the batches go, and where the augmentation does its second part, if it has one.

    Raises:
        ValueError: as `build_transform` and `build_loader`, and where there are no such masks or no such order.
    """
    more = {"pad_masked": pad_masked} | ({} if has_masks else {"mask_probability": 0.0})
    device = torch.device(device)
    transform = build_transform(recipe, network.image_size, network.num_channels)
    batches = build_loader(
        dataset,
        find_image_column(dataset, recipe.image_column),
        transform,
        PreTrainingCollator(network.patch_size, **{**values_for(PreTrainingCollator, recipe), **more}),
        batch_size=recipe.per_device_train_batch_size,
        seed=recipe.seed,
        rank=rank,
        world_size=world_size,
        start_sample=start_sample,
        num_workers=recipe.dataloader_num_workers,
        sample_order=recipe.sample_order,
        shuffle_buffer_size=recipe.shuffle_buffer_size,
        num_channels=network.num_channels,
        pin_memory=device.type == "cuda",
    )
    return batches_on_device(batches, device, getattr(transform, "on_device", None))


def build_transform(recipe: Any, global_crop_size: int, num_channels: int) -> Transform:
    """The augmentation that a recipe names, with those of its values that the augmentation takes.

    Raises:
        ValueError: there is no such augmentation, a value is out of its range, or one was set that this augmentation
            does not take.
    """
    augmentation = AUGMENTATIONS.find(recipe.augmentation)
    sizes = {"global_crop_size": global_crop_size, "num_channels": num_channels}
    taken = inspect.signature(augmentation).parameters
    options = options_of(type(recipe))
    for name, value in values_for(MultiCropTransform, recipe).items():
        # Mean and deviation are of the image processor too.
        if name not in (*taken, "image_mean", "image_std") and value != options[name].default:
            raise ValueError(
                f"`{name}` is {value}, but the augmentation {recipe.augmentation} takes no such option; leave it out."
            )
    sizes = {name: size for name, size in sizes.items() if name in taken}
    return augmentation(**values_for(augmentation, recipe), **sizes)


def build_loader(
    dataset: datasets.Dataset | datasets.IterableDataset,
    image_column: str,
    transform: Transform,
    collator: PreTrainingCollator,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    start_sample: int = 0,
    num_workers: int = 0,
    sample_order: str = "global",
    shuffle_buffer_size: int = 1000,
    num_channels: int = 3,
    pin_memory: bool = False,
) -> Batches:
    """Endless batches for one process, from sample number `start_sample` of all processes on.

    A stream is read again up to there, without decoding, and continues exactly only with the number of workers
    and processes it had before. A data set with random access needs neither.

    Args:
        dataset, rank, world_size, pin_memory: as in `build_batches`.
        image_column: the column that holds the images, from `find_image_column`.
        transform: makes the crops of one image, such as `MultiCropTransform`.
        collator: makes a batch of samples.
        batch_size: B, images per process and batch.
        seed: the run's seed.
        start_sample: images that all processes together have seen before; of a stream, a multiple of B times
            `world_size`.
        num_workers: processes that decode and augment, each on one thread; 0 does it in this process. A stream cannot
            use more of them than it has shards; a warning says so.
        sample_order: see `PreTrainingBatchSampler`; a stream has an order of its own.
        shuffle_buffer_size: see `PreTrainingStream`; a data set with random access has no use for it.
        num_channels: channels to decode, see `image_decoder`.

    Returns:
        An iterator over (batch, report), as made by the collator.

    Raises:
        ValueError: as `PreTrainingBatchSampler` and `PreTrainingStream`, where the transform does not give the crops
            of an image, and where the batches that workers make ahead do not fit into shared memory.
    """
    share = {"batch_size": batch_size, "seed": seed, "rank": rank, "world_size": world_size}
    passed = 0
    if isinstance(dataset, datasets.IterableDataset):
        start_batch, rest = divmod(start_sample, batch_size * world_size)
        if rest:
            raise ValueError(
                f"start_sample is {start_sample}, but for a stream it must be a multiple of batch_size x world_size"
                f" ({batch_size} x {world_size})."
            )
        images = PreTrainingStream(
            dataset,
            image_column,
            transform,
            shuffle_buffer_size=shuffle_buffer_size,
            num_channels=num_channels,
            start_batch=start_batch,
            **share,
        )
        if num_workers > images.max_workers:
            warnings.warn(
                f"num_workers is {num_workers}, but the stream has only {images.max_workers} shards for this process, "
                f"so {images.max_workers} workers are used; store the data in more files to use more.",
                stacklevel=2,
            )
            num_workers = images.max_workers
        batching, passed = {"batch_size": batch_size}, start_batch % max(num_workers, 1)
    else:
        images = PreTrainingImages(dataset, image_column, transform, num_channels)
        order = {"start_sample": start_sample, "order": sample_order, "dataset": dataset}
        batching = {"batch_sampler": PreTrainingBatchSampler(len(images), **share, **order)}
    needed = check_shared_memory(num_workers, batch_size * _sample_bytes(transform, num_channels))
    logger.info("data loading: %s", describe_workers(num_workers, needed))
    loader = DataLoader(
        images,
        collate_fn=collator,
        num_workers=num_workers,
        pin_memory=pin_memory,
        # A loader draws a seed for its workers, which would otherwise come from the generator of the training.
        generator=torch.Generator().manual_seed(seed),
        worker_init_fn=outlive_preemption,
        **batching,
    )
    return itertools.islice(loader, passed, None)


def _sample_bytes(transform: Transform, num_channels: int) -> int:
    """Of the crops of one image and what goes with them, whatever its size.

    Raises:
        ValueError: the transform gives no crops.
    """
    side = 64
    empty = Image.new("RGB", (side, side)) if num_channels == 3 else np.zeros((side, side, num_channels), np.float32)
    with torch.random.fork_rng(devices=[]):
        tensors = transform(empty)
    for name, crops in zip(("global crops", "local crops"), tensors[:2], strict=True):
        if not isinstance(crops, torch.Tensor) or crops.ndim != 4 or crops.shape[1] != num_channels:
            found = tuple(crops.shape) if isinstance(crops, torch.Tensor) else type(crops).__name__
            raise ValueError(
                f"the {name} of the augmentation are {found}; they must be a tensor (crops, {num_channels}, height, "
                "width)."
            )
    return sum(tensor.nbytes for tensor in tensors)
