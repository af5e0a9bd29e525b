"""Ridge regression from sums: the best linear guess of one vector from another.

With pairs (x, y) in rows of X (n x p) and Y (n x q), less their means Xc and Yc,

    B = (Xc^T Xc + lambda I)^-1 (Xc^T Yc + lambda P),        y is guessed as  mean(y) + B^T (x - mean(x)).

That is the least of |Yc - Xc B|^2 + lambda |B - P|^2 (Hoerl and Kennard 1970, whose P is 0): least squares that pays
for leaving the prior P. lambda is a fraction of the mean of Xc^T Xc's diagonal, so that it means the same at any scale
and for any number of pairs. Nothing is kept of the pairs but sums in float64, to which each part of a text is added.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_ROUNDED = 1e-12
"""A variance that is this small a part of a mean square is what rounding leaves of 0."""


@dataclass
class Given:
    """Sums over the vectors x that are known: how many, sum of x (p), of x x^T (p x p)."""

    n: int
    x: torch.Tensor
    xx: torch.Tensor

    @classmethod
    def of(cls, X: torch.Tensor) -> Given:
        """Of vectors in rows (n x p)."""
        p = X.shape[1]
        sums = cls(0, torch.zeros(p, dtype=torch.float64), torch.zeros(p, p, dtype=torch.float64))
        sums.add(X)
        return sums

    def add(self, X: torch.Tensor) -> None:
        """Add vectors in rows (n x p)."""
        X = X.double()
        self.n += len(X)
        self.x += X.sum(0)
        self.xx.addmm_(X.T, X)

    def covariance(self) -> torch.Tensor:
        """Xc^T Xc (p x p)."""
        return self.xx - torch.outer(self.x, self.x) / self.n


@dataclass
class Wanted:
    """Sums over the vectors y that are to be guessed: of y (q), of x y^T (p x q)."""

    y: torch.Tensor
    xy: torch.Tensor

    @classmethod
    def of(cls, X: torch.Tensor, Y: torch.Tensor) -> Wanted:
        """Of pairs in rows (n x p and n x q)."""
        p, q = X.shape[1], Y.shape[1]
        sums = cls(torch.zeros(q, dtype=torch.float64), torch.zeros(p, q, dtype=torch.float64))
        sums.add(X, Y)
        return sums

    def add(self, X: torch.Tensor, Y: torch.Tensor) -> None:
        """Add pairs in rows (n x p and n x q)."""
        Y = Y.double()
        self.y += Y.sum(0)
        self.xy.addmm_(X.double().T, Y)

    def covariance(self, given: Given) -> torch.Tensor:
        """Xc^T Yc (p x q)."""
        return self.xy - torch.outer(given.x, self.y) / given.n


def fit(given: Given, wanted: Wanted, fraction: float, *, diagonal: bool = False) -> torch.Tensor:
    """B (p x q, float64). ``fraction`` gives lambda; the prior P is 0, or with ``diagonal`` (p = q) the least squares
    of each number of y on the same number of x. Where x never varies, B is 0.
    """
    covariance, wants = given.covariance(), wanted.covariance(given)
    spread = covariance.diagonal()
    paid = fraction * float(spread.mean()) or 1.0
    left = covariance + paid * torch.eye(len(covariance), dtype=covariance.dtype)
    if diagonal:
        varies = spread > _ROUNDED * given.xx.diagonal()
        wants = wants + paid * torch.diag(torch.where(varies, wants.diagonal() / spread, 0))
    found: torch.Tensor = torch.linalg.solve(left, wants)
    return found
