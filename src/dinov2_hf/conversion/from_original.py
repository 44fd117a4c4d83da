"""A checkpoint of the original implementation to folders that `from_pretrained` loads."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import BaseImageProcessor, DPTImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..model_source import PRETRAINING_MODEL
from ..models import (
    DINOv2Config,
    DINOv2ForDepthEstimation,
    DINOv2ForImageClassification,
    DINOv2ForSemanticSegmentation,
    DINOv2ImageProcessor,
    DINOv2Model,
)
from ..pretraining import DINOv2ForPreTraining
from .conversion_card import conversion_card
from .loaded_weights import refuse_not_finite
from .new_output import check_folder, new_folder
from .original_checkpoint import (
    BACKBONE,
    CLASSIFIER,
    DEPTH,
    SEGMENTATION,
    TEACHER,
    OriginalCheckpoint,
    read_original_checkpoint,
)
from .original_heads import classifier_config, depth_config, depth_range_of, segmentation_config
from .original_names import State, backbone_from_original, projection_head_from_original
from .original_shapes import backbone_config, pretraining_config, with_layer_scale
from .saved_models import load_backbone


@dataclass(frozen=True)
class ConversionReport:
    """
    Args:
        kind: what the checkpoint was recognised as, for people.
        config: of the backbone or the model with its head.
        folders: what was written: the folder asked for, and for a teacher with heads the one of the whole module.
    """

    kind: str
    config: DINOv2Config
    folders: tuple[Path, ...]


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
    Convert a `.pth` file of the original, bit for bit. Its kind is told by its keys, its sizes by its shapes.

    A backbone becomes a `DINOv2Model`. A teacher with heads becomes that too, and in the folder `pretraining_model`
    inside a `DINOv2ForPreTraining` whose student and teacher both have its weights; its losses and centering are the
    defaults, since a teacher does not hold them. A linear head becomes a whole model of its task. A network without
    LayerScale gets one of ones. An image processor is written for networks of 3 channels.

    Args:
        checkpoint: the file.
        output_dir: the folder to write.
        backbone: for a file with only a head: the backbone it was trained on, as a folder, an id on the Hub, or a file
            of the original.
        num_attention_heads: of the original backbone; `None` means one for every 64 channels.
        interpolate_offset, interpolate_antialias: how the original backbone resizes its position embeddings; `None`
            means 0.1 and `False` without registers, 0.0 and `True` with them, as released.
        depth_range: smallest and largest depth of a depth head, in metres; `None` means that of NYU or KITTI, if the
            file's name has it.
        id2label: names of the classes of a classifier or segmentation head.
        classifier_name: which classifier to take from a checkpoint of the linear evaluation.
        overwrite: replace the model that is at `output_dir`.

    Raises:
        `ValueError`: the file is not whole, of another kind, or does not fit to the backbone or to an option.
    """
    output_dir = Path(output_dir)
    check_folder(output_dir, overwrite)
    original, models = read_models(
        checkpoint,
        backbone=backbone,
        num_attention_heads=num_attention_heads,
        interpolate_offset=interpolate_offset,
        interpolate_antialias=interpolate_antialias,
        depth_range=depth_range,
        id2label=id2label,
        classifier_name=classifier_name,
    )
    config = models[""].config
    with new_folder(output_dir) as folder:
        for name, model in models.items():
            model.save_pretrained(folder / name)
            if config.num_channels == len(IMAGENET_DEFAULT_MEAN):
                _image_processor(original.kind, config).save_pretrained(folder / name)
        card = conversion_card(output_dir.name, original.path.name, original.kind, config)
        card.save(folder / "README.md")
    return ConversionReport(original.kind, config, tuple(output_dir / name for name in models))


def load_original(checkpoint: str | Path, **options) -> PreTrainedModel:
    """
    The model that `convert_from_original` writes, in memory and in evaluation mode; of a teacher its backbone.

    Args:
        options: those of `convert_from_original` that say what to read.

    Raises:
        `ValueError`: as `convert_from_original`.
    """
    return read_models(checkpoint, **options)[1][""]


def read_models(
    checkpoint: str | Path,
    *,
    backbone: str | Path | None = None,
    depth_range: tuple[float, float] | None = None,
    id2label: Mapping[int, str] | Sequence[str] | None = None,
    classifier_name: str | None = None,
    **backbone_options,
) -> tuple[OriginalCheckpoint, dict[str, PreTrainedModel]]:
    """A file, and its models by the folder, inside of the output, that they belong to."""
    original = read_checked(checkpoint, classifier_name)
    _refuse_options_without_use(original, backbone, depth_range, id2label)
    if original.backbone:
        config, weights = _original_backbone(original, **backbone_options)
    else:
        config, weights = _read_backbone(original, backbone, **backbone_options)
    with _said_of(f"{original.path}: "):
        return original, _build_models(original, config, weights, depth_range, id2label)


def read_checked(path: str | Path, classifier_name: str | None = None) -> OriginalCheckpoint:
    """`read_original_checkpoint` of a file whose values are all finite."""
    original = read_original_checkpoint(path, classifier_name)
    parts = [original.backbone, *original.heads.values()]
    refuse_not_finite({name: tensor for part in parts for name, tensor in part.items()}, original.path)
    return original


