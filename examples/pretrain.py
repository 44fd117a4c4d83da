"""
Pretrain DINOv2 on images of your own (paper, sections 4 and 5).

    accelerate launch examples/pretrain.py --config vits14_short \\
        --train_data path/to/images --output_dir outputs/my_run

A recipe is a YAML file of names and values, one of the package's by its name; flags of the same names override it, and
`--help` lists them. The run leaves in the output folder: `model/` (what AutoModel loads), `pretraining_model/`
(student, teacher and heads), `checkpoints/`, `metrics.jsonl`, `metrics.json`, `training_curves.png`, `patch_pca.png`
and the resolved `recipe.yaml`.
"""

import sys

import torch

from dinov2_hf.options import values_for
from dinov2_hf.runs.pretraining_plan import PreTrainingPlan
from dinov2_hf.runs.run import Run, start_run
from dinov2_hf.training.ema import update_ema
from dinov2_hf.training.optimizer import parameter_groups


def main(arguments: list[str]) -> None:
    with start_run(PreTrainingPlan, arguments) as run:
        model = run.plan.build(run)  # student, teacher and their heads
        # AdamW, with learning rates that fall from block to block towards the input.
        groups = parameter_groups(model.student, **values_for(parameter_groups, run.args))
        model, optimizer = run.prepare(model, groups)
        train(run, model, optimizer)
        run.finish()


def train(run: Run, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The student learns to say of its crops, some of them small and some masked, what the teacher says of its own."""
    module = run.module  # without what spreads it over processes
    for step in run.steps():
        for batch in step.batches():
            step.backward(model(**batch, **step.now.forward_arguments))
        step.update(optimizer)
        update_ema(module.teacher, module.student, step.now.teacher_momentum, step.left_out)


if __name__ == "__main__":
    main(sys.argv[1:])
