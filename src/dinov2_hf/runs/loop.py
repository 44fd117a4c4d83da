"""The steps of a run, and the work between steps: logging, evaluation, saving, and stopping on request."""

import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING

import torch
from accelerate.utils import gather_object

from ..pretraining.step_flops import StepFlops
from ..progress import Progress
from ..training.checkpointing.checkpoint_folders import checkpoint_name
from ..training.monitoring.peak_flops import peak_flops
from ..training.monitoring.step_window import StepWindow, format_progress
from ..training.nonfinite_steps.nonfinite import NonFiniteSteps, StepPasses
from ..training.nonfinite_steps.nonfinite_batches import FOLDER, NonFiniteBatches
from ..training.nonfinite_steps.votes import CountsOnTheWay, count_processes
from ..training.optimizer import clip_gradients, set_schedule, step_unless
from ..training.preemption import Preemption
from ..training.processes.backends import backend_name, compute_precision
from ..training.processes.distributed import mean_over_processes
from ..training.run_stopped import RunPreempted, RunStopped, bad_data_stops_run
from ..training.schedules import ScheduleValues
from .ending.model_export import export_backbone, export_models
from .gram_teacher import anchor
from .run_folder import BEST, MODELS_OF_STEPS


if TYPE_CHECKING:
    from .run import Run


class Steps:
    """
    Iterates over the steps of a run from its state on, as `Step`s. After each step, the due work is done.

    Raises:
        RunStopped, RunCollapsed: on all processes together.
    """

    def __init__(self, run: "Run"):
        self.run, self.args, self.state = run, run.args, run.state
        self.preemption = Preemption()
        self.window, self.flops = StepWindow(), None
        self.nonfinite = NonFiniteSteps(
            run.accelerator,
            run.module,
            run.state,
            max_in_a_row=run.args.max_nonfinite_steps,
            path=run.output_dir / "nonfinite_steps.jsonl",
            batches=self._keep_batches() if run.args.save_nonfinite_batch else None,
        )
        self.last = min(run.args.stop_after_steps or run.args.max_steps, run.args.max_steps)
        self.unsettled: deque[tuple[CountsOnTheWay, StepPasses]] = deque()
        self.is_preempted = False

    def __iter__(self) -> Generator["Step", None, None]:
        with self.preemption, closing(self.run.saver):
            self.run.model.train()
            self._count_flops()
            if self.state["step"] == 0:
                self._evaluate(self.run.evaluations.names, draws=True)
            with self._progress_bar() as progress:
                for number in range(self.state["step"], self.last):
                    step = Step(self, self.run.schedules.at(number))
                    set_schedule(self.run.optimizer, step.now)
                    self.nonfinite.begin()
                    yield step
                    self.state["step"] = number + 1
                    progress.update()
                    self._between(step, progress)
            self.run.saver.wait()

    def _count_flops(self) -> None:
        """Count FLOPs, if they are known and the peak of the device is known."""
        accelerator, flops = self.run.accelerator, StepFlops(self.run.module)
        peak = peak_flops(accelerator.device, compute_precision(accelerator))
        if peak is not None and flops.is_known:
            self.window.peak_flops, self.flops = peak, flops

    def _keep_batches(self) -> NonFiniteBatches:
        run = self.run
        return NonFiniteBatches(
            run.accelerator,
            run.module,
            run.output_dir / FOLDER,
            most=run.args.max_saved_nonfinite_steps,
            facts={
                "precision": compute_precision(run.accelerator),
                "backend": backend_name(run.accelerator),
                "compile": run.args.compile,
            },
            recipe=run.plan.recipe,
        )

    def _progress_bar(self) -> Progress:
        return Progress(
            total=self.last,
            initial=self.state["step"],
            desc=self.run.module.task,
            disable=not self.run.accelerator.is_local_main_process,
            dynamic_ncols=True,
            mininterval=0.5,
            delay=0,  # so that a short run also shows its last line
            bar_format="{desc} {percentage:3.0f}%|{bar:12}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}",
        )

    def settle(self, but: int = 0) -> bool:
        """
        Read the remaining votes on steps, except for this many of the last ones, which the device may still be
        computing. All steps must be settled before their results are shown or saved.

        Returns:
            Whether the last step that was read was left out.
        """
        left_out = False
        while len(self.unsettled) > but:
            counts, passes = self.unsettled.popleft()
            *bad, num_preempted, num_failed = counts.read()
            if num_failed:
                self.run.saver.wait()  # which raises
            left_out = self.nonfinite.settle(passes, *bad)
            self.window.decide(left_out=left_out)
            self.is_preempted |= num_preempted > 0
        return left_out

    def _between(self, step: "Step", progress: Progress) -> None:
        run, args = self.run, self.args
        logs, saves = map(self._is_due, (args.logging_steps, args.save_steps))
        evaluations = run.evaluations.due(self._is_due)
        exports = args.export_every and self.state["step"] % args.export_every == 0
        draws = args.eval_pictures > 0 and self._is_due(args.eval_steps)
        if logs or evaluations or draws or saves or exports or self.is_preempted:
            self.settle()
        if logs:
            self._log(step, progress)
        if evaluations or draws:
            self._evaluate(evaluations, draws=draws)
        is_best = run.best.step == self.state["step"]
        if saves or is_best or self.is_preempted:
            run.saver.save(self.state, kept=run.best.step, data_position=run.data_position)
            run.draw_curves()
            self.window.restart()
        for output in run.outputs:
            if is_best and output.name == run.best.student:
                export_backbone(run, output, BEST)
            if exports:
                export_backbone(run, output, f"{MODELS_OF_STEPS}/{checkpoint_name(self.state['step'])}")
        if args.gram_teacher_update_steps and self.state["step"] % args.gram_teacher_update_steps == 0:  # from them
            anchor(run.module, args, run.accelerator, run.output_dir, self.state["step"])
        if self.is_preempted:
            run.saver.wait()
            if args.export_on_stop:
                export_models(run)
            raise RunPreempted(
                f"{self.preemption.received or 'a signal'} asked for it after step {self.state['step']}, which is"
                " saved."
            )

    def _is_due(self, every: int) -> bool:
        return self.state["step"] % every == 0 or self.state["step"] == self.last

    def _log(self, step: "Step", progress: Progress) -> None:
        accelerator = self.run.accelerator
        metrics = {**self.window.means(), **self.window.feature_statistics(accelerator)}
        metrics = mean_over_processes(accelerator, metrics, alike=step.norms)
        rates = self.window.rates(accelerator.device)
        progress.set_postfix_str(format_progress(metrics, rates), refresh=False)
        self.run.record({**metrics, **step.now.metrics, **rates, "nonfinite_steps": self.state["nonfinite_steps"]})
        self.window.restart()
        skipped = self.run.skipped_images
        complaint = skipped.complaint(gather_object(list(skipped.reasons)), self.state["images_seen"])
        if complaint:
            raise RunStopped(complaint)

    def _evaluate(self, names: list[str], *, draws: bool) -> None:
        self.run.evaluate(names)
        if draws:
            self.run.draw_pictures()
        self.window.restart()  # time spent here is not training time


