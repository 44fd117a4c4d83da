"""
Logits of more rows than memory can hold at once.

Distillation compares all patches of both global crops: 64 images of 224 pixels are 32,768 rows, which at 131,072
prototypes are 17 GB for the teacher and as many for the student. Their factors, rows before the prototypes and the
prototypes, are 0.2 GB; from these a chunk of logits is made whenever it is needed, and forgotten.

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
        chunk_size: rows of which logits are made at once.
    """

    bottleneck: torch.Tensor
    prototypes: torch.Tensor
    chunk_size: int

    def __len__(self) -> int:
        return len(self.bottleneck)

    @property
    def device(self) -> torch.device:
        """Where the factors are."""
        return self.bottleneck.device

    def chunks(self) -> Iterator[slice]:
        """The rows of each chunk."""
        return (slice(start, start + self.chunk_size) for start in range(0, len(self), self.chunk_size))

    def some(self, rows: slice) -> "LogitChunks":
        """Logits of these rows only."""
        return replace(self, bottleneck=self.bottleneck[rows])

    def plus(self, bias: torch.Tensor) -> "LogitChunks":
        """
        Logits with `bias` `(K,)`, float32, added to each row by the product that makes them: in two columns, since one
        of half precision would round it. Eight columns are added, of which fast products need a multiple.
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
        Logits over `temperature`, `(rows, K)`, in the dtype of the factors, but float32 in place of float16; over a
        scalar tensor in float32.
        """
        with torch.autocast(self.device.type, enabled=False):
            if isinstance(temperature, torch.Tensor):  # of a compiled step, which fuses the division
                return (self.bottleneck[rows] @ self.prototypes.T).float() / temperature
            # Scaled by the product itself, which is rounded once; `beta=0` ignores the first argument.
            nothing = self.prototypes.new_empty(())
            logits = torch.addmm(nothing, self.bottleneck[rows], self.prototypes.T, beta=0, alpha=1 / temperature)
            # Of 65,536 probabilities many are too small for float16.
            return logits.float() if logits.dtype == torch.float16 else logits


def softmax_in_place(logits: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dimension, where nobody else needs the logits; a compiler finds that out by itself."""
    if torch.compiler.is_compiling():
        return torch.softmax(logits, dim=-1)
    return torch.softmax(logits, dim=-1, out=logits)


def log_sum_exp(largest: torch.Tensor, probabilities: torch.Tensor, dim: int) -> torch.Tensor:
    """
    The logarithm of the sum of `exp(logits)`, in float32, from their softmax over `dim`: it lies as far above a logit
    as the logarithm of its probability lies below 0. No other buffer of the size of the logits is needed.

    Args:
        largest: of the logits over `dim`.
    """
    return largest.float() - probabilities.amax(dim).float().log()
