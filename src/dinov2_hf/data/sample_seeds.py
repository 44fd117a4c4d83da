"""Seeds for all randomness of a run, by position, so that they do not depend on where and how often it is resumed."""

_MASK_64 = 2**64 - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def mix_seed(seed: int, position: int) -> int:
    """A 64-bit seed for one position of a run (SplitMix64, output number `position` of the generator `seed`).

    It has no state. So the augmentation of a sample depends only on the run's seed and the sample's position, and not
    on workers, on the number of processes, or on where a run was resumed.
    """
    return _finalize(_finalize(seed & _MASK_64) + (position + 1) * _GOLDEN_GAMMA & _MASK_64)


def _finalize(value: int) -> int:
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK_64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK_64
    return value ^ (value >> 31)
