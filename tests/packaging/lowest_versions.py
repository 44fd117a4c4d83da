"""The lowest versions that setup.py names, as constraints of pip: `numpy>=1.26` becomes `numpy==1.26.*`.

python -m tests.packaging.lowest_versions > constraints.txt
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path

import setuptools


ROOT = Path(__file__).parents[2]


def requirements() -> list[str]:
    """What the package itself needs, without its extras, as setup.py has it."""
    found: dict = {}
    setup, setuptools.setup = setuptools.setup, lambda **given: found.update(given)
    try:
        exec(compile((ROOT / "setup.py").read_text(), ROOT / "setup.py", "exec"), {"__file__": str(ROOT / "setup.py")})
    finally:
        setuptools.setup = setup
    return found["install_requires"]


def lowest(requirements: Iterable[str]) -> list[str]:
    """Each of its lowest version, in any release of that.

    Raises:
        ValueError: one names anything but a lowest version.
    """
    pinned = []
    for line in requirements:
        match = re.fullmatch(r"([\w.-]+)>=(\d+(?:\.\d+)*)", line)
        if match is None:
            raise ValueError(f"{line} is no name with a lowest version, such as numpy>=1.26.")
        pinned.append(f"{match[1]}=={match[2]}.*")
    return pinned


if __name__ == "__main__":
    sys.stdout.write("".join(f"{line}\n" for line in lowest(requirements())))
