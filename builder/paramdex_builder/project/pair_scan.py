"""The scan of a head's matrix A B^T for its strongest pairs: few of its V x V scores are looked at, none is missed.

**Balanced.** The rows a', b' of factors A M and B N are scanned, whose products are those of A and B but for one
number, the ``gap`` (``balance``).

**Best first.** Rows are sorted by the norms of a' and b' and cut into tiles. Tiles are visited in order of the largest
|score| that they can have, that of their first row and column: ||a'|| ||b'|| + gap (Cauchy-Schwarz). Each side has a
threshold, no more than its k-th best stored score. It cuts off the rows and columns of a tile that cannot reach it, and
ends the scan at the first tile that cannot.

**Screened.** The scores of a tile come from a product in low precision (see ``engines``). A pair is left out where

    s~ + error ||a'|| ||b'|| + gap + UNDERFLOW < threshold - what float32 rounds off

All other pairs are scored by ``arithmetic.dot`` from A and B themselves, so that a stored score does not depend on
tiles, threads or the device. Where a tile has very many of them, a library's product in float64 comes first: it is
within gamma_(d_head) sum |a_i b_i| of the score, and where float32 rounds both ends of that to one number, that number
is the stored score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

from paramdex_builder.project.arithmetic import (
    UNDERFLOW,
    Bits,
    as_stored,
    ascending,
    at_least,
    dot,
    gamma64,
    kth_largest,
)
from paramdex_builder.project.balance import balance
from paramdex_builder.project.engines import Engine, full_float32
from paramdex_builder.project.pair_sides import Side
from paramdex_builder.work.workers import stop_if_unwanted

TILE_ROWS, TILE_COLUMNS = 1024, 1024
"""The scores of a tile stay in a core's cache while they are looked at."""
STEP = 128
"""Tiles are cut to multiples of so many rows and columns, because a product is compiled anew for every new shape."""
CROWD = 16_384
"""At most so many pairs of a tile are scored one by one."""
_BATCH = 256
"""So many pairs are scored together, or k where that is more: often enough to raise the threshold."""
_SMALL = 2.0**-90
"""What rows of smaller norms than this are off by is within UNDERFLOW."""
_LARGEST = float(torch.finfo(torch.float32).max)
_INFINITY = 0x7F80_0000
"""The bits of float32's infinity."""


@dataclass
class TokenPairs:
    """Pairs of tokens: ``source``, ``target`` (m, int64) and ``score`` (m, float32)."""

    source: torch.Tensor
    target: torch.Tensor
    score: torch.Tensor

    def __len__(self) -> int:
        return len(self.score)

    def take(self, which: torch.Tensor) -> TokenPairs:
        """The pairs at the places ``which``."""
        return TokenPairs(*(values.index_select(0, which) for values in (self.source, self.target, self.score)))

    def best(self, k: int) -> TokenPairs:
        """The k best by (score descending, source, target), in that order."""
        kept = self
        if len(self) > k:  # what is at least the k-th score, ties included, before the full sort
            kept = self.take(at_least(self.score, float(kth_largest(self.score, k))))
        kept = kept.take((kept.source << 32 | kept.target).argsort())
        return kept.take(kept.score.argsort(descending=True, stable=True)[:k])

    def signed(self, sign: int) -> TokenPairs:
        """The pairs with ``sign`` times their scores."""
        return TokenPairs(self.source, self.target, self.score * sign + 0.0)  # + 0.0: -0.0 is 0.0

    @staticmethod
    def cat(*parts: TokenPairs) -> TokenPairs:
        return TokenPairs(
            torch.cat([p.source for p in parts]),
            torch.cat([p.target for p in parts]),
            torch.cat([p.score for p in parts]),
        )

    @staticmethod
    def empty(device: torch.device) -> TokenPairs:
        none = torch.empty(0, dtype=torch.int64, device=device)
        return TokenPairs(none, none.clone(), torch.empty(0, device=device))


@dataclass
class Words:
    """Which tokens are one word: ``number`` (V), equal for one word, and every ordered pair of such tokens."""

    number: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor


