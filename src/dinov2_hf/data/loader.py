"""An endless sequence of pretraining batches that can start at any position.

The content of a batch depends only on the run's seed and the position of its samples. It does not depend on how often
the run was interrupted. For data sets with random access, it does not depend on the number of workers either.
"""

import inspect
import itertools
import logging
import warnings
from collections.abc import Sequence
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
from .mixture import Mixture
from .multi_crop import AUGMENTATIONS, MultiCropTransform
from .pretraining_images import PreTrainingImages, PreTrainingStream, Transform
from .reading.image_columns import find_image_column
from .reading.mixed_images import COLUMN, MixedImages
from .sample_order import PreTrainingBatchSampler
from .sample_seeds import mix_seed
from .stream_positions import Positions, before_rounds
from .weighted_turns import WeightedTurns


logger = logging.getLogger(__name__)


def build_batches(
    dataset: datasets.Dataset | datasets.IterableDataset | MixedImages,
    recipe: Any,
    network: Any,
    *,
    rank: int = 0,
    world_size: int = 1,
    start_sample: int = 0,
    positions: Positions | None = None,
    has_masks: bool = True,
    pad_masked: bool = False,
    device: torch.device | str = "cpu",
    crops_dtype: torch.dtype | None = None,
) -> Batches:
    """The batches of one process by a recipe, on its device and ready for the network; see `build_loader`.

    Args:
        dataset: the images, from `load_image_dataset`, streamed or not; or from `load_mixed_images`.
        recipe: arguments of a run; the arguments of data, crops and masks are read here.
        network: the configuration of a backbone; crops have its `image_size`, `patch_size` and `num_channels`.
        rank, world_size: this process and the number of processes.
        start_sample: images that all processes together have seen before.
        positions: positions of a stream, see `build_loader`.
        has_masks: whether the objective reads masks; otherwise none are drawn.
        pad_masked: as in `PreTrainingCollator`.
        device: device of the batches, and of the second part of the augmentation, if it has one.
        crops_dtype: the dtype to which finished crops are rounded; None does not round them.

    Raises:
        ValueError: as `build_transform` and `build_loader`, or there are no such masks or no such order.
    """
    more = {"pad_masked": pad_masked} | ({} if has_masks else {"mask_probability": 0.0})
    device = torch.device(device)
    sizes = recipe.crop_sizes or [{}]
    transforms = [build_transform(recipe, network.image_size, network.num_channels, **of_step) for of_step in sizes]
    images_per_step = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps * world_size
    is_mixed = isinstance(dataset, MixedImages)
    batches = build_loader(
        dataset,
        COLUMN if is_mixed else find_image_column(dataset, recipe.image_column),
        transforms,
        PreTrainingCollator(network.patch_size, **{**values_for(PreTrainingCollator, recipe), **more}),
        batch_size=recipe.per_device_train_batch_size,
        seed=recipe.seed,
        rank=rank,
        world_size=world_size,
        start_sample=start_sample,
        positions=positions,
        num_workers=recipe.dataloader_num_workers,
        sample_order=recipe.sample_order,
        shuffle_buffer_size=recipe.shuffle_buffer_size,
        num_channels=network.num_channels,
        pin_memory=device.type == "cuda",
        crop_weights=[of_step.get("weight", 1.0) for of_step in sizes],
        images_per_step=images_per_step,
        one_set_a_step=is_mixed and recipe.one_set_a_step,
    )
    return batches_on_device(batches, device, getattr(transforms[0], "on_device", None), crops_dtype)


def build_transform(
    recipe: Any,
    image_size: int,
    num_channels: int,
    *,
    global_crop_size: int | None = None,
    local_crop_size: int | None = None,
    weight: float | None = None,
) -> Transform:
    """The augmentation that a recipe names, with the values of the recipe that the augmentation takes.

    Args:
        image_size, num_channels: of the network.
        global_crop_size, local_crop_size: sizes that replace those of the network and the recipe. They come from an
            entry of `crop_sizes`, whose `weight` is read elsewhere.

    Raises:
        ValueError: there is no such augmentation, a value is out of its range, or one was set that this augmentation
            does not take.
    """
    augmentation = AUGMENTATIONS.find(recipe.augmentation)
    sizes = {"global_crop_size": global_crop_size or image_size, "num_channels": num_channels}
    sizes |= {"local_crop_size": local_crop_size} if local_crop_size else {}
    taken = inspect.signature(augmentation).parameters
    options = options_of(type(recipe))
    for name, value in values_for(MultiCropTransform, recipe).items():
        # Mean and deviation are also those of the image processor.
        if name not in (*taken, "image_mean", "image_std") and value != options[name].default:
            raise ValueError(
                f"`{name}` is {value}, but the augmentation {recipe.augmentation} takes no such option; leave it out."
            )
    sizes = {name: size for name, size in sizes.items() if name in taken}
    return augmentation(**values_for(augmentation, recipe) | sizes)


