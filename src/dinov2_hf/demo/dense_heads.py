"""Depth and segmentation of a picture, by trained heads."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForDepthEstimation, AutoModelForSemanticSegmentation

from ..conversion.loaded_weights import load_with_missing
from ..conversion.saved_models import DATA_ALONE, load_image_processor
from ..features import evaluation_mode
from ..model_source import find_model
from ..pictures.masks_and_depths import class_colours, painted_mask
from ..pictures.seen_images import prepare_pictures


CLASSES = {"depth": AutoModelForDepthEstimation, "segmentation": AutoModelForSemanticSegmentation}
SHOWN_CLASSES = 12


@dataclass(frozen=True)
class DenseHead:
    """A backbone with a head, and its image processor."""

    model: nn.Module
    image_processor: Any


def load_head(source: str | Path, task: str, device: torch.device | str | None = None) -> DenseHead:
    """
    Load a model folder or Hub id with a head, such as `dinov2-hf evaluate segmentation,depth` writes.

    Args:
        task: "depth" or "segmentation".

    Raises:
        ValueError: there is no such model, its weights are damaged or incomplete, or its image processor cannot be
            read.
    """
    found = find_model(source, folder_only=True)
    model, _ = load_with_missing(
        CLASSES[task], found, may_be_missing=lambda name: name.endswith("embeddings.mask_token"), **DATA_ALONE
    )
    image_processor = load_image_processor(found)
    if not hasattr(image_processor, f"post_process_{_task_name(task)}"):
        raise ValueError(
            f"{found} has the image processor {type(image_processor).__name__}, which makes no {task} of outputs; save"
            " one of ours beside it."
        )
    return DenseHead(model.to(device) if device is not None else model, image_processor)


def _task_name(task: str) -> str:
    return "depth_estimation" if task == "depth" else "semantic_segmentation"


def _predict(head: DenseHead, image: Image.Image, task: str) -> tuple[Image.Image, Any]:
    """The picture that the head got, and its prediction for each pixel."""
    pixel_values, (picture,) = prepare_pictures(head.model, [image], head.image_processor)
    device = next(head.model.parameters()).device
    with evaluation_mode(head.model), torch.no_grad():
        outputs = head.model(pixel_values=pixel_values.to(device))
    process = getattr(head.image_processor, f"post_process_{_task_name(task)}")
    return picture, process(outputs, target_sizes=[(picture.height, picture.width)])[0]


def depth_picture(head: DenseHead, image: Image.Image) -> tuple[Image.Image, tuple[float, float]]:
    """
    The depth of a picture as colours, near in yellow and far in blue.

    Returns:
        The input picture next to its depths, and the nearest and farthest depth, in the unit of the head.
    """
    from matplotlib import colormaps

    picture, found = _predict(head, image, "depth")
    depth = found["predicted_depth"].cpu().numpy()
    low, high = float(depth.min()), float(depth.max())
    colours = colormaps["viridis_r"]((depth - low) / max(high - low, 1e-12))[..., :3]
    return _beside(picture, colours), (low, high)


def segmentation_picture(head: DenseHead, image: Image.Image) -> tuple[Image.Image, Mapping[str, tuple[str, float]]]:
    """
    The class of every pixel, as colours.

    Returns:
        The input picture next to its classes; and for each class in it, the largest first, its colour (as "#rrggbb")
        and its share of the pixels.
    """
    picture, mask = _predict(head, image, "segmentation")
    mask = mask.cpu()
    names = head.model.config.id2label
    colours = class_colours(len(names))
    painted = painted_mask(mask, colours, np.zeros(mask.shape, dtype=bool))
    numbers, counts = np.unique(mask.numpy(), return_counts=True)
    order = np.argsort(-counts, kind="stable")[:SHOWN_CLASSES]
    legend = {}
    for number, count in zip(numbers[order].tolist(), counts[order].tolist(), strict=True):
        colour = "#{:02x}{:02x}{:02x}".format(*np.rint(colours[number] * 255).astype(int))
        legend[str(names[number])] = (colour, count / mask.numel())
    return _beside(picture, painted), legend


def _beside(picture: Image.Image, colours: np.ndarray) -> Image.Image:
    drawn = Image.new("RGB", (2 * picture.width, picture.height))
    drawn.paste(picture, (0, 0))
    drawn.paste(Image.fromarray(np.rint(colours * 255).astype(np.uint8)), (picture.width, 0))
    return drawn
