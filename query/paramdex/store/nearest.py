"""The rows of one kind nearest to a query. A fast pass over all rows finds candidates; an exact pass ranks those.

The similarity of row x and query q is <q, x> in float64, rounded to float32. Of equal rows the first comes first. The
fast pass gives every row a score s(x) with |s(x) - <q, x>| <= e; the bound e is proved below. Let t be the k-th
largest score. At least k rows have s >= t, and so <q, x> >= t - e. So the k-th largest product is at least t - e, and a
row with s(x) < t - 2 e, whose <q, x> is less than t - e, is not among the k nearest. The candidates are the rows with
s(x) >= t - 2 e. Products that are equal only after rounding differ by at most the rounding, which e includes.

What the fast pass reads depends on the size of the kind (``paramdex_schemas.vector_files``):

* ``Loaded``: the rows themselves, in memory, by BLAS. A float32 dot product of r numbers, summed in any order, is off
  by at most g |q| |x| with g = r u / (1 - r u) and u = 2^-24. Rounding q adds another u |q| |x|.
* ``Coded``: codes c of one byte per number, a quarter of the bytes of the rows, by FAISS, mapped from the disk. With
  x' = P^T (steps * c) and the rotated query p = steps * (P q),

      <q, x> = <q, x - x'> + <p, c>,    |<q, x - x'>| <= |q| error.

  FAISS multiplies such codes with queries of bytes (FAISS 1.15 rounds any query to bytes where the width is a multiple
  of 64), so p is split into t b + d, where b holds whole numbers up to 127: <p, c> = t <b, c> + <d, c>, and
  |<d, c>| <= |d| longest. <b, c> is a whole number, which a float32 sum has to within g |b| longest, g as above. The
  rows of the candidates, a few dozen, are read from the disk and checked one by one.

|x| is 1, or 0, to float32 rounding.
"""

from __future__ import annotations

import itertools
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from paramdex_schemas import AtlasError, QueryError
from paramdex_schemas.errors import quoted
from paramdex_schemas.isometry import Array, times_vector
from paramdex_schemas.model import Span

Ids = npt.NDArray[np.int64]
Hit = tuple[float, int]
"""(similarity, param_id)."""
_BLOCK = 1 << 20
"""Numbers in a block of rows that is converted to float64 at a time."""
_AT_LEAST = 2000
"""Scores that a search of codes keeps at least. The 10 nearest of 300,000 random rows have up to 1,900 candidates."""

SIDES = {"top": (1,), "bottom": (-1,), "both": (1, -1)}
"""Side -> the signs to multiply a query by, so that the largest products are the ones asked for."""


def signs_of(side: str) -> tuple[int, ...]:
    """The signs of a side. Raises QueryError for an unknown side."""
    if not isinstance(side, str) or side not in SIDES:
        raise QueryError(f"side is one of {', '.join(SIDES)}, not {quoted(side)}")
    return SIDES[side]


def strongest_hits(hits: list[Hit], k: int, side: str) -> list[Hit]:
    """The k strongest hits on a side, equal ones by param_id."""
    signs = signs_of(side)
    return sorted(hits, key=lambda hit: (-max(sign * hit[0] for sign in signs), hit[1]))[:k]


class Rows(Protocol):
    """The normalized coordinates of one kind (ntotal x r). The names are those of FAISS's indexes."""

    @property
    def ntotal(self) -> int: ...

    def reconstruct_n(self, first: int, n: int) -> npt.NDArray[np.float32]:
        """Rows [first, first + n)."""

    def reconstruct_batch(self, ids: Ids) -> npt.NDArray[np.float32]:
        """The rows ``ids`` (len(ids) x r)."""

    def candidates(self, query: Array, k: int, span: Span) -> Ids:
        """Rows of a span, in order, among them its k nearest to ``query`` (r, float64). It has at least k rows."""


def nearest(
    rows: Rows, query: Array, k: int, spans: list[Span], signs: tuple[int, ...] = (1,)
) -> list[tuple[float, int]]:
    """(similarity, row) of the k rows of ``spans`` with the largest sign * similarity for any of ``signs``."""
    chosen = [
        rows.candidates(sign * query, min(k, end - first), (first, end))
        for sign in signs
        for first, end in spans
        if first < end
    ]
    ids = np.unique(np.concatenate([np.empty(0, np.int64), *chosen]))
    scores = exact_products(rows, query, ids).astype(np.float32)
    strength = np.max([sign * scores for sign in signs], axis=0)
    best = np.lexsort((ids, -strength))[:k]
    return list(zip(scores[best].tolist(), ids[best].tolist(), strict=True))


