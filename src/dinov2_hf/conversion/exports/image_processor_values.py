"""The preprocessor_config.json of an export: transformers' own class, for machines without this package."""

import json
from pathlib import Path
from typing import Any

from ...model_source import read_json
from ...models import DINOv2ImageProcessor


FILE_NAME = "preprocessor_config.json"
# Both have the same fields, and give the same pixels.
STOCK_CLASS = "BitImageProcessor"
REPLACED_CLASSES = ("DINOv2ImageProcessor", "DINOv2ImageProcessorPil", "BitImageProcessor", "BitImageProcessorFast")
# The class of converted heads for segmentation and depth, already transformers' own: whole images, padded to patches.
DENSE_CLASS = "DPTImageProcessor"


def stock_image_processor_values(folder: Path, num_channels: int) -> dict[str, Any] | None:
    """
    The fields of a folder's image processor, for transformers' own class.

    Args:
        num_channels: channels of the model. The processor's defaults are for 3.

    Returns:
        `None` if the folder has none and the model is not for RGB images. For RGB images without a file, the
        original's evaluation transform.

    Raises:
        `ValueError`: the class of the folder's image processor has no match in transformers.
    """
    if (folder / FILE_NAME).is_file():
        values = read_json(folder / FILE_NAME, "an image processor")
    elif num_channels == 3:
        values = json.loads(DINOv2ImageProcessor().to_json_string())
    else:
        return None
    name = values.get("image_processor_type")
    if name == DENSE_CLASS:
        return values
    if name not in REPLACED_CLASSES:
        raise ValueError(
            f"`image_processor_type` in {folder / FILE_NAME} is {name}, but one of"
            f" {', '.join((*REPLACED_CLASSES, DENSE_CLASS))} is needed."
        )
    return {key: value for key, value in values.items() if key != "auto_map"} | {"image_processor_type": STOCK_CLASS}


def for_fixed_size(values: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """
    The same processor with `(height, width)` images as its result.

    The short side before the crop is scaled in proportion: 256 for a crop of 224 becomes 592 for a crop of 518. For a
    rectangle it is scaled by the longer side, so that every image fills the crop. Whole images, for dense tasks, are
    stretched to the size.
    """
    size, crop = values.get("size") or {}, values.get("crop_size") or {}
    fixed = {"height": height, "width": width}
    if values["image_processor_type"] == DENSE_CLASS:
        return values | {"do_resize": True, "size": fixed, "keep_aspect_ratio": False, "do_pad": False}
    if values.get("do_center_crop") and crop == fixed:
        return values
    if "shortest_edge" in size:
        cropped = max(crop.values()) if values.get("do_center_crop") and crop else size["shortest_edge"]
        size = {"shortest_edge": max(height, width, round(size["shortest_edge"] * max(height, width) / cropped))}
    else:
        size = fixed
    return values | {"do_resize": True, "size": size, "do_center_crop": True, "crop_size": fixed}


def write_image_processor(values: dict[str, Any], folder: Path) -> None:
    (folder / FILE_NAME).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
