"""Names of a package that are imported at their first use (PEP 562), not when the package is imported."""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """
    `__getattr__`, `__dir__` and `__all__` of a package whose public names are imported under `if TYPE_CHECKING:` in
    its `__init__.py`. Type checkers and editors read those lines. This function reads them too, and imports a name at
    its first use.

    Args:
        package: `__name__` of the package.
    """
    module = sys.modules[package]
    places = _places(Path(module.__file__))

    def __getattr__(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(places[name], package), name)
        setattr(module, name, value)  # next time Python finds it directly
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(module), *places})

    return __getattr__, __dir__, sorted(places)


def _places(path: Path) -> dict[str, str]:
    """Names that a file imports for type checkers, and the modules that they come from, such as `.models`."""
    blocks = (
        node.body
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    imports = (line for block in blocks for line in block)
    return {name.name: "." * line.level + line.module for line in imports for name in line.names}
