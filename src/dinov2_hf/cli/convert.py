"""`dinov2-hf convert`."""

import json
from pathlib import Path
from typing import Any

from ..atomic_files import new_folder
from ..conversion.original.from_original import convert_from_original
from ..conversion.original.to_original import convert_to_original
from ..conversion.other_layouts import model_folder, read_other_layout
from ..model_source import MODEL, PRETRAINING_MODEL, find_model, split_checkpoint
from ..options import keyword_options, refuse


def convert(model: Path, output: Path, *, overwrite: bool = False, **options: Any) -> dict[str, Any]:
    """Convert a file of the original or a checkpoint of a run to a model folder, or back; weights stay bit for bit.

    Args:
        model: a .pth file of the original or a file of timm; or a model folder, run folder or checkpoint of a run.
        output: the model folder to write, or a .pth file.
        overwrite: replace the model or file that is there.
    """
    checkpoint = split_checkpoint(model)
    if checkpoint is not None and output.suffix not in (".pth", ".pt"):
        from ..runs.ending.checkpoint_card import checkpoint_card  # slow to import

        refuse(options, f"{model} is a checkpoint of a run, of which a model folder is made")
        with new_folder(output, "model", overwrite=overwrite, sources=[model]) as folder:
            read = read_other_layout(Path(find_model(model)))
            read.save(folder)
            checkpoint_card(*checkpoint, read.backbone.config).save(folder / "README.md")
        print(output)
        return {"output": str(output)}
    forth, back = keyword_options(convert_from_original), keyword_options(convert_to_original)
    if model.is_dir() or checkpoint is not None:
        refuse(options.keys() & forth, f"{model} is a model folder to be converted to the original's layout")
        with model_folder(model, (MODEL, PRETRAINING_MODEL)) as folder:
            file = convert_to_original(folder, output, **options, overwrite=overwrite)
        print(file)
        return {"output": str(file.path), "network": file.network}
    refuse(options.keys() & back, f"{model} is a file to be converted from the original's layout")
    if options.get("id2label") is not None:
        options["id2label"] = read_labels(options["id2label"])
    report = convert_from_original(model, output, **options, overwrite=overwrite)
    print(f"{model.name} holds a {report.kind}: {describe(report.config)}")
    print("What its tensors do not tell:", *report.choices, sep="\n  ")
    print(*report.folders, sep="\n")
    folders = [str(folder) for folder in report.folders]
    return {"output": folders[0], "kind": report.kind, "folders": folders, "choices": [*map(str, report.choices)]}


def read_labels(path: Path) -> list[str] | dict[int, str]:
    """Names of classes: a JSON list, or an object by their numbers."""
    try:
        labels = json.loads(path.read_text())
        return {int(number): name for number, name in labels.items()} if isinstance(labels, dict) else list(labels)
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"`id2label` is {path}, which holds no JSON list of names: {error}.") from None


def describe(config: Any) -> str:
    """A network in one line."""
    parts = [
        f"{config.num_hidden_layers} blocks of {config.hidden_size} channels",
        f"{config.num_attention_heads} heads",
        f"{'SwiGLU' if config.use_swiglu_ffn else 'MLP'}",
        f"patches of {config.patch_size} pixels, positions for {config.image_size}",
        f"{config.num_register_tokens} registers",
    ]
    return ", ".join(parts) + "."
