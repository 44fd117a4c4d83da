"""Further options of `dinov2-hf convert`, for both directions."""

from collections.abc import Sequence
from pathlib import Path

from ...declarations import declared
from ...options import Option, keyword_options


FORTH = "conversion.original.from_original:convert_from_original"
BACK = "conversion.original.to_original:convert_to_original"


def more_options(words: Sequence[str]) -> dict[str, Option]:
    """The options of both directions."""
    forth = keyword_options(declared(FORTH), without=["overwrite"], group=("from the original", ""))
    labels = "a JSON file with the names of the classes, in their order, or by their numbers."
    forth["id2label"] = Option("id2label", Path, labels, None, group=forth["id2label"].group)
    return forth | keyword_options(declared(BACK), without=["overwrite"], group=("to the original", ""))
