"""`dinov2-hf evaluate`."""

import inspect
import shlex
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from transformers.utils import logging as transformers_logging

from ..data import evaluation_split, find_image_column, load_image_dataset, set_max_image_pixels
from ..data.decoded_images import undecoded_columns
from ..data.reading.video_dataset import load_video_dataset
from ..devices import find_device
from ..evaluation.environment import environment_of, image_size_of
from ..evaluation.protocols import check_extra
from ..evaluation.result_card import check_card, update_model_card
from ..evaluation.results import FEATURES, EvaluationResults, check_output, format_metrics
from ..features import FeatureExtractor
from ..fingerprints import processor_values, weights_fingerprint
from ..model_source import find_model
from ..options import given, refuse
from ..output_folders import sole_writer, write_marker
from ..public_names import without_secrets
from ..training.processes.distributed import let_gloo_finish, on_main_for_all
from ..value_ranges import AT_LEAST_ONE, NOT_NEGATIVE
from .backbone import load_backbone
from .more_options.evaluate import as_typed, flags_of, in_words_of_the_command, named_protocol, names_in, purpose


# Where images are looked for in a collection, the queries may come from it.
SEARCH_TASK = "image-feature-extraction"
SEGMENTATION_TASK = "image-segmentation"
SAME_ROWS = (
    "`--train_data` and `--eval_data` are the same rows, so this measures how well they are remembered, and says"
    " nothing about other images"
)


