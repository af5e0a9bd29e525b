"""A block of parameters against the rows of tokens: which may be among the strongest of a row, and the scores of those.

``tokens`` explains why nothing is missed. ``Screen`` is those rows in low precision, made once per model and engine.
``Block`` is some vectors W, with the bounds of what low precision says of them.
"""

from __future__ import annotations

import threading
from collections.abc import MutableMapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch

from paramdex_builder.project.arithmetic import (
    LARGEST,
    UNDERFLOW,
    Bits,
    as_stored,
    ascending,
    at_least,
    dot,
    gamma64,
    kth_largest,
)
from paramdex_builder.project.engines import Engine, SelectingEngine
from paramdex_builder.project.space import TokenRows

GROUPS = (64, 32, 16, 8, 4, 2, 1)
"""Sizes of groups of tokens. The first is taken of which there are at least 4 k groups."""
FEW = 256
"""See ``few_tokens``."""
_TILE_BYTES = 1 << 20
"""Bytes of scores screened at a time on a processor: its cache still has them when their groups are looked at."""
_MUCH = 1 << 25
"""An embedding of more numbers than this is not held in float64 beside itself."""
_CHUNK = 1024
"""Rows held in float64 at a time."""


def few_tokens(V: int, k: int) -> int:
    """The most candidates that a row may have of V tokens for a side of k; with more it is scored as a whole."""
    return FEW + 6 * k + V // 32


def group_size(V: int, k: int) -> int:
    """How many of V tokens make a group in the search for the k strongest."""
    return next(size for size in GROUPS if 4 * k * size <= V or size == 1)


def doubled(size: int, stored: torch.dtype, engine: Engine) -> bool:
    """Whether an E of ``size`` numbers of the dtype ``stored`` is held in float64 as well."""
    return size <= _MUCH and not engine.reads(stored)


@dataclass
class Tokens:
    """The strongest tokens of n parameters on one side: ``ids`` (n x k, int64) and ``scores`` (n x k, float32)."""

    ids: torch.Tensor
    scores: torch.Tensor


