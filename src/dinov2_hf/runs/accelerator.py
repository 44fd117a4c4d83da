"""The `Accelerator` of a run: its device, precision, backend and tracker, and its log."""

import logging
import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType, parse_flag_from_env
from transformers.utils import logging as transformers_logging

from ..devices import is_launched_on_cpus
from ..options import values_for
from ..training.processes.backends import configure_backend, launch_settings
from ..training.processes.distributed import choose_mixed_precision
from ..training.tf32 import allow_tf32
from .pretraining_arguments import PreTrainingArguments


def build_accelerator(args: PreTrainingArguments, output_dir: Path) -> Accelerator:
    """
    The `Accelerator` for one process of a run, by the present launch.

    Raises:
        ValueError: the launch cannot do what the recipe asks, or the value of an option does not exist.
    """
    use_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "")
    is_sharded = any(map(parse_flag_from_env, ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")))
    mixed_precision = choose_mixed_precision(args.mixed_precision, launched, use_cpu, is_sharded)
    accelerator = Accelerator(
        cpu=not is_sharded and is_launched_on_cpus(),  # with it, Accelerate would make DDP of a sharded backend
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=mixed_precision,
        log_with=_find_tracker(args.report_to),
        project_dir=str(output_dir / "trackers"),
        kwargs_handlers=launch_settings(use_cpu),
    )
    configure_backend(accelerator, **{**values_for(configure_backend, args), "mixed_precision": mixed_precision})
    allow_tf32(accelerator.device)
    logging.basicConfig(
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        level=logging.INFO if accelerator.is_main_process else logging.ERROR,
        stream=sys.stdout,
    )
    for name in ("httpx", "datasets", "huggingface_hub", "accelerate"):
        logging.getLogger(name).setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    return accelerator


def _find_tracker(report_to: str) -> str | None:
    """The argument of `Accelerator(log_with=...)`, if the tracker is known and installed."""
    if report_to == "none":
        return None
    known = LoggerType.list()
    if report_to not in known:
        raise ValueError(f'`report_to` is "{report_to}"; it must be "none" or one of {", ".join(known)}.')
    installed = [str(tracker) for tracker in get_available_trackers()]
    if report_to != "all" and report_to not in installed:
        extra = ' (pip install "dinov2_hf[tensorboard]")' if report_to == "tensorboard" else ""
        raise ValueError(
            f"`report_to` is {report_to}, but this tracker is not installed here; install its package{extra}, or"
            f" choose one of: {', '.join(['none', *installed])}."
        )
    return report_to
