"""Balanced factors of a head's matrix A B^T: the norms of their rows say most about its scores.

A M and B N have the same product A B^T wherever M N^T = 1. Of all such factors, the norms of
A' = U sqrt(S) and B' = V sqrt(S) say most about the scores, where U S V^T is the singular value decomposition of A B^T.
They come from Gram matrices of d_head x d_head: with A^T A = L L^T, B^T B = R R^T and U S V^T now the decomposition of
L^T R, M = L^-T U sqrt(S) and N = R^-T V sqrt(S). The computed M and N need not be exact, as long as we know how far off
they are. Take any M and N, and any L, R with A^T A <= L L^T, B^T B <= R R^T. Then the rows of A, B are a = L x, b = R y
with ||x||, ||y|| at most 1, so

    |<a M, b N> - <a, b>| <= ||L^T R - (L^T M) (R^T N)^T||

To be sure of the <=, L L^T is made larger than the computed A^T A, by as much as that may be off; this also keeps L
away from singular. The roundings of float64 in A M, B N, this bound and the score itself are added (``_rounding``). The
sum is one number for all pairs, the ``gap``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from paramdex_builder.project.arithmetic import gamma64
from paramdex_builder.project.pair_sides import Side


class Balanced(NamedTuple):
    """M and N (r x r) of the balanced factors A M, B N, how far scores can be off, and what no norm of a row exceeds
    in A M and in B N.
    """

    M: torch.Tensor
    N: torch.Tensor
    gap: float
    longest: tuple[float, float]


def balance(A: Side, B: Side) -> Balanced:
    """The balanced factors of A B^T (V x r both). Columns that are zero in A or in B add nothing, and are left out.

    A row of A is L x with ||x|| <= 1, so that of A M is at most ||L^T M|| long.
    """
    M, N = (torch.zeros(A.width, A.width, dtype=A.table.dtype, device=A.device) for _ in range(2))
    used = ((A.gram.diag() > 0) & (B.gram.diag() > 0)).nonzero()
    if not len(used):
        return Balanced(M, N, 0.0, (0.0, 0.0))
    (L, inverse_L), (R, inverse_R) = (_root(side.gram[used, used.T], len(side)) for side in (A, B))
    product = L.T @ R
    U, S, Vt = torch.linalg.svd(product)
    m, n = inverse_L @ (U * S.sqrt()), inverse_R @ (Vt.T * S.sqrt())
    left, right = L.T @ m, R.T @ n
    off = float((product - left @ right.T).norm())
    M[used, used.T], N[used, used.T] = m, n
    sizes = [float(X.norm()) for X in (L, R, m, n, left, right)]
    return Balanced(M, N, 1.001 * (off + _rounding(len(used), *sizes)), (1.001 * sizes[4], 1.001 * sizes[5]))


def _root(gram: torch.Tensor, V: int) -> tuple[torch.Tensor, torch.Tensor]:
    """L (r x r) with A^T A <= L L^T, and L^-T, from the computed A^T A of V rows."""
    values, vectors = torch.linalg.eigh(gram)
    # The sums (``Side.gram``), and the decomposition, which is off by a small multiple of r u ||A^T A||.
    root = (values.clamp_min(0) + 5 * gamma64(V + 100 * len(gram)) * float(gram.trace())).sqrt()
    return vectors * root, vectors / root


def _rounding(r: int, L: float, R: float, M: float, N: float, left: float, right: float) -> float:
    """What float64 loses in <a M, b N>, <a, b> and the bound of their difference, from Frobenius norms.

    ||a|| <= L and ||b|| <= R, so a M is off by x = gamma_r L M and b N by y = gamma_r R N. So are ``left`` = L^T M and
    ``right`` = R^T N, which but for that are at least ||a M|| and ||b N||; each error counts twice. <a, b> and L^T R
    are off by gamma_r L R, and <a M, b N> and the product of left and right by gamma_r of their norms.
    """
    gamma = gamma64(r + 2)
    x, y = gamma * L * M, gamma * R * N
    return 4 * (gamma * (L * R + (left + x) * (right + y)) + x * right + y * left + x * y)