def order(scores: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Integers (int64) that ascend as tokens come, strongest first: the largest of ``scores`` (float32), then the
    smallest of ``ids`` (below 2^32).

    Above are the bits of the score, made to compare as it does and turned round, below are those of the id.
    """
    bits = (scores + 0.0).view(torch.int32).long()  # + 0.0: -0.0 is 0.0
    return ~(bits ^ ((bits >> 31) & 0x7FFF_FFFF)) << 32 | ids


def rank(scores: torch.Tensor, ids: torch.Tensor, k: int) -> Tokens:
    """The k first of each row of ``scores`` and ``ids`` (n x m each), in their ``order``."""
    best = ascending(order(scores, ids))[:, :k]
    bits = ~(best >> 32)
    return Tokens(best & 0xFFFF_FFFF, (bits ^ ((bits >> 31) & 0x7FFF_FFFF)).int().view(torch.float32))


@dataclass
class Screen:
    """Rows as they are screened: ``rows`` e' = (e - c) / size in low precision, packed, filled up with rows of 0."""

    rows: torch.Tensor
    norms: torch.Tensor
    """||e'|| (V, float64)."""
    errors: torch.Tensor
    """||(e - c) / size - e'|| (V, float64)."""
    size: float
    engine: Engine
    vectors: torch.Tensor
    """The embedding (V x d), in float64 where that is not much."""
    root: torch.Tensor | None
    """R / (size sqrt(V)) (r x d), in low precision: it says how far t is spread. Only engines that select need it."""
    deviations: dict[int, float]
    """k -> the number of deviations beyond which almost all rows have k tokens (``gpu_tokens``)."""

    @classmethod
    def of(cls, space: TokenRows, engine: Engine, plain: Screen | None = None) -> Screen:
        """``plain`` is the screen of the plain rows, for rows that have factors: they share the embedding's vectors."""
        E = space.embedding
        size = space.longest + float(space.means.norm())
        groups, one_group = -(-len(E) // max(GROUPS)), torch.zeros(max(GROUPS), E.shape[1], device=E.device)
        none = engine.packed(engine.operand(one_group.double()))
        rows = none.new_zeros(groups * len(none), none.shape[1])
        norms, errors = (torch.empty(len(E), dtype=torch.float64, device=E.device) for _ in range(2))
        step = -(-_CHUNK // max(GROUPS)) * max(GROUPS)
        for start in range(0, len(E), step):
            part = slice(start, min(start + step, len(E)))
            centred = (space[part] - space.means) / (size or 1)
            low = engine.operand(centred)
            rounded, packed = engine.values(low, E.shape[1]), engine.packed(low)
            rows[start : start + len(packed)] = packed
            norms[part], errors[part] = rounded.norm(dim=1), (centred - rounded).norm(dim=1)
        vectors = plain.vectors if plain is not None else E
        if plain is None and doubled(E.numel(), E.dtype, engine):
            vectors = E.double()
        root = None
        if isinstance(engine, SelectingEngine):
            spread = space.spread().root / ((size or 1) * len(E) ** 0.5)
            root = torch.from_numpy(spread).to(E.device, engine.score_dtype)
        return cls(rows, norms, errors, size, engine, vectors, root, {})


_screens: MutableMapping[TokenRows, Screen] = WeakKeyDictionary()
"""The screen of all rows of tokens in use: many blocks of vectors share one."""
_making = threading.Lock()


def screen_of(space: TokenRows, engine: Engine) -> Screen:
    """The screen of some rows, made where the last one was of another engine. Threads may ask at once."""
    plain = None if space.plain is None else screen_of(space.plain, engine)
    with _making:
        found = _screens.get(space)
        if found is None or found.engine != engine:
            found = _screens[space] = Screen.of(space, engine, plain)
        return found


def forget(space: TokenRows) -> None:
    """Free what the scoring by some rows keeps from one block of vectors to the next."""
    _screens.pop(space, None)


class Candidates(NamedTuple):
    """The tokens that may be among the k strongest of a row on one side, by row, for the rows with few of them."""

    row: torch.Tensor
    """Numbers of rows (N, int64), ascending."""
    token: torch.Tensor
    """Ids of tokens (N, int64)."""
    few: torch.Tensor
    """Which rows have their candidates here (n, bool); the others have too many."""


class Block:
    """A block of rows W (n x d, float64), and how well their scores are known."""

    def __init__(self, W: torch.Tensor, space: TokenRows, screen: Screen) -> None:
        self.W, self.E, self.factors, self.screen = W, space.embedding, space.factors, screen
        self.bits = Bits(screen.engine.score_dtype)
        tile = _TILE_BYTES // (len(W) * screen.engine.score_dtype.itemsize) // max(GROUPS) * max(GROUPS)
        self.tile = max(tile, *GROUPS) if W.device.type == "cpu" else len(screen.rows)
        d, u = W.shape[1], screen.engine.u
        self.norms = norms = W.norm(dim=1)
        self.relative = u / (1 - u)
        self.noise = gamma64(d) * space.longest * norms
        """How far a sum in float64 can be from the score (n)."""
        self.slack = self._slack(space.longest * norms, screen.size * norms)
        """The gap beyond which a smaller t stays smaller after rounding to float32 (n)."""

    @staticmethod
    def _slack(largest: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
        """``slack`` in some ``unit``, where no score is over ``largest`` (n each); infinite beyond float32's range."""
        slack = (2.0**-22 * largest + 2.0**-148) / unit
        return slack.where((largest > 0) & (largest < LARGEST), torch.inf)

    @cached_property
    def rounded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """w' of every row, an operand, and the factor of ||e'|| in b (n)."""
        engine, d = self.screen.engine, self.W.shape[1]
        normalized = self.W / self.norms.clamp_min(1e-300)[:, None]
        low = engine.operand(normalized)
        values = engine.values(low, d)
        return low, (normalized - values).norm(dim=1) + engine.gamma(d) * values.norm(dim=1)

    @property
    def low(self) -> torch.Tensor:
        return self.rounded[0]

    def bounds(self, errors: torch.Tensor, norms: torch.Tensor, row: torch.Tensor | slice) -> torch.Tensor:
        """b of some rows, from ||e - c - e'|| and ||e'||; 1.001 makes up for its own rounding."""
        return 1.001 * (errors + norms * self.rounded[1][row]) + UNDERFLOW

    def off(self, row: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """How far what was screened can be off for pairs of a row and a token (N), but for the share ``relative`` of
        itself.
        """
        return self.bounds(self.screen.errors[token], self.screen.norms[token], row)

    def most_off(self) -> torch.Tensor:
        """The most of that for any token (n)."""
        return self.bounds(self.screen.errors.max(), self.screen.norms.max(), slice(None))

    def reaching(
        self, bits: torch.Tensor, rows: torch.Tensor, keys: torch.Tensor, side: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``Bits.reaching`` of the bits that ``screened`` gives."""
        return self.screen.engine.reaching(bits, rows, keys, side)

    def screened(self, group: int, space: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The bits of all -t~ (n V / group x group), in ``space``, and of the largest t~ and the largest -t~ of every
        group (2 x n x V / group). The first are in order of tile, row and token.
        """
        n, engine = len(self.low), self.screen.engine
        peaks = torch.empty(2, n, len(self.screen.rows) // group, dtype=self.bits.integers, device=self.low.device)
        done = 0
        for tile in torch.split(self.screen.rows, self.tile):
            here = slice(done // group, (done + len(tile)) // group)
            engine.screen(self.low, tile, space[n * done :], peaks[:, :, here], group, is_packed=True)
            done += len(tile)
        return space[: n * done].view(self.bits.integers).view(-1, group), peaks

    def candidates(self, bits: torch.Tensor, peaks: torch.Tensor, k: int, sign: int) -> Candidates:
        """The candidates of the side ``sign``, from what ``screened`` gives: ``bits``, and ``peaks`` of that side."""
        floats = self.bits.floats
        n, n_groups = peaks.shape
        group = bits.shape[1]
        theta = kth_largest(peaks, k).view(floats).double()
        bound = self.most_off()
        limit = (theta * (1 - self.relative) - 2 * bound - self.slack) / (1 + self.relative)
        keys = self.bits.keys(limit.clamp_min(0)).masked_fill(~(limit > 0), torch.iinfo(self.bits.integers).max)
        hot = at_least(peaks, keys[:, None])
        row, place = hot // n_groups, hot % n_groups
        few = (limit > 0) & (torch.bincount(row, minlength=n) <= few_tokens(len(self.E), k))
        if not few.all():
            kept = few[row].nonzero().flatten()
            row, place = row[kept], place[kept]
        # Before a group in ``bits``: the tiles before, the rows before in its tile, the groups before in its row.
        per_tile = self.tile // group
        before = place // per_tile * per_tile
        group_of = before * n + row * (n_groups - before).clamp_max(per_tile) + place - before
        over, found = self.reaching(bits, group_of, keys[row], sign)
        at = over // group
        row, token = row[at], place[at] * group + over % group
        value = found.view(floats).double()
        # The same with the bound of each token. k of a row are certain to have more than 0.
        bound = self.off(row, token) + self.relative * value
        lower = (value - bound).clamp_min(0).float().view(torch.int32)
        end = torch.bincount(row, minlength=n).cumsum(0)
        kth = ascending(row << 32 | lower)[end[few] - k] & 0xFFFF_FFFF
        least = torch.full_like(limit, torch.inf)
        least[few] = kth.int().view(torch.float32).double() * (1 - 2.0**-23) - self.slack[few]
        kept = (value + bound >= least[row]).nonzero().flatten()
        row, token = row[kept], token[kept]
        many = few & (torch.bincount(row, minlength=n) > few_tokens(len(self.E), k))
        if many.any():
            kept = (~many[row]).nonzero().flatten()
            row, token = row[kept], token[kept]
        return Candidates(row, token, few & ~many)

    def scores(self, row: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """The stored scores (N, float32) of pairs of a row and a token."""
        scores = self._scaled(self.screen.engine.dots(self.W, self.screen.vectors, row, token), token)
        stored, unsure = as_stored(scores, self._noise(row, scores))
        stored[unsure] = self._settled(row[unsure], token[unsure])
        return stored

    def _scaled(self, products: torch.Tensor, token: torch.Tensor | slice) -> torch.Tensor:
        """Scores from products <w, e> (... x n, float64), with the factors of ``token`` (n)."""
        return products if self.factors is None else products * self.factors[token]

    def _noise(self, row: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """How far ``scores`` in float64, of the vectors ``row``, can be from what ``_settled`` rounds to float32."""
        noise: torch.Tensor = self.noise[row]
        return noise if self.factors is None else noise + 2.0**-51 * scores.abs()  # both products with f are rounded

    def ranked(self, row: torch.Tensor, token: torch.Tensor, scores: torch.Tensor, k: int) -> Tokens:
        """The k tokens of largest score (N, float32) of each row. Rows with fewer have anything in the other places."""
        count = torch.bincount(row, minlength=len(self.W))
        place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
        shape = len(self.W), max(k, int(count.max()))
        values = torch.full(shape, -torch.inf, device=row.device)
        values[row, place] = scores
        ids = torch.full(shape, 0xFFFF_FFFF, device=row.device)
        ids[row, place] = token
        return rank(values, ids, k)

    def whole(self, rows: torch.Tensor, k: int, sign: int) -> Tokens:
        """The k strongest of all tokens for each of ``rows``, with sign times their stored scores."""
        products = torch.cat([self.W[rows] @ chunk.double().T for chunk in torch.split(self.E, _CHUNK)], 1)
        scores = self._scaled(products, slice(None))
        stored, unsure = as_stored(scores, self._noise(rows[:, None], scores))
        V = len(self.E)
        stored.view(-1)[unsure] = self._settled(rows[unsure // V], unsure % V)
        return rank(stored * sign, torch.arange(V, device=rows.device).expand_as(stored), k)

    def _settled(self, row: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """The stored scores of pairs of a row and a token."""
        parts = zip(torch.split(row, _CHUNK), torch.split(token, _CHUNK), strict=True)
        return torch.cat([self._scaled(dot(self.W[r], self.E[t].double()), t).float() for r, t in parts])
