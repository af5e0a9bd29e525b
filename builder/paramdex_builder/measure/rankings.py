"""Two ways to rank a vector's tokens: by score, and by what is unusual for each token.

A vector r has the score x_t . r of token t, where x_t is t's row of the space that r is scored in. Some tokens have
large scores with nearly every vector, and stand in lists that have nothing to do with them. ``token_z`` says how many
standard deviations a score lies above the mean of that token's own scores over all vectors of the kind in that space,
those of all layers together:

    token_z = (x_t . r - x_t . m) / s_t,    s_t^2 = x_t^T C x_t

with the mean m (d) and the population covariance C (d x d) of those vectors. (For hubs in lists of neighbours see
Radovanovic, Nanopoulos and Ivanovic 2010; theirs is a z-score of the same sort.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

RANKINGS = ("score", "token_z")
_ROWS = 4096
"""Rows that are held in float64 at a time."""


@dataclass(frozen=True)
class Moments:
    """The mean (d) and the population covariance (d x d) of vectors, float64."""

    mean: torch.Tensor
    covariance: torch.Tensor

    @classmethod
    def of(cls, parts: Iterable[torch.Tensor]) -> Moments:
        """Of all rows of some ``parts`` (n x d each), at least one in all."""
        n, total, squares = 0, torch.zeros(1), torch.zeros(1)
        shift: torch.Tensor | None = None
        for part in parts:
            for rows in torch.split(part, _ROWS):
                shift = rows.double().mean(dim=0) if shift is None else shift  # so that little cancels
                off = rows.double() - shift
                n, total, squares = n + len(rows), total + off.sum(dim=0), squares + off.T @ off
        assert shift is not None
        mean = total / n
        return cls(shift + mean, squares / n - torch.outer(mean, mean))

    def spread(self, table: torch.Tensor) -> torch.Tensor:
        """The standard deviation (V, float64) of each token's scores, for a ``table`` of tokens (V x d)."""
        found = []
        for rows in torch.split(table, _ROWS):
            x = rows.double()
            found.append(((x @ self.covariance) * x).sum(dim=1).clamp_min(0).sqrt())
        return torch.cat(found)


@dataclass(frozen=True)
class Usual:
    """What is usual for each token of a space: the mean and standard deviation (V each, float32) of its scores."""

    mean: torch.Tensor
    deviation: torch.Tensor

    @classmethod
    def of(cls, table: torch.Tensor, moments: Moments) -> Usual:
        """For a ``table`` of tokens (V x d), and the moments of the vectors that it scores."""
        return cls((table @ moments.mean.to(table.dtype)).float(), moments.spread(table).float())

    def ranked(self, scores: torch.Tensor) -> dict[str, torch.Tensor]:
        """By the names of RANKINGS, what tokens are ranked by, for the ``scores`` (n x V) of n vectors. A token whose
        scores are all equal has the token_z 0.
        """
        z = (scores - self.mean).div_(torch.where(self.deviation > 0, self.deviation, torch.inf))
        return {"score": scores, "token_z": z}