def build_loader(
    dataset: datasets.Dataset | datasets.IterableDataset | MixedImages,
    image_column: str,
    transform: Transform | Sequence[Transform],
    collator: PreTrainingCollator,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    start_sample: int = 0,
    positions: Positions | None = None,
    num_workers: int = 0,
    sample_order: str = "global",
    shuffle_buffer_size: int = 1000,
    num_channels: int = 3,
    pin_memory: bool = False,
    crop_weights: Sequence[float] = (1.0,),
    images_per_step: int | None = None,
    one_set_a_step: bool = False,
) -> Batches:
    """Endless batches for one process, from sample number `start_sample` of all processes on.

    A stream continues exactly only with the number of workers and processes that it had before. If its `positions` are
    not known, it is read again up to there, without decoding. A data set with random access needs neither.

    Args:
        dataset, rank, world_size, pin_memory: as in `build_batches`.
        image_column: the column that holds the images, from `find_image_column`.
        transform: makes the crops of one image, such as `MultiCropTransform`; or several transforms, of which each
            step uses one.
        collator: makes a batch of samples.
        batch_size: B, images per process and batch.
        seed: the run's seed.
        start_sample: images that all processes together have seen before; for a stream, a multiple of B times
            `world_size`.
        positions: for a stream, the positions in the report of the previous batch.
        num_workers: processes that decode and augment, each on one thread; 0 does it in this process. A stream cannot
            use more of them than it has shards; a warning says so.
        sample_order: see `PreTrainingBatchSampler`; a stream has its own order.
        shuffle_buffer_size: see `PreTrainingStream`; a data set with random access does not use it.
        num_channels: channels to decode, see `image_decoder`.
        crop_weights: how often a step has each of several transforms, as ratios.
        images_per_step: images of an optimizer step, over all processes; by default those of one forward pass.
        one_set_a_step: whether all images of a step come from one of several data sets.

    Returns:
        An iterator over (batch, report), as made by the collator. For a stream, the report has the `positions` of the
        workers before the round that contains the next batch. In a round each worker makes one batch. It is None in
        the first round.

    Raises:
        ValueError: as `PreTrainingBatchSampler` and `PreTrainingStream`; or the transform does not return the crops of
            an image, or the batches that workers make ahead do not fit into shared memory.
    """
    share: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "rank": rank, "world_size": world_size}
    images_per_step = images_per_step or batch_size * world_size
    # With a different seed than that of the turns of several data sets.
    crop_sizes = WeightedTurns(crop_weights, mix_seed(seed, -1), images_per_step) if len(crop_weights) > 1 else None
    passed = 0
    is_mixed = isinstance(dataset, MixedImages)
    is_stream = dataset.is_streamed if is_mixed else isinstance(dataset, datasets.IterableDataset)
    images_per_turn = images_per_step if one_set_a_step else 1
    if is_stream:
        start_batch, rest = divmod(start_sample, batch_size * world_size)
        if rest:
            raise ValueError(
                f"start_sample is {start_sample}, but for a stream it must be a multiple of batch_size x world_size"
                f" ({batch_size} x {world_size})."
            )
        stream = PreTrainingStream(
            dataset,
            image_column,
            transform,
            shuffle_buffer_size=shuffle_buffer_size,
            num_channels=num_channels,
            start_batch=start_batch,
            positions=positions,
            crop_sizes=crop_sizes,
            images_per_turn=images_per_turn,
            **share,
        )
        if num_workers > stream.max_workers:
            warnings.warn(
                f"num_workers is {num_workers}, but the stream has only {stream.max_workers} shards for this process, "
                f"so {stream.max_workers} workers are used; store the data in more files to use more.",
                stacklevel=2,
            )
            num_workers = stream.max_workers
        images: torch.utils.data.Dataset = stream
        batching: dict[str, Any] = {"batch_size": batch_size}
        passed = start_batch % max(num_workers, 1)
    else:
        order: dict[str, Any] = {
            "start_sample": start_sample,
            "order": sample_order,
            "dataset": dataset,
            "crop_sizes": crop_sizes,
        }
        if is_mixed:
            mixed = {"batch_images": batch_size * world_size, "images_per_turn": images_per_turn}
            order["mixture"] = Mixture(dataset, sample_order, seed=seed, **mixed)
            dataset = dataset.images
        images = mapped = PreTrainingImages(dataset, image_column, transform, num_channels)
        batching = {"batch_sampler": PreTrainingBatchSampler(len(mapped), **share, **order)}
    transforms = transform if isinstance(transform, Sequence) else [transform]
    sample_bytes = max(_sample_bytes(one, num_channels) for one in transforms)
    needed = check_shared_memory(num_workers, batch_size * sample_bytes)
    logger.info("data loading: %s", describe_workers(num_workers, needed))
    loader = DataLoader(
        images,
        collate_fn=collator,
        num_workers=num_workers,
        pin_memory=pin_memory,
        # A loader draws a seed for its workers. Otherwise it would draw from the generator of the training.
        generator=torch.Generator().manual_seed(seed),
        worker_init_fn=outlive_preemption,
        **batching,
    )
    batches = before_rounds(iter(loader), positions, max(num_workers, 1)) if is_stream else iter(loader)
    return itertools.islice(batches, passed, None)


def _sample_bytes(transform: Transform, num_channels: int) -> int:
    """The bytes of the crops of one image and of everything that goes with them, whatever its size.

    Raises:
        ValueError: the transform returns no crops.
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
