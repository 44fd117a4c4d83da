"""Compares a resumed run with the recipe of its checkpoint: which values may change, and which may not."""

import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any


logger = logging.getLogger(__name__)
# Options that do not change results, or only the division of the same batch.
FREE = (
    "logging_steps", "eval_steps", "save_steps", "save_total_limit", "dataloader_num_workers", "max_skipped_fraction",
    "max_nonfinite_steps", "attn_implementation", "gradient_checkpointing", "report_to", "stop_on_collapse", "license",
    "per_device_eval_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps", "compile",
    "crop_packing", "patch_chunk_size", "export_on_stop", "export_every", "keep_best", "greater_is_better",
    "save_nonfinite_batch", "max_saved_nonfinite_steps",
    "linear_eval_steps", "dense_eval_steps", "eval_pictures",
)  # fmt: skip
# Data may have moved to another place. The number of images is compared (`DATA_SIZES`), and the log says so.
MOVABLE = ("train_data", "eval_data", "eval_bank_data", "dense_eval_data", "dense_eval_bank_data")
DATA_SIZES = ("train_data shards", *(f"{name} images" for name in MOVABLE))
# Options of evaluations: numbers from before a change cannot be compared.
OF_LABELLED = (
    "eval_split", "eval_bank_split", "label_column", "image_column", "max_eval_bank_images", "max_eval_images",
    "eval_resize_size", "image_mean", "image_std", "eval_data images", "eval_bank_data images",
)  # fmt: skip
OF_EVALUATION = {
    "knn": OF_LABELLED,
    "linear": OF_LABELLED,
    "patch_knn": (
        "dense_eval_split", "dense_eval_bank_split", "dense_eval_image_column", "dense_eval_mask_column",
        "dense_eval_ignore_index", "dense_eval_do_reduce_labels", "dense_eval_image_size",
        "max_dense_eval_bank_images", "max_dense_eval_images", "image_mean", "image_std", "dense_eval_data images",
        "dense_eval_bank_data images",
    ),
}  # fmt: skip


def check_recipe(
    state: dict,
    recipe: Mapping[str, Any],
    sizes: Mapping[str, int | None],
    *,
    fixed: Iterable[str],
    allow_changes: bool,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """
    Compare a run with the recipe of its checkpoint, and record its recipe in its state. Metrics from before a change
    of their evaluation are removed from the state.

    Args:
        state: from `start_state`.
        sizes: by the names of `DATA_SIZES`, numbers of images (`None` for a stream or without evaluation) and shards
            of a stream. A size that the checkpoint does not have counts as unchanged.
        fixed: names that describe the content of a checkpoint, or that nothing reads after the first step.
        allow_changes: `--allow_recipe_change`.
        defaults: defaults of all options. A checkpoint of an earlier version does not have later options, and was made
            with their defaults. It may have options that no longer exist.

    Raises:
        ValueError: with names, earlier and new values, if something changed that cannot change, or needs the flag; or
            if the change would put the checkpoint into the middle of a cool-down.
    """
    now = json.loads(json.dumps({**recipe, **sizes}))  # as it is read from a checkpoint
    known = json.loads(json.dumps(dict(defaults or {}), default=str))
    of_checkpoint = {name: known[name] for name in now if name in known} | dict(sizes) | state.get("recipe", now)
    gone = [name for name in of_checkpoint if name not in now] if defaults else []
    for name in gone:
        logger.warning("`%s` was %s, and is not an option any more.", name, of_checkpoint.pop(name))
    old, new = _flat(of_checkpoint), _flat(now)
    changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    kinds = {name: name.rpartition("/")[2] for name in changed}
    never = [name for name in changed if kinds[name] in {*fixed, "students"}]
    moved = [name for name in changed if kinds[name] in MOVABLE and _is_moved(old.get(name), new.get(name))]
    others = [name for name in changed if kinds[name] not in FREE and name not in (*moved, *never)]
    if never or (others and not allow_changes):
        raise ValueError(_refusal(never, [] if allow_changes else others, old, new))
    if {"max_steps", "cooldown_steps"} & set(others):
        _check_cooldown(state["step"], new["max_steps"], new.get("cooldown_steps") or 0)
    for name in others:
        logger.warning("%s from here on.", _said([name], old, new))
    for name in moved:
        logger.warning("%s: taken for the same images in another place.", _said([name], old, new))
    for evaluation, options in OF_EVALUATION.items():
        if any(kinds[name] in options for name in others):
            forget_measured(state, evaluation)
    state["recipe"] = now


def _check_cooldown(step: int, max_steps: int, cooldown_steps: int) -> None:
    if step > max_steps - cooldown_steps and cooldown_steps:
        raise ValueError(
            f"`cooldown_steps` is {cooldown_steps} and `max_steps` is {max_steps}, so the learning rate would have"
            f" begun to fall at step {max_steps - cooldown_steps}, but the checkpoint is of step {step}, where it"
            f" would jump; let `max_steps` be {step + cooldown_steps} to begin there."
        )


def _is_moved(old: Any, new: Any) -> bool:
    """Whether only the paths of the data sets differ, and other values, such as weights, are the same."""
    if isinstance(old, list) and isinstance(new, list):
        return [{**entry, "path": ""} for entry in old] == [{**entry, "path": ""} for entry in new]
    return isinstance(old, str) and isinstance(new, str)


def forget_measured(state: dict, evaluation: str) -> None:
    """Remove the metrics of an evaluation from a run's state, and from the memory of `CollapseMonitor`."""
    for moment in ("pixels", "before", "after"):
        state.pop(f"{evaluation}_{moment}", None)
    collapse = state.get("collapse", {})
    for memory in (collapse, *(value for value in collapse.values() if isinstance(value, dict))):
        for kept in (memory, memory.get("start", {}), memory.get("best", {})):
            for name in [name for name in kept if name.startswith(f"{evaluation}_")]:
                del kept[name]


def _flat(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with the values of each student under separate names, such as "students/small/hidden_size"."""
    entries = recipe.get("students") or []
    flat = {key: value for key, value in recipe.items() if key != "students"}
    flat["students"] = [entry["name"] for entry in entries]
    for entry in entries:
        own = {key: value for key, value in entry.items() if key not in ("name", "num_processes")}
        flat |= {f"students/{entry['name']}/{key}": value for key, value in own.items()}
    return flat


def _refusal(never: list[str], others: list[str], old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    of_never = f"{_said(never, old, new)}, which cannot change within a run"
    of_others = _said(others, old, new)
    earlier = " (--stop_after_steps ends it earlier)" if new.get("max_steps", 0) < old.get("max_steps", 0) else ""
    start = "start a new run from these weights with --init_from."
    if not others:
        return f"{of_never}; leave it as it was, or {start}"
    if not never:
        return (
            f"{of_others}, so the run would go on as another one; leave it as it was{earlier}, or add"
            " --allow_recipe_change."
        )
    return f"{of_never}, and {of_others}, which needs --allow_recipe_change; leave all as it was{earlier}, or {start}"


def _said(names: list[str], old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}` was {old.get(name)} and is {new.get(name)}" for name in names)
