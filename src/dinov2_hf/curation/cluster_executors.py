"""Stages on a cluster, with datatrove (extra `datatrove`): each shard is a task, each stage depends on the one before.

The manifests of the stages say what is finished, not datatrove's markers. Its logs go to a new folder for every
launch, and a task whose shard exists returns at once. So a new launch does what is missing, even after an output was
deleted.
"""

import inspect
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ..output_folders import part_writer
from .arguments import CurationArguments
from .executors import PlannedStage


@dataclass
class ShardTask:
    """One shard of a stage, as a step of a datatrove pipeline.

    Attributes:
        stage: the stage whose shard `rank` is run.
        executor: "local", whose tasks get one GPU each in turn (Slurm and Ray do that themselves); "slurm", where each
            task holds its part of the output folder, because no process waits for all of them; or "ray".
        verify: accept a finished shard only if its checksums are right.
        finish: called when the shard is finished.
    """

    stage: PlannedStage
    executor: str = "ray"
    verify: bool = False
    finish: Callable[[], None] | None = None

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        stage_folder = self.stage.folder
        if world_size != stage_folder.num_shards:
            raise ValueError(
                f"stage {self.stage.name!r} has {stage_folder.num_shards} shards, but was launched as {world_size}"
                " tasks."
            )
        part = f"{self.stage.name}.{rank}-of-{world_size}"
        with part_writer(stage_folder.path.parents[1], part) if self.executor == "slurm" else nullcontext():
            if not stage_folder.is_finished(rank, self.verify):
                self.stage.require_needs()
                if self.executor == "local" and torch.cuda.device_count() > 1:
                    os.environ["CUDA_VISIBLE_DEVICES"] = str(rank % torch.cuda.device_count())
                self.stage.run_shard(rank)
            if self.finish is not None:
                self.finish()


def run_on_cluster(
    stages: Sequence[PlannedStage], arguments: CurationArguments, *, finish: Callable[[], None] | None = None
) -> None:
    """Run stages with datatrove's executor, or submit them with Slurm.

    Args:
        stages: in order.
        arguments: `executor` names the executor, and `executor_options` are its options (such as `partition` and
            `time` of Slurm, `workers`, `cpus_per_task`, `gpus_per_task`).
        finish: called by the last task of the last stage.

    Raises:
        ImportError: datatrove, or Ray, is not installed.
        ValueError: an option is unknown or missing, or (local, Ray) shards are missing in the end.
    """
    executor_class = _executor_class(arguments.executor)
    options = _checked_options(executor_class, arguments)
    launch = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    previous = None
    for stage in stages:
        at_end = finish if stage is stages[-1] else None
        stage.send(range(stage.folder.num_shards))
        if not stage.folder.missing(arguments.verify) and at_end is None:
            continue
        logs = stage.folder.path.parents[1] / "logs" / launch / stage.name
        if arguments.executor == "slurm":
            options |= {"job_name": f"curate-{stage.name}", "depends": previous}
        previous = executor_class(
            pipeline=[ShardTask(stage, arguments.executor, arguments.verify, at_end)],
            tasks=stage.folder.num_shards,
            logging_dir=str(logs.resolve()),
            **options,
        )
        previous.run()
        if arguments.executor != "slurm" and stage.folder.missing():
            raise ValueError(
                f"stage {stage.name!r} has {len(stage.folder.missing())} of {stage.folder.num_shards} shards that"
                f" failed; {logs}/logs says why. Run the same command again for those that are missing."
            )


def check_executor(arguments: CurationArguments) -> None:
    """Check that datatrove's executor is installed and takes these options; raises the errors of `run_on_cluster`."""
    _checked_options(_executor_class(arguments.executor), arguments)


def _executor_class(name: str) -> type:
    try:
        if name == "ray":
            import ray  # noqa: F401
        from datatrove import executor
    except ImportError as error:
        extra = "ray" if name == "ray" else "datatrove"
        raise ImportError(f'executor {name!r} needs the extra `{extra}`: pip install "dinov2_hf[{extra}]"') from error
    return getattr(executor, f"{name.title()}PipelineExecutor")


def _checked_options(executor_class: type, arguments: CurationArguments) -> dict[str, Any]:
    parameters = inspect.signature(executor_class).parameters
    ours = {"pipeline", "tasks", "logging_dir", "depends", "skip_completed", "job_name"}
    unknown = sorted(set(arguments.executor_options) - (set(parameters) - ours))
    if unknown:
        known = ", ".join(name for name in parameters if name not in ours)
        raise ValueError(f"executor_options has {unknown[0]!r}, but {arguments.executor} takes {known}.")
    options = {"workers": arguments.num_processes, **arguments.executor_options}
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty and name not in {*ours, *options}
    ]
    if missing:
        raise ValueError(f"executor_options lacks {', '.join(missing)}, which {arguments.executor} needs.")
    if arguments.executor == "slurm" and "workers" not in arguments.executor_options:
        options.pop("workers")  # the scheduler decides
    return options
