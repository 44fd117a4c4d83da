"""
Numbers of the networks that one run trains: those of several students are prefixed with a name, as in `"small/loss"`.
A pretraining has one, whose name is empty.
"""

from collections.abc import Iterable, Mapping
from typing import Any


def prefixed(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Values of one student under the names they have among those of all."""
    return {f"{name}/{key}" if name else key: value for key, value in values.items()}


def of_student(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What concerns one student: values of the whole run, and its own in their place, without the prefix."""
    common = {key: value for key, value in values.items() if "/" not in key}
    return common | own_of_student(values, name)


def own_of_student(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The values of one student alone, without the prefix."""
    if not name:
        return dict(values)
    prefix = f"{name}/"
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def names_of(values: Iterable[str]) -> list[str]:
    """The students that values have prefixes of; the one without a name where none has."""
    return list(dict.fromkeys(key.split("/")[0] for key in values if "/" in key)) or [""]


def recipe_of_student(recipe: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The recipe that trains one of the `students` of a recipe alone."""
    own = {key: value for key, value in recipe.items() if key != "students"}
    for entry in recipe.get("students") or ():
        if entry["name"] == name:
            own |= {key: value for key, value in entry.items() if key not in ("name", "num_processes")}
    return own
