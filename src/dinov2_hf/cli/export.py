"""`dinov2-hf export`."""

from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from ..conversion.exports.formats import EXPORTS
from ..conversion.other_layouts import model_folder
from ..options import refuse
from .more_options.export import own_options


def export(model: str, *, format: str, output_dir: Path, overwrite: bool = False, **options: Any) -> dict[str, Any]:
    """Export a model to a form that needs no dinov2_hf (stock transformers, ONNX, torch.export), and check it.

    Args:
        model: a model folder, run folder, checkpoint of a run, or file of the original.
        format: transformers (its own dinov2 classes), dual (these by default, ours with trust_remote_code=True), onnx,
            torch-export, or the `package.module:function` of your own.
        output_dir: the new folder.
        overwrite: replace a model that this package wrote there.
    """
    exporter = EXPORTS.find(format)
    refuse(options.keys() - own_options(exporter), f"`--format` is {format}")
    with model_folder(model) as source:
        report = exporter(source, output_dir, **options, overwrite=overwrite)
    print(report)
    return {"output": str(output_dir), **(asdict(report) if is_dataclass(report) else {"report": str(report)})}
