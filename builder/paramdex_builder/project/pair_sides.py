"""The two sides of a head's matrix over tokens: a row for each token, and what several scans need of these rows.

A matrix is A B^T with A and B (V x m) both sides. Heads that share keys and values share a side, and both rankings of a
head are made of the same products: by token_z the rows are f_t (a_t - mean), one number for each token. So a side holds
the products once, its rows are made where they are needed, and its sums are made once for all matrices that it is in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch

CHUNK = 1024
"""Rows that are worked on at a time: on a processor, they stay in a core's cache."""


@dataclass(eq=False)
class Side:
    """The rows f_t (a_t - mean) of a ``table`` of products (V x m, float64), for ``factors`` f (V, float64), where
    there are any, and a ``mean`` (m, float64), where one is taken off.
    """

    table: torch.Tensor
    mean: torch.Tensor | None = field(default=None, kw_only=True)
    factors: torch.Tensor | None = field(default=None, kw_only=True)

    @classmethod
    def of(cls, rows: torch.Tensor | Side) -> Side:
        """A side, also of plain rows."""
        return rows if isinstance(rows, Side) else cls(rows)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def width(self) -> int:
        return self.table.shape[1]

    @property
    def device(self) -> torch.device:
        return self.table.device

    def __getitem__(self, part: slice) -> torch.Tensor:
        """Some rows (n x m, float64), the same to the bit as those that ``take`` gives."""
        return self._made(self.table[part], None if self.factors is None else self.factors[part])

    def take(self, ids: torch.Tensor) -> torch.Tensor:
        """The rows of the tokens ``ids`` (n x m, float64)."""
        return self._made(self.table.index_select(0, ids), None if self.factors is None else self.factors[ids])

    def chunks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """All rows, some at a time, and where they are."""
        for start in range(0, len(self), CHUNK):
            part = slice(start, min(start + CHUNK, len(self)))
            yield part, self[part]

    def times(self, number: float) -> Side:
        """The rows times a number, for a side that has factors."""
        assert self.factors is not None
        found = Side(self.table, mean=self.mean, factors=self.factors * number)
        found.gram = self.gram * number**2
        return found

    @cached_property
    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean of the products in the table (m), and their covariance (m x m)."""
        mean = self.table.mean(0)
        total = torch.zeros(self.width, self.width, dtype=self.table.dtype, device=self.device)
        for part in torch.split(self.table, CHUNK):
            centred = part - mean
            total += centred.T @ centred
        return mean, total / len(self)

    @cached_property
    def gram(self) -> torch.Tensor:
        """X^T X (m x m) of the rows X, off by at most 4 gamma_V trace(X^T X) in norm, whichever way it is made.

        From the moments it is V (covariance + mean mean^T). A sum of V terms is off by gamma_V of the sum of their
        sizes. So is a mean: by delta, with V ||delta|| ||mean|| at most gamma_V trace. That counts twice, in
        X^T X - V mean mean^T = sum (x - mean) (x - mean)^T + V (mean delta^T + delta mean^T).
        """
        if self.mean is None and self.factors is None:
            mean, covariance = self.moments
            return (covariance + torch.outer(mean, mean)) * len(self)
        total = torch.zeros(self.width, self.width, dtype=self.table.dtype, device=self.device)
        for _, rows in self.chunks():
            total += rows.T @ rows
        return total

    def _made(self, rows: torch.Tensor, factors: torch.Tensor | None) -> torch.Tensor:
        if self.mean is not None:
            rows = rows - self.mean
        return rows if factors is None else rows * factors[:, None]
