"""Replays a step that was not finite: whether its loss is the same, and where the non-finite numbers come from."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ..training.nonfinite_steps.finite_watch import FiniteWatch
from ..training.nonfinite_steps.nonfinite_batches import RECIPE, KeptPass, read_passes, read_step, read_weights
from ..training.processes.backends import COMPUTE_DTYPES, backend_name
from ..training.processes.distributed import choose_attention, precision_in_words
from .accelerator import build_accelerator
from .distillation_plan import DistillationPlan
from .pretraining_arguments import PreTrainingArguments
from .pretraining_plan import PreTrainingPlan
from .recipe.objective_options import apply_objective_options


@dataclass
class ReplayedPass:
    """
    One forward and backward pass of the step.

    Args:
        process, number: the process, and the number of its pass, from 0.
        terms: `loss` and its parts, by name.
        recorded: the loss in the run.
        is_same: whether the loss equals that of the run, bit for bit.
        not_finite: inputs that were already not finite: images and other tensors, by their names.
        birthplaces: the first operations that made non-finite numbers from finite ones, in words.
        in_float32: the loss without autocast; `None` if the run had none.
    """

    process: int
    number: int
    terms: dict[str, float]
    recorded: float
    is_same: bool
    not_finite: list[str]
    birthplaces: list[str]
    in_float32: float | None


@dataclass
class ReplayedStep:
    """
    Args:
        step: its number, from 1.
        precision, device: of the replay, in words.
        caveats: reasons why a loss may differ from that of the run; without reasons it is the same.
        weights: names of weights and buffers that were not finite before the step.
        passes: passes of the replayed processes.
    """

    step: int
    precision: str
    device: str
    caveats: list[str]
    weights: list[str]
    passes: list[ReplayedPass]

    def __str__(self) -> str:
        lines = [f"step {self.step}, replayed on {self.device} in {self.precision}"]
        lines += [f"  {caveat}" for caveat in self.caveats]
        lines.append(f"  weights before the step: {_some(self.weights) or 'all finite'}")
        for one in self.passes:
            same = "the same as in the run, bit for bit" if one.is_same else f"in the run {one.recorded}"
            lines.append(f"pass {one.number} of process {one.process}: loss {one.terms['loss']} ({same})")
            terms = ", ".join(f"{name} {value:.6g}" for name, value in one.terms.items() if name != "loss")
            lines.append(f"  terms: {terms}")
            lines.append(f"  batch: {_some(one.not_finite) or 'all finite'}")
            lines += [f"  first not finite, {place}" for place in one.birthplaces]
            if not one.birthplaces and not one.not_finite and not self.weights:
                lines.append("  everything was finite in this replay")
            if one.in_float32 is not None:
                lines.append(f"  in float32: loss {one.in_float32}")
        return "\n".join(lines)


def replay_step(folder: Path) -> ReplayedStep | None:
    """
    Replay a step that `--save_nonfinite_batch` has saved, forward and backward, on the device of this launch.

    Losses depend on all processes of the run. A launch with the same number of processes replays each in its own
    process. A single process replays a step of several process by process, first those whose loss was not finite. Then
    its losses differ.

    Args:
        folder: `nonfinite_steps/step_N` of a run. The models that its recipe names (`init_from`, `teacher`,
            `gram_teacher`) must still exist.

    Returns:
        The findings on the main process, `None` on others.

    Raises:
        `ValueError`: there is no such step, its files are damaged, or the launch does not fit.
    """
    said = read_step(folder)
    words = ["--config", str(folder / RECIPE), "--report_to", "none", "--compile", "no"]
    words += ["--mixed_precision", said["precision"]]
    is_distillation = "distillation_objective" in (folder / RECIPE).read_text()
    plan = DistillationPlan(words) if is_distillation else PreTrainingPlan(words)
    accelerator = build_accelerator(plan.args, folder)
    logging.getLogger().setLevel(logging.WARNING)
    backend, recorded = backend_name(accelerator), said["num_processes"]
    if backend not in ("single", "ddp") or accelerator.num_processes not in (1, recorded):
        raise ValueError(
            f"this launch is {backend} with {accelerator.num_processes} processes, but a step of {recorded} is"
            f" replayed by one process, or by {recorded} under ddp; launch it so."
        )
    module = _build(plan, accelerator, run_folder=folder.resolve().parents[1], step=said["step"] - 1)
    weights = read_weights(folder)
    module.load_state_dict(weights)
    replay = _Replay(module, said, plan.args, accelerator)
    passes = [one for process in _processes(folder, said, accelerator) for one in replay.of_process(folder, process)]
    passes = gather_object(passes)
    if not accelerator.is_main_process:
        return None
    precision = said["precision"]
    return ReplayedStep(
        step=said["step"],
        precision="float32" if precision == "no" else precision_in_words(precision, accelerator.device.type),
        device=accelerator.device.type,
        caveats=_caveats(said, plan.args, accelerator),
        weights=[name for name, tensor in weights.items() if not _is_finite(tensor)],
        passes=passes,
    )


def _build(
    plan: PreTrainingPlan | DistillationPlan, accelerator: Accelerator, run_folder: Path, step: int
) -> torch.nn.Module:
    """The module of a run before it is compiled and distributed over processes."""
    precision = plan.args.mixed_precision
    attention = choose_attention(plan.args.attn_implementation, precision, accelerator.device)
    module = plan.build(SimpleNamespace(accelerator=accelerator, attention=attention))
    apply_objective_options(module, plan.args, accelerator, run_folder, step)
    return module.to(accelerator.device).train()


def _processes(folder: Path, said: Mapping[str, Any], accelerator: Accelerator) -> list[int]:
    """The processes that this one replays: its own; a single process replays those with a non-finite loss, or all."""
    everyone = range(said["num_processes"])
    if accelerator.num_processes > 1:
        return [accelerator.process_index]
    bad = [index for index in everyone if not all(_is_finite(kept.loss) for kept in read_passes(folder, index))]
    return bad or list(everyone)


def _caveats(said: Mapping[str, Any], args: PreTrainingArguments, accelerator: Accelerator) -> list[str]:
    found = []
    if accelerator.num_processes != said["num_processes"]:
        found.append(
            f"the step was of {said['num_processes']} processes, whose targets depend on one another; one alone has"
            f" other losses: `accelerate launch --num_processes {said['num_processes']} -m dinov2_hf replay ...`"
        )
    if accelerator.device.type != said["device"]:
        found.append(f"the run was on {said['device']}: rounding is another, and random numbers may be")
    if said["compile"] != "no":
        found.append("the run was compiled, the replay is not: rounding is another")
    if said["backend"] not in ("single", "ddp"):
        found.append(f"the run was spread by {said['backend']}, the replay is not: rounding may be another")
    return found


class _Replay:
    """
    Args:
        module: with the weights from before the step.
        said: of `read_step`.
    """

    def __init__(
        self, module: torch.nn.Module, said: Mapping[str, Any], args: PreTrainingArguments, accelerator: Accelerator
    ):
        self.module, self.said, self.accelerator = module, said, accelerator
        self.share_of_pass = (said["loss_scale"] or 1.0) / args.gradient_accumulation_steps
        self.buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}

    def of_process(self, folder: Path, process: int) -> list[ReplayedPass]:
        """All passes of one process, three times: as in the run, with a `FiniteWatch`, and without autocast."""
        device, precision, recorded = self.accelerator.device, self.said["precision"], read_passes(folder, process)
        passes = [
            KeptPass({name: tensor.to(device) for name, tensor in kept.batch.items()}, kept.random_states)
            for kept in recorded
        ]
        losses = [self._terms(output) for output in self._forward(passes, precision)]
        watch, seen = FiniteWatch(self.module), []
        with watch:
            for output in self._forward(passes, precision):
                (output["loss"] * self.share_of_pass).backward()
                seen.append(len(watch.birthplaces))
        self.module.zero_grad()
        in_float32 = [None] * len(passes)
        if precision != "no":
            in_float32 = [output["loss"].item() for output in self._forward(passes, "no")]
        return [
            ReplayedPass(
                process=process,
                number=number,
                terms={name: value.item() for name, value in terms.items()},
                recorded=kept.loss.item(),
                is_same=_is_same(terms["loss"], kept.loss),
                not_finite=list(_not_finite(kept)),
                birthplaces=[str(place) for place in watch.birthplaces[start:end]],
                in_float32=other,
            )
            for number, (kept, terms, other, start, end) in enumerate(
                zip(recorded, losses, in_float32, [0, *seen], seen, strict=False)
            )
        ]

    def _forward(self, passes: Iterable[KeptPass], precision: str) -> Iterable[Mapping[str, torch.Tensor]]:
        """The output of the objective in each pass, in order, because a pass may change the centres for the next."""
        for name, buffer in self.module.named_buffers():
            buffer.data.copy_(self.buffers[name])
        device = self.accelerator.device.type
        for kept in passes:
            kept.restore_random_states()
            with torch.autocast(device, COMPUTE_DTYPES[precision], enabled=precision != "no"):
                output = self.module(**kept.batch, **self.said["told"])
            yield output

    def _terms(self, output: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        terms = {name: value for name, value in output.items() if name.rpartition("/")[2].endswith("loss")}
        return {name: value.detach().float().cpu() for name, value in terms.items() if value.dim() == 0}


def _is_finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are equal bit for bit; all NaN count as equal."""
    return bool(torch.equal(one, other) or (one.isnan().all() and other.isnan().all()))


def _not_finite(kept: KeptPass) -> Iterable[str]:
    """The parts of a batch that are not finite, such as "local_crops of 3.png"."""
    for name, tensor in kept.batch.items():
        if _is_finite(tensor):
            continue
        if tensor.dim() == 5:  # crops (crops, images, channels, height, width)
            bad = ~tensor.isfinite().flatten(2).all(dim=2).all(dim=0)
            yield from (f"{name} of {kept.row_ids[index]}" for index in bad.nonzero().flatten().tolist())
        else:
            yield name


def _some(names: list[str], most: int = 8) -> str:
    """In words, how many of them are not finite and which."""
    if not names:
        return ""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"not finite: {', '.join(names[:most])}{more}"
