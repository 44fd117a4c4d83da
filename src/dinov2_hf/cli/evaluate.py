"""`dinov2-hf evaluate`."""

import argparse
import inspect
import shlex
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

from ..public_names import without_secrets
from .options import add_max_image_pixels, given, refuse
from .protocol_options import (
    add_protocol_options,
    as_typed,
    chosen_options,
    in_words_of_the_command,
    options_in_force,
    purpose,
)


# Protocol <name> is `evaluate_<name>` in evaluation/<name>.py, and `check_<name>` what it refuses before any work.
PROTOCOLS = (
    "knn", "linear", "logistic_regression", "video", "segmentation", "depth", "retrieval", "copy_detection"
)  # fmt: skip


def evaluate(parser: argparse.ArgumentParser) -> Callable[..., None]:
    """Measure the frozen features of a model by the protocols of the paper; several devices: accelerate launch."""
    functions = {name: protocol_function(name) for name in PROTOCOLS}
    parser.add_argument("--model", required=True, help="model folder or Hub id of any vision transformer")
    parser.add_argument("--protocol", required=True, help=f"one or several of {','.join(PROTOCOLS)}")
    parser.add_argument("--train_data", required=True, help="labelled images to learn from (as `--data` of features)")
    parser.add_argument("--eval_data", required=True, help="labelled images to measure on")
    parser.add_argument("--train_split", default="train", help="also a part, as train[:1000] (default: train)")
    parser.add_argument("--eval_split", help="(default: test, else validation, else the only one)")
    parser.add_argument(
        "--output_dir", type=Path, required=True,
        help="for metrics.json, plots and trained heads; protocols that are finished there are kept",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="measure the named protocols again; the others stay")
    add_max_image_pixels(parser)
    parser.add_argument("--image_column", help="(default: the only one that holds images, or is named like one)")
    parser.add_argument("--video_column", help="(default: the first one that holds videos or lists of frames)")
    parser.add_argument("--label_column", help="(default: label)")
    parser.add_argument("--batch_size", type=int, help="images in a forward pass, for each device (default: 64)")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that decode images (default: 0)")
    parser.add_argument("--device", help="(default: the first accelerator, or the CPU)")
    parser.add_argument("--bf16", action="store_true", help="run the network under bf16 autocast")
    parser.add_argument(
        "--baseline", choices=("untrained", "pixels"),
        help="measure the model's configuration with fresh weights, or the pixels, in its place",
    )  # fmt: skip
    parser.add_argument("--update_card", action="store_true", help="write the results into the README of the model")
    add_protocol_options(parser, functions)

    def run(model: str, protocol: str, output_dir: Path, overwrite: bool, update_card: bool, **options: Any) -> None:
        from transformers.utils import logging as transformers_logging

        from ..data import evaluation_split
        from ..evaluation.environment import environment_of, precision_of
        from ..evaluation.extras import check_extras
        from ..evaluation.result_card import check_card, update_model_card
        from ..evaluation.results import EvaluationResults, check_output, format_metrics
        from ..model_source import find_model
        from ..training.distributed import let_gloo_finish
        from .backbone import load_backbone

        protocols = checked_protocols(protocol)
        own = chosen_options(functions, protocols, options)
        baseline = options["baseline"]
        options["eval_split"] = options["eval_split"] or evaluation_split(options["eval_data"])
        data = {name: options[name] for name in ("train_data", "train_split", "eval_data", "eval_split")}
        shared = shared_options(functions, protocols, options)
        command = command_line(
            model=model, protocol=protocol, output_dir=output_dir, overwrite=overwrite, update_card=update_card,
            **options,
        )  # fmt: skip
        model = str(find_model(model))
        for name in protocols:
            with in_words_of_the_command(name, functions[name]):
                check_extras(name, **own[name])
        check_output(output_dir, [data["train_data"], data["eval_data"], model], protocols)
        if update_card:
            check_card(model, baseline)

        processes = start_processes(options["device"])
        transformers_logging.disable_progress_bar()
        with processes.main_process_first():  # the others find what it has put into the cache of datasets
            train_dataset, eval_dataset, shared = load_datasets(
                [functions[name] for name in protocols], shared, **data
            )
        network, image_processor = load_backbone(model, baseline)
        datasets = (network, train_dataset, eval_dataset, image_processor)
        measured = what_is_measured(model, baseline, *datasets, **data)
        of_run = {"processes": processes, "device": processes.device, "progress": processes.is_main_process}
        in_force = {
            name: options_in_force(functions[name], {**taken_by(functions[name], shared), **own[name]})
            for name in protocols
        }

        def unfinished() -> list[str]:
            results = EvaluationResults(output_dir, measured)
            left = []
            for name in protocols:
                with in_words_of_the_command(name, functions[name]):
                    if overwrite or not results.is_finished(name, recorded(in_force[name])):
                        left.append(name)
            return left

        left = decided_by_main(processes, unfinished)
        for name in left:
            check = check_function(name)
            with in_words_of_the_command(name, functions[name]):
                inputs = dict(
                    zip(("model", "train_dataset", "eval_dataset", "image_processor"), datasets, strict=True)
                )
                check(**taken_by(check, {**inputs, **in_force[name], **of_run, "output_dir": output_dir / name}))

        say = print if processes.is_main_process else lambda *words: None
        with ExitStack() as held:
            decided_by_main(processes, lambda: hold(held, output_dir))
            results = EvaluationResults(output_dir, measured)  # as it is now that nobody else writes it
            for name in protocols:
                if name not in left:
                    say(f"{name}: measured already; it stays (again: --overwrite)")
            for name in left:
                say(f"{name}: {purpose(name, functions[name])}")
                start = time.perf_counter()
                findings = {}
                with in_words_of_the_command(name, functions[name]):
                    metrics = functions[name](
                        *datasets,
                        **in_force[name],
                        **taken_by(functions[name], of_run),
                        output_dir=output_dir / name,
                        findings=findings,
                    )
                notes = [as_typed(name, functions[name], sentence) for sentence in findings.get("notes", ())]
                if notes:
                    findings["notes"] = notes
                if processes.is_main_process:
                    used = recorded(in_force[name])
                    settled = {key: findings[key] for key, value in used.items() if value is None and key in findings}
                    results.add(
                        name,
                        metrics,
                        options=used,
                        settled=settled,
                        precision=precision_of(network, in_force[name]["autocast_dtype"]),
                        seconds=round(time.perf_counter() - start, 1),
                        command=command,
                        **environment_of(processes.device, processes.num_processes),
                        findings={key: value for key, value in findings.items() if key not in used},
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

    return run


def protocol_function(name: str) -> Callable[..., dict[str, float]]:
    return getattr(import_module(f"..evaluation.{name}", __package__), f"evaluate_{name}")


def check_function(name: str) -> Callable[..., Any]:
    return getattr(import_module(f"..evaluation.{name}", __package__), f"check_{name}")


def checked_protocols(text: str) -> list[str]:
    """The names in a list such as "knn,linear", each once."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in PROTOCOLS]
    if unknown or not names:
        raise ValueError(f"`--protocol` is {text!r}, but must name one or several of {','.join(PROTOCOLS)}.")
    return names


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


def taken_by(function: Callable, values: dict[str, Any]) -> dict[str, Any]:
    """Those values that the function takes."""
    accepted = inspect.signature(function).parameters
    return {name: value for name, value in values.items() if name in accepted}


def recorded(options: dict[str, Any]) -> dict[str, Any]:
    """Options as `metrics.json` holds them."""
    names = {"autocast_dtype": "bf16"}
    return {names.get(name, name): value is not None if name in names else value for name, value in options.items()}


def shared_options(functions: dict[str, Callable], protocols: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """What several protocols may take, where it was given.

    Raises:
        ValueError: something was given that no chosen protocol takes, or is out of its range.
    """
    import torch

    names = ("image_column", "video_column", "label_column", "batch_size", "num_workers")
    values = given(**{name: options[name] for name in names})
    if values.get("batch_size", 1) < 1:
        raise ValueError(f"`--batch_size` is {values['batch_size']}, but must be at least 1.")
    if values["num_workers"] < 0:
        raise ValueError(f"`--num_workers` is {values['num_workers']}, but must be at least 0.")
    values |= {"autocast_dtype": torch.bfloat16} if options["bf16"] else {}
    taken = {name for protocol in protocols for name in taken_by(functions[protocol], values)}
    refuse(
        {name: value for name, value in values.items() if name not in taken}, f"`--protocol` is {','.join(protocols)}"
    )
    return values


def start_processes(device: str | None):
    """The processes of `accelerate launch`, or this one alone."""
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    from ..devices import find_device

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
    functions: list[Callable],
    shared: dict[str, Any],
    *,
    train_data: str,
    train_split: str,
    eval_data: str,
    eval_split: str,
):
    """Both datasets, with images or videos in the column that `shared` then names.

    Raises:
        ValueError: they cannot be loaded, or some of the protocols take images and others videos.
    """
    from ..data import find_image_column, load_image_dataset
    from ..data.reading.video_dataset import load_video_dataset

    names = ("image_column", "video_column")
    kinds = {name for function in functions for name in taken_by(function, dict.fromkeys(names))}
    if len(kinds) > 1:
        raise ValueError(
            "`--protocol` names some for images and some for videos, which need other data; run them apart."
        )
    (kind,) = kinds

    def load(data: str, split: str):
        if kind == "video_column":
            return load_video_dataset(data, split=split, video_column=shared.get(kind))
        dataset = load_image_dataset(data, split=split, image_column=shared.get(kind))
        return dataset, find_image_column(dataset, shared.get(kind))

    train_dataset, column = load(train_data, train_split)
    eval_dataset, eval_column = load(eval_data, eval_split)
    if eval_column != column:
        eval_dataset = eval_dataset.rename_column(eval_column, column)
    return train_dataset, eval_dataset, {**shared, kind: column}


def what_is_measured(
    model: str, baseline: str | None, network, train_dataset, eval_dataset, image_processor, **data: str
) -> dict[str, Any]:
    """What one `metrics.json` is about, see `EvaluationResults`. Local data are named by their whole path."""
    from ..evaluation.environment import image_size_of
    from ..evaluation.fingerprints import processor_values, weights_fingerprint

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
    from accelerate.utils import broadcast_object_list

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
    from ..output_folders import sole_writer, write_marker

    held.enter_context(sole_writer(output_dir))
    write_marker(output_dir, "evaluation")
