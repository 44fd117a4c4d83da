"""
How long a run waits for a checkpoint, and how long that takes to be complete.

    python examples/benchmarks/checkpoint_stall.py --config vits14_short --folder path/on/the/disk

Nothing is computed meanwhile. Every other flag is one of the recipe.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from dinov2_hf import DINOv2Config, DINOv2ForPreTraining, DINOv2PreTrainingConfig
from dinov2_hf.options import values_for
from dinov2_hf.runs.pretraining_arguments import PreTrainingArguments
from dinov2_hf.runs.recipe.recipe_parsing import parse_recipe
from dinov2_hf.training.checkpointing.checkpoints import CheckpointSaver
from dinov2_hf.training.optimizer import build_optimizer, parameter_groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--folder", type=Path, help="Where checkpoints are written, and deleted again.")
    parser.add_argument("--times", type=int, default=4, help="Checkpoints; the first is not counted.")
    own, recipe_flags = parser.parse_known_args()
    args, backbone, objective = parse_recipe(
        [*recipe_flags, "--train_data", ""], PreTrainingArguments, [DINOv2Config, DINOv2PreTrainingConfig]
    )
    model = DINOv2ForPreTraining(DINOv2PreTrainingConfig(backbone_config=DINOv2Config(**backbone), **objective))
    groups = parameter_groups(model.student, **values_for(parameter_groups, args))
    accelerator = Accelerator()
    model, optimizer = accelerator.prepare(model, build_optimizer(groups, **values_for(build_optimizer, args)))
    for parameter in model.student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    waited, completed = [], []
    with tempfile.TemporaryDirectory(dir=own.folder) as folder:
        saver = CheckpointSaver(accelerator, Path(folder), save_total_limit=2)
        for step in range(own.times):
            started = time.perf_counter()
            checkpoint = saver.save({"step": step})
            waited.append(time.perf_counter() - started)
            saver.wait()
            completed.append(time.perf_counter() - started)
        size = sum(path.stat().st_size for path in checkpoint.iterdir())
    medians = {
        "seconds_waited": statistics.median(waited[1:]),
        "seconds_until_complete": statistics.median(completed[1:]),
    }
    print(json.dumps({"gigabytes": size / 1e9, **medians}))


if __name__ == "__main__":
    main()
