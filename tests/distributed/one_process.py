"""The same training without any backend: a plain loop of one process over the batches that two processes would get."""

from pathlib import Path

import torch
from accelerate.utils import set_seed

from dinov2_hf import DINOv2Config, DINOv2ForPreTraining, DINOv2PreTrainingConfig
from dinov2_hf.data import build_batches, load_image_dataset
from dinov2_hf.options import values_for
from dinov2_hf.runs.pretraining_arguments import PreTrainingArguments
from dinov2_hf.runs.recipe.recipe_parsing import parse_recipe
from dinov2_hf.training.optimizer import build_optimizer, parameter_groups, set_schedule
from dinov2_hf.training.schedules import build_schedules


def train_alone(
    recipe: Path, images: Path, clip_per_part: bool, leave_out: int | None = None
) -> tuple[list[dict], dict, dict]:
    """
    Args:
        leave_out: a step, counted from 0, that changes nothing.

    Returns:
        `step`, `loss` and gradient norms of each step, the weights before, and the weights after.
    """
    args, backbone, objective = parse_recipe(
        ["--config", str(recipe), "--train_data", str(images)],
        PreTrainingArguments,
        [DINOv2Config, DINOv2PreTrainingConfig],
    )
    config = DINOv2PreTrainingConfig(backbone_config=DINOv2Config(**backbone), **objective)
    dataset = load_image_dataset(str(images))
    loaders = [build_batches(dataset, args, config.backbone_config, rank=rank, world_size=2) for rank in range(2)]
    set_seed(args.seed)
    model = DINOv2ForPreTraining._from_config(config, attn_implementation="sdpa").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = build_optimizer(
        parameter_groups(
            model.student,
            layerwise_decay=args.layerwise_decay,
            patch_embed_lr_multiplier=args.patch_embed_lr_multiplier,
        ),
        adam_beta1=args.adam_beta1,
        adam_beta2=args.adam_beta2,
    )
    schedules = build_schedules(peak_learning_rate=args.learning_rate, **values_for(build_schedules, args))
    parts = dict(model.student.named_children()) if clip_per_part else {"": model.student}
    records = []
    for step in range(args.max_steps):
        now = schedules.at(step)
        set_schedule(optimizer, now)
        batch = join(*(next(loader)[0] for loader in loaders))
        if step == leave_out:
            continue
        loss = model(**batch, teacher_temperature=now.teacher_temperature).loss
        loss.backward()
        norms = {
            f"grad_norm_{name}".rstrip("_"): torch.nn.utils.clip_grad_norm_(part.parameters(), args.max_grad_norm)
            for name, part in parts.items()
        }
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for average, parameter in zip(model.teacher.parameters(), model.student.parameters(), strict=True):
                average.copy_(now.teacher_momentum * average + (1 - now.teacher_momentum) * parameter)
        records.append({"step": step + 1, "loss": loss.item(), **{name: norm.item() for name, norm in norms.items()}})
    return records, before, model.state_dict()


def join(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batches of two processes as one of twice as many images."""
    num_crops = len(one["global_crops"])
    masks = torch.cat([b["bool_masked_pos"].unflatten(0, (num_crops, -1)) for b in (one, other)], dim=1).flatten(0, 1)
    return {
        "global_crops": torch.cat([one["global_crops"], other["global_crops"]], dim=1),
        "local_crops": torch.cat([one["local_crops"], other["local_crops"]], dim=1),
        "bool_masked_pos": masks,
        "masked_indices": masks.flatten().nonzero().squeeze(1),
        "masked_weights": (1 / masks.sum(dim=1, keepdim=True)).expand_as(masks)[masks],
    }
