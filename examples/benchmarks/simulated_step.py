"""
What one pretraining step of a recipe costs a GPU, told without one.

    python examples/benchmarks/simulated_step.py --config vitl16_imagenet1k_short --output step.json

The step (teacher, student, losses, backward, clipping, AdamW, teacher update, in bfloat16 autocast, crops packed) runs
on fake tensors; see simulated_gpu.py for what is counted and how time follows. Every other flag is one of the recipe.
"""

import argparse
import json
from contextlib import nullcontext
from math import ceil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
from accelerate.utils import DistributedType
from simulated_gpu import Costs, fake_device
from transformers.initialization import no_init_weights

from dinov2_hf import DINOv2Config, DINOv2ForPreTraining, DINOv2PreTrainingConfig
from dinov2_hf.models import residual_stream
from dinov2_hf.options import values_for
from dinov2_hf.pretraining.step_flops import StepFlops
from dinov2_hf.runs.loop import Step, Steps
from dinov2_hf.runs.pretraining_arguments import PreTrainingArguments
from dinov2_hf.runs.recipe.recipe_parsing import parse_recipe
from dinov2_hf.training.ema import update_ema
from dinov2_hf.training.optimizer import build_optimizer, parameter_groups
from dinov2_hf.training.recomputation import recompute_blocks
from dinov2_hf.training.trained_parts import choose_trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--top", type=int, default=12, help="Kernels to list, by the bytes they move.")
    parser.add_argument("--output", type=Path, help="JSON file for the numbers.")
    own, recipe_flags = parser.parse_known_args()
    if "--train_data" not in recipe_flags:
        recipe_flags += ["--train_data", ""]
    args, backbone, objective = parse_recipe(
        recipe_flags, PreTrainingArguments, [DINOv2Config, DINOv2PreTrainingConfig]
    )
    config = DINOv2PreTrainingConfig(backbone_config=DINOv2Config(**backbone), **objective)
    results = summary(simulate(args, config), simulate(args, config, "cuda"), own.top)
    print(json.dumps(results, indent=2))
    if own.output:
        own.output.write_text(json.dumps(results, indent=2) + "\n")


def simulate(args: PreTrainingArguments, config: DINOv2PreTrainingConfig, device: str = "cpu") -> Costs:
    """
    Costs of the second step of a run, by the lines of its loop.

    Args:
        device: `"cpu"`: the whole step, whose shapes are those of a GPU. `"cuda"`: without the backward pass, which
            makes no gradients but finds them; there it shows where devices are mixed and where the host waits.
    """
    # Fake tensors on a CPU go the way of a GPU.
    with fake_device(device), patch.object(residual_stream, "SUM_IN_HALF_PRECISION", frozenset()):
        with no_init_weights():
            model = DINOv2ForPreTraining._from_config(config, attn_implementation="sdpa").train()
        choose_trained(model.student.backbone, model.teacher.backbone, **values_for(choose_trained, args))
        recompute_blocks(model.student.backbone, args.gradient_checkpointing)
        model.is_packed, model.patch_chunk_size = True, args.patch_chunk_size
        groups = parameter_groups(
            model.student,
            layerwise_decay=args.layerwise_decay,
            patch_embed_lr_multiplier=args.patch_embed_lr_multiplier,
        )
        optimizer = build_optimizer(groups, adam_beta1=args.adam_beta1, adam_beta2=args.adam_beta2)
        batch = fake_batch(args, config)
        for parameter in trained(model):
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        steps = Steps(run_of_one_batch(args, model, batch, device))
        steps.flops = StepFlops(model)  # as on a GPU whose peak is known
        step = Step(steps, now=SimpleNamespace(loss_weights={}))
        with Costs() as costs:
            costs.hold(*model.parameters(), *model.buffers(), list(optimizer.state.values()), batch)
            steps.nonfinite.begin()
            for batch in step.batches():
                with torch.autocast(device, torch.bfloat16):
                    output = model(**batch, teacher_temperature=0.07)
                step.backward(output)
                del output
            step.update(optimizer)
            update_ema(model.teacher, model.student, 0.99, step.left_out)
    return costs


def trained(model: DINOv2ForPreTraining) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.student.parameters() if parameter.requires_grad]


def run_of_one_batch(
    args: PreTrainingArguments, model: DINOv2ForPreTraining, batch: dict[str, torch.Tensor], device: str
) -> SimpleNamespace:
    """What the loop asks of a `Run`, of one process."""

    def backward(loss: torch.Tensor) -> None:
        if device == "cpu":
            return loss.backward()
        for parameter in trained(model):
            parameter.grad = torch.empty_like(parameter)

    report = SimpleNamespace(row_ids=["a row"] * args.per_device_train_batch_size, positions=None)
    accelerator = SimpleNamespace(
        device=torch.device(device), distributed_type=DistributedType.NO, num_processes=1, is_main_process=False,
        scaler=None, accumulate=lambda _: nullcontext(), backward=backward, unscale_gradients=lambda: None,
        reduce=lambda tensor, reduction: tensor, clip_grad_norm_=torch.nn.utils.clip_grad_norm_,
    )  # fmt: skip
    return SimpleNamespace(
        accelerator=accelerator, module=model, model=model, args=args, output_dir=Path(),
        state={"step": 1, "images_seen": args.per_device_train_batch_size},
        batches=iter([(batch, report)]), skipped_images=SimpleNamespace(add=lambda _: None),
        saver=SimpleNamespace(has_failed=lambda: False),
    )  # fmt: skip


def fake_batch(args: PreTrainingArguments, config: DINOv2PreTrainingConfig) -> dict[str, torch.Tensor]:
    """A batch as a run of bfloat16 has it on its device, with as many masked patches as are masked on average."""
    backbone, images = config.backbone_config, args.per_device_train_batch_size
    sizes = backbone.image_size, args.local_crop_size
    global_crops, local_crops = (
        torch.empty(count, images, backbone.num_channels, size, size, dtype=torch.bfloat16)
        for count, size in zip((2, args.num_local_crops), sizes, strict=True)
    )
    num_patches = (backbone.image_size // backbone.patch_size) ** 2
    num_masked = ceil(2 * images * args.mask_probability * sum(args.mask_ratio) / 2 * num_patches)
    return {
        "global_crops": global_crops,
        "local_crops": local_crops,
        "bool_masked_pos": torch.empty(2 * images, num_patches, dtype=torch.bool),
        "masked_indices": torch.empty(num_masked, dtype=torch.long),
        "masked_weights": torch.empty(num_masked),
    }


def summary(costs: Costs, on_cuda: Costs, top: int) -> dict:
    """The numbers as they are printed."""
    return {
        "milliseconds": {
            "products_and_attention": round(1e3 * costs.product_seconds, 1),
            "other_kernels": round(1e3 * costs.other_seconds, 1),
        },
        "kernels": costs.num_kernels,
        "synchronisations": on_cuda.synchronisations,
        "peak_memory_gib": round(costs.peak_bytes / 2**30, 2),
        "other_gigabytes": round(sum(costs.other_bytes.values()) / 1e9, 1),
        "other_gigabytes_by_kernel": {
            name: round(moved / 1e9, 1) for name, moved in costs.other_bytes.most_common(top)
        },
    }


if __name__ == "__main__":
    main()
