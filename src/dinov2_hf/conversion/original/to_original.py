"""Converts a saved model to a file in the layout of the original implementation."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from ...atomic_files import new_file
from ...model_source import MODEL, PRETRAINING_MODEL, find_model_folder, read_json
from ...models import (
    DINOv2Config,
    DINOv2ForDepthEstimation,
    DINOv2ForImageClassification,
    DINOv2ForSemanticSegmentation,
)
from ...models.depth_layers import DEPTH_LAYERS
from ...output_folders import refuse_urls
from ...pretraining import DINOv2ForPreTraining, DINOv2PreTrainingConfig
from ..loaded_weights import load_whole
from ..model_folder import load_model_folder
from .linear_heads import CLASSIFIER_INPUTS
from .names import State, backbone_to_original, chunk_blocks, projection_head_to_original
from .record import with_pretraining_record, with_record


WITH_LINEAR_HEAD = (DINOv2ForImageClassification, DINOv2ForSemanticSegmentation, DINOv2ForDepthEstimation)


@dataclass(frozen=True)
class OriginalFile:
    """
    A file that was written.

    Args:
        path: absolute.
        network: the call of the original's class that builds the network of these tensors; empty for a head.
        flags: flags of `dinov2-hf convert` for facts that the tensors do not give, in case the file's record of them
            is lost.
    """

    path: Path
    network: str
    flags: str

    def __str__(self) -> str:
        network = f"\nThe original loads it into {self.network}." if self.network else ""
        return (
            f"{self.path}{network}\nThe file records what its tensors do not tell, the image processor too, and"
            " `dinov2-hf convert` reads that. A program that writes the tensors anew loses it; then convert back with"
            f" {self.flags}, and save the image processor again."
        )


def convert_to_original(
    folder: str | Path,
    output_file: str | Path,
    *,
    part: str = "backbone",
    block_chunks: int = 0,
    overwrite: bool = False,
) -> OriginalFile:
    """
    Write the weights of a saved model, equal bit for bit, in a form that the original's own code loads.

    A backbone becomes a state dict. A `pretraining_model` of this package becomes `{"teacher": ...}` with backbone and
    heads, like `teacher_checkpoint.pth` of the original's training. A classifier becomes the state dict of a linear
    layer. Heads for segmentation and depth become `{"state_dict": ...}` under `decode_head.`, for segmentation with
    the classes.

    Args:
        folder: folder of any model of this package, or of transformers' own DINOv2 classes; or of a run, whose `model`
            is used.
        output_file: a name that ends in `.pth` or `.pt`.
        part: `"backbone"`, or `"head"` for the head alone.
        block_chunks: like the original's option of that name; 0, as in the released files, for no chunks.
        overwrite: replace `output_file`.

    Raises:
        `ValueError`: the folder has no complete model or no such part, the original cannot build the model, or
            `output_file` may not be written (`atomic_files.new_file`).
    """
    refuse_urls(output_file)  # made absolute, a URL looks like a folder
    output_file = Path(output_file).absolute()
    if part not in ("backbone", "head"):
        raise ValueError(f'--part is "{part}"; it must be "backbone" or "head".')
    folder = find_model_folder(folder, (MODEL, PRETRAINING_MODEL))
    if output_file.suffix not in (".pth", ".pt") and not output_file.is_dir():
        raise ValueError(f"{output_file} does not end in .pth or .pt, as files of the original do; rename it.")
    with new_file(output_file, overwrite=overwrite, sources=[folder]) as unfinished:
        values = read_json(folder / "config.json", "a model folder")
        if values.get("model_type") == DINOv2PreTrainingConfig.model_type:
            model = load_whole(DINOv2ForPreTraining, folder)
        else:
            model = load_model_folder(folder)
        torch.save(original_checkpoint(model, folder, part, block_chunks), unfinished)
    if part == "head":
        return OriginalFile(output_file, "", head_flags(model))
    config = model.config.backbone_config if isinstance(model, DINOv2ForPreTraining) else model.config
    return OriginalFile(output_file, original_network(config, block_chunks), backbone_flags(config))


def original_checkpoint(model: PreTrainedModel, folder: Path, part: str, block_chunks: int) -> dict:
    """
    The content of the file: the tensors with the original's names, and the record of facts that they do not give.
    """
    if part == "head":
        head = original_head(model)
        if isinstance(model, DINOv2ForImageClassification):
            return with_record(head, model.config, folder, has_head=True)
        return head | {"state_dict": with_record(head["state_dict"], model.config, folder, has_head=True)}
    if isinstance(model, DINOv2ForPreTraining):
        teacher = with_record(original_teacher(model, block_chunks), model.config.backbone_config, folder)
        return {"teacher": with_pretraining_record(teacher, model.config)}
    backbone = cast(PreTrainedModel, model.base_model)
    return with_record(original_backbone(backbone, block_chunks), model.config, folder)


def original_network(config: DINOv2Config, block_chunks: int) -> str:
    """The call of the original's class that builds a network."""
    values = {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "in_chans": config.num_channels,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": config.qkv_bias,
        "ffn_layer": "swiglufused" if config.use_swiglu_ffn else "mlp",
        "init_values": config.layerscale_value,
        "block_chunks": block_chunks,
        "num_register_tokens": config.num_register_tokens,
        "interpolate_offset": config.interpolate_offset,
        "interpolate_antialias": config.interpolate_antialias,
    }
    return f"DinoVisionTransformer({', '.join(f'{name}={value!r}' for name, value in values.items())})"