def exact_products(rows: Rows, query: Array, ids: Ids) -> Array:
    """<query, x> of the rows ``ids`` (float64). Summed row by row, not by BLAS, so equal rows have equal products."""
    found = np.empty(len(ids))
    step = max(1, _BLOCK // max(1, len(query)))
    for start in range(0, len(ids), step):
        part = slice(start, start + step)
        found[part] = (rows.reconstruct_batch(ids[part]) * query).sum(axis=1)
    return found


def nearest_pairs(left: Array, right: Array, k: int, block: int = 1024) -> list[tuple[float, int, int]]:
    """(similarity, i, j) of the k largest inner products of rows of ``left`` and ``right``, a block at a time.

    >>> nearest_pairs(np.eye(2), np.array([[0.0, 1.0]]), 1)
    [(1.0, 1, 0)]
    """
    best: list[tuple[float, int, int]] = []
    for start in range(0, len(left), block):
        scores = left[start : start + block] @ right.T
        n = min(k, scores.size)
        flat = np.argpartition(scores, scores.size - n, axis=None)[-n:]
        i, j = np.unravel_index(flat, scores.shape)
        best += zip(scores[i, j].tolist(), (i + start).tolist(), j.tolist(), strict=True)
        best = sorted(best, key=lambda hit: (-hit[0], hit[1], hit[2]))[:k]
    return best


def _rounding(query: Array, size: float) -> float:
    """A bound on the error of a float32 product of a query and a row of length up to ``size``, with rounding."""
    return float(np.linalg.norm(query)) * size * (len(query) + 16) * 2.0**-23 + len(query) * 2.0**-120


@dataclass(frozen=True)
class Loaded:
    """Rows in memory (n x r, float32)."""

    rows: npt.NDArray[np.float32]

    @property
    def ntotal(self) -> int:
        return len(self.rows)

    def reconstruct_n(self, first: int, n: int) -> npt.NDArray[np.float32]:
        return self.rows[first : first + n]

    def reconstruct_batch(self, ids: Ids) -> npt.NDArray[np.float32]:
        return self.rows[ids]

    def candidates(self, query: Array, k: int, span: Span) -> Ids:
        first, end = span
        scores = self.rows[first:end] @ query.astype(np.float32)
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        return first + np.flatnonzero(scores >= float(least) - 2 * _rounding(query, 1.01))


@dataclass(frozen=True)
class Coded:
    """Rows that stay on the disk (n x r, memory-mapped), with their codes in a FAISS index.

    ``scale`` has the tensors of KIND.codes.safetensors, ``damaged`` is the message for a row that has changed.
    """

    rows: npt.NDArray[np.float32]
    index: Any
    scale: dict[str, np.ndarray]
    damaged: str

    @property
    def ntotal(self) -> int:
        return len(self.rows)

    def reconstruct_n(self, first: int, n: int) -> npt.NDArray[np.float32]:
        return self._checked(slice(first, first + n))

    def reconstruct_batch(self, ids: Ids) -> npt.NDArray[np.float32]:
        return self._checked(ids)

    def _checked(self, which: slice | Ids) -> npt.NDArray[np.float32]:
        rows = np.array(self.rows.view(np.uint8)[which])  # as bytes: mapped floats are not aligned, which is slow
        if [zlib.crc32(row) for row in rows] != self.scale["crc32"][which].tolist():
            raise AtlasError(self.damaged)
        return rows.view("<f4")

    def candidates(self, query: Array, k: int, span: Span) -> Ids:
        import faiss

        first, end = span
        turned = self.scale["steps"] * times_vector(self.scale["rotation"], query)
        step = np.abs(turned).max() / 127
        if not step:  # all products are 0
            return np.arange(first, first + k)
        whole = np.rint(turned / step)
        error, longest = (float(self.scale[name][0]) for name in ("error", "longest"))
        margin = np.linalg.norm(query) * error + np.linalg.norm(turned - step * whole) * longest
        margin = 2 * (margin + _rounding(query, 1.01) + _rounding(step * whole, longest)) / step

        n = 4 * k + _AT_LEAST
        while n < end - first:  # of fewer rows, and of those that nearly all tie, all are candidates
            scores, ids = self._search(whole.astype(np.float32), n, span)
            best = float(self.index.reconstruct(int(ids[0])).astype(np.float64) @ whole)
            if abs(scores[0] - best) > margin:
                raise QueryError(f"faiss {faiss.__version__} multiplies bytes wrongly; install another version of it")
            least = float(scores[k - 1]) - margin
            if scores[-1] < least:
                return np.sort(ids[scores >= least])
            n *= 8
        return np.arange(first, end)

    def _search(self, asked: npt.NDArray[np.float32], n: int, span: Span) -> tuple[npt.NDArray[np.float32], Ids]:
        """Scores and rows of the n codes of a span with the largest products, largest first. FAISS uses one core per
        query, so every core gets a part of the rows.
        """
        import faiss

        def best(part: Span) -> tuple[npt.NDArray[np.float32], Ids]:
            inside = faiss.IDSelectorRange(*part)  # its parameters do not keep it alive
            parameters = faiss.SearchParameters()
            parameters.sel = inside
            scores, ids = self.index.search(asked[None, :], n, params=parameters)
            return scores[0], ids[0]

        ends = np.linspace(*span, faiss.omp_get_max_threads() + 1).astype(int).tolist()
        found = _cores().map(best, itertools.pairwise(ends))
        scores, ids = (np.concatenate(each) for each in zip(*found, strict=True))
        order = np.argsort(-scores)[:n]
        return scores[order], ids[order]


@cache
def _cores() -> ThreadPoolExecutor:
    """A thread for each core, in which FAISS starts no others: this number of OpenMP's is a thread's own. threadpoolctl
    would set the same one, after a search of all loaded libraries.
    """
    import faiss

    return ThreadPoolExecutor(faiss.omp_get_max_threads(), "search", faiss.omp_set_num_threads, (1,))


if hasattr(os, "register_at_fork"):  # a child has none of its parent's threads
    os.register_at_fork(after_in_child=_cores.cache_clear)
