"""Converts a checkpoint of the original implementation to folders that `from_pretrained` loads."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import BaseImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from ...atomic_files import new_folder
from ...model_source import PRETRAINING_MODEL, find_model
from ...models import (
    DINOv2Config,
    DINOv2ForDepthEstimation,
    DINOv2ForImageClassification,
    DINOv2ForSemanticSegmentation,
    DINOv2Model,
)
from ...pretraining import DINOv2ForPreTraining
from ..loaded_weights import refuse_not_finite
from ..model_folder import saved_backbone
from .card import conversion_card
from .checkpoint import (
    BACKBONE,
    CLASSIFIER,
    DEPTH,
    SEGMENTATION,
    TEACHER,
    OriginalCheckpoint,
    read_original_checkpoint,
)
from .linear_heads import classifier_config, depth_config, depth_range_of, segmentation_config
from .names import State, backbone_from_original, projection_head_from_original
from .record import BACKBONE_FIELDS, RECORDED, Choice, choose, image_processor_of
from .shapes import backbone_config, pretraining_config, with_layer_scale


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class ConversionReport:
    """
    Args:
        kind: the recognised kind of the checkpoint, in words.
        config: configuration of the backbone or of the model with its head.
        folders: the written folders: the requested one, and for a teacher with heads the folder of the whole module.
        choices: values that no tensor gives, and the source of each.
    """

    kind: str
    config: DINOv2Config
    folders: tuple[Path, ...]
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class ReadModels:
    """
    A file that was read.

    Args:
        original: its parts.
        models: models by their folder inside the output.
        image_processor: image processor of the models, if there can be one.
        choices: as in `ConversionReport`.
    """

    original: OriginalCheckpoint
    models: dict[str, PreTrainedModel]
    image_processor: BaseImageProcessor | None
    choices: tuple[Choice, ...]

    def say_choices(self) -> None:
        """Log the choices of rules, for callers without a report."""
        by_rule = [choice for choice in self.choices if choice.name in BACKBONE_FIELDS and not choice.is_known]
        if by_rule:
            logger.warning(
                f"{self.original.path} does not hold all of its network's configuration. Chosen were"
                f" {'; '.join(map(str, by_rule))}."
            )


def convert_from_original(
    checkpoint: str | Path,
    output_dir: str | Path,
    *,
    backbone: str | Path | None = None,
    num_attention_heads: int | None = None,
    interpolate_offset: float | None = None,
    interpolate_antialias: bool | None = None,
    depth_range: tuple[float, float] | None = None,
    id2label: Mapping[int, str] | Sequence[str] | None = None,
    classifier_name: str | None = None,
    overwrite: bool = False,
) -> ConversionReport:
    """
    Convert a `.pth` file of the original. Weights stay equal bit for bit. Keys determine the kind, and shapes the
    sizes.

    A backbone becomes a `DINOv2Model`. A teacher with heads also becomes one, and in addition, in the folder
    `pretraining_model` inside, a `DINOv2ForPreTraining` whose student and teacher both have its weights. A linear head
    becomes a whole model of its task. A network without LayerScale gets a LayerScale of ones. Facts that tensors do
    not give (attention heads, interpolation, image processor, losses) are read from the record that this package
    stores in its files. For other files, options or the rules below choose them, and the report and the card say
    which.

    Args:
        checkpoint: the file.
        output_dir: the folder to write.
        backbone: for a file with only a head: the backbone it was trained on, as a folder, an id on the Hub, or a file
            of the original.
        num_attention_heads: of the original backbone; `None` without a record means one for every 64 channels.
        interpolate_offset, interpolate_antialias: how the original backbone resizes its position embeddings; `None`
            without a record means 0.1 and `False` without registers, 0.0 and `True` with them, as released.
        depth_range: smallest and largest depth of a depth head, in metres; `None` without a record means that of NYU
            or KITTI, if the file's name has it.
        id2label: names of the classes of a classifier or segmentation head.
        classifier_name: which classifier to take from a checkpoint of the linear evaluation.
        overwrite: replace the model that is at `output_dir`, if this package wrote it.

    Raises:
        `ValueError`: the file is incomplete, has another kind or values that are not finite, or does not fit the
            backbone or an option; or `output_dir` may not be written (`atomic_files.new_folder`).
    """
    output_dir = Path(output_dir)
    if output_dir.suffix in (".pth", ".pt"):
        raise ValueError(f"{output_dir} is the name of a file, but a model folder is written; choose another name.")
    sources = [checkpoint] if backbone is None else [checkpoint, backbone]
    with new_folder(output_dir, "model", overwrite=overwrite, sources=sources) as folder:
        read = read_models(
            checkpoint,
            backbone=backbone,
            num_attention_heads=num_attention_heads,
            interpolate_offset=interpolate_offset,
            interpolate_antialias=interpolate_antialias,
            depth_range=depth_range,
            id2label=id2label,
            classifier_name=classifier_name,
        )
        config = read.models[""].config
        for name, model in read.models.items():
            model.save_pretrained(folder / name)
            if read.image_processor is not None:
                read.image_processor.save_pretrained(folder / name)
        card = conversion_card(
            output_dir.absolute().name,
            read.original,
            config,
            read.choices,
            has_image_processor=read.image_processor is not None,
        )
        card.save(folder / "README.md")
    return ConversionReport(read.original.kind, config, tuple(output_dir / name for name in read.models), read.choices)


def load_original(checkpoint: str | Path, **options) -> PreTrainedModel:
    """
    The model that `convert_from_original` writes, in memory and in evaluation mode; for a teacher, its backbone.

    Args:
        options: the options of `convert_from_original` for reading.

    Raises:
        `ValueError`: as `convert_from_original`.
    """
    read = read_models(checkpoint, **options)
    read.say_choices()
    return read.models[""]


def read_models(
    checkpoint: str | Path,
    *,
    backbone: str | Path | None = None,
    depth_range: tuple[float, float] | None = None,
    id2label: Mapping[int, str] | Sequence[str] | None = None,
    classifier_name: str | None = None,
    **backbone_options,
) -> ReadModels:
    """Read a file and its models."""
    original = read_checked(checkpoint, classifier_name)
    _refuse_options_without_use(original, backbone, depth_range, id2label)
    if original.backbone:
        config, weights, choices = _original_backbone(original, **backbone_options)
    else:
        config, weights, choices = _read_backbone(original, backbone, **backbone_options)
    with _said_of(f"{original.path}: "):
        models, of_head = _build_models(original, config, weights, depth_range, id2label)
        image_processor, of_images = image_processor_of(original.kind, config, original.record)
    return ReadModels(original, models, image_processor, (*choices, *of_head, of_images))


def read_checked(path: str | Path, classifier_name: str | None = None) -> OriginalCheckpoint:
    """`read_original_checkpoint` of a file whose values are all finite."""
    original = read_original_checkpoint(path, classifier_name)
    parts = [original.backbone, *original.heads.values()]
    refuse_not_finite({name: tensor for part in parts for name, tensor in part.items()}, original.path)
    return original


@contextmanager
def _said_of(subject: str) -> Iterator[None]:
    """Begin the message of a `ValueError` with its subject, even if a configuration wraps the error."""
    try:
        yield
    except (ValueError, StrictDataclassError) as error:
        reason = error.__cause__ if isinstance(error, StrictDataclassError) else error
        raise ValueError(f"{subject}{reason}") from None


def _refuse_options_without_use(original: OriginalCheckpoint, backbone, depth_range, id2label) -> None:
    """Refuse options that would be ignored."""
    without_use = []
    if original.backbone and backbone is not None:
        raise ValueError(f"{original.path} holds a backbone of its own; leave --backbone out.")
    if depth_range is not None and original.kind != DEPTH:
        without_use.append("--depth_range")
    if id2label is not None and original.kind not in (CLASSIFIER, SEGMENTATION):
        without_use.append("--id2label")
    if without_use:
        raise ValueError(f"{original.path} holds a {original.kind}; leave {' and '.join(without_use)} out.")


def _original_backbone(original: OriginalCheckpoint, **options) -> tuple[DINOv2Config, State, list[Choice]]:
    """Configuration and weights, in our names, of the backbone in a file of the original."""
    with _said_of(f"{original.path} does not hold a whole DINOv2 backbone: "):
        record = original.record.get("config", {})
        config, choices = backbone_config(original.backbone, **options, record=record)
    return config, backbone_from_original(with_layer_scale(original.backbone)), choices


def _read_backbone(
    original: OriginalCheckpoint, backbone: str | Path | None, **options
) -> tuple[DINOv2Config, State, list[Choice]]:
    """The same for the backbone that a file with only a head needs."""
    if backbone is None:
        raise ValueError(
            f"{original.path} holds a {original.kind} without its backbone; give the one it was trained on with"
            " --backbone."
        )
    if Path(backbone).is_file():
        source = read_checked(backbone)
        if not source.backbone:
            raise ValueError(f"--backbone is {backbone}, which holds a {source.kind} and no backbone.")
        return _original_backbone(source, **options)
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{backbone} has a configuration of its own; leave {', '.join(given)} out.")
    model = saved_backbone(find_model(backbone, folder_only=True))
    return model.config, model.state_dict(), []


def _build_models(
    original: OriginalCheckpoint,
    config: DINOv2Config,
    weights: State,
    depth_range: tuple[float, float] | None,
    id2label: Mapping[int, str] | Sequence[str] | None,
) -> tuple[dict[str, PreTrainedModel], list[Choice]]:
    """Models as in `ReadModels`, from a backbone in our names, and where the values of a head came from."""
    record = original.record.get("config", {})
    if original.kind == BACKBONE:
        return {"": _build(DINOv2Model, config, weights)}, []
    if original.kind == TEACHER:
        heads = {name: projection_head_from_original(head) for name, head in original.heads.items()}
        noted = original.record.get("pretraining", {})
        whole = pretraining_config(config, heads, noted)
        teacher = {f"backbone.{name}": tensor for name, tensor in weights.items()}
        teacher |= {f"{head}.{name}": tensor for head, tensors in heads.items() for name, tensor in tensors.items()}
        both = {f"teacher.{name}": tensor for name, tensor in teacher.items()}
        both |= {f"student.{name}": tensor.clone() for name, tensor in teacher.items()}
        if whole.centering == "softmax":  # its running centres start like those of a run
            ibot_head = heads.get("ibot_head", heads["dino_head"])
            for loss, head in (("dino", heads["dino_head"]), ("ibot", ibot_head)):
                both[f"{loss}_centering.center"] = torch.zeros(len(head["last_layer.weight_g"]))
        pretraining_model = _build(DINOv2ForPreTraining, whole, both)
        losses = Choice("losses and centering", whole.centering, RECORDED if noted else "the defaults")
        return {"": _build(DINOv2Model, config, weights), PRETRAINING_MODEL: pretraining_model}, [losses]
    head = original.heads[""]
    weights = {f"dinov2.{name}": tensor for name, tensor in weights.items()}
    if original.kind == DEPTH:
        weights |= {f"decode_head.{name}": tensor for name, tensor in head.items()}
        noted = {"depth_range": (record["min_depth"], record["max_depth"])} if "max_depth" in record else {}
        rule = (None, "") if depth_range is not None or noted else (depth_range_of(original.path.name), "by its name")
        depths = choose("depth_range", depth_range, noted, rule)
        return {"": _build(DINOv2ForDepthEstimation, depth_config(config, head, depths.value), weights)}, [depths]
    if original.class_names is not None:
        record = record | {"id2label": original.class_names}
    labels = choose("id2label", id2label, record, (None, "the file names none"))
    said = Choice("names of the classes", _in_short(labels.value), labels.reason)
    if original.kind == CLASSIFIER:
        config = classifier_config(config, head, labels.value)
        weights |= {f"classifier.{name}": tensor for name, tensor in head.items()}
        return {"": _build(DINOv2ForImageClassification, config, weights)}, [said]
    weights |= {f"decode_head.{name}": tensor for name, tensor in head.items()}
    config = segmentation_config(config, head, labels.value)
    config.semantic_loss_ignore_index = record.get("semantic_loss_ignore_index", config.semantic_loss_ignore_index)
    return {"": _build(DINOv2ForSemanticSegmentation, config, weights)}, [said]


def _in_short(labels: Mapping[int, str] | Sequence[str] | None) -> str:
    """The names of classes in a few words."""
    names = ["LABEL_0"] if labels is None else list(labels.values() if isinstance(labels, Mapping) else labels)
    return ", ".join(map(str, names[:3])) + (", ..." if len(names) > 3 or labels is None else "")


def _build(model_class: type[PreTrainedModel], config: PreTrainedConfig, weights: State) -> PreTrainedModel:
    """
    A model that holds exactly these tensors, without a second copy of them.

    A folder has one number type. If the tensors have several, the type that can represent all values is used.
    """
    dtype = reduce(torch.promote_types, {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()})
    weights = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    with torch.device("meta"):
        model = model_class(config)
    model.load_state_dict(weights, assign=True)
    return model.eval()
