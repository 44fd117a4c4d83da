"""faiss on GPUs, if the package `faiss-gpu` (extra `faiss-gpu`) is installed in place of `faiss-cpu`.

faiss holds flat indexes and inverted files of plain vectors or eight-bit codes on GPUs; four-bit codes, and lists
that are found by a graph search, are for CPUs only. An index is kept and saved in its CPU form. It is copied to GPUs
while it is searched or filled.
"""

from collections.abc import Sequence

import faiss
import torch


# Numbers of codes for which faiss has GPU kernels.
GPU_CODES = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96)
MOST_CANDIDATES = 2048  # and the most lists to visit, in a search on a GPU


def gpus_for_faiss(device: str | None) -> tuple[int, ...]:
    """The numbers of the GPUs to search with.

    Args:
        device: "cuda:1" means that GPU, "cuda" the current one of torch, None all visible ones; others mean no GPU.

    Returns:
        An empty tuple if faiss was built for CPUs or sees no GPU.
    """
    count = faiss.get_num_gpus()
    if device is None or count == 0:
        return tuple(range(count))
    chosen = torch.device(device)
    if chosen.type != "cuda":
        return ()
    return (torch.cuda.current_device() if chosen.index is None else chosen.index,)


def fits_gpus(index: faiss.Index) -> bool:
    """Whether faiss has this kind of index on GPUs; it is given in its CPU form."""
    if isinstance(index, faiss.IndexPreTransform):
        index = faiss.downcast_index(index.index)
    if isinstance(index, faiss.IndexIVF) and not isinstance(faiss.downcast_index(index.quantizer), faiss.IndexFlat):
        return False
    if isinstance(index, faiss.IndexIVFPQ):
        return index.pq.nbits == 8 and index.pq.M in GPU_CODES
    return isinstance(index, (faiss.IndexFlat, faiss.IndexIVFFlat))


def on_gpus(index: faiss.Index, gpus: Sequence[int], *, split: bool = False) -> faiss.Index:
    """A copy of an index on GPUs; the index itself if there are no GPUs or they cannot hold it.

    Args:
        index: in its CPU form, with the number of lists to visit set.
        gpus: from `gpus_for_faiss`.
        split: share the rows of the index between the GPUs; otherwise each holds all and they share the queries.
    """
    if not gpus or not fits_gpus(index):
        return index
    options = faiss.GpuMultipleClonerOptions()
    options.shard = split
    # For eight-bit codes: in single precision the tables of 64 codes exceed a GPU's 48 kB of shared memory. Whole
    # vectors stay exact.
    options.useFloat16 = isinstance(index, faiss.IndexPreTransform)
    return faiss.index_cpu_to_gpus_list(index, co=options, gpus=list(gpus))
