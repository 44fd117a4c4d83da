"""
Declarations of a file of this package (signatures, dataclasses and constants), read from its text without importing
it.

The help and the errors of a command line need the options of functions whose files import torch and transformers,
which takes seconds. The options are declared only there. This module reads them without those imports.
"""

import ast
import builtins
import dataclasses
import sys
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any


PACKAGE = __package__
# Modules that declarations use. They import nothing heavy, so they are really imported.
IMPORTED = {f"{PACKAGE}.{name}" for name in ("named_objects", "options", "value_ranges")}


def declared(place: str) -> Any:
    """
    A declaration of a file, which may use declarations of other files of the package. Other packages are imported if a
    declaration needs one of their names.

    Args:
        place: `module:name` within this package, such as "evaluation.knn:evaluate_knn".

    Returns:
        For a function: one with the same signature and docstring, which cannot be called. For a dataclass or
        configuration: one with the same fields, which checks nothing; bases of other packages are left out. For a
        constant: its value.

    Raises:
        `LookupError`: there is no such name.
    """
    module, _, name = place.partition(":")
    return _file(f"{PACKAGE}.{module}").value(name)


def registered(registry: Any, name: str) -> Any:
    """
    The function that a file of this package registers under a name, as `declared` gives it.

    Args:
        registry: a `named_objects.Registry` that knows the place of the name.
    """
    file = _file(registry.places[name])
    for function, node in file.nodes.items():
        for decorator in getattr(node, "decorator_list", ()):
            first = decorator.args[0] if isinstance(decorator, ast.Call) and decorator.args else None
            if isinstance(first, ast.Constant) and first.value == name:
                return file.value(function)
    raise LookupError(f"{registry.places[name]} registers no {name!r}.")


@cache
def _file(module: str) -> "_File":
    return _File(module)


class _File:
    """The text of a module, and the declarations that were read from it."""

    def __init__(self, module: str):
        path = Path(__file__).parent.joinpath(*module.split(".")[1:])
        is_package = path.is_dir()
        path = path / "__init__.py" if is_package else path.with_suffix(".py")
        self.module, self.package = module, module if is_package else module.rpartition(".")[0]
        self.nodes = dict(_names(ast.parse(path.read_text(encoding="utf-8")).body))
        self._values: dict[str, Any] = {"__package__": self.package, "__name__": module}

    def value(self, name: str) -> Any:
        """The value of the name."""
        if name not in self._values:
            if name not in self.nodes:
                raise LookupError(f"{self.module} declares no {name!r}.")
            self._values[name] = self._make(name, self.nodes[name])
        return self._values[name]

    def _make(self, name: str, node: ast.AST) -> Any:
        if isinstance(node, ast.FunctionDef):
            return self._function(deepcopy(node))
        if isinstance(node, ast.ClassDef):
            return self._class(deepcopy(node))
        if isinstance(node, ast.Import):
            return import_module(next(found.name for found in node.names if name == (found.asname or found.name)))
        if isinstance(node, ast.ImportFrom):
            source = next(found.name for found in node.names if name == (found.asname or found.name))
            module = self._imported_module(node)
            is_read = module.partition(".")[0] == PACKAGE and module not in IMPORTED
            return _file(module).value(source) if is_read else getattr(import_module(module), source)
        self._execute(node)
        return self._values[name]

    def _imported_module(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module
        parents = self.package.split(".")
        return ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])

    def _function(self, node: ast.FunctionDef) -> Any:
        for argument in (*node.args.args, node.args.vararg, node.args.kwarg):
            if argument is not None and argument.annotation and not self._is_plain(argument.annotation):
                argument.annotation = None  # such as a network, which cannot be an option
        node.body = [*node.body[:1], *ast.parse("raise TypeError('only declared, and not imported')").body]
        node.decorator_list = []
        node.returns = node.returns if node.returns and self._is_plain(node.returns) else None
        return self._execute(node)

    def _class(self, node: ast.ClassDef) -> type:
        node.bases = [base for base in node.bases if isinstance(base, ast.Name) and self._is_ours(base.id)]
        node.body = [part for part in node.body if not isinstance(part, ast.FunctionDef)] or ast.parse("pass").body
        node.decorator_list = []
        return dataclasses.dataclass(self._execute(node))

    def _is_plain(self, annotation: ast.expr) -> bool:
        """Whether all names in it are Python's own."""
        names = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
        return all(hasattr(builtins, name) or self._source(name) in sys.stdlib_module_names for name in names)

    def _is_ours(self, name: str) -> bool:
        return isinstance(self.nodes.get(name), ast.ClassDef) or self._source(name) == PACKAGE

    def _source(self, name: str) -> str | None:
        """The package that a name is imported from."""
        node = self.nodes.get(name)
        module = self._imported_module(node) if isinstance(node, ast.ImportFrom) else None
        return module and module.partition(".")[0]

    def _execute(self, statement: ast.stmt) -> Any:
        """Run a statement with the values of the names in it, and store its assignments."""
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in self.nodes:
                self.value(node.id)
        code = compile(ast.fix_missing_locations(ast.Module([statement], [])), self.module, "exec")
        exec(code, self._values)
        return self._values.get(getattr(statement, "name", None))


def _names(statements: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """The names of a file, including those for type checkers, with the statements that define them."""
    for node in statements:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((found.asname or found.name, node) for found in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((found.id, node) for one in targets for found in ast.walk(one) if isinstance(found, ast.Name))
        elif isinstance(node, ast.If):
            yield from _names(node.body)
