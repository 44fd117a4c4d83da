"""Further options of `dinov2-hf curate`: the fields of a recipe, and the names of the stages."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

from ...command_lines import values_of
from ...declarations import declared
from ...options import Option, options_of
from ...recipe_files import read_recipe


def more_options(words: Sequence[str]) -> dict[str, Option]:
    """The fields of a recipe. The help of stages and filters lists the options of the named ones."""
    steps = ", ".join(declared("curation.arguments:STEPS"))
    steps = f"run one step: {steps}, or one of the stages that they are made of."
    options = {"stage": Option("stage", str, steps, None)}
    options |= options_of(declared("curation.arguments:CurationArguments"))
    if {"-h", "--help"} & {*words}:
        recipe = values_of("config", words)
        values = read_recipe(recipe[0]) if recipe else {}
        for name in ("stages", "filters"):
            named = options[name].read(values_of(name, words) or values.get(name) or [])
            if named:
                options[name] = replace(options[name], help=options[name].help + _about(name, named))
    return options


def _about(field: str, named: list[Any]) -> str:
    """The options of the named stages or filters, with their defaults."""
    from ...curation.arguments import read_named
    from ...curation.filters import FILTERS
    from ...curation.stages.stage import find_stage

    find = FILTERS.find if field == "filters" else lambda path: find_stage(path).function
    return "".join(f" {path} has {_keywords(find(path))}." for path, _ in read_named(field, named))


def _keywords(function: Callable) -> str:
    parameters = [one for one in signature(function).parameters.values() if one.default is not one.empty]
    return (
        f"the options {', '.join(f'{one.name}={one.default}' for one in parameters)}" if parameters else "no options"
    )
