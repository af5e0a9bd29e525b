"""A head's singular directions: what its matrix over tokens (QK or OV circuit) reads and what it writes, one by one.

The matrix is M = Ec P^T (Ec Q^T)^T, V x V, for the head's vectors P, Q (m x d each), where Ec is E less its column
means. (Sides that are scored in two spaces have an E, X and R each.) As everywhere in an atlas, what is the same for
all tokens does not count. (In the demo models it is two thirds of E, and the first direction of E P^T Q E^T is hardly
more than that.) With Ec = X R, where X has orthonormal columns and R is that of ``isometry``,
M = X (R P^T) (R Q^T)^T X^T. From R P^T = A S, R Q^T = B T (QR) and the SVD of the m x m
core

    S T^T = U diag(s) W^T:      M = sum_i s_i u_i w_i^T,      u_i = X A U_i,   w_i = X B W_i,

which is the SVD of M. Since u_i = M w_i / s_i, u_i = Ec P^T (T^T W_i / s_i), and likewise w_i = Ec Q^T (S^T U_i / s_i).
The scan of the head's pairs has E P^T and E Q^T already. ``score`` is the entry of u_i (or w_i) times sqrt(V): its mean
over the vocabulary is 0 and its standard deviation 1, so it is a z.

The sign of a pair (u_i, w_i) is the one that makes the entry of u_i that is largest in size positive (of equal ones
that of the smallest token id). So tokens on the top side are read together with the top of what is written, and the
bottom with the bottom. All sums are in float64. Scores are ordered as float32, ties by token id. Where two singular
values agree up to rounding, their directions are not determined.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from paramdex_builder.project.space import Space
from paramdex_schemas.isometry import strongest

TOKENS = 10
"""Tokens kept per direction, role and side."""


@dataclass(frozen=True)
class Direction:
    """One singular direction: its value, its share of the squared Frobenius norm of M, and its tokens.

    ``tokens`` has (ids, scores), strongest first, by role and side. The source is what is read (VO) or what asks (QK),
    the target what is written or what answers.
    """

    singular_value: float
    share: float
    tokens: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Factor:
    """One side of a head's matrix: its vectors (m x d), the space that scores them, and their scores (V x m)."""

    rows: torch.Tensor
    space: Space
    scores: torch.Tensor

    def coordinates(self) -> torch.Tensor:
        """R p of every vector p (m x r, float64)."""
        return self.space.coordinates(self.rows)


def directions(left: Factor, right: Factor, k: int, n_tokens: int = TOKENS) -> list[Direction]:
    """The first k singular directions of a head's matrix with these two sides; fewer where the rank is less."""
    if not k:
        return []
    values, of_left, of_right = singular_values(left, right, k)
    if not len(values):
        return []
    sources, targets = centred(left.scores, of_left), centred(right.scores, of_right)
    total = squared_norm(left, right)
    found = []
    for i, value in enumerate(values):
        pair = (sources[i], targets[i])
        sign = np.float32(np.sign(pair[0][int(np.argmax(np.abs(pair[0])))]) or 1)
        tokens = {}
        for role, entries in zip(("source", "target"), pair, strict=True):
            for side, towards in (("top", sign), ("bottom", -sign)):
                ids = strongest(towards * entries, n_tokens)
                tokens[role, side] = ids, sign * entries[ids] + np.float32(0)  # + 0: -0.0 is 0.0
        found.append(Direction(float(value), min(1.0, float(value) ** 2 / total), tokens))
    return found


def singular_values(left: Factor, right: Factor, k: int) -> tuple[torch.Tensor, ...]:
    """The k largest singular values s (n) of M, with T^T W_i / s_i and S^T U_i / s_i (m x n each), all float64."""
    (_, S), (_, T) = (torch.linalg.qr(side.coordinates().cpu().T) for side in (left, right))
    U, values, Wt = torch.linalg.svd(S @ T.T)
    if not len(values):
        return values, T.T, S.T
    roots = [side.space.root for side in (left, right)]
    sizes = float(left.rows.double().norm() * right.rows.double().norm())
    # what rounding leaves of a matrix whose scores are all equal, on either side
    of_zero = sizes * max(one.rounding * float(np.linalg.norm(other.root)) for one, other in (roots, reversed(roots)))
    cutoff = max(len(values) * torch.finfo(torch.float64).eps * float(values[0]), of_zero)
    n = min(k, int((values > cutoff).sum()))
    return values[:n], T.T @ Wt[:n].T / values[:n], S.T @ U[:, :n] / values[:n]


def squared_norm(left: Factor, right: Factor) -> float:
    """||M||_F^2, from two small Gram matrices."""
    C, D = left.coordinates(), right.coordinates()
    return float(((C @ C.T) * (D @ D.T)).sum())


def centred(A: torch.Tensor, coefficients: torch.Tensor) -> np.ndarray:
    """sqrt(V) A C less its column means, transposed (n x V, float32), for A (V x m) and coefficients C (m x n)."""
    scores = (coefficients.to(A.device) * len(A) ** 0.5).T @ A.T
    found: np.ndarray = (scores - scores.mean(1, keepdim=True)).float().cpu().numpy()
    return found
