"""Seeds of what is random in a run, each of its position: the same wherever and however often the run is entered."""

_MASK_64 = 2**64 - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def mix_seed(seed: int, position: int) -> int:
    """A 64-bit seed for one position of a run (SplitMix64, output number `position` of the generator `seed`).

    Stateless, so the augmentation of a sample depends on the run's seed and the sample's position only, and not on
    workers, on the number of processes, or on where a run was resumed.
    """
    return _finalize(_finalize(seed & _MASK_64) + (position + 1) * _GOLDEN_GAMMA & _MASK_64)


def _finalize(value: int) -> int:
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK_64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK_64
    return value ^ (value >> 31)
