"""Projection: the strongest tokens of every parameter, both sides, exact.

A stored score is the float64 value of E w rounded to float32; tokens are ordered by (stored score, token id).

**Screened.** One product in low precision gives all V scores of a row w, within a bound (see ``screening``). Taking one
vector c from every row of E moves all scores of w by one number and leaves their order. With c the column means, what
is screened is t = <e - c, w>, of which the top is above 0 and the bottom below. e - c and w are scaled so that no norm
is over 1. What their rounding to e' and w' cost is measured, which is less than half of what it might have:

    |t~ - t| <= b + u / (1 - u) |t~|,   b = ||e - c - e'|| + ||e'|| (||w - w'|| + gamma_d ||w'||) + UNDERFLOW

On a GPU's tensor cores, with Triton, the next step is that of ``fused_projection``; the others are the same.

**Selected.** Tokens are taken in groups, and only the largest t~ of each is looked at. The k-th largest of those is at
most the k-th largest of all t~. Call it theta: k tokens are certain to have t >= theta - b - u / (1 - u) theta, and
whatever has a t certain to be less, by more than float32 rounds off, is not among the top k. That leaves few groups,
and few tokens in them; fewer still once b is that of each token, and not of the longest row of E.

**Scored.** Those are scored in float64. The order of that sum is a library's business, so it is within gamma_d ||e||
||w|| of the score (gamma for float64); where float32 rounds both ends of that to one number, that is the stored score,
and ``screening.dot`` settles the others. So the result does not depend on blocks, threads or the device. Rows in which
this does not leave few tokens (near ties, zeros, scores out of float32's range) are scored in float64 as a whole.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from paramdex_builder.project.engines import (
    LARGEST,
    UNDERFLOW,
    Precision,
    as_stored,
    ascending,
    at_least,
    chosen_products,
    dot,
    full_float32,
    gamma64,
    kth_largest,
    precision_of,
)
from paramdex_builder.project.kernels import avx2
from paramdex_builder.project.space import Space
from paramdex_builder.work.workers import check

GROUPS = (64, 32, 16, 8, 4, 2, 1)
"""Sizes of groups of tokens; the first is taken of which there are at least four times k."""
FEW = 256
"""See ``few_tokens``."""
_TILE_BYTES = 1 << 20
"""Bytes of scores screened at a time on a processor, whose cache has them still when their groups are looked at."""
_BLOCK_ROWS, _BLOCK_BYTES = (256, 512), 32 << 20
"""Least and most rows screened at a time, and bytes of their scores."""
_SCORED_ROWS, _SCORED_BYTES = 2048, 8 << 20
"""Most rows whose tokens are scored together on a processor, and their bytes: an E that is not held in float64 goes by
once for all of them.
"""
_TOGETHER = 1 << 20
"""So many tokens are scored whether or not more rows could join them."""
_MUCH = 1 << 25
"""An embedding of more numbers than this is not held in float64 beside itself."""
_FEW_TOKENS = 256
"""Rows of such an E in float64 at a time."""
_CHUNK = 1024
"""Rows held in float64 at a time."""
_FUSED_BYTES = 256 << 20
"""Bytes of the scores of tokens that a GPU has selected at a time."""


@dataclass
class Tokens:
    """The strongest tokens of n parameters on one side: ``ids`` (n x k, int64) and ``scores`` (n x k, float32)."""

    ids: torch.Tensor
    scores: torch.Tensor


def moments(rows: torch.Tensor, space: Space) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and population standard deviation (both n, float64) of the V scores of every row (n x d), in closed form.

    mean = <column means of E, w>; std = ||Ec w|| / sqrt(V) = ||R w|| / sqrt(V).
    """
    mean = rows.double() @ space.means
    std = space.coordinates(rows).norm(dim=1) / space.size**0.5
    return mean, std


def rank(scores: torch.Tensor, ids: torch.Tensor, k: int) -> Tokens:
    """The k largest of each row of ``scores`` (n x m, float32), ties by the smaller id (``ids``, n x m, below 2^32).

    They are sorted as integers: the bits of the score, made to compare as it does, and below them those of the id.
    """
    bits = (scores + 0.0).view(torch.int32).long()  # + 0.0: -0.0 is 0.0
    best = ascending((bits ^ ((bits >> 31) & 0x7FFF_FFFF)) << 32 | (0xFFFF_FFFF - ids))[:, -k:].flip(1)
    bits = best >> 32
    return Tokens(0xFFFF_FFFF - (best & 0xFFFF_FFFF), (bits ^ ((bits >> 31) & 0x7FFF_FFFF)).int().view(torch.float32))


