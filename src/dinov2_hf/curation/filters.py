"""Filters: each gives every image of the pool a score, and drops those whose score is too low or too high.

A filter is a callable `filter(images, columns, **options) -> scores`. It takes a list of RGB pictures and `Columns`,
and returns a number for each picture. A class is instantiated with the options, and its objects are called without
them. A recipe names the filter and its options. `min` and `max` are the limits of the scores that an image may have:

```yaml
filters: [my_module:caption_length, {my_module:sharpness: {min: 12, radius: 2}}]
```
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from ..named_objects import Registry, did_you_mean
from .arguments import CurationArguments
from .storage.sources import OpenSources


OF_PICTURES = ("sharpness", "brightness", "information", "pixels", "listed", "domain_listed")
OF_MODELS = ("classifier", "aesthetic", "clip_score")
FILTERS = Registry(
    "filter",
    places={
        **dict.fromkeys(OF_PICTURES, "dinov2_hf.curation.picture_filters"),
        **dict.fromkeys(OF_MODELS, "dinov2_hf.curation.model_filters"),
    },
)


class Columns(Mapping[str, list]):
    """Facts about the pictures: `row_id`, `id`, `path`, `width`, `height` and `num_bytes`, and the columns of their
    sources. Each column is read at its first use (None where a source does not have it).
    """

    def __init__(self, sources: OpenSources, facts: Sequence[Mapping[str, Any]]):
        self.sources, self.facts = sources, facts

    def __getitem__(self, name: str) -> list:
        if name in self.facts[0]:
            return [fact[name] for fact in self.facts]
        if name not in set(self):
            raise ValueError(
                f"a filter asks for the column {name!r}, which no source has; there are {', '.join(self)}."
            )
        return [self.sources.values(fact["row_id"], [name])[name] for fact in self.facts]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.facts[0], *(n for rows in self.sources.rows for n in rows.features)]))

    def __len__(self) -> int:
        return len(list(iter(self)))


@dataclass(frozen=True)
class PlannedFilter:
    """A filter that a recipe names.

    Attributes:
        name: name of its scores.
        object: the named object.
        options: options with which it is called or instantiated.
        min, max: limits of the scores that an image may have; None: no limit.
        reads_pixels: whether it reads pixels, and not only columns.
    """

    name: str
    object: Callable
    options: Mapping[str, Any]
    min: float | None
    max: float | None
    reads_pixels: bool = True

    def load(self, device: str | None) -> Callable[[list[Image.Image], Columns], Any]:
        """The callable for each batch; a model gets the `device` if it has such an option."""
        options = dict(self.options)
        if "device" in inspect.signature(self.object).parameters:
            options.setdefault("device", device)
        return self.object(**options) if isinstance(self.object, type) else partial(self.object, **options)

    def reason(self, score: float) -> str | None:
        """The reason why an image with this score is dropped, or None."""
        if self.min is not None and score < self.min:
            return f"{self.name} below {self.min:g}"
        if self.max is not None and score > self.max:
            return f"{self.name} above {self.max:g}"
        return None


def planned_filters(arguments: CurationArguments) -> list[PlannedFilter]:
    """The filters that these arguments name, in the order in which they run; filters by size come first.

    Importing a module runs it, and the filter runs too: name only code that you trust.

    Raises:
        ValueError: there is no such filter, or it has no such option.
    """
    asked = [
        ("shorter_side", {"min": arguments.min_side}),
        ("aspect_ratio", {"max": arguments.max_aspect_ratio}),
        ("file_bytes", {"min": arguments.min_bytes, "max": arguments.max_bytes}),
    ]
    asked = [(name, limits) for name, limits in asked if any(limit is not None for limit in limits.values())]
    asked += arguments.named_filters
    if arguments.nsfw_model is not None:
        model = {"model": arguments.nsfw_model, "label": arguments.nsfw_label}
        asked.append(("classifier", {**model, "max": arguments.nsfw_threshold}))
    planned: list[PlannedFilter] = []
    for path, given in asked:
        found, options = FILTERS.named(path), {key: value for key, value in given.items() if key not in ("min", "max")}
        taken = sum(one.name == found.name or one.name.startswith(f"{found.name}-") for one in planned)
        name = f"{found.name}-{taken + 1}" if taken else found.name
        if not callable(found.object):
            raise ValueError(f"filters has {path!r}, which cannot be called.")
        known = list(inspect.signature(found.object).parameters)[0 if isinstance(found.object, type) else 2 :]
        for option in options:
            if option not in known:
                raise ValueError(f"the filter {path!r} has no option {option!r}.{did_you_mean(option, known)}")
        planned.append(
            PlannedFilter(
                name, found.object, options, given.get("min"), given.get("max"), found.facts.get("reads_pixels", True)
            )
        )
    return planned


@FILTERS.register("shorter_side", reads_pixels=False)
def shorter_side(images: list[Image.Image], columns: Columns) -> np.ndarray:
    return np.minimum(columns["width"], columns["height"])


@FILTERS.register("aspect_ratio", reads_pixels=False)
def aspect_ratio(images: list[Image.Image], columns: Columns) -> np.ndarray:
    sides = np.array([columns["width"], columns["height"]])
    return sides.max(axis=0) / sides.min(axis=0)


@FILTERS.register("file_bytes", reads_pixels=False)
def file_bytes(images: list[Image.Image], columns: Columns) -> list[int]:
    return columns["num_bytes"]


class FilterChain:
    """Filters that run in turn. Later filters do not get an image that is already dropped.

    Raises:
        ValueError: the model of a filter cannot be loaded.
    """

    def __init__(self, filters: Sequence[PlannedFilter], device: str | None = None):
        self.filters = [(planned, planned.load(device)) for planned in filters]

    def __call__(
        self, images: list[Image.Image], columns_of: Callable[[list[int]], Columns]
    ) -> tuple[list[dict[str, float]], list[str | None]]:
        """
        Args:
            columns_of: gives the facts about some of the images, by their indices.

        Returns:
            For each image, its scores by the name of the filter, and why it is dropped, or None.

        Raises:
            ValueError: a filter does not return a finite number for each image.
        """
        scores: list[dict[str, float]] = [{} for _ in images]
        reasons: list[str | None] = [None] * len(images)
        for planned, score in self.filters:
            left = [place for place, reason in enumerate(reasons) if reason is None]
            if not left:
                break
            found = score([images[place] for place in left], columns_of(left))
            for place, value in zip(left, _checked(planned.name, found, len(left)), strict=True):
                scores[place][planned.name], reasons[place] = value, planned.reason(value)
        return scores, reasons


def _checked(name: str, scores: Any, num_images: int) -> list[float]:
    """The scores that a filter returned, after checking them."""
    expected = "must return a finite number for each image"
    array = np.asarray(scores)
    if array.dtype.kind not in "biuf" or array.ndim != 1:
        text = " ".join(repr(scores).split())
        text = f"{text[:60]}{'...' if len(text) > 60 else ''} ({type(scores).__name__})"
        raise ValueError(f"the filter {name!r} returned {text}, but {expected}.")
    if len(array) != num_images:
        raise ValueError(f"the filter {name!r} gave {len(array)} scores for {num_images} images, but {expected}.")
    if not np.isfinite(array).all():
        raise ValueError(f"the filter {name!r} gave {array[~np.isfinite(array)][0]} for an image, but {expected}.")
    return array.astype(np.float64).tolist()
