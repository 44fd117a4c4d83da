"""What commands share: options that were given, refusing those that would be ignored, and ranges of numbers."""

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from typing import Any


# Not the name of the flag: `curate` has a field of that name in its recipe.
PIXEL_LIMIT = "pixel_limit"


def given(**options: Any) -> dict[str, Any]:
    """The options that were given, so that defaults stay where they belong."""
    return {name: value for name, value in options.items() if value is not None}


def refuse(options: dict[str, Any], reason: str) -> None:
    """`ValueError` when there are options that would be ignored."""
    if options:
        raise ValueError(f"{reason}; leave {', '.join(f'`--{name}`' for name in sorted(options))} out.")


def add_max_image_pixels(parser: ArgumentParser) -> None:
    """The option of commands that decode images; `main` puts it into force before the command runs."""
    parser.add_argument(
        "--max_image_pixels", type=at_least(1), dest=PIXEL_LIMIT, metavar="PIXELS",
        help="skip images of more pixels (default: 178956970, as Pillow does)",
    )  # fmt: skip


def at_least(least: int) -> Callable[[str], int]:
    """The type of an option that is a whole number from `least` on."""

    def number(text: str) -> int:
        if int(text) < least:
            raise ArgumentTypeError(f"{text} is too small; at least {least} is needed")
        return int(text)

    number.__name__ = "whole number"  # argparse names it in its complaint
    return number
