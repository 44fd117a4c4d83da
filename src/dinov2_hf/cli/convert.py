"""`dinov2-hf convert`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..atomic_files import new_folder
from ..conversion.original.from_original import convert_from_original
from ..conversion.original.to_original import convert_to_original
from ..conversion.other_layouts import model_folder, read_other_layout
from ..model_source import MODEL, PRETRAINING_MODEL, find_model, split_checkpoint
from ..options import Option, keyword_options, refuse


def convert(source: Path, destination: Path, *, overwrite: bool = False, **options: Any) -> None:
    """From a file of the original implementation or a checkpoint of a run to a model folder, or back; weights stay
    bit for bit.

    Args:
        source: a .pth file of the original or a file of timm; or a model folder, run folder or checkpoint of a run.
        destination: the model folder to write, or a .pth file.
        overwrite: replace the model or file at the destination.
    """
    is_checkpoint = split_checkpoint(source) is not None
    if is_checkpoint and destination.suffix not in (".pth", ".pt"):
        refuse(options, f"{source} is a checkpoint of a run, of which a model folder is made")
        with new_folder(destination, "model", overwrite=overwrite, sources=[source]) as folder:
            read_other_layout(find_model(source)).save(folder)
        print(destination)
        return
    forth, back = keyword_options(convert_from_original), keyword_options(convert_to_original)
    if source.is_dir() or is_checkpoint:
        refuse(options.keys() & forth, f"{source} is a model folder to be converted to the original's layout")
        with model_folder(source, (MODEL, PRETRAINING_MODEL)) as folder:
            print(convert_to_original(folder, destination, **options, overwrite=overwrite))
        return
    refuse(options.keys() & back, f"{source} is a file to be converted from the original's layout")
    if options.get("id2label") is not None:
        options["id2label"] = read_labels(options["id2label"])
    report = convert_from_original(source, destination, **options, overwrite=overwrite)
    print(f"{source.name} holds a {report.kind}: {describe(report.config)}")
    print("What its tensors do not tell:", *report.choices, sep="\n  ")
    print(*report.folders, sep="\n")


def more_options(words: Sequence[str]) -> dict[str, Option]:
    """Those of both directions."""
    forth = keyword_options(convert_from_original, without=["overwrite"], group=("from the original", ""))
    labels = "a JSON file with the names of the classes, in their order, or by their numbers."
    forth["id2label"] = Option("id2label", Path, labels, None, group=forth["id2label"].group)
    return forth | keyword_options(convert_to_original, without=["overwrite"], group=("to the original", ""))


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
