"""A recipe as a table: first the chosen values, then the defaults."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from ...options import REQUIRED, Option
from ..ending.model_card import public_recipe


@dataclass(frozen=True)
class RecipeRow:
    """
    Args:
        name, value: as in the recipe; a path is cut to its last part.
        default: empty if there is none.
        help: description of the option.
    """

    name: str
    value: str
    default: str
    help: str


def recipe_rows(recipe: Mapping[str, Any], options: Mapping[str, Option]) -> tuple[list[RecipeRow], list[RecipeRow]]:
    """Rows of the options that differ from their defaults or have none, and rows of the others."""
    changed, same = [], []
    for name, value in public_recipe(recipe).items():
        option = options.get(name)
        default = REQUIRED if option is None else option.default
        is_default = default is not REQUIRED and json.dumps(recipe[name]) == json.dumps(default, default=str)
        shown_default = "" if default is REQUIRED else _shown(default)
        row = RecipeRow(name, _shown(value), shown_default, option.help if option else "")
        (same if is_default else changed).append(row)
    return changed, same


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=not isinstance(value, dict), width=1000, sort_keys=False)
    return text.removesuffix("...\n").strip()