def backbone_flags(config: DINOv2Config) -> str:
    """The options of `dinov2-hf convert` for facts that the tensors of a backbone do not give."""
    antialias = "--interpolate_antialias" if config.interpolate_antialias else "--no-interpolate_antialias"
    return (
        f"--num_attention_heads {config.num_attention_heads} --interpolate_offset {config.interpolate_offset}"
        f" {antialias}"
    )


def head_flags(model: PreTrainedModel) -> str:
    """The same for a head, in addition to its backbone."""
    if isinstance(model, DINOv2ForDepthEstimation):
        return f"--backbone FOLDER --depth_range {model.config.min_depth} {model.config.max_depth}"
    return "--backbone FOLDER --id2label NAMES.json"


def original_backbone(model: PreTrainedModel, block_chunks: int) -> State:
    """The state dict of a `DINOv2Model`, or of the `DINOv2Backbone` of the same tensors, in the original's names."""
    _refuse_what_the_original_lacks(model.config)
    return chunk_blocks(backbone_to_original(model.state_dict()), block_chunks)


def original_teacher(model: DINOv2ForPreTraining, block_chunks: int) -> State:
    """The state dict of the teacher, with the prefixes `backbone.`, `dino_head.` and `ibot_head.`."""
    teacher = model.teacher
    parts = {"backbone": original_backbone(teacher.backbone, block_chunks)}
    for name in ("dino_head", "ibot_head"):
        if getattr(teacher, name) is not None:
            parts[name] = projection_head_to_original(getattr(teacher, name).state_dict())
    return {f"{part}.{name}": tensor for part, state in parts.items() for name, tensor in state.items()}


def original_head(model: PreTrainedModel) -> dict:
    """
    The content of an original file with the head of this model.

    Raises:
        `ValueError`: the model has no linear head, or an original file cannot express the inputs of its head.
    """
    if not isinstance(model, WITH_LINEAR_HEAD):
        raise ValueError(
            f'--part is "head", but a {type(model).__name__} has no linear head; use "backbone", which gives the'
            " projection heads of a pretraining model too."
        )
    config = model.config
    if isinstance(model, DINOv2ForImageClassification):
        inputs = (config.classifier_num_layers, config.classifier_use_patch_mean)
        if not config.num_labels:
            raise ValueError("`num_labels` is 0, so the model has no classifier.")
        if inputs not in CLASSIFIER_INPUTS.values():
            raise ValueError(
                f"`classifier_num_layers` is {inputs[0]}, but the original's classifiers read 1 or 4 blocks."
            )
        return model.classifier.state_dict()
    state = {f"decode_head.{name}": tensor for name, tensor in model.decode_head.state_dict().items()}
    if isinstance(model, DINOv2ForSemanticSegmentation):
        names: Mapping[Any, str] = config.id2label or {}
        labels = tuple(names[index] for index in range(len(names)))
        return {"meta": {"CLASSES": labels}, "state_dict": state}
    depth, layers = config.num_hidden_layers, config.depth_layers
    if layers is not None and sorted(layers) not in ([depth - 1], DEPTH_LAYERS.get(depth)):
        expected = f"[{depth - 1}]" + (f" or {DEPTH_LAYERS[depth]}" if depth in DEPTH_LAYERS else "")
        raise ValueError(
            f"`depth_layers` is {layers}, but the original's depth heads read the blocks {expected} of a backbone of"
            f" {depth}."
        )
    return {"state_dict": state}


def _refuse_what_the_original_lacks(config: DINOv2Config) -> None:
    for name, value in (("hidden_act", "gelu"), ("layer_norm_eps", 1e-6)):
        if getattr(config, name) != value:
            raise ValueError(f"`{name}` is {getattr(config, name)}, but the original has {value} only.")
