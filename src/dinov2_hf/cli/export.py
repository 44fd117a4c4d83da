"""`dinov2-hf export`."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .options import given, refuse


def export(parser: argparse.ArgumentParser) -> Callable[..., None]:
    """A model folder in a form that needs no dinov2_hf (stock transformers, ONNX, torch.export), and is checked."""
    parser.add_argument("folder", type=Path, help="a model folder, or the output folder of a run")
    parser.add_argument(
        "--format", required=True, choices=("transformers", "dual", "onnx", "torch-export"),
        help="transformers: its own dinov2 classes; dual: these by default, ours with trust_remote_code=True",
    )  # fmt: skip
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true", help="replace a model that this package wrote there")
    graph = parser.add_argument_group("onnx and torch-export")
    graph.add_argument(
        "--image_size", type=int, nargs="+", metavar="PIXELS",
        help="of the images: the side of a square, or height and width (default: the crop of the image processor)",
    )  # fmt: skip
    graph.add_argument("--batch_size", type=int, help="fixed number of images (default: any number)")
    graph.add_argument("--opset", type=int, help="of ONNX (default: the exporter's)")

    def run(folder: Path, output_dir: Path, format: str, overwrite: bool, image_size, **options: Any) -> None:
        from ..conversion.exports.graph import export_onnx, export_torch
        from ..conversion.exports.remote_code import export_dual
        from ..conversion.exports.stock_transformers import export_transformers

        exporters = {
            "transformers": export_transformers, "dual": export_dual, "onnx": export_onnx, "torch-export": export_torch
        }  # fmt: skip
        options = given(**options, image_size=image_size)
        if format in ("transformers", "dual"):
            refuse(options, f"--format is {format}, which takes images of any size")
        elif format == "torch-export":
            refuse({name: value for name, value in options.items() if name == "opset"}, "--format is torch-export")
        if image_size is not None:
            if len(image_size) > 2:
                raise ValueError(f"--image_size has {len(image_size)} numbers; give one, or height and width.")
            del options["image_size"]
            options["height"], options["width"] = image_size[0], image_size[-1]
        print(exporters[format](folder, output_dir, **options, overwrite=overwrite))

    return run
