"""
A run: recipe, images, backend, output folder and checkpoint before the first step; models, pictures and upload after
the last.
"""

import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.utils import set_seed
from datasets import Dataset, IterableDataset

from ..data import (
    MixedImages,
    SkippedImageLog,
    build_batches,
    load_image_dataset,
    load_mixed_images,
    set_max_image_pixels,
)
from ..models.image_processing_dinov2 import image_processor_of
from ..options import values_for
from ..output_folders import write_text
from ..pretraining.compilation import check_compiler, compile_objective, without_compiling
from ..training.checkpointing.checkpoint_folders import CHECKPOINTS, list_checkpoints
from ..training.checkpointing.checkpoints import CheckpointSaver, load_checkpoint
from ..training.optimizer import build_optimizer
from ..training.processes.backends import COMPUTE_DTYPES, compute_precision, prepare, resume_launch
from ..training.processes.distributed import choose_attention, end_run
from ..training.run_stopped import bad_data_stops_run
from ..training.schedules import scale_learning_rate
from .accelerator import build_accelerator
from .description import describe_run
from .ending.endings import end_in_words
from .ending.finished_run import leave_results
from .ending.hub_upload import prepare_upload, push_run
from .ending.model_card import card_metadata
from .ending.outputs import Output
from .loop import Step, Steps
from .pretraining_plan import PreTrainingPlan
from .recipe.objective_options import apply_objective_options
from .recipe.recipe_changes import DATA_SIZES, check_recipe
from .recipe.recipe_checks import check_groups
from .recipe.recipe_parsing import options_of_run
from .recipe.recipe_schedules import schedules_of
from .recipe.resumed_recipe import RECIPE_FILE
from .run_folder import claimed_folder, start_output_dir
from .state import check_steps_left, find_data_position, note_measured, start_state
from .while_training.best_model import BestStep
from .while_training.evaluations import Evaluations
from .while_training.feature_pictures import WatchedImages


@contextmanager
def start_run(plan_type: type[PreTrainingPlan], arguments: list[str]) -> Iterator["Run"]:
    """
    The run for a command line. It holds its output folder while the block runs.

    An error of the user, a signal, a full disk or a collapse ends the process with one sentence and an exit code.

    Args:
        plan_type: the plan of a kind of run.
        arguments: the words of the command line, without the name of the program.
    """
    run = None
    with ExitStack() as held:
        try:
            run = Run(plan_type(arguments), held)
            yield run
        except (Exception, KeyboardInterrupt) as error:
            if run is not None:
                run.end_steps()
            end_in_words(error, run)
            raise


