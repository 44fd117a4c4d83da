"""
What an image costs on its way from a file to the network: CPU time, beside the original's pipeline and by pieces.

    python examples/benchmarks/data_path.py --images photographs.parquet --output data_path.json

The original's pipeline is torchvision's first transforms on PIL images, spelled out below. Ten images at a time go
through all ways in turn, round after round, on one thread bound to one core. The fastest round of each image counts:
the ratios hold on a machine that others use too.

- `paths`: decoding included, to crops that are normalised on the CPU, or (`in a worker`) to what a worker hands over.
- `pieces`: all crops of an image, by each library that could do it.
- `hand-over`: CPU time of a worker that has its crops ready, to put them into a batch and share it with the training.
- `large`: the same images, enlarged and encoded again as JPEG files of `--large` pixels.
"""

import argparse
import io
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import InterpolationMode, v2
from tqdm.auto import tqdm

from dinov2_hf.data import MultiCropTransform, PreTrainingCollator, decode_image, find_image_column
from dinov2_hf.data.collator import PreTrainingSample
from dinov2_hf.data.multi_crop import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DeviceMultiCropTransform,
    draw_crop_box,
    resized_crop,
)
from dinov2_hf.data.opencv_distortions import adjust_hue, gaussian_blur


GLOBAL_SIZE, LOCAL_SIZE, NUM_LOCAL = 224, 98, 8
BATCH_SIZE = 16
BLOCK = 10  # images that one way has before the next one, as a worker has its caches to itself
Task = Callable[[int], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--images", required=True, help="Parquet file of photographs.")
    parser.add_argument("--num_images", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", type=int, nargs=2, default=(1600, 1200), help="Width and height.")
    parser.add_argument("--num_large_images", type=int, default=20)
    parser.add_argument("--output", type=Path, help="JSON file for the numbers.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    files = read_files(args.images, args.num_images)
    large = [enlarged(file, tuple(args.large)) for file in files[: args.num_large_images]]
    results = {
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "images": len(files),
        "crops": f"2 x {GLOBAL_SIZE} + {NUM_LOCAL} x {LOCAL_SIZE}",
        "milliseconds of CPU time an image": {
            "paths": measured(paths(files), len(files), args.rounds, "paths"),
            "pieces": measured(pieces(files), len(files), args.rounds, "pieces"),
            "hand-over": {name: hand_over(name, len(files)) for name in ("uint8", "float32")},
            f"large, {args.large[0]} x {args.large[1]}": measured(paths(large), len(large), args.rounds, "large"),
        },
    }
    report(results)
    if args.output:
        args.output.write_text(json.dumps(results, indent=2) + "\n")


def report(results: dict) -> None:
    for name, group in results["milliseconds of CPU time an image"].items():
        print(f"\n{name} (ms an image)")
        reference = group.get("original")
        for way, milliseconds in group.items():
            ratio = f"{reference / milliseconds:8.2f} times the original's speed" if reference else ""
            print(f"  {way:44s}{milliseconds:9.3f}{ratio}")


def measured(tasks: dict[str, Task], num_images: int, rounds: int, description: str) -> dict[str, float]:
    """Milliseconds of CPU time an image of each task, which are called with the number of an image."""
    fastest = dict.fromkeys(tasks, None)
    for round_number in tqdm(range(rounds), desc=description, disable=not sys.stderr.isatty()):
        seconds = {name: np.empty(num_images) for name in tasks}
        for first in range(0, num_images, BLOCK):
            for name in random.Random(round_number * num_images + first).sample(list(tasks), len(tasks)):
                for index in range(first, min(first + BLOCK, num_images)):
                    torch.manual_seed(index)
                    started = time.process_time()
                    tasks[name](index)
                    seconds[name][index] = time.process_time() - started
        for name in tasks:
            fastest[name] = seconds[name] if fastest[name] is None else np.minimum(fastest[name], seconds[name])
    return {name: 1000 * float(values.mean()) for name, values in fastest.items()}


def paths(files: list[bytes]) -> dict[str, Task]:
    """From a file to normalised crops, and to what a worker hands over."""
    original = OriginalTransform()
    ours, device = MultiCropTransform(), DeviceMultiCropTransform()

    def in_worker(transform: MultiCropTransform, index: int) -> tuple[torch.Tensor, ...]:
        return transform(decode_image(files[index], reduction=transform.reduction))

    def normalised(transform: MultiCropTransform, index: int) -> dict[str, torch.Tensor]:
        names = ("global_crops", "local_crops", "distortions")
        crops = {name: value.unsqueeze(1) for name, value in zip(names, in_worker(transform, index), strict=False)}
        return transform.on_device(crops)

    return {
        "original": lambda index: original(Image.open(io.BytesIO(files[index])).convert("RGB")),
        "multi_crop": partial(normalised, ours),
        "multi_crop in a worker": partial(in_worker, ours),
        "device in a worker": partial(in_worker, device),
        "device, with a CPU as the device": partial(normalised, device),
    }


def pieces(files: list[bytes]) -> dict[str, Task]:
    """Of all crops of an image."""
    pictures = [decode_image(file) for file in files]
    arrays = [np.array(picture) for picture in pictures]
    tensors = [torch.from_numpy(array).permute(2, 0, 1) for array in arrays]
    boxes = [crop_boxes(*array.shape[:2], random.Random(index)) for index, array in enumerate(arrays)]
    crops = [[resized_crop(array, *box) for box in own] for array, own in zip(arrays, boxes, strict=True)]
    crop_pictures = [[Image.fromarray(crop) for crop in own] for own in crops]
    crop_tensors = [[torch.from_numpy(crop).permute(2, 0, 1) for crop in own] for own in crops]
    planes = [[crop.contiguous() for crop in own] for own in crop_tensors]
    bicubic = {"interpolation": InterpolationMode.BICUBIC, "antialias": True}
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))

    def of_crops(source: list[list], operation: Callable) -> Task:
        return lambda index: [operation(crop) for crop in source[index]]

    def of_boxes(source: list, operation: Callable) -> Task:
        return lambda index: [operation(source[index], box, size) for box, size in boxes[index]]

    return {
        "decode: Pillow": lambda index: Image.open(io.BytesIO(files[index])).convert("RGB"),
        "decode: torchvision": lambda index: torchvision.io.decode_jpeg(
            torch.frombuffer(bytearray(files[index]), dtype=torch.uint8), torchvision.io.ImageReadMode.RGB
        ),
        "resize: Pillow": of_boxes(
            pictures, lambda picture, box, size: v2.functional.resized_crop(picture, *box, [size, size], **bicubic)
        ),
        "resize: torchvision, uint8 tensors": of_boxes(
            tensors, lambda tensor, box, size: v2.functional.resized_crop(tensor, *box, [size, size], **bicubic)
        ),
        "resize: as used here": of_boxes(arrays, resized_crop),
        "hue: Pillow": of_crops(crop_pictures, lambda crop: v2.functional.adjust_hue(crop, 0.05)),
        "hue: torchvision, uint8 tensors": of_crops(crop_tensors, lambda crop: v2.functional.adjust_hue(crop, 0.05)),
        "hue: OpenCV, as used here": of_crops(crops, lambda crop: adjust_hue(crop, 0.05)),
        "blur: torchvision, uint8 tensors": of_crops(
            crop_tensors, lambda crop: v2.functional.gaussian_blur(crop, [9, 9], [1.3, 1.3])
        ),
        "blur: OpenCV, as used here": of_crops(crops, lambda crop: gaussian_blur(crop, 1.3)),
        "normalise: torchvision": of_crops(
            planes, lambda crop: v2.functional.normalize(crop.float().div_(255), IMAGENET_MEAN, IMAGENET_STD)
        ),
        "normalise: as used here": of_crops(planes, lambda crop: (crop * (1 / 255 / std)).add_(-mean / std)),
    }


def crop_boxes(height: int, width: int, rng: random.Random) -> list[tuple[tuple[int, int, int, int], int]]:
    """Boxes of the global and the local crops, with the size that each of them is resized to."""
    kinds = [((0.32, 1.0), GLOBAL_SIZE)] * 2 + [((0.05, 0.32), LOCAL_SIZE)] * NUM_LOCAL
    return [(draw_crop_box(height, width, scale, rng), size) for scale, size in kinds]


class OriginalTransform:
    """The original's augmentation, on one PIL image."""

    def __init__(self, global_size: int = GLOBAL_SIZE, local_size: int = LOCAL_SIZE, num_local: int = NUM_LOCAL):
        flip_and_color = [
            transforms.RandomHorizontalFlip(p=0.5),
            transforms.RandomApply(
                [transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)], p=0.8
            ),
            transforms.RandomGrayscale(p=0.2),
        ]
        to_tensor = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]

        def crop(size: int, scale: tuple[float, float], blur: float, *more: Callable) -> Callable:
            # As it ran: the probabilities of blur in its code are those of leaving it out.
            blurs = [transforms.RandomApply([transforms.GaussianBlur(9, sigma=(0.1, 2.0))], p=blur)]
            resized = transforms.RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC)
            return transforms.Compose([resized, *flip_and_color, *blurs, *more, *to_tensor])

        self.crops = [
            crop(global_size, (0.32, 1.0), 0.0),
            crop(global_size, (0.32, 1.0), 0.9, transforms.RandomSolarize(128, p=0.2)),
            *[crop(local_size, (0.05, 0.32), 0.5)] * num_local,
        ]

    def __call__(self, image: Image.Image) -> list[torch.Tensor]:
        return [crop(image) for crop in self.crops]