@contextmanager
def _said_of(subject: str) -> Iterator[None]:
    """Begin the sentence of a `ValueError` with its subject, also of one that a configuration wraps in its own."""
    try:
        yield
    except (ValueError, StrictDataclassError) as error:
        reason = error.__cause__ if isinstance(error, StrictDataclassError) else error
        raise ValueError(f"{subject}{reason}") from None


def _refuse_options_without_use(original: OriginalCheckpoint, backbone, depth_range, id2label) -> None:
    """An option that would be ignored is a mistake about the file."""
    without_use = []
    if original.backbone and backbone is not None:
        raise ValueError(f"{original.path} holds a backbone of its own; leave `backbone` out.")
    if depth_range is not None and original.kind != DEPTH:
        without_use.append("`depth_range`")
    if id2label is not None and original.kind not in (CLASSIFIER, SEGMENTATION):
        without_use.append("`id2label`")
    if without_use:
        raise ValueError(f"{original.path} holds a {original.kind}; leave {' and '.join(without_use)} out.")


def _original_backbone(original: OriginalCheckpoint, **options) -> tuple[DINOv2Config, State]:
    """Configuration and weights, in our names, of the backbone in a file of the original."""
    with _said_of(f"{original.path} holds no whole DINOv2 backbone: "):
        config = backbone_config(original.backbone, **options)
    return config, backbone_from_original(with_layer_scale(original.backbone))


def _read_backbone(original: OriginalCheckpoint, backbone: str | Path | None, **options) -> tuple[DINOv2Config, State]:
    """The same of the backbone that a file with only a head needs."""
    if backbone is None:
        raise ValueError(
            f"{original.path} holds a {original.kind} without its backbone; set `backbone` to the one it was trained"
            " on."
        )
    if Path(backbone).is_file():
        source = read_checked(backbone)
        if not source.backbone:
            raise ValueError(f"`backbone` is {backbone}, which holds a {source.kind} and no backbone.")
        return _original_backbone(source, **options)
    given = [f"`{name}`" for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{backbone} has a configuration of its own; leave {', '.join(given)} out.")
    model = load_backbone(backbone)
    return model.config, model.state_dict()


def _build_models(
    original: OriginalCheckpoint,
    config: DINOv2Config,
    weights: State,
    depth_range: tuple[float, float] | None,
    id2label: Mapping[int, str] | Sequence[str] | None,
) -> dict[str, PreTrainedModel]:
    """As `read_models`, from a backbone in our names."""
    if original.kind == BACKBONE:
        return {"": _build(DINOv2Model, config, weights)}
    if original.kind == TEACHER:
        heads = {name: projection_head_from_original(head) for name, head in original.heads.items()}
        whole = pretraining_config(config, heads)
        teacher = {f"backbone.{name}": tensor for name, tensor in weights.items()}
        teacher |= {f"{head}.{name}": tensor for head, tensors in heads.items() for name, tensor in tensors.items()}
        both = {f"teacher.{name}": tensor for name, tensor in teacher.items()}
        both |= {f"student.{name}": tensor.clone() for name, tensor in teacher.items()}
        if whole.centering == "softmax":  # its running centres start where a run's do
            ibot_head = heads.get("ibot_head", heads["dino_head"])
            for loss, head in (("dino", heads["dino_head"]), ("ibot", ibot_head)):
                both[f"{loss}_centering.center"] = torch.zeros(len(head["last_layer.weight_g"]))
        pretraining_model = _build(DINOv2ForPreTraining, whole, both)
        return {"": _build(DINOv2Model, config, weights), PRETRAINING_MODEL: pretraining_model}
    head = original.heads[""]
    weights = {f"dinov2.{name}": tensor for name, tensor in weights.items()}
    if original.kind == CLASSIFIER:
        config = classifier_config(config, head, id2label)
        weights |= {f"classifier.{name}": tensor for name, tensor in head.items()}
        return {"": _build(DINOv2ForImageClassification, config, weights)}
    weights |= {f"decode_head.{name}": tensor for name, tensor in head.items()}
    if original.kind == SEGMENTATION:
        names = original.class_names if id2label is None else id2label
        return {"": _build(DINOv2ForSemanticSegmentation, segmentation_config(config, head, names), weights)}
    depth_range = depth_range_of(original.path.name) if depth_range is None else depth_range
    return {"": _build(DINOv2ForDepthEstimation, depth_config(config, head, depth_range), weights)}


def _build(model_class: type[PreTrainedModel], config: PreTrainedConfig, weights: State) -> PreTrainedModel:
    """
    A model that holds exactly these tensors, without a second copy of them.

    A folder has one number type. Where the tensors have several, the one that holds the values of all is taken.
    """
    dtype = reduce(torch.promote_types, {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()})
    weights = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    with torch.device("meta"):
        model = model_class(config)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def _image_processor(kind: str, config: DINOv2Config) -> BaseImageProcessor:
    """
    What the original does to an image: for features and classes 256 pixels and a crop of 224; for depth the image as
    it is and for segmentation about 518 pixels, padded around to whole patches and never cropped.
    """
    if kind not in (SEGMENTATION, DEPTH):
        return DINOv2ImageProcessor()
    return DPTImageProcessor(
        do_resize=kind == SEGMENTATION,
        size={"height": 518, "width": 518},
        keep_aspect_ratio=True,
        ensure_multiple_of=config.patch_size,
        do_pad=True,
        size_divisor=config.patch_size,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
