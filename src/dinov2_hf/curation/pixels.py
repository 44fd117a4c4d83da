"""The number of pixels that are needed: large JPEG files are decoded smaller if nothing uses all of their pixels.

JPEG files of 2, 4 or 8 times the needed size are decoded to a half, a quarter or an eighth, which takes less time. The
shorter side keeps `REDUCED_SIDE` pixels, twice the size of the embedders for which this is done.
"""

from functools import lru_cache

from .arguments import CurationArguments
from .embedders import EMBEDDERS, kind_of_embedder
from .filters import planned_filters


REDUCED_SIDE = 640


def reduction(width: int, height: int) -> int:
    """The factor by which a JPEG file of this size is decoded smaller: 1, 2, 4 or 8."""
    return next((factor for factor in (8, 4, 2) if min(width, height) // factor >= REDUCED_SIDE), 1)


def is_reduced(arguments: CurationArguments, spec: str) -> bool:
    """Whether images are decoded smaller for an embedder. If it embeds all images, filters must not read pixels."""
    if spec == arguments.copy_embedder and any(planned.reads_pixels for planned in planned_filters(arguments)):
        return False
    side = _input_side(spec, tuple(arguments.torchscript_size))
    return side is not None and 2 * side <= REDUCED_SIDE


def what_decides(arguments: CurationArguments, spec: str) -> dict[str, int | None]:
    """The values that decide this, for the configuration of a stage."""
    return {"decoded_to_side": REDUCED_SIDE if is_reduced(arguments, spec) else None}


def in_words(arguments: CurationArguments) -> str:
    """The decision in words, for the report."""
    if not is_reduced(arguments, arguments.copy_embedder):
        return "every image is decoded at its full size"
    return (
        f"JPEG files are decoded at 1/2, 1/4 or 1/8 of their size if {REDUCED_SIDE} pixels of the shorter side remain"
    )


@lru_cache
def _input_side(spec: str, torchscript_size: tuple[int, ...]) -> int | None:
    """The longest side, in pixels, to which an embedder resizes images; None: it may use all pixels."""
    kind = kind_of_embedder(spec)
    if kind == "precomputed":
        return 0
    if kind == "registered":
        return EMBEDDERS.named(spec).facts.get("input_side")
    if kind == "torchscript":
        return max(torchscript_size)
    from ..conversion.saved_models import load_image_processor

    try:
        processor = load_image_processor(spec)
    except ValueError:  # reported when the model is loaded
        return None
    sizes = (getattr(processor, "size", None), getattr(processor, "crop_size", None))
    sides = [side for size in sizes if size is not None for side in dict(size).values() if side is not None]
    return max(sides, default=None)
