"""The nearest rows of a bank of features by cosine similarity, in float32 and in bounded memory.

Shapes: `Q` queries, `n` rows of the bank, `D` feature size.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..cosines import CentredRows, centred, cosines_less_one


# A wide tile of the similarity matrix keeps the number of top-k merges small, and on a GPU the number of launches.
_BANK_ROWS_PER_QUERY = 16
_ROWS_PER_CHECK = 65536


def check_finite(features: Tensor, field: str) -> None:
    """`ValueError` if some of the features (n, D) are not finite; the message calls them `field`."""
    num_bad = sum(int((~part.isfinite().all(dim=1)).sum()) for part in features.split(_ROWS_PER_CHECK))
    if num_bad:
        raise ValueError(
            f"{field} has {num_bad} of {len(features)} rows with NaN or infinite values, but must be finite; the "
            "model that made them may have diverged."
        )


def cosine_neighbors(bank: Tensor, queries: Tensor, k: int, chunk_size: int) -> tuple[Tensor, Tensor]:
    """The `k` largest cosine similarities of each query, in descending order, and their rows in the bank.

    Both are (Q, k), on the device of the queries. The queries are normalised, the bank is not. The bank is processed
    tile by tile: it may be larger than the device's memory, and no copy of it is made.
    """
    similarities = queries.new_full((len(queries), k), -torch.inf)
    neighbors = torch.zeros(len(queries), k, dtype=torch.long, device=queries.device)
    bank_chunk = _BANK_ROWS_PER_QUERY * chunk_size
    centre = F.normalize(bank[:bank_chunk].to(queries.device, torch.float32), dim=1).mean(dim=0)
    around_centre = centred(queries, centre)
    for start in range(0, len(bank), bank_chunk):
        tile = centred(F.normalize(bank[start : start + bank_chunk].to(queries.device, torch.float32), dim=1), centre)
        for first in range(0, len(queries), chunk_size):
            rows = slice(first, first + chunk_size)
            candidates = cosines_less_one(CentredRows(around_centre.rows[rows], around_centre.terms[rows]), tile)
            candidates, columns = candidates.topk(min(k, candidates.shape[1]), dim=1)
            candidates = torch.cat([similarities[rows], candidates], dim=1)
            columns = torch.cat([neighbors[rows], columns + start], dim=1)
            similarities[rows], order = candidates.topk(k, dim=1)
            neighbors[rows] = columns.gather(1, order)
    return similarities.add_(1), neighbors
