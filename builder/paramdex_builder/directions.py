"""A head's singular directions: what its matrix over tokens reads and writes, apart.

The matrix is M = Ec P^T (Ec Q^T)^T, V x V, for the head's vectors P, Q (m x d each) and E less its column means: as in
all that an atlas compares, what is the same to all tokens counts for nothing (in the demo models it is two thirds of
E, and the first direction of E P^T Q E^T is hardly more than that). With Ec = X R, X of orthonormal columns (R of
``isometry``), M = X (R P^T) (R Q^T)^T X^T, and from R P^T = A S, R Q^T = B T (QR) and the SVD of the m x m core

    S T^T = U diag(s) W^T:      M = sum_i s_i u_i w_i^T,      u_i = X A U_i,   w_i = X B W_i,

which is the SVD of M: nothing of size V but the u_i = Ec R^+ A U_i and w_i themselves is formed. ``score`` is u_i's (or
w_i's) entry times sqrt(V): the mean over the vocabulary is 0 and the standard deviation 1, so it is a z.

The sign of a pair (u_i, w_i) is that which makes the largest entry of u_i in size positive (of equal ones that of the
smallest token id). So tokens on the top side are read together with the top of what is written, bottom with bottom.
All sums are in float64; scores are ordered as float32, ties by token id. Where two singular values agree to rounding,
their directions are not determined.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from paramdex_builder.space import Space
from paramdex_schemas.isometry import strongest

TOKENS = 10
"""Tokens kept of each direction, role and side."""
_CHUNK = 1024
"""Rows of E that are held in float64 at a time."""


@dataclass(frozen=True)
class Direction:
    """One singular direction: its value, its share of the squared Frobenius norm of M, and its tokens.

    ``tokens`` has (ids, scores), strongest first, by role (source is read or asks, target is written or answers) and
    side.
    """

    singular_value: float
    share: float
    tokens: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]


def directions(P: torch.Tensor, Q: torch.Tensor, space: Space, k: int, n_tokens: int = TOKENS) -> list[Direction]:
    """The first k singular directions of a head with vectors P and Q (m x d each), fewer where the rank is less."""
    if not k:
        return []
    values, sources, targets = singular_vectors(P, Q, space, k)
    if not len(values):
        return []
    n = len(values)
    scores = centred_scores(np.concatenate([sources, targets]), space)
    total = squared_norm(P, Q, space)
    found = []
    for i, value in enumerate(values):
        pair = (scores[i], scores[n + i])
        sign = np.float32(np.sign(pair[0][int(np.argmax(np.abs(pair[0])))]) or 1)
        tokens = {}
        for role, entries in zip(("source", "target"), pair, strict=True):
            for side, towards in (("top", sign), ("bottom", -sign)):
                ids = strongest(towards * entries, n_tokens)
                tokens[role, side] = ids, sign * entries[ids] + np.float32(0)  # + 0: -0.0 is 0.0
        found.append(Direction(float(value), min(1.0, float(value) ** 2 / total), tokens))
    return found


def singular_vectors(
    P: torch.Tensor, Q: torch.Tensor, space: Space, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k largest singular values (n) of M, and R^+ A U_i and R^+ B W_i of each (n x d each), all float64."""
    (A, S), (B, T) = (np.linalg.qr(space.coordinates(X).cpu().numpy().T) for X in (P, Q))
    U, values, Wt = np.linalg.svd(S @ T.T)
    n = min(k, int((values > len(values) * np.finfo(np.float64).eps * values[0]).sum())) if len(values) else 0
    inverse = space.root.inverse
    return values[:n], (inverse @ (A @ U[:, :n])).T, (inverse @ (B @ Wt[:n].T)).T


def squared_norm(P: torch.Tensor, Q: torch.Tensor, space: Space) -> float:
    """||M||_F^2, from two small Grams."""
    (C, D) = (space.coordinates(X) for X in (P, Q))
    return float(((C @ C.T) * (D @ D.T)).sum())


def centred_scores(vectors: np.ndarray, space: Space) -> np.ndarray:
    """sqrt(V) Ec v of every vector (n x d, float64): n x V, float32."""
    E = space.embedding
    D = torch.from_numpy(np.ascontiguousarray(vectors * space.size**0.5)).to(E.device)
    shift = D @ space.means
    parts = [(D @ chunk.double().T - shift[:, None]).float() for chunk in E.split(_CHUNK)]
    return torch.cat(parts, 1).cpu().numpy()
