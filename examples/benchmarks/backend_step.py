"""
Full pretraining steps under the backend that `accelerate launch` chose, on random crops of a recipe's sizes.

    accelerate launch --config_file examples/accelerate_configs/fsdp2.yaml --num_processes 2 \
        examples/benchmarks/backend_step.py --config vits14_short --output step.json

`pretraining_step.py --backend all` runs it under every backend. Images per second are those of all processes.
Memory is each process's peak during the timed steps: of the allocator on a GPU; on a CPU (Linux) the resident size
beyond what the process had before the model was made.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, parse_flag_from_env, send_to_device
from pretraining_step import random_batch

from dinov2_hf import DINOv2Config, DINOv2ForPreTraining, DINOv2PreTrainingConfig
from dinov2_hf.options import values_for
from dinov2_hf.runs.pretraining_arguments import PreTrainingArguments
from dinov2_hf.runs.recipe.recipe_parsing import parse_recipe
from dinov2_hf.runs.recipe.recipe_schedules import schedules_of
from dinov2_hf.training.ema import update_ema
from dinov2_hf.training.optimizer import build_optimizer, clip_gradients, parameter_groups, set_schedule
from dinov2_hf.training.processes.backends import (
    allow_fsdp_on_cpu,
    backend_name,
    compute_precision,
    configure_backend,
    launch_settings,
    prepare,
)
from dinov2_hf.training.processes.distributed import choose_attention, choose_mixed_precision, end_run
from dinov2_hf.training.processes.sharded_weights import num_parameters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=5, help="Timed steps, after one to warm up.")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers.")
    own, recipe_flags = parser.parse_known_args()
    kinds = [DINOv2Config, DINOv2PreTrainingConfig]
    args, backbone, objective = parse_recipe([*recipe_flags, "--train_data", ""], PreTrainingArguments, kinds)
    config = DINOv2PreTrainingConfig(backbone_config=DINOv2Config(**backbone), **objective)

    use_cpu = not torch.cuda.is_available()
    if use_cpu and parse_flag_from_env("ACCELERATE_USE_FSDP"):
        allow_fsdp_on_cpu()
    precision = choose_mixed_precision(args.mixed_precision, "", use_cpu)
    accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=launch_settings(use_cpu))
    args.gradient_accumulation_steps = 1
    configure_backend(accelerator, **{**values_for(configure_backend, args), "mixed_precision": precision})

    resident_before = resident_size()
    torch.manual_seed(0)
    attention = choose_attention(args.attn_implementation, compute_precision(accelerator), accelerator.device)
    model = DINOv2ForPreTraining._from_config(config, attn_implementation=attention).train()
    groups = parameter_groups(
        model.student,
        layerwise_decay=args.layerwise_decay,
        patch_embed_lr_multiplier=args.patch_embed_lr_multiplier,
    )
    optimizer = build_optimizer(groups, adam_beta1=args.adam_beta1, adam_beta2=args.adam_beta2)
    model, optimizer = prepare(accelerator, model, optimizer)
    module = accelerator.unwrap_model(model)
    torch.manual_seed(accelerator.process_index)
    batch = send_to_device(random_batch(args, config), accelerator.device)
    now = schedules_of(args, config, peak_learning_rate=1e-4).at(args.warmup_steps)
    set_schedule(optimizer, now)

    seconds = []
    for step in range(1 + own.steps):
        if step == 1:
            forget_peak()
        accelerator.wait_for_everyone()
        started = time.perf_counter()
        accelerator.backward(model(**batch, teacher_temperature=now.teacher_temperature).loss)
        clip_gradients(accelerator, module.students, args.max_grad_norm, per_part=args.clip_per_part)
        optimizer.step()
        optimizer.zero_grad()
        update_ema(module.teacher, module.student, now.teacher_momentum)
        accelerator.wait_for_everyone()
        if accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds[1:])
    results = {
        "backend": backend_name(accelerator),
        "processes": accelerator.num_processes,
        "device": accelerator.device.type if use_cpu else torch.cuda.get_device_name(),
        "precision": compute_precision(accelerator),
        "batch_per_process": args.per_device_train_batch_size,
        "parameters_of_student": num_parameters(module.student),
        "seconds_per_step": median,
        "images_per_second": args.per_device_train_batch_size * accelerator.num_processes / median,
        "peak_memory_gib_per_process": gather_object([peak_memory(resident_before)]),
    }
    if accelerator.is_main_process:
        print(json.dumps(results))
        if own.output:
            own.output.write_text(json.dumps(results, indent=2) + "\n")
    end_run(accelerator)


def resident_size() -> int:
    """Bytes of this process in memory; 0 where the system does not tell as Linux does."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else 0


def forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak of the resident size


def peak_memory(resident_before: int) -> float | None:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    path = Path("/proc/self/status")
    if not path.exists():
        return None
    peak = next(int(line.split()[1]) * 1024 for line in path.read_text().splitlines() if line.startswith("VmHWM"))
    return (peak - resident_before) / 2**30


if __name__ == "__main__":
    main()
