"""The arithmetic that the searches share: bounds of sums, the one exact order of summing, selection.

A score is what ``dot`` gives, rounded to float32. Its order of summing is fixed, so that a score does not depend on
blocks, threads or the device. Everything else here finds out which scores are worth that, and quickly.

**Bits.** Floats are compared as integers. Of two floats that are not negative, the larger one has the larger bits. The
bits of a negative float are a negative integer, below all of those. So whatever is at least a limit above 0 can be
found among integers. They are compared and reduced several times as fast as floats, which may be NaN.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

with warnings.catch_warnings():  # PyTorch says once that these are in beta
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 0], [], [], (1, 1))

UNDERFLOW = 2.0**-100
"""More than what all underflow in a product can add up to, where no norm is over 1 (``engines``)."""
LARGEST = 2.0**126
"""Scores and sums below this cannot overflow float32."""
_FEW_VECTORS = 256
"""Rows of E that ``library_dots`` makes float64 at a time."""
_NUMPY: dict[torch.dtype, tuple[type[np.floating[Any]], type[np.signedinteger[Any]], int]] = {
    torch.float64: (np.float64, np.int64, 0),
    torch.float32: (np.float32, np.int32, 0),
    torch.float16: (np.float16, np.int16, 0),
    torch.bfloat16: (np.float32, np.int32, 16),
}
"""NumPy's types for a float and its bits, and how many of the bits go; a bfloat16 is the first half of a float32."""


def gamma(n: int, u: float = 2.0**-24) -> float:
    """gamma_n = n u / (1 - n u) of Higham (2002, section 3.1). u is the unit roundoff: float32's, unless another is
    given.
    """
    return n * u / (1 - n * u)


def gamma64(n: int) -> float:
    """gamma_n for float64, with a little room for the rounding of what it is multiplied with."""
    return 1.001 * gamma(n, 2.0**-53)


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """<a_i, b_i> (n, float64) of n pairs of rows (n x d each, float64): products, added up by halves.

    Every step rounds every number by itself. So a result is the same to the last bit, whatever the other pairs, the
    threads and the device are.
    """
    terms = (a * b).T.contiguous()
    while terms.shape[0] > 1:
        half, odd = divmod(terms.shape[0], 2)
        last = terms[-1]
        terms = terms[:half] + terms[half : 2 * half]
        if odd:
            terms[0] += last
    return terms.sum(0)


