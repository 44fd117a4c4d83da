"""The faiss index with which a pool is searched, and how much of it a query looks at."""

import re
from dataclasses import dataclass

import numpy as np

from .faiss_gpus import GPU_CODES


# An exhaustive search for the neighbours of 50,000 rows takes 1.3e12 multiplications at a width of 512. This is about
# a minute on one core, and as much as learning an index; for more rows it grows with the square.
FLAT_ROWS = 50_000
TESTED_FACTORIES = (
    r"Flat",
    r"IVF\d+,Flat",
    r"OPQ\d+_\d+,IVF\d+(_HNSW32)?,PQ\d+(x4fs|np)",  # four bits, and eight without the slow polysemous training
)


@dataclass(frozen=True)
class IndexSettings:
    """How a pool is searched.

    Attributes:
        factory: the faiss string; one of `TESTED_FACTORIES`.
        num_probes: inverted lists that a query visits; None: a quarter of them, but at least 64 and at most 256.
        num_candidates: quantised candidates of a query that are ranked again; None: 8 for each neighbour asked for,
            but at least 128.
        first_round: candidates that are looked at first; a query is given up if none of them is above the floor of
            the search. None: one for four neighbours, but at least 8.
    """

    factory: str
    num_probes: int | None = None
    num_candidates: int | None = None
    first_round: int | None = None

    def __post_init__(self):
        if not any(re.fullmatch(pattern, self.factory) for pattern in TESTED_FACTORIES):
            raise ValueError(
                f"index {self.factory!r} is not among the tested forms: Flat, IVF4096,Flat, "
                "OPQ128_512,IVF4096,PQ128x4fs (four bits), OPQ64_512,IVF4096,PQ64np (eight bits), each IVF also as "
                "IVF262144_HNSW32."
            )
        found = re.match(r"OPQ(\d+)_(\d+),.*,PQ(\d+)", self.factory)
        if found and (found[1] != found[3] or int(found[2]) % int(found[1])):
            raise ValueError(
                f"index {self.factory!r} must have as many codes after OPQ as after PQ, and a width after _ that they"
                f" divide, as in OPQ{found[3]}_{8 * int(found[3])},...,PQ{found[3]}."
            )
        if self.num_probes is None:
            object.__setattr__(self, "num_probes", min(max(self.num_lists // 4, 64), 256))
        for name in ("num_probes", "num_candidates", "first_round"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")

    @property
    def num_lists(self) -> int:
        found = re.search(r"IVF(\d+)", self.factory)
        return int(found[1]) if found else 0

    @property
    def is_exact(self) -> bool:
        """Whether the similarities of the index itself are exact."""
        return self.factory.endswith("Flat")

    def candidates(self, k: int) -> int:
        """How many rows the index is asked for in a search for `k` neighbours."""
        if self.is_exact:
            return k
        return max(k, self.num_candidates or max(8 * k, 128))

    def first_candidates(self, k: int) -> int:
        """How many of them are looked at first, if there is a floor."""
        return self.first_round or max(k // 4, 8)


def choose_index(num_rows: int, width: int, memory_bytes: float = 8e9, *, for_gpus: bool = False) -> IndexSettings:
    """The index for a pool of this size.

    Args:
        num_rows, width: of the pool.
        memory_bytes: what the filled index may take in one process; if the process sees several GPUs, on all of them.
        for_gpus: choose a form that faiss has on GPUs; it can also be searched without GPUs.

    Returns:
        Exhaustive search up to `FLAT_ROWS` rows. For more rows, about 2 sqrt(n) lists of four-bit codes, one for 4
        dimensions of a vector, or for 8, 16 or 32 if memory is short. (4 to 16 sqrt(n) lists are usual for eight-bit
        codes, whose scan costs more compared with finding the lists.) For GPUs, eight-bit codes, one for 8, 16 or 32
        dimensions or somewhat more, in numbers of `GPU_CODES`.

    Raises:
        ValueError: no index fits.
    """
    if num_rows <= FLAT_ROWS and num_rows * width * 4 <= memory_bytes:
        return IndexSettings("Flat")
    num_lists = 2 ** round(np.log2(2 * max(num_rows, 1) ** 0.5))
    while num_lists > 1 and num_lists * 39 > num_rows:  # the fewest training points for a centroid, says faiss
        num_lists //= 2
    # From 2^17 lists on, a CPU finds the lists of a vector by a graph search.
    coarse = f"IVF{num_lists}" + ("_HNSW32" if num_lists >= 2**17 and not for_gpus else "")
    for dims_per_code in (8, 16, 32) if for_gpus else (4, 8, 16, 32):
        num_codes = width // dims_per_code // 2 * 2
        if for_gpus:
            num_codes = max((count for count in GPU_CODES if count <= width // dims_per_code), default=0)
        bytes_of_row = (num_codes if for_gpus else num_codes / 2) + 8
        if num_codes and num_rows * bytes_of_row + num_lists * width * 4 <= memory_bytes:
            rotation = f"OPQ{num_codes}_{num_codes * (width // num_codes)}"
            return IndexSettings(f"{rotation},{coarse},PQ{num_codes}{'np' if for_gpus else 'x4fs'}")
    smallest = num_rows * (width / (32 if for_gpus else 64) + 8)
    raise ValueError(
        f"memory_bytes={memory_bytes:.3g} is too little for an index of {num_rows} vectors of width {width}: the "
        f"smallest takes {smallest:.3g}. Give more memory, or search the pool in parts."
    )