class Run:
    """
    The parts of a run, ready for its model. Nothing is written before `prepare` has made all checks.

    Args:
        plan: the recipe, read and checked.
        held: contexts that end with the run, such as the lock of its folder.

    Attributes:
        state: values of a checkpoint other than weights: steps, images seen, accuracies.
        data_position: position of this process in a stream, for the next checkpoint; None if the data is not a stream.
        is_training: whether files are written, from `prepare` to the end of `finish`.

    Raises:
        `ValueError`: recipe, images, launch and checkpoint do not fit together.
    """

    def __init__(self, plan: PreTrainingPlan, held: ExitStack):
        self.plan, self.args, self.config = plan, plan.args, plan.config
        self._held, self.is_training = held, False
        self._steps: Generator[Step, None, None] | None = None
        args = plan.args
        self.output_dir = Path(args.output_dir)
        self.accelerator = build_accelerator(args, self.output_dir)
        check_compiler(args.compile, self.accelerator.device)
        num_processes = self.accelerator.num_processes
        check_groups(args, plan.config, num_processes)
        self.checkpoint = held.enter_context(claimed_folder(self.accelerator, args))
        set_max_image_pixels(args.max_image_pixels)
        reading = {
            "split": args.train_split, "config_name": args.dataset_config_name, "image_column": args.image_column,
            "streaming": args.streaming,
        }  # fmt: skip
        if isinstance(args.train_data, str):
            self.dataset = load_image_dataset(args.train_data, **reading)
        else:
            self.dataset = load_mixed_images(args.train_data, **reading)
        self.evaluations = Evaluations(args, self.dataset, plan.config.backbone_config)
        self.global_batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps * num_processes
        peak = scale_learning_rate(args.learning_rate, self.global_batch_size, args.learning_rate_scaling)
        self.schedules = schedules_of(args, plan.config, peak)
        self.state = start_state(args, num_processes, self.checkpoint)
        resume_launch(self.accelerator, self.state)
        self.num_images = None if args.streaming else len(self.dataset)
        recipe_before = self.state.get("recipe", {})
        sizes = dict.fromkeys(DATA_SIZES) | {
            "train_data images": self.num_images,
            "train_data shards": self.dataset.num_shards if args.streaming else None,
            **self.evaluations.sizes(),
        }
        allowed = args.allow_recipe_change
        check_recipe(
            self.state,
            plan.recipe,
            sizes,
            fixed=plan.fixed,
            allow_changes=allowed,
            defaults={name: option.default for name, option in options_of_run(plan.kinds).items()},
        )
        check_steps_left(args, self.state["step"])
        self.data_position = None
        if self.checkpoint and args.streaming:
            self.data_position = find_data_position(
                self.checkpoint, self.accelerator.process_index, recipe_before, self.state["recipe"]
            )
        self.batches = build_batches(
            self.dataset,
            args,
            plan.config.backbone_config,
            rank=self.accelerator.process_index,
            world_size=num_processes,
            start_sample=self.state["images_seen"],
            positions=self.data_position,
            has_masks=plan.has_masks,
            pad_masked=args.compile == "step" or plan.shares_images,
            device=self.accelerator.device,
            crops_dtype=COMPUTE_DTYPES[self.precision] if plan.networks_alone_see_crops else None,
        )
        self.best = BestStep(args.keep_best, args.greater_is_better, self.state, self.evaluations.names)
        self.image_processor = image_processor_of(
            plan.config.backbone_config, args.eval_resize_size, image_mean=args.image_mean, image_std=args.image_std
        )
        set_seed(args.seed)  # the same weights on every process

    @property
    def precision(self) -> str:
        """The precision of matrix products: `"no"`, `"bf16"` or `"fp16"`."""
        return compute_precision(self.accelerator)

    @property
    def attention(self) -> str:
        """The attention implementation of the trained networks."""
        return choose_attention(self.args.attn_implementation, self.precision, self.accelerator.device)

    @property
    def pictured(self) -> tuple[Dataset | IterableDataset, str | None]:
        """The images of the training, for pictures, and the column of the recipe. Mixed sets have their own column."""
        if isinstance(self.dataset, MixedImages):
            return self.dataset.images, None
        return self.dataset, self.args.image_column

    def prepare(
        self, model: torch.nn.Module, groups: list[dict[str, Any]]
    ) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        """
        Distribute model and optimizer over the processes, restore a checkpoint, and mark the output folder as the
        run's.

        Args:
            model: `forward` returns the `loss`. It has `students` and `exported` networks by name, `continued_as` and
                `task`, like `DINOv2ForPreTraining`.
            groups: trained parameters, as from `parameter_groups`.

        Returns:
            The model as the backend wraps it, and AdamW over the groups.

        Raises:
            `ValueError`: model or checkpoint do not fit, or the upload would be refused.
        """
        accelerator, args = self.accelerator, self.args
        self.module = model
        metadata = card_metadata(self.plan.recipe)
        self.repo_ids = [prepare_upload(accelerator, args, metadata, name) for name in model.students]
        self.outputs = [Output(self, name) for name in model.students]
        self.watched = WatchedImages(self, args.eval_pictures)
        self.best.check_student(model.students)
        apply_objective_options(model, args, accelerator, self.output_dir, self.state["step"])
        compile_objective(model, args.compile)
        optimizer = build_optimizer(groups, **values_for(build_optimizer, args))
        set_seed(args.seed, device_specific=True)  # but different stochastic depth
        self.model, self.optimizer = prepare(accelerator, model, optimizer)
        # Where a run starts, in order: its own checkpoint, else `init_from`, else fresh weights.
        if self.checkpoint:
            load_checkpoint(accelerator, self.checkpoint)
            accelerator.wait_for_everyone()  # nothing is written before every process could read its part
        self.saver = CheckpointSaver(accelerator, self.output_dir / CHECKPOINTS, args.save_total_limit)
        self.is_training = True
        self._start_writing()
        return self.model, self.optimizer

    def steps(self) -> Iterator[Step]:
        """The remaining steps, one after the other; see `Steps`."""
        self._steps = iter(Steps(self))
        self._held.callback(self.end_steps)
        return self._steps

    def end_steps(self) -> None:
        """Let signals end the process again, even if the loop failed, and close the progress bar."""
        if self._steps is not None:
            self._steps.close()

    def evaluate(self, names: list[str]) -> None:
        """
        Measure each backbone as it would be exported now, and record the metrics.

        Args:
            names: names of the due `evaluations`.
        """
        if not names:
            return
        start = time.perf_counter()
        with bad_data_stops_run(), without_compiling(self.args.compile):
            pixels = self.evaluations.measure_pixels(self) if self.state["step"] == 0 else None
            found = self.evaluations.measure(self, names)
        self.record({name: value for metrics in found.values() for name, value in metrics.items()})
        note_measured(self.state, found)
        if pixels is not None:
            self.state["knn_pixels"] = pixels
        for output in self.outputs if self.accelerator.is_main_process else ():
            output.say_measured(found, time.perf_counter() - start)

    def draw_pictures(self) -> None:
        """Draw pictures of the features of each backbone, as it would be exported now."""
        with without_compiling(self.args.compile):
            self.watched.draw()

    def record(self, metrics: dict[str, float]) -> None:
        """Write numbers to the metrics of every student and to the tracker, and look for a collapse in them."""
        step = self.state["step"]
        for output in self.outputs if self.accelerator.is_main_process else ():
            output.record(step, metrics)
        self.accelerator.log(metrics, step=step)
        self.best.see(step, metrics)
        for output in self.outputs:
            output.look_for_collapse(step, metrics)

    def draw_curves(self) -> None:
        """Draw the curves of all students, on the main process."""
        for output in self.outputs if self.accelerator.is_main_process else ():
            output.draw_curves()

    def finish(self) -> None:
        """Export models, cards and pictures, and upload them if the recipe says so."""
        with without_compiling(self.args.compile):
            leave_results(self)
        end_run(self.accelerator)
        self.is_training = False
        for output, repo_id in zip(self.outputs, self.repo_ids, strict=True):
            if repo_id and self.accelerator.is_main_process:
                print(f"uploaded to {push_run(output.folder, self.args, repo_id)}")

    def _start_writing(self) -> None:
        accelerator, args = self.accelerator, self.args
        if accelerator.is_main_process:
            start_output_dir(self.output_dir, fresh=self.checkpoint is None, step=self.state["step"])
            write_text(self.output_dir / RECIPE_FILE, yaml.safe_dump(self.plan.recipe, sort_keys=False))
            for output in self.outputs:
                output.continue_from(self.state["step"])
        accelerator.wait_for_everyone()
        self.best.forget_without(list_checkpoints(self.output_dir / CHECKPOINTS))
        suffix = "" if accelerator.is_main_process else f"_{accelerator.process_index}"
        self.skipped_images = SkippedImageLog(
            self.output_dir / f"skipped_images{suffix}.jsonl",
            num_images=self.num_images,
            max_fraction=args.max_skipped_fraction,
        )
        describe_run(self)
        if args.report_to != "none":
            values = {name: str(value) for name, value in self.plan.recipe.items()}
            accelerator.init_trackers(f"dinov2_{self.module.task}", values)
