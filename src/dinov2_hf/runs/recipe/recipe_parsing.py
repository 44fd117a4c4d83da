"""Reads the recipe of a run: a flat YAML file of names and values, overridden by flags of the same names."""

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedConfig

from ...command_lines import read_recipe_and_words
from ...options import Option, options_of, read_mapping, refuse_without_effect
from .resumed_recipe import recipe_of_run


def options_of_run(kinds: Iterable[type]) -> dict[str, Option]:
    """All names of a recipe: the fields of the arguments and of each configuration. No two share a name."""
    return {name: option for kind in kinds for name, option in options_of(kind).items()}


def parse_recipe(
    arguments: list[str],
    arguments_type: type,
    config_types: list[type[PreTrainedConfig]],
    defaults: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> tuple:
    """
    Read `--config recipe.yaml` (optional; a run that is resumed has its own) and flags into an `arguments_type` and
    one `dict` of values for each configuration.

    Args:
        defaults: values for names that neither recipe nor flags set, instead of the defaults of the types.
        overrides: values that override recipe and flags.

    Raises:
        `ValueError`: the recipe does not exist or is not a recipe, a key or flag is unknown, a value has the wrong
            type, is out of its range or would have no effect; and as `recipe_of_run`. The message repeats no word that
            belongs to no flag, because it may be a token.
    """
    kinds = (arguments_type, *config_types)
    options = options_of_run(kinds)
    defaults = {name: value for name, value in (defaults or {}).items() if name in options}
    values = {name: option.default for name, option in options.items()} | defaults
    of_run: dict[str, Any] = {}

    def recipe_of_resumed(given: dict[str, Any]) -> dict[str, Any]:
        of_run.update(recipe_of_run(options, given))
        return of_run

    values |= read_recipe_and_words(options, arguments, known=defaults, without_config=recipe_of_resumed)
    values |= read_mapping(options, overrides or {}, "`students`")
    parsed = [{name: values[name] for name in options_of(kind)} for kind in kinds]
    refuse_without_effect(options, values, defaults | of_run)  # a flag may make a value of the run ineffective
    return arguments_type(**parsed[0]), *parsed[1:]
