"""A saved model to a file in the layout of the original implementation."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from ..model_source import MODEL, PRETRAINING_MODEL, find_model, read_json
from ..models import (
    DINOv2Config,
    DINOv2ForDepthEstimation,
    DINOv2ForImageClassification,
    DINOv2ForSemanticSegmentation,
)
from ..models.depth_layers import DEPTH_LAYERS
from ..pretraining import DINOv2ForPreTraining, DINOv2PreTrainingConfig
from .loaded_weights import load_whole
from .model_folder import load_model_folder
from .new_output import check_file, new_file
from .original_heads import CLASSIFIER_INPUTS
from .original_names import State, backbone_to_original, chunk_blocks, projection_head_to_original


WITH_LINEAR_HEAD = (DINOv2ForImageClassification, DINOv2ForSemanticSegmentation, DINOv2ForDepthEstimation)


def convert_to_original(
    folder: str | Path,
    output_file: str | Path,
    *,
    part: str = "backbone",
    block_chunks: int = 0,
    overwrite: bool = False,
) -> Path:
    """
    Write the weights of a saved model, bit for bit, as the original's own code loads them.

    A backbone is a state dict. A `pretraining_model` of this package gives `{"teacher": ...}` with backbone and heads,
    as training writes `teacher_checkpoint.pth`. A classifier is the state dict of a linear layer; heads for
    segmentation and depth are `{"state_dict": ...}` under `decode_head.`, that for segmentation with its classes.

    Args:
        folder: of any model of this package, or of transformers' own DINOv2 classes.
        output_file: usually `.pth`.
        part: `"backbone"`, or `"head"` for the head alone.
        block_chunks: as the original's option of that name; 0, as in the released files, for none.
        overwrite: replace `output_file`.

    Returns:
        The absolute path of the file.

    Raises:
        `ValueError`: the folder has no whole model or no such part, or the model is one that the original cannot
            build.
    """
    output_file = Path(output_file).absolute()
    check_file(output_file, overwrite)
    if part not in ("backbone", "head"):
        raise ValueError(f'`part` is "{part}"; it must be "backbone" or "head".')
    folder = find_model(folder, (MODEL, PRETRAINING_MODEL))
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is no folder of this machine, but a model folder is needed.")
    values = read_json(folder / "config.json", "a model folder")
    if values.get("model_type") == DINOv2PreTrainingConfig.model_type:
        model = load_whole(DINOv2ForPreTraining, folder)
    else:
        model = load_model_folder(folder)
    if part == "head":
        checkpoint = original_head(model)
    elif isinstance(model, DINOv2ForPreTraining):
        checkpoint = {"teacher": original_teacher(model, block_chunks)}
    else:
        checkpoint = original_backbone(model.base_model, block_chunks)
    with new_file(output_file) as partial:
        torch.save(checkpoint, partial)
    return output_file


def original_backbone(model: PreTrainedModel, block_chunks: int) -> State:
    """The state dict of a `DINOv2Model`, or of the `DINOv2Backbone` of the same tensors, in the original's names."""
    _refuse_what_the_original_lacks(model.config)
    return chunk_blocks(backbone_to_original(model.state_dict()), block_chunks)


def original_teacher(model: DINOv2ForPreTraining, block_chunks: int) -> State:
    """The state dict of the teacher, with the prefixes `backbone.`, `dino_head.` and `ibot_head.`."""
    teacher = model.ema_module
    parts = {"backbone": original_backbone(teacher.backbone, block_chunks)}
    for name in ("dino_head", "ibot_head"):
        if getattr(teacher, name) is not None:
            parts[name] = projection_head_to_original(getattr(teacher, name).state_dict())
    return {f"{part}.{name}": tensor for part, state in parts.items() for name, tensor in state.items()}


def original_head(model: PreTrainedModel) -> dict:
    """
    What a file of the original with the head of this model holds.

    Raises:
        `ValueError`: the model has no linear head, or a file of the original cannot tell what its head reads.
    """
    if not isinstance(model, WITH_LINEAR_HEAD):
        raise ValueError(
            f'`part` is "head", but a {type(model).__name__} has no linear head; use "backbone", which gives the'
            " projection heads of a pretraining model too."
        )
    config = model.config
    if isinstance(model, DINOv2ForImageClassification):
        inputs = (config.classifier_num_layers, config.classifier_use_patch_mean)
        if config.num_labels < 1:
            raise ValueError("`num_labels` is 0, so the model has no classifier.")
        if inputs not in CLASSIFIER_INPUTS.values():
            raise ValueError(
                f"`classifier_num_layers` is {inputs[0]}, but the original's classifiers read 1 or 4 blocks."
            )
        return model.classifier.state_dict()
    state = {f"decode_head.{name}": tensor for name, tensor in model.decode_head.state_dict().items()}
    if isinstance(model, DINOv2ForSemanticSegmentation):
        labels = tuple(config.id2label[index] for index in range(config.num_labels))
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