class ReadySamples(Dataset):
    """The same crops for every number."""

    def __init__(self, dtype: torch.dtype):
        global_crops = torch.zeros(2, 3, GLOBAL_SIZE, GLOBAL_SIZE, dtype=dtype)
        local_crops = torch.zeros(NUM_LOCAL, 3, LOCAL_SIZE, LOCAL_SIZE, dtype=dtype)
        self.sample = PreTrainingSample(global_crops, local_crops, "row", 0, ())

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> PreTrainingSample:
        return self.sample


class TimedCollator(PreTrainingCollator):
    """Tells with each batch the CPU time of its process before it was made, other than for masks."""

    def __call__(self, samples: list[PreTrainingSample]) -> tuple[dict[str, torch.Tensor], float]:
        return super().__call__(samples)[0], time.process_time()


def hand_over(dtype: str, num_images: int) -> float:
    """Milliseconds of CPU time of a worker, an image."""
    dataset, collator = ReadySamples(getattr(torch, dtype)), TimedCollator(14, mask_probability=0.0)
    loader = DataLoader(dataset, batch_size=BATCH_SIZE, num_workers=1, collate_fn=collator)
    times = [seconds for _, seconds in islice(loader, 2 + max(num_images // BATCH_SIZE, 8))]
    differences = np.diff(times[1:])
    return 1000 * float(np.median(differences)) / BATCH_SIZE


def read_files(path: str, count: int) -> list[bytes]:
    """The first photographs of about 500 x 333 pixels (any, if there are none), as files."""
    dataset = datasets.Dataset.from_parquet(path)
    column = find_image_column(dataset)
    rows = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    files = [row[column]["bytes"] for row in rows]
    sizes = [Image.open(io.BytesIO(file)).size for file in files]
    usual = [file for file, size in zip(files, sizes, strict=True) if max(size) == 500 and 320 <= min(size) <= 345]
    return (usual or files)[:count]


def enlarged(file: bytes, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    decode_image(file).resize(size, Image.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
