"""Pairs: the strongest token pairs of a head's matrix, both sides, exact, and never V x V numbers in memory.

A head's matrix over tokens is A B^T, with A and B V x d_head. The QK circuit has A = E W_Q, B = E W_K; the OV circuit,
VO here, has A = E W_V, B = E W_O^T. A stored score is the float64 value rounded to float32. Pairs are ordered by
(stored score, source id, target id).

Pairs of different words are found by a scan (``pair_scan``). Pairs of one word with itself are few and known: where
they can be as strong as the pairs found, they are scored directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from paramdex_builder.project.arithmetic import gamma64
from paramdex_builder.project.engines import Engine, PairSelecting, pair_engine_of
from paramdex_builder.project.gpu_pairs import WaveScan
from paramdex_builder.project.pair_scan import Scan, TokenPairs, Words
from paramdex_builder.project.pair_sides import CHUNK, Side

__all__ = [
    "HeadPairs",
    "TokenPairs",
    "Words",
    "balanced",
    "factors",
    "frobenius",
    "of_rank",
    "pair_moments",
    "same_words",
    "strongest_pairs",
]


def same_words(numbers: np.ndarray, device: torch.device) -> Words:
    """Every ordered pair of tokens of one word, each token with itself included, from the word numbers (V)."""
    order = np.argsort(numbers, kind="stable")
    starts = np.flatnonzero(np.diff(numbers[order], prepend=-1))
    groups = np.split(order, starts[1:])
    source = np.concatenate([np.repeat(group, len(group)) for group in groups])
    target = np.concatenate([np.tile(group, len(group)) for group in groups])
    return Words(*(torch.from_numpy(np.ascontiguousarray(ids)).to(device) for ids in (numbers, source, target)))


@dataclass
class HeadPairs:
    """One side of a head's matrix: the best ``distinct`` (of different words), and the best of ``all`` pairs."""

    distinct: TokenPairs
    all: TokenPairs


def strongest_pairs(
    A: torch.Tensor | Side, B: torch.Tensor | Side, words: Words, k: int, engine: Engine | None = None
) -> dict[str, HeadPairs]:
    """The k strongest pairs of A B^T (both sides V x d_head, float64), overall and of different words, both sides.

    A list is shorter where there are fewer pairs. Works on the device of ``A``. The result is the same on every device
    and with every ``engine``; without one, the fastest for the device is taken.
    """
    engine = engine or pair_engine_of(A.device)
    scan = WaveScan(A, B, words, k, engine) if isinstance(engine, PairSelecting) else Scan(A, B, words, k, engine)
    searches = scan.run()
    reachable = scan.reachable(words.source, words.target)
    source, target = words.source[reachable], words.target[reachable]
    same = TokenPairs(source, target, scan.scores(source, target))
    result = {}
    for name, search in zip(("top", "bottom"), searches, strict=True):
        distinct = search.found.best(k)
        both = TokenPairs.cat(distinct, same.signed(search.sign)).best(k)
        result[name] = HeadPairs(distinct.signed(search.sign), both.signed(search.sign))
    return result


def factors(E: torch.Tensor, weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """E P^T (V x m, float64) for each of the ``weights`` P (m x d), in one product: E is read once for all of them."""
    stacked = torch.cat([P.double() for P in weights]).T
    out = torch.empty(len(E), stacked.shape[1], dtype=torch.float64, device=E.device)
    wide = torch.empty(CHUNK, E.shape[1], dtype=torch.float64, device=E.device)
    for some, products in zip(torch.split(E, CHUNK), torch.split(out, CHUNK), strict=True):
        torch.mm(wide[: len(some)].copy_(some), stacked, out=products)
    return list(torch.split(out, [len(P) for P in weights], dim=1))


def balanced(P: torch.Tensor, Q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """P', Q' (m x d, float64) with P'^T Q' = P^T Q to the bit, and rows of about equal norm in both.

    This is for factors that are put together from terms, small times large and large times small. Each row is scaled
    by a power of two, and its counterpart by the inverse. A row beside a row of zeros adds nothing, and becomes zeros.
    """
    P, Q = P.double(), Q.double()
    p, q = P.norm(dim=1), Q.norm(dim=1)
    adds = (p > 0) & (q > 0)
    exponents = ((q / p).where(adds, 1.0).log2() / 2).round()
    scale = torch.tensor([2.0 ** int(exponent) for exponent in exponents], dtype=P.dtype, device=P.device) * adds
    return P * scale[:, None], Q * (adds / scale).where(adds, 0.0)[:, None]


def of_rank(P: torch.Tensor, Q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """P', Q' (r x d) with P'^T Q' = P^T Q (P, Q: m x d, float64), where r is the rank of that product. Where that is
    m or 0, they are P and Q.

    What LoRA moved has a low rank. With dependent columns the scan of E P^T (E Q^T)^T has no useful bounds, and takes
    minutes in place of a tenth of a second. With P^T = X R, Q^T = Y T and R T^T = U S V^T, P' = (X U sqrt(S))^T and
    Q' = (Y V sqrt(S))^T. Singular values that are 0 but for rounding are left out.
    """
    (X, R), (Y, T) = (torch.linalg.qr(factor.T.cpu()) for factor in (P, Q))
    U, S, Vt = torch.linalg.svd(R @ T.T)
    rank = int((S / S[0] > len(S) * torch.finfo(S.dtype).eps).sum())
    if rank in (0, len(P)):
        return P, Q
    root = S[:rank].sqrt()
    return tuple((A * root).T.contiguous().to(P.device) for A in (X @ U[:, :rank], Y @ Vt[:rank].T))


def pair_moments(A: torch.Tensor | Side, B: torch.Tensor | Side) -> tuple[float, float]:
    """Mean and population standard deviation of all V^2 scores of A B^T, in closed form from two small Gram matrices.

    With A = 1 a^T + A', B = 1 b^T + B' (a, b the column means), the score <a_i, b_j> is <a, b> + <a, b'_j> + <a'_i, b>
    + <a'_i, b'_j>. The last three have mean 0 and are uncorrelated, so the variance is the sum of their mean squares.
    """
    (a, cov_a), (b, cov_b) = Side.of(A).moments, Side.of(B).moments
    std = max(float(a @ cov_b @ a + b @ cov_a @ b + (cov_a * cov_b).sum()), 0.0) ** 0.5
    sizes = [float(mean @ mean + cov.trace()) ** 0.5 for mean, cov in ((a, cov_a), (b, cov_b))]
    of_zero = 16 * gamma64(len(a) + 1) * sizes[0] * sizes[1]  # what rounding leaves where all scores are equal
    return float(a @ b), std if std > of_zero else 0.0


def frobenius(P: torch.Tensor, Q: torch.Tensor) -> float:
    """||P^T Q||_F for P, Q (d_head x d): the norm of the d x d matrix they make, from two small Gram matrices."""
    P, Q = P.double(), Q.double()
    return float(max(float(((P @ P.T) * (Q @ Q.T)).sum()), 0.0) ** 0.5)
