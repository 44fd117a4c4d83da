"""
Describes a run in the log before it starts: sizes, passes over the data, the resulting learning rate, the device.
"""

import logging
import os
from typing import TYPE_CHECKING

import torch

from ..public_names import without_secrets
from ..training.monitoring.collapse import SMALL_BATCH, small_batch_advice
from ..training.processes.backends import backend_name, compute_precision
from ..training.processes.distributed import precision_in_words
from ..training.processes.sharded_weights import num_parameters


if TYPE_CHECKING:
    from .run import Run

logger = logging.getLogger(__name__)


def describe_run(run: "Run") -> None:
    """Log the description, one line for each fact."""
    accelerator, args, students = run.accelerator, run.args, run.module.students
    global_batch_size, num_images = run.global_batch_size, run.num_images
    sizes = {
        name: ", ".join(f"{part} {num_parameters(module) / 1e6:.2f}M" for part, module in student.named_children())
        for name, student in students.items()
    }
    data = args.train_data
    if not isinstance(data, str):
        data = ", ".join(f"{entry['path']} (weight {entry['weight']:g})" for entry in data)
    images, passes = "a stream", ""
    if num_images is not None:
        images = f"{num_images:,}"
        passes = f", {args.max_steps * global_batch_size / num_images:.1f} passes over the data"
    device = str(accelerator.device)
    if accelerator.device.type == "cpu":
        device = f"cpu, {torch.get_num_threads()} of {os.cpu_count()} threads"
        if torch.get_num_threads() < os.cpu_count() // accelerator.num_processes:
            device += " (accelerate launch --num_cpu_threads_per_process sets them)"
    images_of_a_pass = args.per_device_train_batch_size * accelerator.num_processes
    group_size = run.plan.config.koleo_group_size
    compared = f"{group_size or images_of_a_pass} images by KoLeo"
    if group_size is None:
        compared = f"{args.per_device_train_batch_size} images by KoLeo (one device)"
    rule = f"x sqrt({global_batch_size} / 1024)" if args.learning_rate_scaling == "sqrt_wrt_1024" else "as given"
    num_channels = next(iter(students.values())).backbone.config.num_channels
    lines = {
        "images": f"{images} from {data}",
        "crops and masks": f"{args.augmentation}, {args.masks}, in the order {args.sample_order}",
        "channels": "RGB" if num_channels == 3 else f"{num_channels}, without colour jitter, greyscale and solarize",
        **{f"student {name}".strip(): size for name, size in sizes.items()},
        **_beginning(run),
        "global batch": f"{global_batch_size} = {args.per_device_train_batch_size} per device"
        f" x {args.gradient_accumulation_steps} accumulated x {accelerator.num_processes} processes",
        "steps": f"{run.state['step']} of {args.max_steps}{passes}{_ending(run)}",
        "peak learning rate": f"{run.schedules.learning_rate.base:.4g} = {args.learning_rate:.4g} {rule}",
        "seen together": f"{compared}, {images_of_a_pass} by centering (all devices), in one forward pass",
        "precision": precision_in_words(compute_precision(accelerator), accelerator.device.type),
        "backend": f"{backend_name(accelerator)}, {accelerator.num_processes} processes",
        "device": device,
        "output": args.output_dir,
    }
    if run.evaluations.names:
        lines["measured"] = "; ".join(f"{one} every {one.every} steps" for one in run.evaluations)
    if global_batch_size < SMALL_BATCH:
        logger.warning(
            "warning: a step has %d images (per_device_train_batch_size %d x gradient_accumulation_steps %d x %d"
            " processes); so few can make trained features worse; give it %s.",
            global_batch_size, args.per_device_train_batch_size, args.gradient_accumulation_steps,
            accelerator.num_processes, small_batch_advice(),
        )  # fmt: skip
    logger.info("***** %s *****", run.module.task.capitalize())
    for name, text in (lines | run.plan.description).items():
        logger.info("  %-19s %s", name, without_secrets(text))


def _beginning(run: "Run") -> dict[str, str]:
    """The checkpoint that a run continues from, or the origin of its first weights."""
    if run.checkpoint:
        return {"continued from": str(run.checkpoint)}
    weights = "a fresh initialisation"
    if run.args.init_from:
        weights = f"{run.args.init_from}, backbone frozen for {run.args.freeze_backbone_steps} steps"
    return {"weights from": weights}


def _ending(run: "Run") -> str:
    """A remark if a run ends at another step than a user may expect."""
    last, step = run.args.stop_after_steps or run.args.max_steps, run.state["step"]
    if step == last:
        which = "max_steps" if last == run.args.max_steps else "stop_after_steps"
        return f"; none is left by `{which}`, so what a finished run leaves is written again"
    return "" if last == run.args.max_steps else f"; ends after {last}"
