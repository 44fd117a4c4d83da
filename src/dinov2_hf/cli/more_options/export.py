"""Further options of `dinov2-hf export`: those of all formats, and of the named format."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from ...command_lines import values_of
from ...conversion.exports.formats import EXPORTS
from ...declarations import registered
from ...options import Option, keyword_options


def more_options(words: Sequence[str]) -> dict[str, Option]:
    """The options of the formats, each in the group of the formats that have it."""
    exporters = {name: registered(EXPORTS, name) for name in EXPORTS.places}
    exporters |= {name: EXPORTS.find(name) for name in values_of("format", words) if ":" in name}
    found: dict[str, Option] = {}
    for name, exporter in exporters.items():
        for option in own_options(exporter).values():
            before = found[option.name].group[0] + " and " if option.name in found else ""
            found[option.name] = replace(found.get(option.name, option), group=(f"{before}{name}", ""))
    return found


def own_options(exporter: Callable) -> dict[str, Option]:
    """The options of one format."""
    return keyword_options(exporter, without=["overwrite"])
