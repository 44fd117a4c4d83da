"""
The `dinov2-hf` command. Each subcommand parses its arguments, calls one room of the package and prints what came out.

A user's mistake is one sentence on standard error and exit status 1.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .conversion.export_report import ExportCheckError


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="dinov2-hf", description="DINOv2 for Hugging Face transformers.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")
    for name, add_arguments in COMMANDS.items():
        summary = add_arguments.__doc__
        command = commands.add_parser(name, help=summary, description=summary)
        command.set_defaults(run=add_arguments(command))
    options = vars(parser.parse_args(arguments))
    run = options.pop("run")
    try:
        run(**options)
    except (ValueError, ImportError, ExportCheckError) as error:  # ImportError: an extra that is not installed
        sys.exit(f"error: {error}")


def convert(parser: argparse.ArgumentParser) -> Callable[..., None]:
    """From a checkpoint of the original implementation to a model folder, or back; weights stay bit for bit."""
    parser.add_argument("source", type=Path, help="a .pth file of the original, or a model folder")
    parser.add_argument("destination", type=Path, help="the model folder to write, or a .pth file")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at the destination")
    forth = parser.add_argument_group("from the original")
    forth.add_argument("--backbone", help="of a file that holds only a head: model folder, Hub id or .pth file")
    forth.add_argument("--num_attention_heads", type=int, help="of the backbone (default: one for every 64 channels)")
    forth.add_argument("--interpolate_offset", type=float, help="(default: 0.1, or 0.0 with registers)")
    forth.add_argument(
        "--interpolate_antialias", action=argparse.BooleanOptionalAction, help="(default: only with registers)"
    )
    forth.add_argument(
        "--depth_range", type=float, nargs=2, metavar=("MIN", "MAX"),
        help="in metres, of a depth head (default: of NYU or KITTI, if the file's name says so)",
    )  # fmt: skip
    forth.add_argument("--id2label", type=Path, help="a JSON file with the names of the classes, in their order")
    forth.add_argument("--classifier_name", help="of a checkpoint of the linear evaluation, which holds many")
    back = parser.add_argument_group("to the original")
    back.add_argument("--part", choices=("backbone", "head"), help="of a model with a head (default: backbone)")
    back.add_argument("--block_chunks", type=int, help="chunks of the blocks in the names (default: 0, none)")

    def run(source: Path, destination: Path, overwrite: bool, part, block_chunks, id2label, **options: Any) -> None:
        from .conversion.from_original import convert_from_original
        from .conversion.to_original import convert_to_original

        forth = given(**options, id2label=id2label)
        back = given(part=part, block_chunks=block_chunks)
        if source.is_dir():
            refuse(forth, f"{source} is a model folder to be converted to the original's layout")
            print(convert_to_original(source, destination, **back, overwrite=overwrite))
            return
        refuse(back, f"{source} is a file to be converted from the original's layout")
        if id2label is not None:
            forth["id2label"] = read_labels(id2label)
        report = convert_from_original(source, destination, **forth, overwrite=overwrite)
        print(f"{source.name} holds a {report.kind}: {describe(report.config)}")
        print(*report.folders, sep="\n")

    return run


def export(parser: argparse.ArgumentParser) -> Callable[..., None]:
    """A model folder in a form that needs no dinov2_hf (stock transformers, ONNX, torch.export), and is checked."""
    parser.add_argument("folder", type=Path, help="a model folder")
    parser.add_argument(
        "--format", required=True, choices=("transformers", "dual", "onnx", "torch-export"),
        help="transformers: its own dinov2 classes; dual: these by default, ours with trust_remote_code=True",
    )  # fmt: skip
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    graph = parser.add_argument_group("onnx and torch-export")
    graph.add_argument(
        "--image_size", type=int, nargs="+", metavar="PIXELS",
        help="of the images: the side of a square, or height and width (default: the crop of the image processor)",
    )  # fmt: skip
    graph.add_argument("--batch_size", type=int, help="fixed number of images (default: any number)")
    graph.add_argument("--opset", type=int, help="of ONNX (default: the exporter's)")

    def run(folder: Path, output_dir: Path, format: str, overwrite: bool, image_size, **options: Any) -> None:
        from .conversion.exported_graph import export_onnx, export_torch
        from .conversion.remote_code import export_dual
        from .conversion.stock_transformers import export_transformers

        exporters = {
            "transformers": export_transformers, "dual": export_dual, "onnx": export_onnx, "torch-export": export_torch
        }  # fmt: skip
        options = given(**options)
        if image_size is not None:
            if len(image_size) > 2:
                raise ValueError(f"`image_size` is {image_size}; give one number, or height and width.")
            options["height"], options["width"] = image_size[0], image_size[-1]
        if format in ("transformers", "dual"):
            refuse(options, f"`format` is {format}, which takes images of any size")
        elif format == "torch-export":
            refuse({name: value for name, value in options.items() if name == "opset"}, "`format` is torch-export")
        print(exporters[format](folder, output_dir, **options, overwrite=overwrite))

    return run


def push(parser: argparse.ArgumentParser) -> Callable[..., None]:
    """Upload a model folder, or a finished run, to the Hub."""
    parser.add_argument("folder", type=Path, help="a model folder, or the output folder of examples/pretrain.py")
    parser.add_argument("--repo_id", required=True, help='"namespace/name" on the Hub; made where it is missing')
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="branch to upload to (default: main)")
    parser.add_argument("--token", help="(default: that of `hf auth login`, or HF_TOKEN)")
    parser.add_argument(
        "--pretraining_model", action="store_true", help="upload student, teacher and heads of a run as well"
    )
    parser.add_argument("--commit_message", default="Upload model")

    def run(folder: Path, repo_id: str, **options: Any) -> None:
        from .training.hub_upload import push_folder

        print(push_folder(folder, repo_id, **options))

    return run


def features(parser: argparse.ArgumentParser) -> Callable[..., None]:
    """Features of every image of a dataset to one file or folder."""
    from .features import FEATURE_FUNCTIONS

    parser.add_argument("model", help="model folder or Hub id of any vision transformer")
    parser.add_argument("--data", required=True, help="images: a folder, parquet, a saved dataset, tars or a Hub name")
    parser.add_argument("--split", default="train", help="where the data has splits (default: train)")
    parser.add_argument("--output", required=True, help="*.parquet, *.npy, or a folder for `datasets.load_from_disk`")
    parser.add_argument(
        "--kind", default="cls", choices=tuple(FEATURE_FUNCTIONS),
        help="final-normed CLS token, mean patch, all patches as a grid, or CLS tokens of the last blocks",
    )  # fmt: skip
    parser.add_argument("--num_layers", type=int, default=4, help="blocks of last_layers (default: 4)")
    parser.add_argument("--image_column", help="(default: the first one that holds images)")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--num_workers", type=int, default=0, help="processes that decode images (default: 0)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16"), help="of the written features")
    parser.add_argument("--device", help="(default: the first accelerator, or the CPU)")
    parser.add_argument("--bf16", action="store_true", help="run the network under bf16 autocast")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at the output")

    def run(model: str, data: str, split: str, output: str, image_column, device, bf16: bool, **options: Any) -> None:
        import torch
        from transformers import AutoImageProcessor, AutoModel

        from .data import find_image_column, load_image_dataset
        from .feature_files import write_features

        dataset = load_image_dataset(data, split=split, image_column=image_column)
        try:
            network, image_processor = AutoModel.from_pretrained(model), AutoImageProcessor.from_pretrained(model)
        except OSError as error:
            raise ValueError(f"`model` is {model}, which cannot be loaded: {' '.join(str(error).split())}") from None
        written = write_features(
            network,
            dataset,
            image_processor,
            output,
            image_column=find_image_column(dataset, image_column),
            device=device or (torch.accelerator.current_accelerator(check_available=True) or "cpu"),
            autocast_dtype=torch.bfloat16 if bf16 else None,
            progress=True,
            **options,
        )
        print(f"{output}: {written.num_rows} rows of shape {written.shape}")
        for row, reason in written.undecodable_rows.items():
            print(f"row {row} has no feature, since its image cannot be decoded: {reason}", file=sys.stderr)

    return run


COMMANDS = {"convert": convert, "export": export, "push": push, "features": features}


def given(**options: Any) -> dict[str, Any]:
    """The options that were given, so that defaults stay where they belong."""
    return {name: value for name, value in options.items() if value is not None}


def refuse(options: dict[str, Any], reason: str) -> None:
    """`ValueError` when there are options that would be ignored."""
    if options:
        raise ValueError(f"{reason}; leave {', '.join(f'`--{name}`' for name in sorted(options))} out.")


def read_labels(path: Path) -> list[str] | dict[int, str]:
    """Names of classes: a JSON list, or an object by their numbers."""
    try:
        labels = json.loads(path.read_text())
        return {int(number): name for number, name in labels.items()} if isinstance(labels, dict) else list(labels)
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"`id2label` is {path}, which holds no JSON list of names: {error}.") from None


def describe(config: Any) -> str:
    """A network in a line."""
    parts = [
        f"{config.num_hidden_layers} blocks of {config.hidden_size} channels",
        f"{config.num_attention_heads} heads",
        f"{'SwiGLU' if config.use_swiglu_ffn else 'MLP'}",
        f"patches of {config.patch_size} pixels, positions for {config.image_size}",
        f"{config.num_register_tokens} registers",
    ]
    return ", ".join(parts) + "."


if __name__ == "__main__":
    main()
