"""faiss on GPUs, where the package `faiss-gpu` (extra `faiss-gpu`) is installed in place of `faiss-cpu`.

faiss holds flat indexes and inverted files of plain vectors or eight-bit codes on GPUs; four-bit codes, and lists
that are found by a graph search, are for CPUs only. An index is kept and saved in its CPU form, and copied for the
time of a search or of filling it.
"""

from collections.abc import Sequence

import faiss
import torch


# Numbers of codes for which faiss has GPU kernels.
GPU_CODES = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96)
MOST_CANDIDATES = 2048  # and most lists to visit, of a search on a GPU


def gpus_for_faiss(device: str | None) -> tuple[int, ...]:
    """The numbers of the GPUs to search with.

    Args:
        device: "cuda:1" is that GPU, "cuda" the current one of torch, None all that are visible; others have none.

    Returns:
        Nothing where faiss was built for CPUs or sees no GPU.
    """
    count = faiss.get_num_gpus()
    if device is None or count == 0:
        return tuple(range(count))
    chosen = torch.device(device)
    if chosen.type != "cuda":
        return ()
    return (torch.cuda.current_device() if chosen.index is None else chosen.index,)


def fits_gpus(index: faiss.Index) -> bool:
    """Whether faiss has this kind of index, given in its CPU form, on GPUs."""
    if isinstance(index, faiss.IndexPreTransform):
        index = faiss.downcast_index(index.index)
    if isinstance(index, faiss.IndexIVF) and not isinstance(faiss.downcast_index(index.quantizer), faiss.IndexFlat):
        return False
    if isinstance(index, faiss.IndexIVFPQ):
        return index.pq.nbits == 8 and index.pq.M in GPU_CODES
    return isinstance(index, (faiss.IndexFlat, faiss.IndexIVFFlat))


def on_gpus(index: faiss.Index, gpus: Sequence[int], *, split: bool = False) -> faiss.Index:
    """A copy of an index on GPUs; the index itself where there are none or it does not fit them.

    Args:
        index: in its CPU form, with the number of lists to visit set.
        gpus: from `gpus_for_faiss`.
        split: share the rows of the index between the GPUs; otherwise each holds all and they share the queries.
    """
    if not gpus or not fits_gpus(index):
        return index
    options = faiss.GpuMultipleClonerOptions()
    options.shard = split
    # Of eight-bit codes: the tables of 64 exceed a GPU's 48 kB of shared memory in single precision. Whole vectors
    # stay exact.
    options.useFloat16 = isinstance(index, faiss.IndexPreTransform)
    return faiss.index_cpu_to_gpus_list(index, co=options, gpus=list(gpus))
