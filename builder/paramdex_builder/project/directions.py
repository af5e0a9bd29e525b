"""A head's singular directions: what its matrix over tokens reads and writes, apart.

The matrix is M = Ec P^T (Ec Q^T)^T, V x V, for the head's vectors P, Q (m x d each) and E less its column means: as in
all that an atlas compares, what is the same to all tokens counts for nothing (in the demo models it is two thirds of
E, and the first direction of E P^T Q E^T is hardly more than that). With Ec = X R, X of orthonormal columns (R of
``isometry``), M = X (R P^T) (R Q^T)^T X^T, and from R P^T = A S, R Q^T = B T (QR) and the SVD of the m x m core

    S T^T = U diag(s) W^T:      M = sum_i s_i u_i w_i^T,      u_i = X A U_i,   w_i = X B W_i,

which is the SVD of M. As u_i = M w_i / s_i, it is Ec P^T (T^T W_i / s_i), from what the scan of the head's pairs has of
E P^T already; so is w_i = Ec Q^T (S^T U_i / s_i). ``score`` is u_i's (or w_i's) entry times sqrt(V): the mean over the
vocabulary is 0 and the standard deviation 1, so it is a z.

The sign of a pair (u_i, w_i) is that which makes the largest entry of u_i in size positive (of equal ones that of the
smallest token id). So tokens on the top side are read together with the top of what is written, bottom with bottom.
All sums are in float64; scores are ordered as float32, ties by token id. Where two singular values agree to rounding,
their directions are not determined.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from paramdex_builder.project.space import Space
from paramdex_schemas.isometry import strongest

TOKENS = 10
"""Tokens kept of each direction, role and side."""


@dataclass(frozen=True)
class Direction:
    """One singular direction: its value, its share of the squared Frobenius norm of M, and its tokens.

    ``tokens`` has (ids, scores), strongest first, by role (source is read or asks, target is written or answers) and
    side.
    """

    singular_value: float
    share: float
    tokens: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]


def directions(
    P: torch.Tensor, Q: torch.Tensor, A: torch.Tensor, B: torch.Tensor, space: Space, k: int, n_tokens: int = TOKENS
) -> list[Direction]:
    """The first k singular directions of a head with vectors P and Q (m x d each), fewer where the rank is less.

    A = E P^T and B = E Q^T are V x m, float64.
    """
    if not k:
        return []
    values, left, right = singular_values(P, Q, space, k)
    if not len(values):
        return []
    sources, targets = centred(A, left), centred(B, right)
    total = squared_norm(P, Q, space)
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


def singular_values(P: torch.Tensor, Q: torch.Tensor, space: Space, k: int) -> tuple[torch.Tensor, ...]:
    """The k largest singular values s (n) of M, with T^T W_i / s_i and S^T U_i / s_i (m x n each), all float64."""
    (_, S), (_, T) = (torch.linalg.qr(space.coordinates(X).cpu().T) for X in (P, Q))
    U, values, Wt = torch.linalg.svd(S @ T.T)
    if not len(values):
        return values, T.T, S.T
    sizes = float(np.linalg.norm(space.root.root)) * float(P.double().norm() * Q.double().norm())
    of_zero = space.root.rounding * sizes  # what rounding leaves of a matrix whose scores are all equal
    cutoff = max(len(values) * torch.finfo(torch.float64).eps * float(values[0]), of_zero)
    n = min(k, int((values > cutoff).sum()))
    return values[:n], T.T @ Wt[:n].T / values[:n], S.T @ U[:, :n] / values[:n]


def squared_norm(P: torch.Tensor, Q: torch.Tensor, space: Space) -> float:
    """||M||_F^2, from two small Grams."""
    (C, D) = (space.coordinates(X) for X in (P, Q))
    return float(((C @ C.T) * (D @ D.T)).sum())


def centred(A: torch.Tensor, coefficients: torch.Tensor) -> np.ndarray:
    """sqrt(V) A C less its column means, transposed (n x V, float32), for A (V x m) and coefficients C (m x n)."""
    scores = (coefficients.to(A.device) * len(A) ** 0.5).T @ A.T
    found: np.ndarray = (scores - scores.mean(1, keepdim=True)).float().cpu().numpy()
    return found
