"""Pages for a browser: one HTML file each, which needs no network and no other file. Their style is written once."""

import base64
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader


def templates(package: str, *, autoescape: bool) -> Environment:
    """The templates of a package, and `page_style.css.jinja` of this one; the filter `number` writes 1234 as 1,234.

    Args:
        package: in whose folder they lie, as its `__package__`.
    """
    loader = ChoiceLoader([PackageLoader(package, "."), PackageLoader(__package__, ".")])
    environment = Environment(loader=loader, autoescape=autoescape, trim_blocks=True)
    environment.filters["number"] = "{:,}".format
    return environment


def embedded(picture: Path) -> str:
    """A PNG as the address of an `<img>`, with all of it inside."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
