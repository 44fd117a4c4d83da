"""
Images per second from files to crops on the device, by both augmentations; and those of a ViT-S that is trained on
them, with the share of the time that it waits for data.
"""

import io
import time
from pathlib import Path

import numpy as np

from .machine import synchronize
from .part import Rows, Work
from .toy_recipe import TOY
from .watched_run import watch_run


AUGMENTATIONS = ("multi_crop", "device")
SECONDS = {"loader": 10, "run": 22}  # a run needs some to start
FILE_SIZE = (500, 375)


def measure(work: Work) -> None:
    images = work.images or write_photographs(work.folder / "photographs", 16 if work.toy else 256)
    recipe = ["--config", "vits14_short", "--train_data", str(images), *(TOY if work.toy else [])]
    for augmentation in AUGMENTATIONS:
        row = f"{augmentation}, ViT-S/14 is trained"
        if not work.toy and work.seconds_left < SECONDS["run"]:
            work.record(row, {"skipped": "no time was left"})
            continue
        flags = [*recipe, "--augmentation", augmentation, "--logging_steps", "1" if work.toy else "20"]
        flags += ["--dataloader_num_workers", "0"] if work.toy else ["--save_steps", "125000"]
        seconds = work.seconds_left if work.toy else min(SECONDS["run"], work.seconds_left)
        for line in watch_run(flags, work.folder / augmentation, seconds, work.device):
            # The last one counts: the first are of a cold start.
            work.record(row, {name: line[name] for name in ("step", "images_per_second", "data_wait_share")})
            if work.toy:
                break
    # Last, because this process cannot start others on the GPU once it uses it itself.
    for augmentation in AUGMENTATIONS:
        flags = [*recipe, "--augmentation", augmentation, *(["--dataloader_num_workers", "0"] if work.toy else [])]
        work.record(f"{augmentation}, alone", rate_alone(flags, work))


def rate_alone(flags: list[str], work: Work) -> dict:
    """Of batches that nobody trains on, once those that were made ahead are gone."""
    from dinov2_hf import DINOv2Config, DINOv2PreTrainingConfig
    from dinov2_hf.data import build_batches, load_image_dataset
    from dinov2_hf.runs.pretraining_arguments import PreTrainingArguments
    from dinov2_hf.runs.recipe.recipe_parsing import parse_recipe

    args, backbone, _ = parse_recipe(flags, PreTrainingArguments, [DINOv2Config, DINOv2PreTrainingConfig])
    dataset = load_image_dataset(args.train_data)
    batches = build_batches(dataset, args, DINOv2Config(**backbone), device=work.device)
    for _ in range(2 * args.dataloader_num_workers + 2):
        next(batches)
    synchronize(work.device)
    started, count = time.perf_counter(), 0
    while count < 1 or (not work.toy and time.perf_counter() - started < SECONDS["loader"]):
        next(batches)
        count += 1
    synchronize(work.device)
    rate = count * args.per_device_train_batch_size / (time.perf_counter() - started)
    return {
        "images_per_second": rate,
        "workers": args.dataloader_num_workers,
        "images_per_second_of_a_worker": rate / max(args.dataloader_num_workers, 1),
    }


def write_photographs(folder: Path, count: int) -> Path:
    """JPEG files of smooth noise, about as large as photographs of their size."""
    from PIL import Image

    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(count):
        small = Image.fromarray(generator.integers(0, 255, (24, 32, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize(FILE_SIZE, Image.Resampling.BICUBIC).save(buffer, format="JPEG", quality=92)
        (folder / f"{index:04d}.jpg").write_bytes(buffer.getvalue())
    return folder


def draw(figure, rows: Rows) -> None:
    found = {name: row for name, row in rows.items() if "images_per_second" in row}
    axes = figure.subplots()
    labels = [
        f"{name}\nwaits {row['data_wait_share']:.0%}" if "data_wait_share" in row else name
        for name, row in found.items()
    ]
    bars = axes.barh(labels, [row["images_per_second"] for row in found.values()])
    axes.bar_label(bars, fmt="{:.0f}", padding=3, fontsize=8)
    axes.set_xlabel("images/s")
    axes.margins(x=0.15)
    axes.invert_yaxis()
