"""
Facts that the tensors of an original file do not give: attention heads, interpolation, image processor, ranges, names.

A file that this package writes stores them in the `_metadata` of its state dict, where `torch.nn.Module.state_dict`
stores the versions of modules. `load_state_dict` ignores entries without a module, so the original loads the file
unchanged, also with `strict`. Other files have no such record. Then a rule chooses, and the choice is reported.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers import BaseImageProcessor, DPTImageProcessor, PreTrainedConfig
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ...model_source import read_json
from ...models import DINOv2Config, DINOv2ImageProcessor, DINOv2ImageProcessorPil
from .checkpoint import DEPTH, RECORD, SEGMENTATION
from .names import State


BACKBONE_FIELDS = (
    "num_attention_heads", "interpolate_offset", "interpolate_antialias", "drop_path_rate", "layerscale_value",
    "initializer_range",
)  # fmt: skip
HEAD_FIELDS = ("id2label", "min_depth", "max_depth", "semantic_loss_ignore_index")
GIVEN, RECORDED = "as given", "as the file records it"
FILE_NAME = "preprocessor_config.json"
IMAGE_PROCESSORS = {
    kind.__name__: kind for kind in (DINOv2ImageProcessor, DINOv2ImageProcessorPil, DPTImageProcessor)
} | {"BitImageProcessor": DINOv2ImageProcessor, "BitImageProcessorFast": DINOv2ImageProcessor}  # the same fields


class Choice(NamedTuple):
    """A value that the tensors do not give, and its source."""

    name: str
    value: Any
    reason: str

    @property
    def is_known(self) -> bool:
        """Whether it was given or recorded, and not chosen by a rule."""
        return self.reason in (GIVEN, RECORDED)

    def __str__(self) -> str:
        return f"{self.name}: {self.value} ({self.reason})"


def choose(name: str, given: Any, record: Mapping[str, Any], rule: tuple[Any, str]) -> Choice:
    """
    The value of an option: the given one, else the recorded one, else that of a rule.

    Args:
        rule: its value, and the rule in words.
    """
    if given is not None:
        return Choice(name, given, GIVEN)
    if name in record:
        return Choice(name, record[name], RECORDED)
    return Choice(name, *rule)


def with_record(state: State, config: DINOv2Config, folder: Path, *, has_head: bool = False) -> State:
    """
    The same tensors with a record of the facts that they do not give.

    Args:
        config: configuration of the model.
        folder: folder of its image processor, if it has one.
        has_head: whether the tensors are those of the model's head.
    """
    names = BACKBONE_FIELDS + HEAD_FIELDS * has_head
    record: dict[str, Any] = {"config": {name: getattr(config, name) for name in names}}
    if (folder / FILE_NAME).is_file():
        record["image_processor"] = read_json(folder / FILE_NAME, "an image processor")
    return _add(state, record)


def with_pretraining_record(state: State, config: PreTrainedConfig) -> State:
    """The same for a teacher with its heads, with the objective in addition to the record of the backbone."""
    names = [name for name in type(config).__annotations__ if not name.startswith("_") and name != "backbone_config"]
    return _add(state, {"pretraining": {name: getattr(config, name) for name in names}})


def _add(state: State, record: dict[str, Any]) -> State:
    recorded = OrderedDict(state)
    metadata = dict(getattr(state, "_metadata", {}))
    # Through JSON, because readers of weights only accept numbers, texts, lists and objects.
    metadata[RECORD] = metadata.get(RECORD, {}) | json.loads(json.dumps(record))
    recorded._metadata = metadata
    return recorded


def image_processor_of(
    kind: str, config: DINOv2Config, record: Mapping[str, Any]
) -> tuple[BaseImageProcessor | None, Choice]:
    """
    The image processor of a converted model, and the reason for it.

    Without a record it processes an image like the original: for features and classes 256 pixels and a crop of 224;
    for depth the image at its own size and for segmentation about 518 pixels, both padded around to whole patches and
    never cropped. For images that are not RGB there is none.

    Raises:
        `ValueError`: the record does not contain a valid image processor.
    """
    name = "image processor"
    if "image_processor" in record:
        values = dict(record["image_processor"])
        processor_class = IMAGE_PROCESSORS.get(values.pop("image_processor_type", None))
        if processor_class is None:
            known = ", ".join(IMAGE_PROCESSORS)
            raise ValueError(f"its record holds an image processor of another class than {known}.")
        values.pop("auto_map", None)
        processor = processor_class.from_dict(values)
        return processor, Choice(name, _described(processor), RECORDED)
    if config.num_channels != len(IMAGENET_DEFAULT_MEAN):
        return None, Choice(name, "none", f"images have {config.num_channels} channels; save one beside the model")
    if kind not in (SEGMENTATION, DEPTH):
        processor = DINOv2ImageProcessor()
        return processor, Choice(name, _described(processor), "that of the original's evaluation")
    processor = DPTImageProcessor(
        do_resize=kind == SEGMENTATION,
        size={"height": 518, "width": 518},
        keep_aspect_ratio=True,
        ensure_multiple_of=config.patch_size,
        do_pad=True,
        size_divisor=config.patch_size,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
    return processor, Choice(name, _described(processor), "that of the original's evaluation")


def _described(processor: BaseImageProcessor) -> str:
    """An image processor in a few words, for people."""
    values = processor.to_dict()
    size, crop = values.get("size") or {}, values.get("crop_size") or {}
    steps = []
    if values.get("do_resize"):
        side = size.get("shortest_edge")
        steps.append(f"short side {side}" if side else f"about {size.get('height')} x {size.get('width')}")
    if values.get("do_center_crop"):
        steps.append(f"crop {crop.get('height')} x {crop.get('width')}")
    if values.get("do_pad"):
        steps.append("padded to whole patches")
    return ", ".join([*steps, "pixels"]) if steps else "images as they are"
