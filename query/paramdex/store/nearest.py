"""The rows of one kind nearest to a query: a fast pass over all of them names candidates, an exact one ranks those.

The similarity of row x with query q is <q, x> in float64, rounded to float32; ties go to the first row. The fast pass
gives every row a score s(x) with |s(x) - <q, x>| <= e, e a bound that is proved below. Let t be the k-th largest score.
At least k rows have s >= t, so <q, x> >= t - e: the k-th largest product is no less either. A row with
s(x) < t - 2 e has <q, x> < t - e, so it is not among the k nearest, and the rows with s(x) >= t - 2 e are candidates
enough. Products that only tie once rounded differ by no more than rounding, for which e has room.

What the fast pass reads depends on the size of the kind (``paramdex_schemas.vector_files``):

* ``Loaded``: the rows themselves, in memory, by BLAS. A float32 dot product of r numbers, in any order of summing, is
  off by at most g |q| |x| with g = r u / (1 - r u), u = 2^-24, after the rounding of q by another u |q| |x|.
* ``Coded``: codes c of one byte a number, a quarter of what there is to read, by FAISS, mapped from the disk. With
  x' = P^T (steps * c) and the turned query p = steps * (P q),

      <q, x> = <q, x - x'> + <p, c>,    |<q, x - x'>| <= |q| error.

  FAISS multiplies such codes with queries of bytes (of a width that is a multiple of 64, FAISS 1.15 rounds any query
  to bytes, unasked), so p is split into t b + d, b of whole numbers up to 127: <p, c> = t <b, c> + <d, c>, and
  |<d, c>| <= |d| longest. <b, c> is a whole number that a float32 sum has to g |b| longest, g as above. The candidates'
  rows, a few dozen, are read from the disk and checked one by one.

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
"""Numbers of a block of rows that is held in float64."""
_AT_LEAST = 2000
"""Codes of which a search keeps the scores: among 300,000 random rows it has up to 1,900 candidates for 10."""

SIDES = {"top": (1,), "bottom": (-1,), "both": (1, -1)}
"""Side -> by which signs a query is multiplied so that the largest inner products are what it asks for."""


def signs_of(side: str) -> tuple[int, ...]:
    """Raises QueryError for a side that there is not."""
    if not isinstance(side, str) or side not in SIDES:
        raise QueryError(f"side is one of {', '.join(SIDES)}, not {quoted(side)}")
    return SIDES[side]


def strongest_hits(hits: list[Hit], k: int, side: str) -> list[Hit]:
    """The k that ``side`` asks for, ties by param_id."""
    signs = signs_of(side)
    return sorted(hits, key=lambda hit: (-max(sign * hit[0] for sign in signs), hit[1]))[:k]


class Rows(Protocol):
    """The normalized coordinates of one kind (ntotal x r); names as in FAISS's indexes."""

    @property
    def ntotal(self) -> int: ...

    def reconstruct_n(self, first: int, n: int) -> npt.NDArray[np.float32]:
        """Rows [first, first + n)."""

    def reconstruct_batch(self, ids: Ids) -> npt.NDArray[np.float32]:
        """Some rows (len(ids) x r)."""

    def candidates(self, query: Array, k: int, span: Span) -> Ids:
        """Rows of a span, in order, that have its k nearest to ``query`` (r, float64) among them; it has k at least."""


def nearest(
    rows: Rows, query: Array, k: int, spans: list[Span], signs: tuple[int, ...] = (1,)
) -> list[tuple[float, int]]:
    """(similarity, row) of the k rows of ``spans`` of largest sign * similarity under any of ``signs``, those first."""
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
    """<query, x> of some rows (float64). Summed row by row, not by BLAS: equal rows have equal products."""
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
    """At least what a float32 product of a query and a row of a length up to ``size`` can be off, rounding included."""
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
    """Rows left on the disk (n x r, memory-mapped), with their codes in a FAISS index.

    ``scale`` has the tensors of KIND.codes.safetensors, ``damaged`` says that a row is not what was written.
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
        unit = np.abs(turned).max() / 127
        if not unit:  # all products are 0
            return np.arange(first, first + k)
        whole = np.rint(turned / unit)
        error, longest = (float(self.scale[name][0]) for name in ("error", "longest"))
        margin = np.linalg.norm(query) * error + np.linalg.norm(turned - unit * whole) * longest
        margin = 2 * (margin + _rounding(query, 1.01) + _rounding(unit * whole, longest)) / unit

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
        """Scores and rows of the n codes of a span of the largest products, largest first. FAISS gives a query one
        core, so each core gets a part of the rows.
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
    """A thread for each core, in which FAISS starts no others."""
    import faiss

    return ThreadPoolExecutor(faiss.omp_get_max_threads(), "search", faiss.omp_set_num_threads, (1,))


if hasattr(os, "register_at_fork"):  # a child has none of its parent's threads
    os.register_at_fork(after_in_child=_cores.cache_clear)