def library_dots(W: torch.Tensor, E: torch.Tensor, row: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """<w, e> (N, float64) of the rows ``row`` (N, int64) of W (n x d, float64) and ``token`` of E (V x d, any float).
    A library sums them, in an order of its own.

    They are taken token by token, so that every row of E is read once and those of W stay in the cache.
    """
    V, here = len(E), E.device
    order = by_token(token)
    rows = row[order]
    ends = torch.zeros(V + 1, dtype=torch.int64, device=here)
    ends[1:] = torch.bincount(token, minlength=V).cumsum(0)
    found = torch.empty(len(token), dtype=torch.float64, device=here)
    step = V if E.dtype == torch.float64 else _FEW_VECTORS
    for start in range(0, V, step):
        vectors = E[start : start + step]
        end = ends[start : start + len(vectors) + 1]
        part = slice(int(end[0]), int(end[-1]))
        found[part] = _chosen_products(vectors.double(), W, end - end[0], rows[part])
    scores = torch.empty_like(found)
    scores[order] = found
    return scores


def by_token(token: torch.Tensor) -> torch.Tensor:
    """The order (N, int64) that sorts tokens (N, int64, below 2^31), of fewer than 2^32."""
    return ascending(token << 32 | torch.arange(len(token), device=token.device)) & 0xFFFF_FFFF


def _chosen_products(a: torch.Tensor, b: torch.Tensor, ends: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Some entries of a b^T (N, float64), for a (n x d) and b (m x d): those of row i are in the ``columns`` (N) from
    ``ends[i]`` to ``ends[i + 1]``.
    """
    zeros = torch.zeros(len(columns), dtype=a.dtype, device=a.device)
    pattern = torch.sparse_csr_tensor(ends, columns, zeros, (len(a), len(b)), check_invariants=False)
    found: torch.Tensor = torch.sparse.sampled_addmm(pattern, a, b.T, beta=0.0)
    return found.values()


def as_stored(scores: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (float64) that may be off by ``noise``, rounded to float32, and the flat positions of those that can round
    to two numbers.
    """
    low = (scores - noise).float()
    return low, (low != (scores + noise).float()).flatten().nonzero().flatten()


def at_least(values: torch.Tensor, limit: float | torch.Tensor) -> torch.Tensor:
    """Flat positions, ascending, of the values that are at least ``limit`` (a number, or a tensor that broadcasts)."""
    if values.device.type == "cpu":  # several times as fast in NumPy
        return torch.from_numpy(np.flatnonzero(values.numpy() >= np.asarray(limit)))
    return (values >= limit).flatten().nonzero().flatten()


def kth_largest(values: torch.Tensor, k: int) -> torch.Tensor:
    """The k-th largest along the last dimension."""
    if values.device.type == "cpu":  # several times as fast in NumPy
        place, array = values.shape[-1] - k, values.numpy()
        # Short rows are sorted as fast as they are searched, and much faster where many values are equal.
        ordered = np.partition(array, place) if array.ndim == 1 else np.sort(array, axis=-1)
        return torch.from_numpy(ordered[..., place : place + 1].copy())[..., 0]
    return values.topk(k, dim=-1).values[..., -1]


def ascending(values: torch.Tensor) -> torch.Tensor:
    """The values in order along the last dimension."""
    if values.device.type == "cpu":  # several times as fast in NumPy
        return torch.from_numpy(np.sort(values.numpy(), axis=-1))
    return values.sort(dim=-1).values


class Bits:
    """The bits of ``floats`` of one type, as ``integers`` of the same width."""

    def __init__(self, floats: torch.dtype) -> None:
        self.floats = floats
        self.integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[floats.itemsize]
        self.sign = int(torch.iinfo(self.integers).min)
        """The integer of which only the bit is set that makes a float negative."""
        self._float, self._integer, self._shift = _NUMPY[floats]

    def keys(self, limits: torch.Tensor) -> torch.Tensor:
        """The least bits of a float that is at least a limit (float64, above 0), for every one of ``limits``."""
        near = limits.to(self.floats)
        return (near.view(self.integers) - (near.double() > limits).to(self.integers)).clamp_min(1)

    def key(self, limit: float) -> int:
        """``keys`` of one limit."""
        near = self._float(limit)
        bits = int(near.view(self._integer)) - (float(near) > limit)
        return max(bits >> self._shift, 1)

    def negated(self, scores: torch.Tensor, peaks: torch.Tensor, group: int) -> torch.Tensor:
        """The bits of -1 times ``scores`` (n x m), in their place. ``peaks`` (2 x n x m / group) gets the largest bits
        of the scores and of -1 times them in every ``group`` columns, which are right where they are above 0.
        """
        bits = scores.view(self.integers)
        torch.amax(bits.view(len(bits), -1, group), 2, out=peaks[0])
        torch.amax(bits.bitwise_xor_(self.sign).view(len(bits), -1, group), 2, out=peaks[1])
        return bits

    def reaching(
        self, bits: torch.Tensor, rows: torch.Tensor, keys: torch.Tensor, side: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Which of some ``rows`` (N) of the ``bits`` of negated scores (n x width) are at least the row's key (N) on a
        side: 1 for the scores, -1 for what is negated. Gives places in N x width, ascending, and the bits there.
        """
        found = bits.index_select(0, rows)
        if side > 0:
            found.bitwise_xor_(self.sign)
        places = at_least(found, keys[:, None])
        return places, found.view(-1)[places]
