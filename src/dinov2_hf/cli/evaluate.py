"""`dinov2-hf evaluate`."""

import inspect
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from transformers.utils import logging as transformers_logging

from ..command_lines import value_of
from ..data import evaluation_split, find_image_column, load_image_dataset, set_max_image_pixels
from ..data.reading.video_dataset import load_video_dataset
from ..devices import find_device
from ..evaluation.environment import environment_of, image_size_of
from ..evaluation.protocols import PROTOCOLS, check_extra
from ..evaluation.result_card import check_card, update_model_card
from ..evaluation.results import EvaluationResults, check_output, format_metrics
from ..features import FeatureExtractor
from ..fingerprints import processor_values, weights_fingerprint
from ..model_source import find_model
from ..named_objects import Named
from ..options import Option, given, refuse
from ..output_folders import sole_writer, write_marker
from ..public_names import without_secrets
from ..training.distributed import let_gloo_finish
from ..value_ranges import AT_LEAST_ONE, NOT_NEGATIVE
from .backbone import load_backbone
from .protocol_options import (
    as_typed,
    chosen_options,
    in_words_of_the_command,
    options_in_force,
    options_of_protocols,
    purpose,
)


def evaluate(
    *,
    model: str,
    protocol: str,
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
    **own_options: Any,
) -> None:
    """Measure the frozen features of a model by the protocols of the paper; several devices: accelerate launch.

    Args:
        model: model folder, run folder or Hub id of any vision transformer.
        train_data: labelled images to learn from (as `--data` of features).
        eval_data: labelled images to measure on.
        output_dir: for metrics.json, plots and trained heads; protocols that are finished there are kept.
        train_split: also a part, as train[:1000].
        eval_split: (default: test, else validation, else the only one).
        overwrite: measure the named protocols again; the others stay.
        max_image_pixels: skip images of more pixels (default: 178956970, as Pillow does).
        image_column: (default: the only one that holds images, or is named like one).
        label_column: (default: label).
        batch_size: images in a forward pass, for each device (default: 64; 8 videos, or 8 windows of segmentation).
        num_workers: processes that decode images.
        device: (default: the first accelerator, or the CPU).
        bf16: run the network under bf16 autocast.
        baseline: measure the model's configuration with fresh weights, or the pixels, in its place.
        keep_features: keep features in the output folder, for protocols that come later.
        update_card: write the results into the README of the model.
    """
    options = {name: value for name, value in locals().items() if name != "own_options"} | own_options
    set_max_image_pixels(max_image_pixels)
    protocols = checked_protocols(protocol)
    functions_of = {name: one.object for name, one in protocols.items()}
    own = chosen_options(all_protocols(), list(protocols), own_options)
    for name, one in protocols.items():
        check_extra(one.facts["requires"], name)
    options["eval_split"] = eval_split or evaluation_split(eval_data)
    data = {name: options[name] for name in ("train_data", "train_split", "eval_data", "eval_split")}
    run_options = checked_run_options(functions_of, options)
    command = command_line(**options)
    model = str(find_model(model))
    check_output(output_dir, [train_data, eval_data, model], protocols)
    if update_card:
        check_card(model, baseline)

    processes = start_processes(device)
    transformers_logging.disable_progress_bar()
    columns = {name: options.get(name) for name in ("image_column", "video_column")}
    with processes.main_process_first():  # the others find what it has put into the cache of datasets
        train_dataset, eval_dataset, found_column = load_datasets(functions_of, columns, **data)
    network, image_processor = load_backbone(model, baseline)
    datasets = (train_dataset, eval_dataset)
    measured = what_is_measured(model, baseline, network, *datasets, image_processor, **data)
    extractor = FeatureExtractor(
        network,
        image_processor,
        **{name: value for name, value in found_column.items() if name == "image_column"},
        **run_options,
        device=processes.device,
        processes=processes,
        progress=processes.is_main_process,
        folder=output_dir / "features" if keep_features else None,
    )
    in_force, used = {}, {}
    for name, function in functions_of.items():
        given_to_it = {**given(label_column=label_column), **own[name], **found_column}
        in_force[name] = options_in_force(function, given_to_it)
        used[name] = {
            **in_force[name],
            **given(image_column=found_column.get("image_column")),
            **{field: getattr(extractor, field) for field in ("batch_size", "num_workers")},
            "bf16": bf16,
        }

    def unfinished() -> list[str]:
        results = EvaluationResults(output_dir, measured)
        left = []
        for name, function in functions_of.items():
            with in_words_of_the_command(name, function):
                if overwrite or not results.is_finished(name, used[name]):
                    left.append(name)
        return left

    left = decided_by_main(processes, unfinished)
    for name in left:
        with in_words_of_the_command(name, functions_of[name]), extractor.only_checks():
            functions_of[name](extractor, *datasets, **in_force[name], output_dir=output_dir / name)

    say = print if processes.is_main_process else lambda *words: None
    with ExitStack() as held:
        decided_by_main(processes, lambda: hold(held, output_dir))
        results = EvaluationResults(output_dir, measured)  # as it is now that nobody else writes it
        for name in protocols:
            if name not in left:
                say(f"{name}: measured already; it stays (again: --overwrite)")
        for name in left:
            function = functions_of[name]
            say(f"{name}: {purpose(name, function)}")
            start = time.perf_counter()
            with in_words_of_the_command(name, function):
                metrics = function(extractor, *datasets, **in_force[name], output_dir=output_dir / name)
            findings = dict(getattr(metrics, "findings", {}))
            notes = [as_typed(name, function, sentence) for sentence in getattr(metrics, "notes", ())]
            if processes.is_main_process:
                settled = {
                    key: findings[key] for key, value in used[name].items() if value is None and key in findings
                }
                results.add(
                    name,
                    metrics,
                    options=used[name],
                    settled=settled,
                    task=protocols[name].facts["task"],
                    main_metrics=protocols[name].facts["metrics"],
                    seconds=round(time.perf_counter() - start, 1),
                    command=command,
                    **environment_of(extractor),
                    findings={key: value for key, value in findings.items() if key not in used[name]},
                    notes=notes,
                )
            for sentence in notes:
                say(f"{name}: {sentence}.")
    if processes.is_main_process:
        if update_card:
            update_model_card(model, results.values)
        precision = {name: found["precision"] for name, found in results.values["protocols"].items()}
        say(f"\n{format_metrics(results.metrics, precision)}\n\n{results.path}")
    let_gloo_finish(processes)
    processes.destroy_process_group()


