"""
How fast one full pretraining step is, and where its time goes.

    python examples/benchmarks/pretraining_step.py --config vits14_short \
        --per_device_train_batch_size 8 --steps 5 --output step.json

A step is teacher, student, losses, backward, clipping, optimizer and teacher update, on random crops of the recipe's
sizes; any recipe, any device. Variants run in turn within one process, round after round, so that their ratios hold on
a machine whose speed drifts: packed and separate student passes, in float32 and in bfloat16 where the hardware has it;
with a third word, such as separate-no-blocks, `--variants` names one that is compiled as `compile` of a recipe says.
`share_of_step` tells the forward time of backbones, heads and losses, the backward pass, and the update (clipping,
optimizer, teacher) apart; `--train_data` adds the data: the time in which one process decodes and augments a batch.

With `--backend all` (or the name of a file in examples/accelerate_configs), full steps under that backend are measured
instead, at each number of `--processes`: images per second and the peak memory of every process; see backend_step.py.

Peak memory is else the process's largest resident size on CPU (of all variants so far: use `--variants` to measure one
alone) and the allocator's peak on a GPU.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from tqdm.auto import tqdm

from dinov2_hf import DINOv2Config, DINOv2ForPreTraining, DINOv2PreTrainingConfig
from dinov2_hf.data import PreTrainingCollator, PreTrainingSample, build_batches, load_image_dataset
from dinov2_hf.options import values_for
from dinov2_hf.pretraining.compilation import compile_objective
from dinov2_hf.runs.pretraining_arguments import PreTrainingArguments
from dinov2_hf.runs.recipe.recipe_parsing import parse_recipe
from dinov2_hf.training.ema import update_ema
from dinov2_hf.training.optimizer import build_optimizer, parameter_groups, set_schedule
from dinov2_hf.training.processes.distributed import choose_attention, cpu_supports_bfloat16
from dinov2_hf.training.schedules import ScheduleValues
from dinov2_hf.training.trained_parts import choose_trained


BACKENDS = ("ddp", "fsdp2", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=5, help="Timed steps of each variant, after one to warm up.")
    parser.add_argument("--variants", nargs="+", help="Such as packed-no or separate-bf16; by default all.")
    parser.add_argument("--backend", help='"all", or the name of a configuration, such as fsdp2.')
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2], help="Of each backend.")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers.")
    own, recipe_flags = parser.parse_known_args()
    if own.backend:
        report({"backends": measure_backends(own, recipe_flags)}, own.output)
        return
    if "--train_data" not in recipe_flags:
        recipe_flags += ["--train_data", ""]
    args, backbone_values, objective_values = parse_recipe(
        recipe_flags, PreTrainingArguments, [DINOv2Config, DINOv2PreTrainingConfig]
    )
    config = DINOv2PreTrainingConfig(backbone_config=DINOv2Config(**backbone_values), **objective_values)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = cpu_supports_bfloat16() if device.type == "cpu" else torch.cuda.is_bf16_supported()
    names = own.variants or [
        f"{way}-{dtype}" for dtype in ["no", "bf16"][: 1 + bf16] for way in ("packed", "separate")
    ]

    batches = {
        pad_masked: {name: value.to(device) for name, value in random_batch(args, config, pad_masked).items()}
        for pad_masked in (False, True)
    }
    variants = {name: Variant(name, args, config, device) for name in names}
    rounds = ["warm up"] + ["time"] * own.steps + ["split"] * 2
    for purpose in tqdm(rounds, desc="rounds", disable=not sys.stderr.isatty()):
        for variant in variants.values():
            if purpose == "split" and variant.compile == "step":
                continue  # which has no parts, and would be compiled again with the clocks in it
            variant.step(batches[variant.compile == "step"], purpose)
    results = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads",
        "torch": torch.__version__,
        "batch": args.per_device_train_batch_size,
        "crops": f"2 x {config.backbone_config.image_size} + {args.num_local_crops} x {args.local_crop_size}",
        "variants": {name: variant.summary(args.per_device_train_batch_size) for name, variant in variants.items()},
        "peak_memory_gib": peak_memory(device),
    }
    if args.train_data:
        seconds = seconds_per_batch_of_data(args, config)
        results["data"] = {
            "images_per_second_of_one_process": args.per_device_train_batch_size / seconds,
            "seconds_per_batch_over_seconds_per_step": {
                name: seconds / statistics.median(variant.seconds) for name, variant in variants.items()
            },
        }
    report(results, own.output)


def report(results: dict, output: Path | None) -> None:
    print(json.dumps(results, indent=2))
    if output:
        output.write_text(json.dumps(results, indent=2) + "\n")


def measure_backends(own: argparse.Namespace, recipe_flags: list[str]) -> list[dict]:
    """What `backend_step.py` tells of each backend at each number of processes, one launch after the other."""
    here, results = Path(__file__).parent, []
    names = BACKENDS if own.backend == "all" else [own.backend]
    runs = [("single" if name == "ddp" and count == 1 else name, count) for name in names for count in own.processes]
    for name, count in tqdm(runs, desc="backends", disable=not sys.stderr.isatty()):
        environment = dict(os.environ)
        if not torch.cuda.is_available():  # DeepSpeed must be told in its own way, and Accelerate not at all
            environment.update({"DS_ACCELERATOR": "cpu"} if "deepspeed" in name else {"ACCELERATE_USE_CPU": "true"})
        clip = ["--clip_per_part", "false"] if "deepspeed" in name else []
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "step.json"
            command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(count)]
            command += ["--main_process_port", "0"]
            command += ["--config_file", str(here.parent / "accelerate_configs" / f"{name}.yaml")]
            command += [str(here / "backend_step.py"), "--steps", str(own.steps), "--output", str(output)]
            subprocess.run([*command, *recipe_flags, *clip], env=environment, check=True, stdout=sys.stderr)
            results.append(json.loads(output.read_text()))
    return results


class Variant:
    """One way of taking the step, with a model and optimizer of its own."""

    def __init__(self, name: str, args: PreTrainingArguments, config: DINOv2PreTrainingConfig, device: torch.device):
        self.way, self.dtype, self.compile = f"{name}-no".split("-")[:3]
        self.device, self.max_grad_norm = device, args.max_grad_norm
        torch.manual_seed(0)
        attention = choose_attention(args.attn_implementation, self.dtype, device)
        self.model = DINOv2ForPreTraining._from_config(config, attn_implementation=attention).to(device).train()
        self.model.is_packed = self.way == "packed"
        choose_trained(self.model.student.backbone, self.model.teacher.backbone, **values_for(choose_trained, args))
        compile_objective(self.model, self.compile)
        groups = parameter_groups(
            self.model.student,
            layerwise_decay=args.layerwise_decay,
            patch_embed_lr_multiplier=args.patch_embed_lr_multiplier,
        )
        self.optimizer = build_optimizer(groups, adam_beta1=args.adam_beta1, adam_beta2=args.adam_beta2)
        set_schedule(self.optimizer, ScheduleValues(1e-4, 1e-4, 0.04, 0.99, 0.07, 1e-4))
        self.seconds: list[float] = []
        self.first_seconds = 0.0
        self.parts: dict[str, float] = defaultdict(float)

    def step(self, batch: dict[str, torch.Tensor], purpose: str) -> None:
        """One step, to "warm up", to "time" it, or to "split" its time into parts, which costs some on a GPU."""
        split = purpose == "split"
        started = self.now()
        with (
            self.part_timers() if split else nullcontext(),
            torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == "bf16"),
        ):
            output = self.model(**batch, teacher_temperature=0.07)
        forward_done = self.now() if split else 0.0
        output.loss.backward()
        backward_done = self.now() if split else 0.0
        for part in self.model.student.children():
            torch.nn.utils.clip_grad_norm_(part.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        update_ema(self.model.teacher, self.model.student, 0.99)
        done = self.now()
        if purpose == "warm up":
            self.first_seconds = done - started
        elif purpose == "time":
            self.seconds.append(done - started)
        elif split:
            self.parts["forward"] += forward_done - started
            self.parts["backward"] += backward_done - forward_done
            self.parts["update"] += done - backward_done

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def part_timers(self):
        """Count the forward time spent in backbones and heads."""
        starts, handles = {}, []
        for network in (self.model.student, self.model.teacher):
            # The encoder stands for the backbone: it is called as a module by the packed and the separate way alike.
            for name, module in (
                ("backbone", network.backbone.encoder),
                ("heads", network.dino_head),
                ("heads", network.ibot_head),
            ):
                if module is None:
                    continue

                def start(module, *_):
                    starts[module] = self.now()

                def stop(module, *_, name=name):
                    self.parts[name] += self.now() - starts[module]

                handles += [module.register_forward_pre_hook(start), module.register_forward_hook(stop)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def summary(self, batch_size: int) -> dict:
        seconds = statistics.median(self.seconds)
        parts = dict(self.parts)
        if parts:
            parts["losses"] = parts.pop("forward") - parts["backbone"] - parts["heads"]
        shares = {name: value / sum(parts.values()) for name, value in parts.items()}
        return {
            "images_per_second": batch_size / seconds,
            "seconds_per_step": {"median": seconds, "min": min(self.seconds), "max": max(self.seconds)},
            "seconds_of_first_step": self.first_seconds,
            "share_of_step": shares,
        }


def random_batch(
    args: PreTrainingArguments, config: DINOv2PreTrainingConfig, pad_masked: bool = False
) -> dict[str, torch.Tensor]:
    backbone = config.backbone_config
    shape = (backbone.num_channels, backbone.image_size, backbone.image_size)
    local_shape = (backbone.num_channels, args.local_crop_size, args.local_crop_size)
    samples = [
        PreTrainingSample(torch.randn(2, *shape), torch.randn(args.num_local_crops, *local_shape), f"row {i}", i, ())
        for i in range(args.per_device_train_batch_size)
    ]
    values = values_for(PreTrainingCollator, args)
    return PreTrainingCollator(config.backbone_config.patch_size, **values, pad_masked=pad_masked)(samples)[0]


def seconds_per_batch_of_data(
    args: PreTrainingArguments, config: DINOv2PreTrainingConfig, num_batches: int = 5
) -> float:
    """Median time in which this process decodes and augments a batch."""
    dataset = load_image_dataset(args.train_data, split=args.train_split, image_column=args.image_column)
    loader = build_batches(dataset, replace(args, dataloader_num_workers=0), config.backbone_config)
    seconds = []
    for _ in range(num_batches):
        started = time.perf_counter()
        next(loader)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def peak_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kibibytes on Linux


if __name__ == "__main__":
    main()
