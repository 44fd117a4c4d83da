"""Tells whether the user's code that a recipe names is the code of an earlier run."""

import hashlib
import inspect
from pathlib import Path
from typing import Any

from ...named_objects import PATH, Registry


def code_fingerprint(code: Any) -> str:
    """Changes with any byte of the file that a function or class is in; it is empty if there is no such file. Imports
    of that file are not looked at."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(code))
    except TypeError:  # built in, or neither a function nor a class
        file = None
    return hashlib.blake2b(Path(file).read_bytes(), digest_size=8).hexdigest() if file else ""


def fingerprint_of_named(registry: Registry, name: str) -> str:
    """The fingerprint of what `package.module:attribute` names; empty for names of the package."""
    if not PATH.fullmatch(name):
        return ""
    found = registry.find(name)
    return code_fingerprint(getattr(found, "function", found))
