"""`dinov2-hf convert`."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .options import given, refuse


def convert(parser: argparse.ArgumentParser) -> Callable[..., None]:
    """From a checkpoint of the original implementation to a model folder, or back; weights stay bit for bit."""
    parser.add_argument("source", type=Path, help="a .pth file of the original, or a model folder")
    parser.add_argument("destination", type=Path, help="the model folder to write, or a .pth file")
    parser.add_argument("--overwrite", action="store_true", help="replace the model or file at the destination")
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
        from ..conversion.original.from_original import convert_from_original
        from ..conversion.original.to_original import convert_to_original

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
        print("What its tensors do not tell:", *report.choices, sep="\n  ")
        print(*report.folders, sep="\n")

    return run


def read_labels(path: Path) -> list[str] | dict[int, str]:
    """Names of classes: a JSON list, or an object by their numbers."""
    try:
        labels = json.loads(path.read_text())
        return {int(number): name for number, name in labels.items()} if isinstance(labels, dict) else list(labels)
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"--id2label is {path}, which holds no JSON list of names: {error}.") from None


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