def more_options(words: Sequence[str]) -> dict[str, Option]:
    """`--protocol`, and the options of all protocols that there are."""
    for name in (value_of("protocol", words) or "").split(","):
        if ":" in name:
            PROTOCOLS.named(name)  # its module registers it
    functions = all_protocols()
    names = f"one or several of {','.join(functions)}, or the package.module:function of your own"
    return {"protocol": Option("protocol", str, names)} | options_of_protocols(functions)


def all_protocols() -> dict[str, Callable]:
    return {name: PROTOCOLS.find(name) for name in PROTOCOLS.names()}


def checked_protocols(text: str) -> dict[str, Named]:
    """The protocols of a list such as "knn,my_module:evaluate_x", each once, by their names.

    Raises:
        ValueError: there is none, or one of them is not registered by `evaluation.protocol`.
    """
    found = {}
    for word in filter(None, (word.strip() for word in text.split(","))):
        one = PROTOCOLS.named(word)
        if not one.facts:
            raise ValueError(
                f"`--protocol` names {word}, which is no protocol: register the function with"
                " `@dinov2_hf.evaluation.protocol(name, task=..., metrics=...)`."
            )
        found[one.name] = one
    if not found:
        raise ValueError(f"`--protocol` must name one or several of {','.join(PROTOCOLS.names())}.")
    return found


def command_line(**options: Any) -> str:
    """The command with the options that were given, as it can be typed again, but for tokens and signatures."""
    words = ["dinov2-hf", "evaluate"]
    for name, value in options.items():
        if value is None or value is False:
            continue
        words.append(f"--{name}")
        if value is not True:
            words += map(str, value if isinstance(value, list) else [value])
    return shlex.join(without_secrets(words))


def takes(function: Callable, keyword: str) -> bool:
    return keyword in inspect.signature(function).parameters


def checked_run_options(functions: dict[str, Callable], options: dict[str, Any]) -> dict[str, Any]:
    """How the network is run, for `FeatureExtractor`.

    Raises:
        ValueError: something was given that no chosen protocol takes, or is out of its range.
    """
    ignored = []
    if not any(takes(function, "label_column") for function in functions.values()):
        ignored.append("label_column")
    if all(takes(function, "video_column") for function in functions.values()):
        ignored.append("image_column")
    refuse(given(**{name: options[name] for name in ignored}), f"`--protocol` is {','.join(functions)}")
    dtype = torch.bfloat16 if options["bf16"] else None
    return {"autocast_dtype": dtype, **{name: options[name] for name in ("batch_size", "num_workers")}}


def start_processes(device: str | None):
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
    of_videos = {takes(function, "video_column") for function in functions.values()}
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


def what_is_measured(
    model: str, baseline: str | None, network, train_dataset, eval_dataset, image_processor, **data: str
) -> dict[str, Any]:
    """What one `metrics.json` is about, see `EvaluationResults`. Local data are named by their whole path."""
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


def decided_by_main(processes, decide: Callable[[], Any]) -> Any:
    """What the main process decides, on every process; the folder may be on its disk alone.

    Raises:
        ValueError: on every process, what `decide` raised.
    """
    decision, refusal = None, None
    if processes.is_main_process:
        try:
            decision = decide()
        except (ValueError, OSError) as error:
            refusal = str(error)
    decision, refusal = broadcast_object_list([decision, refusal])
    if refusal is not None:
        raise ValueError(refusal)
    return decision


def hold(held: ExitStack, output_dir: Path) -> None:
    """Hold the lock of the output folder until `held` ends. What is half done when it is killed is then ours too."""
    held.enter_context(sole_writer(output_dir))
    write_marker(output_dir, "evaluation")
