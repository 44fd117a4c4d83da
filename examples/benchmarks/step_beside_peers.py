"""
A whole training step with its data on one thread of a CPU: ours, the original's and LightlyTrain's.

    python examples/benchmarks/step_beside_peers.py --images photographs.parquet \
        --original <clone of github.com/facebookresearch/dinov2> \
        --lightly_train <Python in whose environment lightly-train is> --output steps.json

ViT-S/14 by the recipe vits14_short, bfloat16 (`--mixed_precision no`: float32), 8 images a step, each decoded and
augmented in the same process (2 crops of 224, 8 of 98 pixels), 65,536 prototypes. Every way is a process of its own,
for its memory. They take turns, round after round. CPU time counts, since others may use the machine. A step's is the
difference between a process of many steps and one of few, divided by the steps between: imports, compiling and the
first step do not count.

- `ours`, `ours, blocks`, `ours, step`: as `examples/pretrain.py` takes it, `compile` as named.
- `original`: its own modules (`original_step.py`), its transforms on PIL images, our collator's masks.
- `lightly_train`: `lightly_train.pretrain` with the method and the network of DINOv2, its own crops and loader.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


FEW, BATCH_SIZE = 1, 8
RECIPE = ("--config", "vits14_short", "--per_device_train_batch_size", "8", "--dataloader_num_workers", "0")
LIGHTLY_TRAIN = """
import sys
from lightly_train import pretrain

folder, out, precision = sys.argv[1:]
pretrain(
    out=out, data=folder, model="dinov2/vits14-notpretrained", method="dinov2", epochs=1, batch_size={batch_size},
    num_workers=0, devices=1, accelerator="cpu", precision=precision, overwrite=True,
)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--images", required=True, help="Parquet file of photographs.")
    parser.add_argument("--original", help="A clone of the original; without it the original is left out.")
    parser.add_argument("--lightly_train", help="A Python with lightly-train; without it that is left out.")
    parser.add_argument("--steps", type=int, default=6, help="Timed steps of each process.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mixed_precision", choices=("bf16", "no"), default="bf16")
    parser.add_argument("--ways", nargs="+", help="Of those above, by default all.")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers.")
    parser.add_argument("--way", help=argparse.SUPPRESS)  # in a process of its own
    args = parser.parse_args()
    if args.way:
        take_steps(args.way, args)
        return
    ways = ["ours", "ours, blocks", "ours, step"]
    ways += ["original"] if args.original else []
    ways += ["lightly_train"] if args.lightly_train else []
    measured = {way: {"seconds": [], "gib": []} for way in args.ways or ways}
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(args.rounds):
            for way, found in measured.items():
                few, _ = measure(way, args, FEW, Path(scratch))
                many, gib = measure(way, args, FEW + args.steps, Path(scratch))
                found["seconds"].append((many - few) / args.steps)
                found["gib"].append(gib)
                print(f"{way:16s}{found['seconds'][-1]:8.2f} CPU s a step{gib:8.2f} GiB", flush=True)
    if args.output:
        args.output.write_text(json.dumps(measured, indent=2) + "\n")
    for way, found in measured.items():
        print(f"{way:16s} median {statistics.median(found['seconds']):.2f} CPU s, peak {max(found['gib']):.2f} GiB")


def measure(way: str, args: argparse.Namespace, steps: int, scratch: Path) -> tuple[float, float]:
    """CPU seconds and largest resident GiB of a process that takes so many steps."""
    if way == "lightly_train":
        folder = scratch / str(steps)
        if not folder.exists():
            write_images(args.images, folder, steps * BATCH_SIZE)
        code = LIGHTLY_TRAIN.format(batch_size=BATCH_SIZE)
        precision = "bf16-mixed" if args.mixed_precision == "bf16" else "32-true"
        command = [args.lightly_train, "-c", code, str(folder), str(scratch / "out"), precision]
    else:
        command = [sys.executable, __file__, "--way", way, "--images", args.images, "--steps", str(steps)]
        command += ["--mixed_precision", args.mixed_precision]
        command += ["--original", args.original] if args.original else []
    process = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    printed = process.stdout.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{way}: its process ended with {os.waitstatus_to_exitcode(status)}:\n{printed[-3000:]}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20


def write_images(parquet: str, folder: Path, count: int) -> None:
    from data_path import read_files

    folder.mkdir()
    for index, file in enumerate(read_files(parquet, count)):
        (folder / f"{index:05d}.jpg").write_bytes(file)


def take_steps(way: str, own: argparse.Namespace) -> None:
    import torch
    from pretraining_step import Variant

    from dinov2_hf import DINOv2Config, DINOv2PreTrainingConfig
    from dinov2_hf.data import build_batches, load_image_dataset
    from dinov2_hf.runs.pretraining_arguments import PreTrainingArguments
    from dinov2_hf.runs.recipe.recipe_parsing import parse_recipe

    torch.set_num_threads(1)
    torch.manual_seed(0)
    args, backbone, objective = parse_recipe(
        [*RECIPE, "--train_data", own.images], PreTrainingArguments, [DINOv2Config, DINOv2PreTrainingConfig]
    )
    config = DINOv2PreTrainingConfig(backbone_config=DINOv2Config(**backbone), **objective)
    device = torch.device("cpu")
    if way == "original":
        of_original(args, config, own)
        return
    variant = Variant(
        f"separate-{own.mixed_precision}-{way.removeprefix('ours').removeprefix(', ') or 'no'}", args, config, device
    )
    args.compile = variant.compile
    batches = build_batches(load_image_dataset(own.images), args, config.backbone_config, device=device)
    for _ in range(own.steps):
        variant.step(next(batches)[0], "time")


def of_original(args, config, own: argparse.Namespace) -> None:
    import torch
    from data_path import OriginalTransform, read_files
    from PIL import Image

    from dinov2_hf import DINOv2ForPreTraining
    from dinov2_hf.data import PreTrainingCollator
    from dinov2_hf.data.collator import PreTrainingSample
    from dinov2_hf.options import values_for

    os.environ["XFORMERS_DISABLED"] = "1"  # its kernels are for GPUs
    sys.path.insert(0, own.original)
    from original_step import OriginalStep

    step = OriginalStep(args, DINOv2ForPreTraining(config), torch.device("cpu"), own.mixed_precision)
    collate = PreTrainingCollator(config.backbone_config.patch_size, **values_for(PreTrainingCollator, args))
    transform, files = OriginalTransform(), read_files(own.images, own.steps * BATCH_SIZE)
    for first in range(0, len(files), BATCH_SIZE):
        samples = []
        for index in range(first, first + BATCH_SIZE):
            crops = transform(Image.open(io.BytesIO(files[index])).convert("RGB"))
            samples.append(
                PreTrainingSample(torch.stack(crops[:2]), torch.stack(crops[2:]), f"row {index}", index, ())
            )
        step.step(collate(samples)[0])


if __name__ == "__main__":
    main()