@dataclass
class Search:
    """The search on one side: ``sign`` is 1 for the top, -1 for the bottom. All scores here are sign * stored score.

    ``found`` has the k best of all pairs that were offered, in no order, and a few others.
    """

    sign: int
    k: int
    found: TokenPairs
    threshold: float = -math.inf
    """No more than the k-th best score there is."""
    last: tuple[int, int] | None = None
    """Ids of the k-th best pair found, where its score is the threshold. Later pairs of that score are not needed."""
    waiting: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """Rows and columns of pairs to be scored."""
    n_waiting: int = 0

    def offer(self, new: TokenPairs) -> None:
        """Take in pairs that were not offered before."""
        self.found = TokenPairs.cat(self.found, new.take(at_least(new.score, self.threshold)))
        if len(self.found) < self.k:
            return
        reached = float(kth_largest(self.found.score, self.k))
        if reached > self.threshold:
            self.threshold, self.last = reached, None
            self.found = self.found.take(at_least(self.found.score, reached))
        if len(self.found) > 2 * self.k:  # by ties
            self.found = self.found.best(self.k)
            self.last = int(self.found.source[-1]), int(self.found.target[-1])

    def needs(self, scores: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Which pairs are worth offering, from upper bounds of their scores; shapes broadcast."""
        if self.last is None:
            return scores >= self.threshold
        earlier = (source < self.last[0]) | ((source == self.last[0]) & (target < self.last[1]))
        return (scores > self.threshold) | ((scores == self.threshold) & earlier)

    def done_with(self, bound: float, source: int, target: int) -> bool:
        """Whether no pair with |score| <= ``bound`` and ids from (source, target) on is worth offering."""
        if bound != self.threshold:
            return bound < self.threshold
        return self.last is not None and (source, target) > self.last


@dataclass
class Factor:
    """A factor X M, times 2^exponent so that no norm is over 1, with its rows sorted by norm."""

    rows: torch.Tensor
    """An operand of V rows."""
    ids: torch.Tensor
    norms: np.ndarray
    """At least the norms of the rows (V, float64), descending."""
    exponent: int
    error: float = 0.0
    """How far a row is off by its rounding, as a share of its norm, at most."""

    @classmethod
    def of(cls, side: Side, M: torch.Tensor, longest: float, engine: Engine) -> Factor:
        """That of a side, no row of which times M is longer than ``longest``. It is made some rows at a time."""
        exponent, here = -math.frexp(longest)[1] - 1, side.device
        M = M * 2.0**exponent
        parts, (norms, errors) = [], torch.empty(2, len(side), dtype=torch.float64, device=here)
        for part, rows in side.chunks():
            balanced = rows @ M
            parts.append(engine.operand(balanced))
            torch.linalg.vector_norm(balanced, dim=1, out=norms[part])
            off = balanced - engine.values(parts[-1], side.width)  # a new one: an operand may be the rows themselves
            torch.linalg.vector_norm(off, dim=1, out=errors[part])
        share = float((errors / norms.clamp_min(_SMALL)).max())
        upper = norms.float().nextafter(torch.tensor(torch.inf, device=here)).where(norms > 0, 0.0)
        # One sort of integers, by norm descending and by id.
        order = ascending((_INFINITY - upper.view(torch.int32).long()) << 32 | torch.arange(len(side), device=here))
        ids = order & 0xFFFF_FFFF
        sorted_norms = upper.index_select(0, ids).cpu().numpy().astype(np.float64)
        return cls(torch.cat(parts).index_select(0, ids), ids, sorted_norms, exponent, share)

    def norms_by_id(self) -> torch.Tensor:
        """The norms (V, float64), in order of the ids."""
        norms = torch.empty(len(self.ids), dtype=torch.float64, device=self.ids.device)
        norms[self.ids] = torch.from_numpy(self.norms).to(norms.device)
        return norms

    def reaching(self, start: int, size: int, other: float, least: float) -> slice:
        """The rows, of ``size`` from ``start`` on, whose norm times ``other`` may be ``least``; up to the next STEP."""
        norms = self.norms[start : start + size]
        n = len(norms)
        if least > 0:
            reach = norms >= least / (other * (1 + 2.0**-50)) if other else norms > np.inf
            n = min(n, -(-int(np.count_nonzero(reach)) // STEP) * STEP)
        return slice(start, start + n)


@dataclass
class Tiles:
    """Tiles in some order: the first row and column of each, the bound of the stored |score| in it, and the least
    source and target id.
    """

    rows: np.ndarray
    columns: np.ndarray
    bounds: np.ndarray
    sources: np.ndarray
    targets: np.ndarray


def above(bounds: np.ndarray) -> np.ndarray:
    """float32 values at least as large as every stored score of size <= ``bounds`` (0 stays 0)."""
    with np.errstate(over="ignore", under="ignore"):
        return np.where(bounds > 0, np.nextafter(np.float32(bounds), np.float32(np.inf)), np.float32(0))


class Scan:
    """The scan of A B^T (both sides V x r, float64) for the k strongest pairs of different words, on both sides.

    A and B are products of float32 matrices, or else so small that their Gram matrices are within float64's range.
    """

    def __init__(self, A: torch.Tensor | Side, B: torch.Tensor | Side, words: Words, k: int, engine: Engine) -> None:
        self.A, self.B, self.words, self.engine = Side.of(A), Side.of(B), words, engine
        self.bits = Bits(engine.score_dtype)
        M, N, gap, longest = balance(self.A, self.B)
        self.left = Factor.of(self.A, M, longest[0], engine)
        self.right = Factor.of(self.B, N, longest[1], engine)
        self.exponent = self.left.exponent + self.right.exponent
        """Thresholds and stored scores are those of A and B; all other numbers here are times 2^exponent."""
        self.gap = math.ldexp(gap, self.exponent)
        self.error = engine.error(self.A.width, self.left.error, self.right.error)
        self.searches = [Search(sign, k, TokenPairs.empty(self.A.device)) for sign in (1, -1)]
        self.buffer = torch.empty(TILE_ROWS * TILE_COLUMNS, dtype=engine.score_dtype, device=self.A.device)

    def run(self) -> list[Search]:
        """Find the pairs of both sides, top first."""
        with full_float32():
            self._set_thresholds()
            for row, column, bound, first_source, first_target in self._tiles():
                stop_if_unwanted()
                open_searches = [
                    search for search in self.searches if not search.done_with(bound, first_source, first_target)
                ]
                if open_searches:
                    self._visit(row, column, open_searches)
                elif bound < min(search.threshold for search in self.searches):
                    break
        for search in self.searches:
            self._score(search)
        return self.searches

    def reachable(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The places of the pairs that may reach the threshold of a search."""
        least = min(search.threshold for search in self.searches)
        bounds = self.left.norms_by_id()[source] * self.right.norms_by_id()[target] * (1 + 2.0**-50) + self.gap
        return (bounds >= self._scaled(least)).nonzero().flatten()

    def scores(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The stored scores of pairs."""
        step = 1024 if source.device.type == "cpu" else 1 << 16  # as many as stay in a core's cache
        parts = zip(torch.split(source, step), torch.split(target, step), strict=True)
        return torch.cat([dot(self.A.take(s), self.B.take(t)).float() for s, t in parts])

    def _tiles(self) -> list[tuple[int, int, float, int, int]]:
        """(row, column, bound of the stored |score|, least source id, least target id) of tiles, best first."""
        return list(zip(*(values.tolist() for values in vars(self._ordered()).values()), strict=True))

    def _ordered(self) -> Tiles:
        """All tiles, best first."""
        sources, targets = (
            np.array([int(ids.min()) for ids in torch.split(factor.ids, size)])
            for factor, size in ((self.left, TILE_ROWS), (self.right, TILE_COLUMNS))
        )
        bounds = np.outer(self.left.norms[::TILE_ROWS], self.right.norms[::TILE_COLUMNS]) * (1 + 2.0**-50) + self.gap
        order = np.argsort(-bounds, axis=None, kind="stable")
        stored = above(np.ldexp(bounds.ravel()[order], -self.exponent)).astype(np.float64)
        i, j = np.unravel_index(order, bounds.shape)
        return Tiles(i * TILE_ROWS, j * TILE_COLUMNS, stored, sources[i], targets[j])

    def _scaled(self, threshold: float) -> float:
        """A lower bound of all scores that are stored as ``threshold`` or more."""
        if threshold == -math.inf:
            return threshold
        score = min(threshold, _LARGEST)  # what is larger is stored as infinity
        try:
            return math.ldexp(score - max(abs(score) * 2.0**-23, 2.0**-149), self.exponent)
        except OverflowError:  # the number is negative: positive ones are scores, below 1
            return -math.inf

    def _slack(self, row: int, column: int) -> float:
        """How far screened scores may be off, from this row and column on."""
        return self.error * float(self.left.norms[row] * self.right.norms[column]) + self.gap + UNDERFLOW

    def _set_thresholds(self) -> None:
        """First thresholds, from the screened scores of the rows of largest norm."""
        rows, columns = slice(TILE_ROWS // 2), slice(TILE_COLUMNS // 2)
        screened = self.engine.product(self.left.rows[rows], self.right.rows[columns], self.buffer)
        source, target = self.left.ids[rows, None], self.right.ids[columns]
        screened.masked_fill_(self.words.number[source] == self.words.number[target], 0.0)
        bits = screened.view(self.bits.integers).flatten()
        for search in self.searches:
            if search.sign < 0:
                bits.bitwise_xor_(self.bits.sign)
            kth = kth_largest(bits, min(search.k, len(bits)))
            if kth > 0 and search.k <= len(bits):
                self._raise(search, float(kth.view(self.bits.floats)), self._slack(0, 0))

    def _raise(self, search: Search, kth: float, slack: float) -> None:
        """Raise a side's threshold to what k pairs of different words reach that were screened at ``kth`` or more."""
        least = math.ldexp(kth - slack, -self.exponent)
        least -= abs(least) * 2.0**-23 + 2.0**-149  # what float32 rounds off
        if least > search.threshold:
            search.threshold, search.last = least, None

    def _visit(self, row: int, column: int, searches: list[Search]) -> None:
        """Search the tile that begins at ``row``, ``column``, for some ``searches`` (top first)."""
        left, right = self.left, self.right
        least = self._scaled(min(search.threshold for search in searches)) - self.gap
        rows = left.reaching(row, TILE_ROWS, right.norms[column], least)
        columns = right.reaching(column, TILE_COLUMNS, left.norms[row], least)
        width = columns.stop - column
        if rows.stop == row or not width:
            return
        part = STEP if width % STEP == 0 else width
        n, engine = rows.stop - row, self.engine
        peaks = torch.empty(2, n, width // part, dtype=self.bits.integers, device=self.buffer.device)
        bits = engine.screen(left.rows[rows], right.rows[columns], self.buffer, peaks, part)
        parts, slack = bits.view(-1, part), self._slack(row, column)
        for search in searches:
            limit = self._scaled(search.threshold) - slack
            if limit > 0:
                key = self.bits.key(limit)
                hot = at_least(peaks[0 if search.sign > 0 else 1], key)
                if not hot.shape[0]:
                    continue
                keys = torch.full_like(hot, key, dtype=self.bits.integers)
                place, _ = engine.reaching(parts, hot, keys, search.sign)
                place = hot.index_select(0, place // part) * part + place % part
            else:
                place = at_least(self._of_side(search, bits), limit)
            if place.shape[0] > max(CROWD, 4 * search.k):
                self._crowd(search, self._of_side(search, bits), rows, columns, slack)
            else:
                self._wait(search, place // width + row, place % width + column)

    def _of_side(self, search: Search, bits: torch.Tensor) -> torch.Tensor:
        """The side's sign times the scores (float32 or wider), from the bits of -1 times the scores."""
        floats = self.bits.floats
        return bits.view(floats).to(torch.promote_types(floats, torch.float32)) * -search.sign

    def _wait(self, search: Search, rows: torch.Tensor, columns: torch.Tensor) -> None:
        """Let pairs wait until there are enough to score them together."""
        search.waiting.append((rows, columns))
        search.n_waiting += rows.shape[0]
        if search.n_waiting >= max(search.k, _BATCH):
            self._score(search)

    def _score(self, search: Search) -> None:
        """Score the pairs that wait, and offer those of different words."""
        if not search.waiting:
            return
        rows, columns = (torch.cat(parts) for parts in zip(*search.waiting, strict=True))
        search.waiting, search.n_waiting = [], 0
        source, target = self.left.ids.index_select(0, rows), self.right.ids.index_select(0, columns)
        number = self.words.number
        different = (number.index_select(0, source) != number.index_select(0, target)).nonzero().flatten()
        source, target = source.index_select(0, different), target.index_select(0, different)
        search.offer(TokenPairs(source, target, self.scores(source, target)).signed(search.sign))

    def _crowd(self, search: Search, screened: torch.Tensor, rows: slice, columns: slice, slack: float) -> None:
        """Search a tile with very many pairs that may be worth offering. ``screened`` has the side's sign times the
        scores.
        """
        source, target = self.left.ids[rows], self.right.ids[columns]
        same = self.words.number[source][:, None] == self.words.number[target]
        screened.masked_fill_(same, -math.inf)
        if screened.numel() > search.k:
            self._raise(search, float(kth_largest(screened.flatten(), search.k)), slack)
        place, width = at_least(screened, self._scaled(search.threshold) - slack), len(target)
        if len(place) <= max(CROWD, 4 * search.k):
            self._wait(search, place // width + rows.start, place % width + columns.start)
            return
        a, b = self.A.take(source), self.B.take(target)
        exact, noise = search.sign * (a @ b.T), gamma64(a.shape[1]) * (a.abs() @ b.abs().T)
        stored, unsure = as_stored(exact, noise)
        needed = search.needs((exact + noise).float(), source[:, None], target) & ~same
        unsure = unsure[needed.flatten()[unsure]]
        stored.view(-1)[unsure] = self.scores(source[unsure // width], target[unsure % width]) * search.sign
        needed &= search.needs(stored, source[:, None], target)
        i, j = needed.nonzero(as_tuple=True)
        search.offer(TokenPairs(source[i], target[j], stored[i, j] + 0.0))