def evaluate(
    protocol: list[str],
    model: str,
    *,
    train_data: str,
    eval_data: str,
    output_dir: Path,
    train_split: str = "train",
    eval_split: str | None = None,
    overwrite: bool = False,
    max_image_pixels: Annotated[int | None, AT_LEAST_ONE] = None,
    image_column: str | None = None,
    label_column: str | None = None,
    batch_size: Annotated[int | None, AT_LEAST_ONE] = None,
    num_workers: Annotated[int, NOT_NEGATIVE] = 0,
    device: str | None = None,
    bf16: bool = False,
    baseline: Literal["untrained", "pixels"] | None = None,
    keep_features: bool = False,
    update_card: bool = False,
    **options: Any,
) -> dict[str, Any] | None:
    """Measure the frozen features of a model by the protocols of the paper; for several devices, accelerate launch.

    Args:
        protocol: one or several, or the package.module:function of your own.
        model: any vision transformer: model folder, run folder, checkpoint of a run, Hub id, or file of the original.
        train_data: labelled images to learn from (as `--data` of features).
        eval_data: labelled images to measure on.
        output_dir: folder for metrics.json, plots and trained heads; finished protocols in it are kept.
        train_split: also a part, as train[:1000].
        eval_split: (default: test, else validation, else the only one).
        overwrite: measure the named protocols again; the others stay.
        max_image_pixels: skip images of more pixels (default: 178956970, as Pillow does).
        image_column: (default: the only one that holds images, or is named like one).
        label_column: (default: label).
        batch_size: images in a forward pass, for each device (default: 64; 8 videos, or windows of segmentation).
        num_workers: processes that decode images.
        device: (default: the first accelerator, or the CPU).
        bf16: run the network under bf16 autocast.
        baseline: measure the model's configuration with fresh weights, or the pixels, in its place; for segmentation,
            the pixels of patches.
        keep_features: keep features in the output folder, for protocols that come later.
        update_card: write the results into the README of the model.
    """
    command = command_line(**{name: value for name, value in locals().items() if name != "options"}, **options)
    set_max_image_pixels(max_image_pixels)
    protocols = {one.name: one for one in map(named_protocol, names_in(protocol))}
    functions = {name: one.object for name, one in protocols.items()}
    ignored = [*options, *given(label_column=label_column, image_column=image_column)]
    own = {}
    for name, one in protocols.items():
        check_extra(one.facts["requires"], name)
        own[name] = {keyword: options[flag] for flag, keyword in flags_of(one).items() if flag in options}
        used = {*flags_of(one), *inspect.signature(one.object).parameters}
        used |= set() if "video_column" in used else {"image_column"}
        ignored = [flag for flag in ignored if flag not in used]
    refuse(ignored, f"`--protocol` is {','.join(protocols)}")
    eval_split = eval_split or evaluation_split(eval_data)
    data = {"train_data": train_data, "train_split": train_split, "eval_data": eval_data, "eval_split": eval_split}
    of_patches = baseline == "pixels" and segment_images(protocols)
    model = str(find_model(model))
    check_output(output_dir, [train_data, eval_data, model], protocols)
    if update_card:
        check_card(model, baseline)

    processes = start_processes(device)
    transformers_logging.disable_progress_bar()
    with processes.main_process_first():  # the others find the data in the cache of datasets
        columns = {"image_column": image_column, "video_column": options.get("video_column")}
        train_dataset, eval_dataset, column = load_datasets(functions, columns, **data)
    network, image_processor = load_backbone(model, baseline, of_patches=of_patches)
    learns_what_it_measures = "image_column" in column and are_same_rows(
        train_dataset, eval_dataset, column["image_column"]
    )
    measured = what_is_measured(model, baseline, network, train_dataset, eval_dataset, image_processor, **data)
    extractor = FeatureExtractor(
        network,
        image_processor,
        image_column=column.get("image_column", "image"),
        batch_size=batch_size,
        device=processes.device,
        autocast_dtype=torch.bfloat16 if bf16 else None,
        num_workers=num_workers,
        processes=processes,
        progress=processes.is_main_process,
        folder=output_dir / FEATURES if keep_features else None,
    )
    in_force = {
        name: options_in_force(function, {**given(label_column=label_column), **own[name], **column})
        for name, function in functions.items()
    }
    of_run = {"batch_size": batch_size, "num_workers": num_workers, "bf16": bf16}
    recorded = {name: {**options, **column, **of_run} for name, options in in_force.items()}

    def unfinished() -> list[str]:
        results = EvaluationResults(output_dir, measured)
        left = []
        for name, one in protocols.items():
            with in_words_of_the_command(one):
                if overwrite or not results.is_finished(name, recorded[name]):
                    left.append(name)
        return left

    left = on_main_for_all(processes, unfinished)
    for name in left:
        with in_words_of_the_command(protocols[name]), extractor.only_checks():
            functions[name](extractor, train_dataset, eval_dataset, **in_force[name], output_dir=output_dir / name)

    say = print if processes.is_main_process else lambda *words: None
    with ExitStack() as held:
        on_main_for_all(processes, lambda: hold(held, output_dir))
        results = EvaluationResults(output_dir, measured)  # read now, while no other process writes it
        for name in protocols:
            if name not in left:
                say(f"{name}: measured already; it stays (again: --overwrite)")
        for name in left:
            one = protocols[name]
            say(f"{name}: {purpose(one)}")
            start = time.perf_counter()
            with in_words_of_the_command(one):
                metrics = one.object(
                    extractor, train_dataset, eval_dataset, **in_force[name], output_dir=output_dir / name
                )
            findings = dict(getattr(metrics, "findings", {}))
            notes = [as_typed(one, sentence) for sentence in getattr(metrics, "notes", ())]
            if learns_what_it_measures and one.facts["task"] != SEARCH_TASK:
                notes.insert(0, SAME_ROWS)
            if processes.is_main_process:
                unsettled = [key for key, value in recorded[name].items() if value is None]
                results.add(
                    name,
                    metrics,
                    options=recorded[name],
                    settled={key: findings[key] for key in unsettled if key in findings},
                    task=one.facts["task"],
                    main_metrics=one.facts["metrics"],
                    seconds=round(time.perf_counter() - start, 1),
                    command=command,
                    **environment_of(extractor),
                    findings={key: value for key, value in findings.items() if key not in recorded[name]},
                    notes=notes,
                )
            for sentence in notes:
                say(f"{name}: {sentence}.")
    found = None
    if processes.is_main_process:
        if update_card:
            update_model_card(model, results.values)
        found = {"output": str(results.path), "metrics": results.metrics}
        precision = {name: found["precision"] for name, found in results.values["protocols"].items()}
        say(f"\n{format_metrics(results.metrics, precision)}\n\n{results.path}")
    let_gloo_finish(processes)
    processes.destroy_process_group()
    return found


