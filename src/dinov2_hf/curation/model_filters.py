"""Two examples of what a model can do to a pile of images: leave out unsafe ones, and blur faces.

Both take any model of the Hub, or folder, for their task, and do nothing unless one is named.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from ..hub_repos import name_and_revision
from .filters import FILTERS


@FILTERS.register("classifier")
class Classifier:
    """Scores images by the probability of a label, in [0, 1].

    Args:
        model: of the task image-classification, by folder or Hub name, such as "Falconsai/nsfw_image_detection".
        label: as the model's `id2label` calls it; upper and lower case are alike.
        device: where the model runs; None is the CPU.

    Raises:
        ValueError: the model cannot be loaded, or has no such label.
    """

    def __init__(self, model: str, label: str, device: str | None = None):
        self.classify, self.label = _pipeline("image-classification", model, label, device)

    def __call__(self, images: list[Image.Image], columns: Mapping[str, Any]) -> np.ndarray:
        num_labels = len(self.classify.model.config.id2label)
        answers = self.classify(images, batch_size=len(images), top_k=num_labels)
        return np.array(
            [[entry["score"] for entry in answer if entry["label"].lower() == self.label] for answer in answers]
        )[:, 0]


class FaceBlur:
    """Blurs what an object detector finds, such as faces.

    Args:
        model: of the task object-detection, by folder or Hub name.
        label: what to blur; upper and lower case are alike.
        threshold: the detector's score in [0, 1] from which on it is blurred.
        device: where the model runs; None is the CPU.

    Raises:
        ValueError: the model cannot be loaded, or has no such label.
    """

    def __init__(self, model: str, label: str = "face", threshold: float = 0.5, device: str | None = None):
        self.detect, self.label = _pipeline("object-detection", model, label, device)
        self.threshold = threshold

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image with its faces blurred; the same object where there are none."""
        found = self.detect(image, threshold=self.threshold)
        return blur_boxes(image, [tuple(hit["box"].values()) for hit in found if hit["label"].lower() == self.label])


def blur_boxes(image: Image.Image, boxes: Sequence[tuple[float, float, float, float]]) -> Image.Image:
    """Blur rectangles (left, top, right, bottom, in pixels), grown by a tenth; without any, the same object."""
    if not boxes:
        return image
    image = image.copy()
    for left, top, right, bottom in boxes:
        grow_x, grow_y = 0.1 * (right - left), 0.1 * (bottom - top)
        box = (
            max(0, round(left - grow_x)), max(0, round(top - grow_y)),
            min(image.width, round(right + grow_x)), min(image.height, round(bottom + grow_y)),
        )  # fmt: skip
        if box[0] < box[2] and box[1] < box[3]:
            # An eighth of the face: eyes and mouth are gone, the shape of a head remains.
            radius = max(box[2] - box[0], box[3] - box[1]) / 8
            image.paste(image.crop(box).filter(ImageFilter.GaussianBlur(radius)), box)
    return image


def _pipeline(task: str, model: str, label: str, device: str | None):
    """A pipeline of transformers, and the label in lower case, which its model has."""
    from transformers import pipeline

    name, revision = name_and_revision(model)
    try:
        found = pipeline(task, model=name, revision=revision, device=device or "cpu", trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"model is {model!r}, which cannot be loaded for {task}: {reason}") from None
    labels = [name.lower() for name in found.model.config.id2label.values()]
    if label.lower() not in labels:
        raise ValueError(f"label is {label!r}, but the labels of {model!r} are {', '.join(labels)}.")
    return found, label.lower()
