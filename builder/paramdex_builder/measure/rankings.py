"""Two ways to rank a vector's tokens, and a head's pairs: by score, and by what is unusual for each token.

A vector r has the score x_t . r of token t, where x_t is t's row of the space that r is scored in. Some tokens have
large scores with nearly every vector, and stand in lists that have nothing to do with them. ``token_z`` says how many
standard deviations a score lies above the mean of that token's own scores over all vectors of the kind in that space,
those of all layers together:

    token_z = (x_t . r - x_t . m) / s_t,    s_t^2 = x_t^T C x_t

with the mean m (d) and the population covariance C (d x d) of those vectors. (For hubs in lists of neighbours see
Radovanovic, Nanopoulos and Ivanovic 2010; theirs is a z-score of the same sort.)

For pairs, let S_h (V x V) be the scores of head h, in their root mean square so that every head counts the same:

    token_z = S_h(s, t) / (alpha_s beta_t)

where alpha_s^2 is the mean of S_h(s, t)^2 over all heads h and tokens t, and beta_t^2 that over all h and s. Both are
quadratic forms of the tokens' rows, so no V x V numbers are made.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

RANKINGS = ("score", "token_z")
LEAST_HEADS = 8
"""With fewer heads nothing is usual for a pair."""
_ROWS = 4096
"""Rows that are held in float64 at a time."""


Side = tuple[torch.Tensor, torch.Tensor]
"""A table of tokens (V x d), and a head's vectors (d_head x d)."""


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
        return _squares(table, self.covariance).sqrt()


def _squares(table: torch.Tensor, form: torch.Tensor) -> torch.Tensor:
    """x^T M x (V, float64) of each row x of a table (V x d) and a form M (d x d, float64) that has no negative ones."""
    found = []
    for rows in torch.split(table, _ROWS):
        x = rows.double()
        found.append(((x @ form) * x).sum(dim=1).clamp_min(0))
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


@dataclass(frozen=True)
class UsualPairs:
    """What is usual for each token of a pair: alpha of sources and beta of targets (V each, float64)."""

    alpha: torch.Tensor
    beta: torch.Tensor

    @classmethod
    def of(cls, heads: Iterable[tuple[Side, Side]]) -> UsualPairs | None:
        """For both sides of all heads' matrices, whose scores are X P^T Q Y^T. None where there are too few heads."""
        sums: tuple[dict[int, Side], dict[int, Side]] = ({}, {})
        grams: dict[int, torch.Tensor] = {}
        n = 0
        for sides in heads:
            inner = []
            for table, rows in sides:
                if id(table) not in grams:
                    grams[id(table)] = _gram(table)
                inner.append(rows.double() @ grams[id(table)] @ rows.double().T)
            mean_square = float((inner[0] * inner[1]).sum())
            if not mean_square > 0:
                continue
            n += 1
            for own, (table, rows), other in zip(sums, sides, reversed(inner), strict=True):
                form = rows.double().T @ (other / mean_square) @ rows.double()
                own[id(table)] = table, own[id(table)][1] + form if id(table) in own else form
        if n < LEAST_HEADS:
            return None
        alpha, beta = (sum(_squares(table, form / n) for table, form in own.values()) for own in sums)
        return cls(torch.as_tensor(alpha).sqrt(), torch.as_tensor(beta).sqrt())

    def ranked(self, A: torch.Tensor, B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The factors (V x d_head each) whose product ranks the pairs of A B^T; a token that never scores has none."""
        alpha, beta = (torch.where(usual > 0, 1 / usual, 0)[:, None] for usual in (self.alpha, self.beta))
        return A * alpha, B * beta


def _gram(table: torch.Tensor) -> torch.Tensor:
    """X^T X / V (d x d, float64)."""
    gram = sum(rows.double().T @ rows.double() for rows in torch.split(table, _ROWS))
    return torch.as_tensor(gram) / len(table)