def segment_images(protocols: dict[str, Any]) -> bool:
    """Whether protocols segment images, by the features of patches. `ValueError` if only some do."""
    segmenting = [name for name, one in protocols.items() if one.facts["task"] == SEGMENTATION_TASK]
    if segmenting and len(segmenting) < len(protocols):
        others = [name for name in protocols if name not in segmenting]
        raise ValueError(
            f"`--baseline` is pixels: those of patches for {', '.join(segmenting)}, but those of whole images for"
            f" {', '.join(others)}. Run them apart."
        )
    return bool(segmenting)


def options_in_force(function: Callable, given: dict[str, Any]) -> dict[str, Any]:
    """Every option of a protocol: the given values, and the defaults of the others."""
    return {
        name: given.get(name, parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name != "output_dir"
    }


def command_line(**options: Any) -> str:
    """The command with the given options, so that it can be typed again, without tokens and signatures."""
    words = ["dinov2-hf", "evaluate"]
    for name, value in options.items():
        if value is None or value is False:
            continue
        words.append(f"--{name}")
        if value is not True:
            words += map(str, value if isinstance(value, list) else [value])
    return shlex.join(without_secrets(words))


def start_processes(device: str | None) -> PartialState:
    """The processes of `accelerate launch`, or this one alone."""
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    processes = PartialState(cpu=on_cpu or device == "cpu")
    if device is not None:
        if processes.num_processes > 1 and device != "cpu":
            raise ValueError(
                f"`--device` is {device}, but each of the processes has a device of its own; leave it out."
            )
        processes.device = find_device(device)
    return processes


def load_datasets(
    functions: dict[str, Callable],
    columns: dict[str, str | None],
    *,
    train_data: str,
    train_split: str,
    eval_data: str,
    eval_split: str,
) -> tuple[Any, Any, dict[str, str]]:
    """Both datasets, and their column of images or videos by its option.

    Raises:
        ValueError: they cannot be loaded, or some of the protocols take images and others videos.
    """
    of_videos = {"video_column" in inspect.signature(function).parameters for function in functions.values()}
    if len(of_videos) > 1:
        raise ValueError(
            "`--protocol` names some for images and some for videos, which need other data; run them apart."
        )
    kind = "video_column" if of_videos == {True} else "image_column"

    def load(data: str, split: str):
        if kind == "video_column":
            return load_video_dataset(data, split=split, video_column=columns[kind])
        dataset = load_image_dataset(data, split=split, image_column=columns[kind])
        return dataset, find_image_column(dataset, columns[kind])

    train_dataset, column = load(train_data, train_split)
    eval_dataset, eval_column = load(eval_data, eval_split)
    if eval_column != column:
        eval_dataset = eval_dataset.rename_column(eval_column, column)
    return train_dataset, eval_dataset, {kind: column}


def are_same_rows(train_dataset, eval_dataset, column: str) -> bool:
    """Whether two datasets are as long as each other, and their first and last images the same."""
    if len(train_dataset) != len(eval_dataset):
        return False
    ends = [undecoded_columns(one, {"column": column}) for one in (train_dataset, eval_dataset)]
    return all(ends[0][row] == ends[1][row] for row in (0, len(train_dataset) - 1))


def what_is_measured(
    model: str, baseline: str | None, network, train_dataset, eval_dataset, image_processor, **data: str
) -> dict[str, Any]:
    """The subject of one `metrics.json`, see `EvaluationResults`. Local data is named by its whole path."""
    data = {
        name: str(Path(value).resolve()) if name.endswith("_data") and Path(value).exists() else value
        for name, value in data.items()
    }
    return {
        "model": model,
        "model_revision": getattr(network.config, "_commit_hash", None),
        "weights_sha256": weights_fingerprint(network),
        "baseline": baseline,
        **data,
        "num_train_rows": len(train_dataset),
        "num_eval_rows": len(eval_dataset),
        "image_size": image_size_of(image_processor),
        "image_processor": processor_values(image_processor),
    }


def hold(held: ExitStack, output_dir: Path) -> None:
    """Hold the lock of the output folder until `held` ends, and mark it, so that files of a killed run are ours."""
    held.enter_context(sole_writer(output_dir))
    write_marker(output_dir, "evaluation")
