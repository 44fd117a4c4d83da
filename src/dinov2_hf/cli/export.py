"""`dinov2-hf export`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..command_lines import value_of
from ..conversion.exports.formats import EXPORTS
from ..conversion.other_layouts import model_folder
from ..options import Option, keyword_options, refuse


def export(folder: str, *, format: str, output_dir: Path, overwrite: bool = False, **options: Any) -> None:
    """A model in a form that needs no dinov2_hf (stock transformers, ONNX, torch.export), and is checked.

    Args:
        folder: a model folder, run folder, checkpoint of a run, or file of the original.
        format: transformers (its own dinov2 classes), dual (these by default, ours with trust_remote_code=True), onnx,
            torch-export, or the `package.module:function` of your own.
        output_dir: the new folder.
        overwrite: replace a model that this package wrote there.
    """
    exporter = EXPORTS.find(format)
    refuse(options.keys() - own_options(exporter), f"`--format` is {format}")
    with model_folder(folder) as source:
        print(exporter(source, output_dir, **options, overwrite=overwrite))


def more_options(words: Sequence[str]) -> dict[str, Option]:
    """Those of the formats that there are, and of the one that is named."""
    named = value_of("format", words)
    found: dict[str, Option] = {}
    for name in dict.fromkeys([*EXPORTS.names(), *([named] if named and ":" in named else [])]):
        for option in own_options(EXPORTS.find(name)).values():
            before = found[option.name].group[0] + " and " if option.name in found else ""
            found[option.name] = replace(found.get(option.name, option), group=(f"{before}{name}", ""))
    return found


def own_options(exporter: Callable) -> dict[str, Option]:
    return keyword_options(exporter, without=["overwrite"])
