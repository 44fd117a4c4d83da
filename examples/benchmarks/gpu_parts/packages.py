"""What an image for GPUs lacks of what the suite imports, and the command that fetches it."""

import ast
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


SETUP = Path(__file__).parents[3] / "setup.py"


def installed_here() -> set[str]:
    return {canonicalize_name(found.metadata["Name"]) for found in metadata.distributions() if found.metadata["Name"]}


def listed(path: Path) -> set[str]:
    """The names of a `pip freeze` or `pip list`, or of a file with one name in a line."""
    words = (line.replace("==", " ").split() for line in path.read_text().splitlines())
    return {canonicalize_name(found[0]) for found in words if found and found[0][0].isalnum()}


def needed_by_the_package() -> list[str]:
    """What `setup.py` asks for."""
    for node in ast.walk(ast.parse(SETUP.read_text())):
        if isinstance(node, ast.keyword) and node.arg == "install_requires":
            return [canonicalize_name(Requirement(text).name) for text in ast.literal_eval(node.value)]
    raise ValueError(f"{SETUP} has no install_requires.")


def lacking(names: Iterable[str], there: set[str]) -> list[str]:
    """Those of `names` that are not `there`, each with what it needs in turn, where this environment has it."""
    missing: list[str] = []
    waiting = [canonicalize_name(name) for name in names]
    while waiting:
        name = waiting.pop(0)
        if name in there or name in missing:
            continue
        missing.append(name)
        try:
            requirements = map(Requirement, metadata.requires(name) or [])
        except metadata.PackageNotFoundError:
            continue
        waiting += [
            canonicalize_name(found.name)
            for found in requirements
            if found.marker is None or found.marker.evaluate({"extra": ""})
        ]
    return missing


def what_to_carry(parts: Iterable, there: set[str]) -> str:
    """For people: what each part lacks, and how to fetch it where there is a network."""
    groups = {"the package needs": lacking(needed_by_the_package(), there)}
    for part in parts:
        groups[f"the part {part.name} needs"] = lacking(part.needs, there)
        groups[f"the part {part.name} measures more with"] = lacking(part.more_with, there)
    lines = [f"{words} {', '.join(names)}" for words, names in groups.items() if names]
    missing = list(dict.fromkeys(name for names in groups.values() for name in names))
    if not missing:
        return "Nothing is lacking."
    lines.append(f"To carry: python -m pip download --no-deps --dest wheels {' '.join(missing)}")
    lines.append("There:    python -m pip install --no-index --no-deps wheels/*.whl")
    return "\n".join(lines)
