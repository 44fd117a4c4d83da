"""Recipes: YAML files of names and values. Reading loses no value, and messages repeat none."""

import re
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from .named_objects import did_you_mean
from .public_names import without_secrets


RECIPES = Path(__file__).parent / "recipes"


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key that occurs twice. YAML readers silently keep the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if isinstance(key, str) and key in lines:
                raise ValueError(f"has `{key}` twice, in the lines {lines[key]} and {line}; leave one of them out.")
            if isinstance(key, str):
                lines[key] = line
        return super().construct_mapping(node, deep)


def read_recipe(source: str | Path) -> dict[str, Any]:
    """
    Names and values of a recipe; an empty recipe has none.

    Args:
        source: the path of a YAML file, or the name of a recipe of this package, such as `vits14_short`.

    Raises:
        `ValueError`: it is neither a file nor the name of a recipe, is not text, YAML or a list of `name: value`
            lines, or has a name twice. The message gives the line, but not its content, which may be a token.
    """
    path, shown = find_recipe(str(source)), without_secrets(str(source))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"{shown} cannot be read as UTF-8 text; give the path of a YAML recipe.") from None
    return parse_mapping(text, shown)


def recipe_names() -> list[str]:
    """The recipes of the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_recipe(source: str, flag: str = "--config") -> Path:
    """
    The file of a recipe, from its path or its name.

    Args:
        flag: the flag that named it, for the error message.

    Raises:
        `ValueError`: it is neither.
    """
    if Path(source).is_file():
        return Path(source)
    names = recipe_names()
    if source in names:
        return RECIPES / f"{source}.yaml"
    near = did_you_mean(Path(source).name.removesuffix(".yaml"), names)
    hint = near or f" Give the path of a YAML recipe, or {', '.join(names)}."
    raise ValueError(
        f"`{flag}` is {without_secrets(source)}, which is neither a file nor a recipe of the package.{hint}"
    )


@dataclass(frozen=True)
class RecipeHeader:
    """
    The comment at the top of a recipe.

    Args:
        purpose: what the recipe is for.
        command: the subcommand that reads it.
        hardware, time, expected: the hardware and time that a run needs, and the numbers that it should reach. Numbers
            that were not measured with this package say so.
    """

    purpose: str
    command: str
    hardware: str
    time: str
    expected: str


def read_header(name: str) -> RecipeHeader:
    """The header of a recipe of the package. Its labels are at the beginning of a line, such as "# Time: ..."."""
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    lines = [
        line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("#"), text.splitlines())
    ]
    command = re.search(r"examples/(pretrain|distill)\.py|dinov2-hf (\w+)", "\n".join(lines))
    labelled = dict(re.findall(r"^(Hardware|Time|Expected): (.*?)$(?=\n\w+: |\n\n|\Z)", "\n".join(lines), re.M | re.S))
    return RecipeHeader(
        purpose=" ".join(takewhile(bool, lines)),
        command=command[1] or command[2],
        **{label.lower(): " ".join(said.split()) for label, said in labelled.items()},
    )


def parse_mapping(text: str, subject: str) -> dict[str, Any]:
    """
    Read a YAML text as a mapping.

    Args:
        subject: the first words of an error message, such as the path of the file.

    Raises:
        `ValueError`: as `read_recipe`.
    """
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{subject} is not valid YAML{where}; a recipe is a list of `name: value` lines.") from None
    except ValueError as error:
        raise ValueError(f"{subject} {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{subject} is not a recipe: it must be a list of `name: value` lines.")
    return values


def parse_value(text: str, subject: str) -> Any:
    """Read a YAML text, such as a word of a command line, as a value; errors as in `parse_mapping`."""
    return parse_mapping(f"value: {text}", subject)["value"]