@dataclass
class _Screen:
    """E as it is screened: ``rows`` e' = (e - c) / size in low precision, and rows of 0 up to whole groups, packed."""

    rows: torch.Tensor
    norms: torch.Tensor
    """||e'|| (V, float64)."""
    errors: torch.Tensor
    """||(e - c) / size - e'|| (V, float64)."""
    size: float
    precision: Precision
    vectors: torch.Tensor
    """E (V x d), in float64 where that is not much."""
    root: torch.Tensor
    """R / (size sqrt(V)) (r x d), in low precision: of how far t is spread."""
    deviations: dict[int, float]
    """k -> of how many deviations almost all rows have k tokens beyond (``fused_projection``)."""

    @classmethod
    def of(cls, space: Space, precision: Precision) -> _Screen:
        E = space.embedding
        size = space.longest + float(space.means.norm())
        groups, one_group = -(-len(E) // max(GROUPS)), torch.zeros(max(GROUPS), E.shape[1], device=E.device)
        none = precision.packed(precision.operand(one_group.double()))
        rows = none.new_zeros(groups * len(none), none.shape[1])
        norms, errors = (torch.empty(len(E), dtype=torch.float64, device=E.device) for _ in range(2))
        step = -(-_CHUNK // max(GROUPS)) * max(GROUPS)
        for start in range(0, len(E), step):
            part = slice(start, min(start + step, len(E)))
            centred = (E[part].double() - space.means) / (size or 1)
            low = precision.operand(centred)
            rounded, packed = precision.values(low, E.shape[1]), precision.packed(low)
            rows[start : start + len(packed)] = packed
            norms[part], errors[part] = rounded.norm(dim=1), (centred - rounded).norm(dim=1)
        vectors = E.double() if _doubled(E.numel(), E.dtype, precision) else E
        root = torch.from_numpy(space.root.root / ((size or 1) * len(E) ** 0.5)).to(E.device, precision.of_scores)
        return cls(rows, norms, errors, size, precision, vectors, root, {})


_screens = WeakTensorKeyDictionary()
"""The screen of every embedding in use: many blocks of rows are projected to one."""


_making = threading.Lock()


def _screen(space: Space, precision: Precision) -> _Screen:
    with _making:
        found = _screens.get(space.embedding)
        if found is None or found.precision != precision:
            found = _screens[space.embedding] = _Screen.of(space, precision)
        return found


def forget(space: Space) -> None:
    """Free what the projection to a space keeps from one block of rows to the next."""
    _screens.pop(space.embedding, None)


Left = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""(row, token, few): the tokens that may be among the strongest of a row, by row, for the rows that ``few`` says."""


class _Block:
    """A block of rows W (n x d, float64), and how well their scores are known."""

    def __init__(self, W: torch.Tensor, space: Space, screen: _Screen) -> None:
        self.W, self.E, self.screen = W, space.embedding, screen
        tile = _TILE_BYTES // (len(W) * screen.precision.of_scores.itemsize) // max(GROUPS) * max(GROUPS)
        self.tile = max(tile, *GROUPS) if W.device.type == "cpu" else len(screen.rows)
        d, u = W.shape[1], screen.precision.u
        self.norms = norms = W.norm(dim=1)
        self.relative = u / (1 - u)
        self.noise = gamma64(d) * space.longest * norms
        """How far a sum in float64 can be from the score (n)."""
        largest = space.longest * norms
        slack = (2.0**-22 * largest + 2.0**-148) / (screen.size * norms)
        self.slack = slack.where((largest > 0) & (largest < LARGEST), torch.inf)
        """How much less a t is that is certain to be less once rounded to float32 (n)."""

    @cached_property
    def rounded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """w' of every row, an operand, and what b has for every 1 of ||e'|| (n)."""
        precision, d = self.screen.precision, self.W.shape[1]
        units = self.W / self.norms.clamp_min(1e-300)[:, None]
        low = precision.operand(units)
        values = precision.values(low, d)
        return low, (units - values).norm(dim=1) + precision.gamma(d) * values.norm(dim=1)

    @property
    def low(self) -> torch.Tensor:
        return self.rounded[0]

    def bounds(self, errors: torch.Tensor, norms: torch.Tensor, row: torch.Tensor | slice) -> torch.Tensor:
        """b, from ||e - c - e'|| and ||e'||, for rows; 1.001 makes up for its own rounding."""
        return 1.001 * (errors + norms * self.rounded[1][row]) + UNDERFLOW

    def screened(self, group: int, space: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The bits of all -t~ (n V / group x group), in ``space``, and of the largest t~ and the largest -t~ of every
        group (2 x n x V / group). The first are in order of tile, row and token.
        """
        n, precision = len(self.low), self.screen.precision
        peaks = torch.empty(2, n, len(self.screen.rows) // group, dtype=precision.bits, device=self.low.device)
        done = 0
        for tile in self.screen.rows.split(self.tile):
            here = slice(done // group, (done + len(tile)) // group)
            precision.screen(self.low, tile, space[n * done :], peaks[:, :, here], group, is_packed=True)
            done += len(tile)
        return space[: n * done].view(precision.bits).view(-1, group), peaks

    def survivors(self, bits: torch.Tensor, peaks: torch.Tensor, k: int, sign: int) -> Left:
        """(row, token, few): the tokens that may be among the k strongest of a row, by row, for rows with few of them;
        ``few`` (n) says which those are.
        """
        screen, precision = self.screen, self.screen.precision
        n, n_groups = peaks.shape
        group = bits.shape[1]
        theta = kth_largest(peaks, k).view(precision.of_scores).double()
        bound = self.bounds(screen.errors.max(), screen.norms.max(), slice(None))
        limit = (theta * (1 - self.relative) - 2 * bound - self.slack) / (1 + self.relative)
        keys = precision.keys(limit.clamp_min(0)).masked_fill(~(limit > 0), torch.iinfo(precision.bits).max)
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
        over, found = precision.reaching(bits, group_of, keys[row], sign)
        at = over // group
        row, token = row[at], place[at] * group + over % group
        value = found.view(precision.of_scores).double()
        # The same with the bound of each token. k of a row are certain to have more than 0.
        bound = self.bounds(screen.errors[token], screen.norms[token], row) + self.relative * value
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
        return row, token, few & ~many

    def scores(self, row: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """The stored scores (N, float32) of pairs of a row and a token."""
        if self.screen.precision.tensor_cores:
            from paramdex_builder.project.kernels.triton import dots

            scores = dots(self.W, self.E, row, token)
        else:
            scores = self._products(row, token)
        stored, unsure = as_stored(scores, self.noise[row])
        stored[unsure] = self._settled(row[unsure], token[unsure])
        return stored

    def _products(self, row: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """The scores (N, float64) of pairs of a row and a token, as a library sums them.

        They are taken token by token, so that every row of E is read once and those of W stay in the cache.
        """
        V, here = len(self.E), self.E.device
        order = ascending(token << 32 | torch.arange(len(token), device=here)) & 0xFFFF_FFFF
        by_token = row[order]
        if self.screen.precision.scores_as_stored(self.E.dtype):
            found = avx2.dots(self.W, self.E, by_token, token[order])
        else:
            ends = torch.zeros(V + 1, dtype=torch.int64, device=here)
            ends[1:] = torch.bincount(token, minlength=V).cumsum(0)
            found = torch.empty(len(token), dtype=torch.float64, device=here)
            step = V if self.screen.vectors.dtype == torch.float64 else _FEW_TOKENS
            for start, vectors in zip(range(0, V, step), self.screen.vectors.split(step), strict=True):
                end = ends[start : start + len(vectors) + 1]
                part = slice(int(end[0]), int(end[-1]))
                found[part] = chosen_products(vectors.double(), self.W, end - end[0], by_token[part])
        scores = torch.empty_like(found)
        scores[order] = found
        return scores

    def ranked(self, row: torch.Tensor, token: torch.Tensor, scores: torch.Tensor, k: int) -> Tokens:
        """The k tokens of largest score (N, float32) of each row; of rows with fewer, anything beside them."""
        count = torch.bincount(row, minlength=len(self.W))
        place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
        shape = len(self.W), max(k, int(count.max()))
        values = torch.full(shape, -torch.inf, device=row.device)
        values[row, place] = scores
        ids = torch.full(shape, 0xFFFF_FFFF, device=row.device)
        ids[row, place] = token
        return rank(values, ids, k)

    def whole(self, rows: torch.Tensor, k: int, sign: int) -> Tokens:
        """Of all tokens the k strongest of each of ``rows``, with sign times their stored scores."""
        scores = torch.cat([self.W[rows] @ chunk.double().T for chunk in self.E.split(_CHUNK)], 1)
        stored, unsure = as_stored(scores, self.noise[rows, None])
        V = len(self.E)
        stored.view(-1)[unsure] = self._settled(rows[unsure // V], unsure % V)
        return rank(stored * sign, torch.arange(V, device=rows.device).expand_as(stored), k)

    def _settled(self, row: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """The stored scores of pairs of a row and a token."""
        parts = zip(row.split(_CHUNK), token.split(_CHUNK), strict=True)
        return torch.cat([dot(self.W[r], self.E[t].double()).float() for r, t in parts])


def strongest_tokens(rows: torch.Tensor, space: Space, k: int, precision: Precision | None = None) -> dict[str, Tokens]:
    """The k strongest tokens of every row (n x d, float32 or float64), as {"top": ..., "bottom": ...}.

    On the device of E. Sides are ordered strongest first; where V < k, all V tokens are given. The result is the same
    on every device and for every ``precision`` of the screening.
    """
    E = space.embedding
    n, k = len(rows), min(k, len(E))
    screen = _screen(space, precision or precision_of(E.device))
    fused = screen.precision.tensor_cores
    step = _fused_rows(k) if fused else _scored_rows(screen)
    buffer = _buffer(n, screen) if not fused else None
    sides = [
        Tokens(*(torch.empty(n, k, dtype=dtype, device=E.device) for dtype in (torch.int64, torch.float32)))
        for _ in range(2)
    ]
    for start in range(0, n, step):
        here = slice(start, start + step)
        W = rows[here].to(E.device).double()
        found = _screened(W, space, screen, k, buffer) if buffer is not None else _fused(W, space, screen, k)
        for side, sign, own in zip(sides, (1, -1), found, strict=True):
            side.ids[here], side.scores[here] = own.ids, own.scores * sign + 0.0  # + 0.0: -0.0 is 0.0
    return {"top": sides[0], "bottom": sides[1]}


def projection_held(V: int) -> int:
    """About how many bytes ``strongest_tokens`` holds on a processor, beside the rows and what all calls share."""
    return 2 * max(_BLOCK_BYTES, 4 * _BLOCK_ROWS[0] * V) + 3 * _SCORED_BYTES + 64 * _TOGETHER


def projection_shared(V: int, d: int, stored: torch.dtype, precision: Precision) -> int:
    """About how many bytes all calls share, beside an E (V x d) that is held in the dtype ``stored``."""
    vectors = 8 * V * d if _doubled(V * d, stored, precision) else 0
    return V * (precision.dtype.itemsize * d + 16) + precision.of_scores.itemsize * d * d + vectors


def _doubled(size: int, stored: torch.dtype, precision: Precision) -> bool:
    """Whether an E of so many numbers is held in float64 as well."""
    return size <= _MUCH and not precision.scores_as_stored(stored)


def few_tokens(V: int, k: int) -> int:
    """A row is scored as a whole where more tokens than so many of V are left for a side of k."""
    return FEW + 6 * k + V // 32


def _screened_rows(screen: _Screen) -> int:
    """Rows screened at a time."""
    least, most = _BLOCK_ROWS
    return min(most, max(least, _BLOCK_BYTES // (len(screen.rows) * screen.precision.of_scores.itemsize)))


def _buffer(n: int, screen: _Screen) -> torch.Tensor:
    """Room for the screened scores of a block of up to n rows."""
    size = min(n, _screened_rows(screen)) * len(screen.rows)
    return torch.empty(size, dtype=screen.precision.of_scores, device=screen.rows.device)


def _scored_rows(screen: _Screen) -> int:
    """Rows whose tokens are scored together, if they are few."""
    return max(_screened_rows(screen), min(_SCORED_ROWS, _SCORED_BYTES // (8 * screen.vectors.shape[1])))


def _fused_rows(k: int) -> int:
    """Rows of which a GPU selects tokens at a time."""
    return max(_BLOCK_ROWS[0], min(_CHUNK, _FUSED_BYTES // (32 * few_tokens(0, k))))


def _screened(W: torch.Tensor, space: Space, screen: _Screen, k: int, buffer: torch.Tensor) -> list[Tokens]:
    """The k strongest of some rows (n x d, float64), top and bottom, with sign times their scores; ``buffer`` has room
    for all of a block's.

    They are screened a block at a time, and what is left of several blocks is scored together.
    """
    group = next(size for size in GROUPS if len(space.embedding) >= 4 * k * size or size == 1)
    n, step = len(W), _screened_rows(screen)
    sides = [
        Tokens(*(torch.empty(n, k, dtype=dtype, device=W.device) for dtype in (torch.int64, torch.float32)))
        for _ in range(2)
    ]
    waiting: list[list[Left]] = []
    first = 0
    for start in range(0, n, step):
        check()
        block = _Block(W[start : start + step], space, screen)
        end = start + len(block.W)
        with full_float32():
            bits, peaks = block.screened(group, buffer)
        waiting.append([block.survivors(bits, peak, k, sign) for peak, sign in zip(peaks, (1, -1), strict=True)])
        if end == n or sum(len(row) for left in waiting for row, _, _ in left) > _TOGETHER:
            some = slice(first, end)
            block = _Block(W[some], space, screen) if len(waiting) > 1 else block
            left = [_joined(of) for of in zip(*waiting, strict=True)]
            for side, own in zip(sides, _scored(block, left, k), strict=True):
                side.ids[some], side.scores[some] = own.ids, own.scores
            waiting, first = [], end
    return sides


def _joined(parts: Sequence[Left]) -> Left:
    """What is left of one block after the other, as of one."""
    starts = itertools.accumulate((len(few) for _, _, few in parts), initial=0)
    rows = [row + start for (row, _, _), start in zip(parts, starts, strict=False)]
    return torch.cat(rows), torch.cat([token for _, token, _ in parts]), torch.cat([few for _, _, few in parts])


def _scored(block: _Block, left: Sequence[Left], k: int) -> list[Tokens]:
    """The k strongest of every row, of the tokens ``left`` on both sides, or of all tokens where those are not few."""
    sides = _ranked(block, left, k)
    for side, sign, (_, _, few) in zip(sides, (1, -1), left, strict=True):
        for part in (~few).nonzero().flatten().split(max(1, _BLOCK_BYTES // (32 * len(block.E)))):
            if len(part):
                whole = block.whole(part, k, sign)
                side.ids[part], side.scores[part] = whole.ids, whole.scores
    return sides


def _fused(W: torch.Tensor, space: Space, screen: _Screen, k: int) -> list[Tokens]:
    """``_screened``, by kernels that keep no scores but those of few tokens; other rows are left to it."""
    from paramdex_builder.project.gpu_tokens import survivors

    block = _Block(W, space, screen)
    left = survivors(block, k, 2 * few_tokens(0, k))
    sides = _ranked(block, left, k)
    others = (~(left[0][2] & left[1][2])).nonzero().flatten()
    if len(others):
        step = _screened_rows(screen)
        buffer = _buffer(len(others), screen)
        for part in others.split(step):
            for side, found in zip(sides, _screened(W[part], space, screen, k, buffer), strict=True):
                side.ids[part], side.scores[part] = found.ids, found.scores
    return sides


def _ranked(block: _Block, left: Sequence[Left], k: int) -> list[Tokens]:
    """The k strongest of the tokens ``left`` on both sides, with sign times their scores, where they are few."""
    scores = block.scores(torch.cat([row for row, _, _ in left]), torch.cat([token for _, token, _ in left]))
    sides = scores.split([len(row) for row, _, _ in left])
    return [
        block.ranked(row, token, sign * own, k) for own, sign, (row, token, _) in zip(sides, (1, -1), left, strict=True)
    ]
