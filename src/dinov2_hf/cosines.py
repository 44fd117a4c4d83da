"""Cosines whose order does not hang on rounding errors, also where all of them are nearly 1.

The features of a fresh network with LayerScale 1e-5, or of a collapsed one, are nearly the same for all images. Their
cosines differ from 1 by less than float32 can tell, so products of the features would order them by chance. Products
of what is left after a common centre `c` is subtracted do not: for rows of length 1,

    u v - 1 = (u - c) (v - c) - |u - c|^2 / 2 - |v - c|^2 / 2.

A row of zeros has the cosine 0 with every other row.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class CentredRows(NamedTuple):
    """Rows of length 1 for `cosines_less_one`.

    Attributes:
        rows: (n, D), without the centre.
        terms: (n,) what a row adds to all its cosines beside the product.
    """

    rows: Tensor
    terms: Tensor


def centred(rows: Tensor, centre: Tensor) -> CentredRows:
    """Rows (n, D) of length 1, or of zeros, around a centre (D,) that lies near all that they are compared with."""
    is_zero = (rows == 0).all(dim=1)
    rows = rows - centre
    return CentredRows(rows, -rows.square().sum(dim=1) / 2 - is_zero / 2)


def cosines_less_one(queries: CentredRows, others: CentredRows) -> Tensor:
    """(Q, n) cosines minus 1, which keeps what tells them apart; both sides have the same centre."""
    # An autocast around the call would compute the products in half precision.
    with torch.autocast(queries.rows.device.type, enabled=False):
        return torch.addmm(others.terms, queries.rows, others.rows.T).add_(queries.terms[:, None])
