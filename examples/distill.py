"""
Distil a large frozen DINOv2 into a small one, or into several at once (paper, section 5).

    accelerate launch examples/distill.py --config vits14_distilled \\
        --teacher outputs/vitg14 --train_data path/to/images --output_dir outputs/vits14_distilled

Flags, checkpoints, backends and what the run leaves are those of pretrain.py. The teacher is a finished run of it or
its `pretraining_model`, whose heads make the targets; without heads, any model by `--distillation_objective features`.
A recipe with a list `students:` trains several, each left in `output_dir/students/<name>` as a run of its own would
leave it. docs/distillation.md tells more.
"""

import sys

from dinov2_hf.runs.distillation_plan import DistillationPlan
from dinov2_hf.runs.run import start_run
from dinov2_hf.training.ema import update_ema


def main(arguments: list[str]) -> None:
    with start_run(DistillationPlan, arguments) as run:
        model = run.plan.build(run)
        model, optimizer = run.prepare(model, run.plan.parameter_groups(model))
        average, student = run.module.average, run.module.student
        for step in run.steps():
            for batch in step.batches():
                step.backward(model(**batch, **step.now.forward_arguments))
            step.update(optimizer)
            # The average makes no targets here: it is what is exported.
            update_ema(average, student, step.now.teacher_momentum, step.left_out)
        run.finish()


if __name__ == "__main__":
    main(sys.argv[1:])
