"""Objects that a user names in a recipe or on the command line: registered ones, or `package.module:attribute`."""

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, TypeVar

from .public_names import without_secrets


T = TypeVar("T")
PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


@dataclass(frozen=True)
class Named:
    """An object, its short name (in metrics, reports and help), and the facts that were registered with it."""

    name: str
    object: Any
    facts: dict[str, Any] = field(default_factory=dict)


class Registry:
    """
    The objects of one kind, by name. Objects of the package are registered like those of users. With `places`, their
    modules are imported only when an object is named.

    Args:
        kind: what messages call one of them ("schedule").
        places: names of objects of the package, with the module whose import registers them.

    ```python
    SCHEDULES = Registry("schedule")


    @SCHEDULES.register("constant")
    def constant(step): ...


    SCHEDULES.find("constant")
    SCHEDULES.find("my_package.schedules:sawtooth")
    ```
    """

    def __init__(self, kind: str, places: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self.places = dict(places or {})
        self._named: dict[str, Named] = {}

    def register(self, name: str, **facts: Any) -> Callable[[T], T]:
        """
        A decorator that registers a function or class, with facts about it, and returns it unchanged.

        Raises:
            ValueError: another object has the name. (A module that is imported again may register its own again.)
        """

        def registered(object: T) -> T:
            before = self._named.get(name)
            if before is not None and _origin(before.object) != _origin(object):
                raise ValueError(
                    f"{_origin(object)} registers the {self.kind} {name!r}, which {_origin(before.object)} is."
                )
            self._named[name] = Named(name, object, facts)
            return object

        return registered

    def names(self) -> list[str]:
        """All names, in the order of their registration: those of `places` first."""
        return list(dict.fromkeys([*self.places, *self._named]))

    def find(self, name: str) -> Any:
        """The object of that name; see `named`."""
        return self.named(name).object

    def named(self, name: str) -> Named:
        """
        The object that a user named. For `package.module:attribute` the module is imported, which runs it: name only
        code that you trust. The working directory is searched too, after the installed packages. An object that its
        module registered keeps its short name and its facts. Any other has the name of the attribute and no facts.

        Raises:
            ValueError: no object has the name, or the module or the attribute does not exist. Errors that a module
                raises while it is imported are not changed.
        """
        if ":" not in name:
            if name not in self._named and name in self.places:
                import_module(self.places[name])
            if name not in self._named:
                raise ValueError(self._unknown(name))
            return self._named[name]
        if not PATH.fullmatch(name):
            raise ValueError(f"the {self.kind} {without_secrets(name)!r} is not a `package.module:attribute`.")
        module, _, attribute = name.partition(":")
        object = _attribute(_imported(module, self.kind), attribute, self.kind)
        return next((known for known in self._named.values() if known.object is object), Named(attribute, object))

    def _unknown(self, name: str) -> str:
        there_are = f"There are {', '.join(self.names())}" if self.names() else "None is registered"
        return (
            f"there is no {self.kind} {without_secrets(name)!r}.{did_you_mean(name, self.names())} {there_are}; "
            f"name your own as `package.module:attribute`."
        )


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """
    The sentence " Did you mean `x`?", with up to four names that contain `name`, or with one similar name; or "".
    Case, hyphens and underscores are ignored.
    """
    names, wanted = list(names), _bare(name)
    near = [known for known in names if len(wanted) > 3 and wanted in _bare(known)]
    near = near or difflib.get_close_matches(name, names, n=1)
    return f" Did you mean {' or '.join(f'`{known}`' for known in near[:4])}?" if near else ""


def _bare(name: str) -> str:
    return re.sub("[-_]", "", name).lower()


def _origin(object: Any) -> str:
    return f"{getattr(object, '__module__', '?')}:{getattr(object, '__qualname__', type(object).__qualname__)}"


def _imported(name: str, kind: str) -> Any:
    # In the last place, so that no file of the working directory hides an installed package. The path is not removed
    # again, because the workers of a loader import objects through it.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module exists, but something that it imports does not
        raise ValueError(
            f"the {kind} is in the module {name}, but there is no module {error.name} among the installed packages or "
            f"in the working directory."
        ) from None


def _attribute(module: Any, name: str, kind: str) -> Any:
    try:
        return getattr(module, name)
    except AttributeError:
        near = did_you_mean(name, [known for known in vars(module) if not known.startswith("_")])
        raise ValueError(f"the {kind} is not in the module {module.__name__}: it has no {name!r}.{near}") from None
