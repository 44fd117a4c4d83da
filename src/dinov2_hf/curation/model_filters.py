"""Models for a pile of images: they score images by a label, by aesthetics or by a text, and blur faces.

Each takes any model for its task, from the Hub or a folder. None is used unless it is named.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter

from ..hub_repos import name_and_revision
from .filters import FILTERS


@FILTERS.register("classifier")
class Classifier:
    """Scores images by the probability of a label, in [0, 1].

    Args:
        model: of the task image-classification, by folder or Hub name, such as "Falconsai/nsfw_image_detection".
        label: a name of the model's `id2label`; case does not matter.
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


@FILTERS.register("aesthetic")
class Aesthetic:
    """Scores images by the single output of an aesthetic model, in that model's units.

    Args:
        model: of the task image-classification with a single output, by folder or Hub name. For a model with labels,
            use `classifier`.
        device: where the model runs; None is the CPU.

    Raises:
        ValueError: the model cannot be loaded, or has several outputs.
    """

    def __init__(self, model: str, device: str | None = None):
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        name, revision = name_and_revision(model)
        with _loading(model, "image-classification"):
            network = AutoModelForImageClassification.from_pretrained(name, revision=revision)
            self.processor = AutoImageProcessor.from_pretrained(name, revision=revision)
        self.network = network.to(device or "cpu").eval()
        if self.network.config.num_labels != 1:
            labels = ", ".join(self.network.config.id2label.values())
            raise ValueError(
                f"model is {model!r}, which has the labels {labels}, but one number for an image is needed: use the"
                " filter classifier, with a label."
            )

    @torch.inference_mode()
    def __call__(self, images: list[Image.Image], columns: Mapping[str, Any]) -> np.ndarray:
        inputs = self.processor(images=images, return_tensors="pt").to(self.network.device)
        return self.network(**inputs).logits[:, 0].float().cpu().numpy()


@FILTERS.register("clip_score")
class ClipScore:
    """Scores images by the cosine of image and text in a model such as CLIP or SigLIP.

    Args:
        model: of the task zero-shot-image-classification, by folder or Hub name ("openai/clip-vit-base-patch32").
        column: column of the source with the text of each image; a missing text counts as an empty one.
        text: instead, one text for all images, such as "a photograph".
        device: where the model runs; None is the CPU.

    Raises:
        ValueError: the model cannot be loaded, or both or neither of `column` and `text` are given.
    """

    def __init__(self, model: str, column: str | None = None, text: str | None = None, device: str | None = None):
        from transformers import AutoModelForZeroShotImageClassification, AutoProcessor

        if (column is None) == (text is None):
            raise ValueError(
                f"column is {column!r} and text is {text!r}, but the filter clip_score needs one of them: the texts of"
                " the images, or one for all."
            )
        self.column, self.text = column, text
        name, revision = name_and_revision(model)
        with _loading(model, "zero-shot-image-classification"):
            network = AutoModelForZeroShotImageClassification.from_pretrained(name, revision=revision)
            self.processor = AutoProcessor.from_pretrained(name, revision=revision)
        self.network = network.to(device or "cpu").eval()

    @torch.inference_mode()
    def __call__(self, images: list[Image.Image], columns: Mapping[str, Any]) -> np.ndarray:
        texts = [self.text] * len(images) if self.column is None else [text or "" for text in columns[self.column]]
        inputs = self.processor(text=texts, images=images, return_tensors="pt", padding="max_length", truncation=True)
        output = self.network(**inputs.to(self.network.device))
        pairs = F.cosine_similarity(output.image_embeds.float(), output.text_embeds.float(), dim=-1)
        return pairs.cpu().numpy()


class FaceBlur:
    """Blurs objects that a detector finds, such as faces.

    Args:
        model: of the task object-detection, by folder or Hub name.
        label: the label to blur; case does not matter.
        threshold: the detector's score in [0, 1] from which an object is blurred.
        device: where the model runs; None is the CPU.

    Raises:
        ValueError: the model cannot be loaded, or has no such label.
    """

    def __init__(self, model: str, label: str = "face", threshold: float = 0.5, device: str | None = None):
        self.detect, self.label = _pipeline("object-detection", model, label, device)
        self.threshold = threshold

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image with its faces blurred; the same object if there are none."""
        found = self.detect(image, threshold=self.threshold)
        return blur_boxes(image, [tuple(hit["box"].values()) for hit in found if hit["label"].lower() == self.label])


def blur_boxes(image: Image.Image, boxes: Sequence[tuple[float, float, float, float]]) -> Image.Image:
    """Blur rectangles (left, top, right, bottom, in pixels), enlarged by a tenth; without any, the same object."""
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
            # An eighth of the face: eyes and mouth disappear, the shape of a head remains.
            radius = max(box[2] - box[0], box[3] - box[1]) / 8
            image.paste(image.crop(box).filter(ImageFilter.GaussianBlur(radius)), box)
    return image


@contextmanager
def _loading(model: str, task: str) -> Iterator[None]:
    """Turn errors of transformers about a model into one sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"model is {model!r}, which cannot be loaded for {task}: {reason}") from None


def _pipeline(task: str, model: str, label: str, device: str | None):
    """A pipeline of transformers, and the label in lower case, after checking that its model has it."""
    from transformers import pipeline

    name, revision = name_and_revision(model)
    with _loading(model, task):
        found = pipeline(task, model=name, revision=revision, device=device or "cpu", trust_remote_code=False)
    labels = [name.lower() for name in found.model.config.id2label.values()]
    if label.lower() not in labels:
        raise ValueError(f"label is {label!r}, but the labels of {model!r} are {', '.join(labels)}.")
    return found, label.lower()
