"""Further options of `dinov2-hf pretrain`: all names of its recipes."""

from collections.abc import Sequence

from ...command_lines import CONFIG
from ...declarations import declared
from ...options import Option, options_of


KINDS = "runs.pretraining_plan:KINDS"


def more_options(words: Sequence[str], kinds: str = KINDS) -> dict[str, Option]:
    """The recipe, and the fields of arguments and configurations."""
    found = {name: option for kind in declared(kinds) for name, option in options_of(kind).items()}
    return {"config": CONFIG} | found
