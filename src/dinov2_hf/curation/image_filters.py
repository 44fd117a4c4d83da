"""Reasons not to take an image: what its file and size tell, and filters that a user plugs in.

A filter is a callable `filter(images) -> reasons`: a list of RGB pictures in, for each of them a sentence that says
why it is dropped, or None. It is named in a recipe as "package.module:name"; if the name is a class it is made without
arguments.
"""

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from PIL import Image


ImageFilter = Callable[[list[Image.Image]], Sequence[str | None]]


def file_reason(num_bytes: int, *, min_bytes: int | None, max_bytes: int | None) -> str | None:
    """Why a file of this size is dropped, or None."""
    if min_bytes is not None and num_bytes < min_bytes:
        return f"file smaller than min_bytes ({min_bytes})"
    if max_bytes is not None and num_bytes > max_bytes:
        return f"file larger than max_bytes ({max_bytes})"
    return None


def size_reason(width: int, height: int, *, min_side: int | None, max_aspect_ratio: float | None) -> str | None:
    """Why a picture of these pixels is dropped, or None."""
    if min_side is not None and min(width, height) < min_side:
        return f"side shorter than min_side ({min_side})"
    if max_aspect_ratio is not None and max(width, height) > max_aspect_ratio * min(width, height):
        return f"longer than max_aspect_ratio ({max_aspect_ratio}) allows"
    return None


def load_filter(name: str) -> ImageFilter:
    """A filter by its name, "package.module:name".

    Importing the module runs it, as the filter itself is run: name only code that you trust.

    Raises:
        ValueError: there is no such module or name, or it cannot be called.
    """
    module_name, _, attribute = name.partition(":")
    try:
        filter = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"filters has {name!r}, which cannot be found as 'package.module:name' ({error}).") from None
    if isinstance(filter, type):
        filter = filter()
    if not callable(filter):
        raise ValueError(f"filters has {name!r}, which cannot be called.")
    return filter


def filter_reasons(filters: Sequence[ImageFilter], images: list[Image.Image]) -> list[str | None]:
    """The first reason that a filter gives for each picture; later filters do not see a picture that is dropped."""
    reasons: list[str | None] = [None] * len(images)
    for filter in filters:
        left = [index for index, reason in enumerate(reasons) if reason is None]
        if not left:
            break
        answers = _checked(filter, filter([images[index] for index in left]), len(left))
        for index, answer in zip(left, answers, strict=True):
            reasons[index] = answer
    return reasons


def _checked(filter: ImageFilter, answers: Any, num_images: int) -> list[str | None]:
    """What a filter of the user's returned, if it is what a filter returns.

    Raises:
        ValueError: it is not; the message names the filter and what it returned.
    """
    kind = type(filter)
    name = getattr(filter, "__qualname__", kind.__qualname__)
    name = f"{getattr(filter, '__module__', kind.__module__)}:{name}"
    expected = "must return a list with a reason (text) or None for each image"
    if isinstance(answers, (str, bytes, Mapping)) or not isinstance(answers, Iterable):
        raise ValueError(f"the filter {name} returned {_described(answers)}, but {expected}.")
    answers = list(answers)
    if len(answers) != num_images:
        raise ValueError(f"the filter {name} gave {len(answers)} answers for {num_images} images, but {expected}.")
    wrong = [answer for answer in answers if not (answer is None or (isinstance(answer, str) and answer))]
    if wrong:
        raise ValueError(f"the filter {name} answered {_described(wrong[0])} for an image, but {expected}.")
    return answers


def _described(value: Any) -> str:
    text = " ".join(repr(value).split())
    return f"{text[:60]}{'...' if len(text) > 60 else ''} ({type(value).__name__})"
