"""`dinov2-hf recipes`."""

from dataclasses import asdict
from textwrap import fill
from typing import Any, Literal

from ..options import given, refuse
from ..recipe_files import find_recipe, read_header, recipe_names


def recipes(action: Literal["list", "show"] = "list", name: str | None = None) -> dict[str, Any]:
    """List the recipes of the package: hardware, time, and the numbers to expect; `show NAME` prints one.

    Args:
        action: list tells of all what they are for; show prints one.
        name: of a recipe to show, or the path of a YAML file.
    """
    if action == "list":
        refuse(given(name=name), "the action is list")
        return list_recipes()
    if name is None:
        raise ValueError(f"`--name` must be given, of a recipe to show; there are {', '.join(recipe_names())}.")
    path = find_recipe(name, "--name")
    text = path.read_text(encoding="utf-8")
    print(text, end="")
    return {"path": str(path), "text": text}


def list_recipes() -> dict[str, Any]:
    """Print and return the headers."""
    headers = {name: asdict(read_header(name)) for name in recipe_names()}
    for name, said in headers.items():
        print(f"{name}\n{_paragraph(said['purpose'])}")
        for label in ("command", "hardware", "time", "expected"):
            text = f"dinov2-hf {said[label]} --config {name} ..." if label == "command" else said[label]
            print(_paragraph(f"{label + ':':10} {text}", 13))
        print()
    return headers


def _paragraph(text: str, indent: int = 2) -> str:
    return fill(text, 100, initial_indent="  ", subsequent_indent=" " * indent, break_on_hyphens=False)