class Step:
    """
    One optimizer step: its batches, the backward pass of each, and the update.

    Args:
        now: the values of the schedules at this step.

    Attributes:
        left_out: after `update`, 1 if the weights have not changed, else 0: a float32 scalar on the device.
    """

    def __init__(self, steps: Steps, now: ScheduleValues):
        self._steps, self._run, self.now = steps, steps.run, now

    def batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """The batches that gradients are accumulated over, on the device."""
        run, window = self._run, self._steps.window
        for _ in range(run.args.gradient_accumulation_steps):
            waited = time.perf_counter()
            with bad_data_stops_run():
                batch, report = next(run.batches)
            run.data_position = report.positions
            window.add_wait(time.perf_counter() - waited)
            run.skipped_images.add(report)
            self._row_ids = report.row_ids
            if self._steps.flops is not None:
                window.add_flops(self._steps.flops.of_pass(batch, self.now.loss_weights))
            if self._steps.nonfinite.batches is not None:
                self._steps.nonfinite.batches.see(batch, self.now.forward_arguments)
            with run.accelerator.accumulate(run.model):
                yield batch

    def backward(self, output: Mapping[str, torch.Tensor]) -> None:
        """Run the backward pass of `loss` in the output of the objective. The rest of the output is for the log."""
        run, num_images = self._run, len(self._row_ids) * self._run.accelerator.num_processes
        run.accelerator.backward(output["loss"])
        self._steps.nonfinite.add(output["loss"], self._row_ids)
        self._steps.window.add(output, num_images)
        run.state["images_seen"] += num_images

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """
        Clip the gradients and step the optimizer, unless a loss or gradient of any process is not finite. The device
        decides this, equally on all processes. The host reads it a step later, or at once if such steps are saved.
        """
        accelerator, args, steps = self._run.accelerator, self._run.args, self._steps
        self.norms = clip_gradients(
            accelerator, self._run.module.students, args.max_grad_norm, per_part=args.clip_per_part
        )
        counts = count_processes(
            accelerator,
            *steps.nonfinite.found(self.norms),
            steps.preemption.received is not None,
            self._run.saver.has_failed(),
        )
        self.left_out = steps.nonfinite.leave_out(*counts[:2])
        steps.unsettled.append((CountsOnTheWay(counts), steps.nonfinite.passes))
        steps.window.end_step()
        if accelerator.scaler is None:
            step_unless(optimizer, self.left_out)
            # A saved step contains the weights before it, which the next step may change.
            steps.settle(but=0 if args.save_nonfinite_batch else 1)
        elif not steps.settle():  # the loss scaler of fp16 looks for its scale on the host
            optimizer.step()
        optimizer.zero_grad()
