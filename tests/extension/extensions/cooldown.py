"""The cooldown of Hägele et al. (2024): no change, then 1 - sqrt over the last fifth of the steps."""

import math


def cooldown(progress: float) -> float:
    """How far the value has come from its first to its last, when `progress` of the steps is over."""
    return math.sqrt(max(0.0, (progress - 0.8) / 0.2))
