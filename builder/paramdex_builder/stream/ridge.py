"""Ridge regression from sums: the best linear guess of one vector from another.

With pairs (x, y) in rows of X (n x p) and Y (n x q), less their means Xc and Yc,

    B = (Xc^T Xc + lambda I)^-1 (Xc^T Yc + lambda P),        y is guessed as  mean(y) + B^T (x - mean(x)).

That is the least of |Yc - Xc B|^2 + lambda |B - P|^2 (Hoerl and Kennard 1970, whose P is 0): least squares that pays
for leaving the prior P. lambda is a fraction of the mean of Xc^T Xc's diagonal, so that it means the same at any scale
and for any number of pairs. Nothing is kept of the pairs but sums, and sums over parts of a text add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Given:
    """Sums over the vectors x that are known: how many, sum of x (p), of x x^T (p x p). In float64."""

    n: int
    x: torch.Tensor
    xx: torch.Tensor

    @classmethod
    def of(cls, X: torch.Tensor) -> Given:
        """Of vectors in rows (n x p)."""
        X = X.double()
        return cls(len(X), X.sum(0), X.T @ X)

    def __add__(self, other: Given) -> Given:
        return Given(self.n + other.n, self.x + other.x, self.xx + other.xx)

    def covariance(self) -> torch.Tensor:
        """Xc^T Xc (p x p)."""
        return self.xx - torch.outer(self.x, self.x) / self.n


@dataclass(frozen=True)
class Wanted:
    """Sums over the vectors y that are to be guessed: of y (q), of x y^T (p x q). In float64."""

    y: torch.Tensor
    xy: torch.Tensor

    @classmethod
    def of(cls, X: torch.Tensor, Y: torch.Tensor) -> Wanted:
        """Of pairs in rows (n x p and n x q)."""
        Y = Y.double()
        return cls(Y.sum(0), X.double().T @ Y)

    def __add__(self, other: Wanted) -> Wanted:
        return Wanted(self.y + other.y, self.xy + other.xy)


def fit(given: Given, wanted: Wanted, fraction: float, *, diagonal: bool = False) -> torch.Tensor:
    """B (p x q, float64). ``fraction`` gives lambda; the prior P is 0, or with ``diagonal`` (p = q) the least squares
    of each number of y on the same number of x.
    """
    covariance = given.covariance()
    wants = wanted.xy - torch.outer(given.x, wanted.y) / given.n
    spread = covariance.diagonal()
    paid = fraction * spread.mean()
    left = covariance + paid * torch.eye(len(covariance), dtype=covariance.dtype)
    if diagonal:
        wants = wants + paid * torch.diag(wants.diagonal() / spread.clamp_min(torch.finfo(spread.dtype).tiny))
    found: torch.Tensor = torch.linalg.solve(left, wants)
    return found
