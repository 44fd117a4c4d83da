"""What commands share: options that were given, and refusing those that would be ignored."""

from typing import Any


def given(**options: Any) -> dict[str, Any]:
    """The options that were given, so that defaults stay where they belong."""
    return {name: value for name, value in options.items() if value is not None}


def refuse(options: dict[str, Any], reason: str) -> None:
    """`ValueError` when there are options that would be ignored."""
    if options:
        raise ValueError(f"{reason}; leave {', '.join(f'`--{name}`' for name in sorted(options))} out.")
