"""
Logits for more rows than memory can hold at once.

Distillation compares all patches of both global crops. 64 images of 224 pixels give 32,768 rows. With 131,072
prototypes, their logits are 17 GB for the teacher and 17 GB for the student. The factors of the logits (the rows
before the prototypes, and the prototypes) are only 0.2 GB. A chunk of logits is computed from them whenever it is
needed, and is not kept.

Shapes: `n` rows (crops or patches), `d` bottleneck size, `K` prototypes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class LogitChunks:
    """
    Args:
        bottleneck: `(n, d)`.
        prototypes: `(K, d)`.
        chunk_size: rows whose logits are made at once.
    """

    bottleneck: torch.Tensor
    prototypes: torch.Tensor
    chunk_size: int

    def __len__(self) -> int:
        return len(self.bottleneck)

    @property
    def device(self) -> torch.device:
        """The device of the factors."""
        return self.bottleneck.device

    def chunks(self) -> Iterator[slice]:
        """The rows of each chunk."""
        return (slice(start, start + self.chunk_size) for start in range(0, len(self), self.chunk_size))

    def some(self, rows: slice) -> "LogitChunks":
        """Logits of these rows only."""
        return replace(self, bottleneck=self.bottleneck[rows])

    def plus(self, bias: torch.Tensor) -> "LogitChunks":
        """
        Logits with `bias` `(K,)`, float32, added to each row by the product that makes them. The bias takes two
        columns, because one column in half precision would round it. Eight columns are added, because fast products
        need a multiple of eight.
        """
        high = bias.to(self.prototypes.dtype)
        columns = self.prototypes.new_zeros(len(bias), 8)
        columns[:, 0], columns[:, 1] = high, bias - high
        ones = columns.new_ones(len(self), 8)
        return replace(
            self,
            bottleneck=torch.cat([self.bottleneck, ones], dim=1),
            prototypes=torch.cat([self.prototypes, columns], dim=1),
        )

    def rows(self, rows: slice, temperature: float | torch.Tensor = 1.0) -> torch.Tensor:
        """
        Logits divided by `temperature`, `(rows, K)`, in the dtype of the factors, but float32 instead of float16. If
        `temperature` is a scalar tensor, they are float32.
        """
        with torch.autocast(self.device.type, enabled=False):
            if isinstance(temperature, torch.Tensor):  # in a compiled step, which fuses the division
                return (self.bottleneck[rows] @ self.prototypes.T).float() / temperature
            # The product itself scales, and rounds only once; `beta=0` ignores the first argument.
            nothing = self.prototypes.new_empty(())
            logits = torch.addmm(nothing, self.bottleneck[rows], self.prototypes.T, beta=0, alpha=1 / temperature)
            # Many of 65,536 probabilities are too small for float16.
            return logits.float() if logits.dtype == torch.float16 else logits


def softmax_in_place(logits: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dimension, in place of logits that nothing else needs. A compiler does this by itself."""
    if torch.compiler.is_compiling():
        return torch.softmax(logits, dim=-1)
    return torch.softmax(logits, dim=-1, out=logits)


def log_sum_exp(largest: torch.Tensor, probabilities: torch.Tensor, dim: int) -> torch.Tensor:
    """
    The logarithm of the sum of `exp(logits)`, in float32, from their softmax over `dim`: a logit minus the logarithm
    of its probability. No other buffer of the size of the logits is needed.

    Args:
        largest: the largest logits over `dim`.
    """
    return largest.float() - probabilities.amax(dim).float().log()
