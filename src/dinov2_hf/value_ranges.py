"""Ranges of numbers, declared with their fields."""

import dataclasses
import math
from dataclasses import dataclass
from numbers import Real
from typing import Any


@dataclass(frozen=True)
class Range:
    """
    Finite numbers from `low` to `high`.

    Args:
        low_included, high_included: whether the bounds themselves are allowed.
    """

    low: float = -math.inf
    high: float = math.inf
    low_included: bool = True
    high_included: bool = True

    def __contains__(self, number: float) -> bool:
        above = number >= self.low if self.low_included else number > self.low
        below = number <= self.high if self.high_included else number < self.high
        return math.isfinite(number) and above and below

    def check(self, name: str, value: Any) -> None:
        """
        Raises:
            `ValueError`: the value of that name, or a number in its list, is not in the range. Values that are not
                numbers, such as `None`, are not checked.
        """
        is_list = isinstance(value, list | tuple)
        numbers = [number for number in (value if is_list else [value]) if isinstance(number, Real)]
        if not all(number in self for number in numbers):
            raise ValueError(f"`{name}` is {value}; {'each number' if is_list else 'it'} must be {self}.")

    def __str__(self) -> str:
        if math.isinf(self.high):
            if math.isinf(self.low):
                return "a finite number"
            return f"at least {self.low}" if self.low_included else f"above {self.low}"
        if self.low_included and self.high_included:
            return f"between {self.low} and {self.high}"
        return f"{'at least' if self.low_included else 'above'} {self.low} and " + (
            f"at most {self.high}" if self.high_included else f"below {self.high}"
        )


NOT_NEGATIVE, ABOVE_ZERO, AT_LEAST_ONE = Range(0), Range(0, low_included=False), Range(1)
# Sizes of a network: a larger number is a typing error, and building the network would fill the memory.
WIDTH, DEPTH = Range(1, 2**16), Range(1, 1000)
SEEDS = Range(0, 2**32 - 1)
SHARE = Range(0, 1)  # a probability, a momentum, a part of a whole
BELOW_ONE = Range(0, 1, high_included=False)


def ranged(default: Any, allowed: Range) -> Any:
    """A field of a dataclass with its range; `None` has no range, and is always allowed."""
    return dataclasses.field(default=default, metadata={"range": allowed})


def check_ranges(instance: Any) -> None:
    """
    Raises:
        `ValueError`: a field of this dataclass, or a number in its list, is not finite or out of its range.
    """
    for field in dataclasses.fields(instance):
        if "range" in field.metadata:
            field.metadata["range"].check(field.name, getattr(instance, field.name))
