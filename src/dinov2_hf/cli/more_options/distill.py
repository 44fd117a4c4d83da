"""Further options of `dinov2-hf distill`: all names of its recipes."""

from collections.abc import Sequence

from ...options import Option
from . import pretrain


def more_options(words: Sequence[str]) -> dict[str, Option]:
    """The options of a pretraining, and those of the teacher and the students."""
    return pretrain.more_options(words, "runs.distillation_plan:KINDS")
