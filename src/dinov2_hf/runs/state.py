"""The state of a run, and rules for continuing a checkpoint with other processes, workers or batches."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.sample_order import SAMPLE_ORDERS
from ..data.stream_positions import Positions, positions_from
from ..training.checkpointing.checkpoint_folders import read_state
from ..training.checkpointing.checkpoints import read_data_position
from ..training.students import own_of_student
from .pretraining_arguments import PreTrainingArguments


logger = logging.getLogger(__name__)
# Options that determine the rows of a stream and their order.
ORDER_OF_STREAM = (
    "train_data shards", "train_split", "dataset_config_name", "image_column", "shuffle_buffer_size", "seed",
)  # fmt: skip


def start_state(args: PreTrainingArguments, num_processes: int, checkpoint: Path | None) -> dict:
    """
    The state a run starts with: `step`, `images_seen` (its position in the order of the images, over all processes)
    and the `readers` of the data.

    Any number of processes and accumulated passes may continue a run if its steps have the same number of images. A
    stream and an order such as "sharded" depend on their readers, and only continue with the same readers.

    Raises:
        ValueError: the checkpoint cannot be continued in this way.
    """
    readers = {name: getattr(args, name) for name in ("dataloader_num_workers", "per_device_train_batch_size")}
    readers = {"processes": num_processes, **readers}
    if checkpoint is None:
        return {"step": 0, "images_seen": 0, "readers": readers}
    state = read_state(checkpoint)
    factors = (args.per_device_train_batch_size, args.gradient_accumulation_steps, num_processes)
    global_batch_size = factors[0] * factors[1] * factors[2]
    if state["images_seen"] != state["step"] * global_batch_size:
        raise ValueError(
            "`per_device_train_batch_size` x `gradient_accumulation_steps` x processes is"
            f" {' x '.join(map(str, factors))} = {global_batch_size} images a step, but {checkpoint} is from a run"
            f" with {state['images_seen'] // state['step']}, for which its schedules were made; change a factor"
            " until the product is the same."
        )
    if args.streaming:
        kind, fixed = "a stream", tuple(readers)
    else:
        is_per_process = SAMPLE_ORDERS.named(args.sample_order).facts.get("per_process")
        kind, fixed = f'the order "{args.sample_order}"', ("processes",) if is_per_process else ()
    for name in fixed:
        if readers[name] != state["readers"][name]:
            raise ValueError(
                f"`{name}` is {readers[name]}, but {checkpoint} was made with {state['readers'][name]}, and {kind}"
                " continues exactly only with the same."
            )
    return {**state, "readers": readers}


def find_data_position(
    checkpoint: Path, process_index: int, before: Mapping[str, Any], now: Mapping[str, Any]
) -> Positions | None:
    """
    The position from which this process continues in a stream: `None` if a checkpoint does not have it, so that the
    stream is read again.

    Args:
        before, now: the recipe of the checkpoint, and the recipe of the run. If the changes give another order of
            rows, a new pass begins.
    """
    positions = positions_from(read_data_position(checkpoint, process_index))
    changed = [name for name in ORDER_OF_STREAM if name in before and before[name] != now[name]]
    if positions is None:
        logger.warning(
            "%s does not tell where the stream was: up to there it is read again, without decoding.", checkpoint
        )
    elif changed:
        logger.warning("with another `%s` the stream is another: a new pass over it begins.", "`, `".join(changed))
        return [[position.at_next_pass() for position in of_worker] for of_worker in positions]
    return positions


def check_steps_left(args: PreTrainingArguments, step: int) -> None:
    """`ValueError` if the run would have ended before the checkpoint that it continues from."""
    if step > args.max_steps:
        raise ValueError(
            f"`max_steps` is {args.max_steps}, but the checkpoint is of step {step}; give more, or continue from an"
            " earlier checkpoint."
        )
    if args.stop_after_steps and step > args.stop_after_steps:
        raise ValueError(
            f"`stop_after_steps` is {args.stop_after_steps}, but the checkpoint is of step {step}; give a later one,"
            f" or leave it out to go on to `max_steps` ({args.max_steps})."
        )


def note_measured(state: dict, found: Mapping[str, dict[str, float]]) -> None:
    """
    Store the metrics of evaluations at the step of the state.

    Args:
        found: metrics by the name of each evaluation. They are stored as `<name>_after` and, for step 0,
            `<name>_before`.
    """
    for name, metrics in found.items():
        if state["step"] == 0:
            state[f"{name}_before"] = metrics
        state[f"{name}_after"], state[f"{name}_step"] = metrics, state["step"]


def measured_by(state: Mapping[str, Any], name: str, student: str) -> dict[str, dict[str, float] | None]:
    """
    A student's metrics of the evaluation with this name: `before` training and `after` the last step, `None` if
    unknown; and those of raw `pixels`, if they were measured.
    """
    found = {moment: state.get(f"{name}_{moment}") for moment in ("before", "after")}
    if state.get(f"{name}_step", state["step"]) != state["step"]:  # that of an earlier one
        found["after"] = None
    pixels = state.get(f"{name}_pixels")
    if pixels is not None:
        found = {"pixels": pixels} | found
    return {moment: own_of_student(metrics, student) if metrics else None for moment, metrics in found.items()}
