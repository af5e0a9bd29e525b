"""Projection: the strongest tokens of every parameter, both sides, exact.

This is the logit lens on weights: a parameter w scores every token by E w. A stored score is the float64 value of that,
rounded to float32. Tokens are ordered by (stored score, token id). Where tokens have factors f_t, the score is f_t <e,
w>, one product more in float64; in what follows e stands for f_t e.

**Screened.** One product in low precision gives all V scores of a row w, within a bound (see ``engines``). Subtracting
one vector c from every row of E shifts all scores of w by one number and keeps their order. With c the column means,
what is screened is t = <e - c, w>: the top is above 0 and the bottom below. e - c and w are scaled so that no norm is
over 1, and rounded to e' and w'. What that rounding costs is measured; it is less than half of what it might be:

    |t~ - t| <= b + u / (1 - u) |t~|,   b = ||e - c - e'|| + ||e'|| (||w - w'|| + gamma_d ||w'||) + UNDERFLOW

An engine that selects, such as a GPU's tensor cores, does the next step as ``gpu_tokens`` explains. The other steps are
the same. Where vectors are ranked twice, what is screened for the second ranking is made of the first (``derived``).

**Selected.** Tokens are taken in groups, and only the largest t~ of each group is looked at. Let theta be the k-th
largest of those. It is at most the k-th largest of all t~, so k tokens certainly have t >= theta - b - u / (1 - u)
theta. A token whose t is certainly less than that, by more than float32 rounds off, is not among the top k. This leaves
few groups, and few tokens in them. Fewer still are left once b is each token's own, and not that of the longest row.

**Scored.** The tokens that are left are scored in float64. A library chooses the order of that sum, so it is within
gamma_d ||e|| ||w|| of the score (gamma of float64). Where float32 rounds both ends of that to one number, that number
is the stored score; ``arithmetic.dot`` settles the others. So the result does not depend on blocks, threads or the
device. Some rows keep many tokens (near ties, zeros, scores out of float32's range): those are scored in float64 as a
whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from paramdex_builder.project.block import (
    Block,
    Candidates,
    Screen,
    Tokens,
    doubled,
    few_tokens,
    group_size,
    screen_of,
)
from paramdex_builder.project.derived import Derived, Second
from paramdex_builder.project.engines import Engine, SelectingEngine, engine_of, full_float32
from paramdex_builder.project.gpu_tokens import candidates
from paramdex_builder.project.space import TokenRows
from paramdex_builder.work.workers import stop_if_unwanted

_BLOCK_ROWS, _BLOCK_BYTES = (256, 512), 32 << 20
"""Least and most rows screened at a time, and bytes of their scores."""
_SCORED_ROWS, _SCORED_BYTES = 2048, 8 << 20
"""Most rows whose tokens are scored together on a processor, and their bytes. An E that is not held in float64 is read
once for all of them.
"""
_TOGETHER = 1 << 20
"""Once so many tokens wait, they are scored, even if more rows could join them."""
_SELECTED_ROWS, _SELECTED_BYTES = (256, 1024), 256 << 20
"""Least and most rows of which a GPU selects tokens at a time, and the bytes of their scores."""


def strongest_tokens(rows: torch.Tensor, space: TokenRows, k: int, engine: Engine | None = None) -> dict[str, Tokens]:
    """The k strongest tokens of every row (n x d, float32 or float64), as {"top": ..., "bottom": ...}.

    ``space`` has the rows that score, those of E or f_t e_t; all is done on its device. Each side is ordered strongest
    first, and has all V tokens where V < k. The result is the same on every device and with every ``engine``; without
    one, the fastest for the device is taken.
    """
    return _strongest(rows, space, None, k, engine)[0]


def strongest_by_both(
    rows: torch.Tensor, unusual: TokenRows, mean: torch.Tensor, k: int, engine: Engine | None = None
) -> list[dict[str, Tokens]]:
    """As ``strongest_tokens``, twice: of the rows by the plain rows that ``unusual`` has factors for; and of the rows
    less a ``mean`` (d, float64) by ``unusual``. Neither may have a row of zeros. On a processor the second is found in
    what is screened for the first (``derived``).
    """
    assert unusual.plain is not None
    engine = engine or engine_of(unusual.device)
    if isinstance(engine, SelectingEngine):
        beyond = rows.double() - mean
        return [strongest_tokens(rows, unusual.plain, k, engine), strongest_tokens(beyond, unusual, k, engine)]
    second = Second.of(unusual, mean, screen_of(unusual.plain, engine))
    return _strongest(rows, unusual.plain, second, k, engine)


def _strongest(
    rows: torch.Tensor, space: TokenRows, second: Second | None, k: int, engine: Engine | None
) -> list[dict[str, Tokens]]:
    """The strongest tokens of every row, by ``space`` and by a ``second`` ranking."""
    E = space.embedding
    n, k = len(rows), min(k, len(E))
    engine = engine or engine_of(E.device)
    screen = screen_of(space, engine)
    selecting = engine if isinstance(engine, SelectingEngine) else None
    step = _selected_rows(k) if selecting else _scored_rows(screen)
    buffers = [] if selecting else _buffers(n, screen, second)
    rankings = [[_empty(n, k, E.device) for _ in range(2)] for _ in range(1 if second is None else 2)]
    for start in range(0, n, step):
        here = slice(start, start + step)
        W = rows[here].to(E.device).double()
        if selecting:
            found = [_selected(selecting, W, space, screen, k)]
        else:
            found = _screened(W, space, screen, second, k, buffers)
        for sides, own_sides in zip(rankings, found, strict=True):
            for side, sign, own in zip(sides, (1, -1), own_sides, strict=True):
                side.ids[here], side.scores[here] = own.ids, own.scores * sign + 0.0  # + 0.0: -0.0 is 0.0
    return [{"top": top, "bottom": bottom} for top, bottom in rankings]


def token_scores(rows: torch.Tensor, space: TokenRows, ids: torch.Tensor, engine: Engine | None = None) -> torch.Tensor:
    """The stored scores (n x m, float32) of some tokens ``ids`` (n x m, int64) of every row (n x d)."""
    engine = engine or engine_of(space.device)
    screen, m = screen_of(space.plain or space, engine), ids.shape[1]
    found = torch.empty(ids.shape, device=space.device)
    for start in range(0, len(rows), _SCORED_ROWS):
        here = slice(start, start + _SCORED_ROWS)
        block = Block(rows[here].to(space.device).double(), space, screen)
        row = torch.arange(len(block.W), device=space.device).repeat_interleave(m)
        found[here] = block.scores(row, ids[here].flatten()).view(-1, m)
    return found + 0.0  # -0.0 is 0.0


def projection_held(V: int) -> int:
    """About how many bytes a call of ``strongest_by_both`` takes on a processor, beside the rows and what is shared:
    the scores of a block by either ranking, and as much again.
    """
    return 3 * max(_BLOCK_BYTES, 4 * _BLOCK_ROWS[0] * V) + 3 * _SCORED_BYTES + 64 * _TOGETHER


def projection_shared(V: int, d: int, stored: torch.dtype, engine: Engine) -> int:
    """About how many bytes all calls share with an ``engine``, beside an E (V x d) held in the dtype ``stored``."""
    vectors = 8 * V * d if doubled(V * d, stored, engine) else 0
    return screened_held(V, d, engine) + engine.score_dtype.itemsize * d * d + vectors


def screened_held(V: int, d: int, engine: Engine) -> int:
    """About how many bytes rows (V x d) take as they are screened on a processor."""
    return V * (engine.operand_dtype.itemsize * d + 16)


def _screened_rows(screen: Screen) -> int:
    """Rows screened at a time."""
    least, most = _BLOCK_ROWS
    return min(most, max(least, _BLOCK_BYTES // (len(screen.rows) * screen.engine.score_dtype.itemsize)))


def _buffers(n: int, screen: Screen, second: Second | None = None) -> list[torch.Tensor]:
    """Room for the screened scores of a block of up to n rows, by one ranking or by two."""
    size = min(n, _screened_rows(screen)) * len(screen.rows)
    types = [screen.engine.score_dtype] + [torch.float32] * (second is not None)
    return [torch.empty(size, dtype=dtype, device=screen.rows.device) for dtype in types]


def _empty(n: int, k: int, device: torch.device) -> Tokens:
    """Room for the k strongest tokens of n rows on one side."""
    return Tokens(*(torch.empty(n, k, dtype=dtype, device=device) for dtype in (torch.int64, torch.float32)))


def _scored_rows(screen: Screen) -> int:
    """Rows whose tokens are scored together, where those are few."""
    return max(_screened_rows(screen), min(_SCORED_ROWS, _SCORED_BYTES // (8 * screen.vectors.shape[1])))


def _selected_rows(k: int) -> int:
    """Rows of which a GPU selects tokens at a time."""
    least, most = _SELECTED_ROWS
    return max(least, min(most, _SELECTED_BYTES // (32 * few_tokens(0, k))))


def _screened(
    W: torch.Tensor, space: TokenRows, screen: Screen, second: Second | None, k: int, buffers: Sequence[torch.Tensor]
) -> list[list[Tokens]]:
    """The k strongest of some rows (n x d, float64), top and bottom, with sign times their scores; by both rankings
    where there is a ``second``.

    Rows are screened one block at a time, and the candidates of several blocks are scored together. Each of ``buffers``
    has room for the screened scores of one block by one ranking.
    """
    group = group_size(len(space.embedding), k)
    n, step = len(W), _screened_rows(screen)
    rankings = [[_empty(n, k, W.device) for _ in range(2)] for _ in buffers]

    def blocks(some: slice) -> list[Block]:
        first = Block(W[some], space, screen)
        return [first] if second is None else [first, Derived(first, second)]

    waiting: list[list[list[Candidates]]] = []
    first = 0
    for start in range(0, n, step):
        stop_if_unwanted()
        every = blocks(slice(start, start + step))
        end = start + len(every[0].W)
        waiting.append(_candidates(every, group, k, buffers))
        if end == n or sum(len(row) for left in waiting for of in left for row, _, _ in of) > _TOGETHER:
            some = slice(first, end)
            every = blocks(some) if len(waiting) > 1 else every
            for block, sides, *left in zip(every, rankings, *waiting, strict=True):
                joined = [_joined(of) for of in zip(*left, strict=True)]
                for side, own in zip(sides, _scored(block, joined, k), strict=True):
                    side.ids[some], side.scores[some] = own.ids, own.scores
            waiting, first = [], end
    return rankings


def _candidates(every: Sequence[Block], group: int, k: int, buffers: Sequence[torch.Tensor]) -> list[list[Candidates]]:
    """By each ranking of a block of rows the candidates of both sides."""
    with full_float32():
        screened = [every[0].screened(group, buffers[0])]
        screened += [
            block.from_first(screened[0][0], buffer)
            for block, buffer in zip(every[1:], buffers[1:], strict=True)
            if isinstance(block, Derived)
        ]
    return [
        [block.candidates(bits, peak, k, sign) for peak, sign in zip(peaks, (1, -1), strict=True)]
        for block, (bits, peaks) in zip(every, screened, strict=True)
    ]


def _joined(parts: Sequence[Candidates]) -> Candidates:
    """The candidates of one block after the other, as those of one block."""
    starts = itertools.accumulate((len(few) for _, _, few in parts), initial=0)
    rows = [row + start for (row, _, _), start in zip(parts, starts, strict=False)]
    return Candidates(
        torch.cat(rows), torch.cat([token for _, token, _ in parts]), torch.cat([few for _, _, few in parts])
    )


def _scored(block: Block, left: Sequence[Candidates], k: int) -> list[Tokens]:
    """The k strongest of every row: of the candidates ``left`` on both sides, or of all tokens where those are many."""
    sides = _ranked(block, left, k)
    for side, sign, (_, _, few) in zip(sides, (1, -1), left, strict=True):
        for part in torch.split((~few).nonzero().flatten(), max(1, _BLOCK_BYTES // (32 * len(block.E)))):
            if len(part):
                whole = block.whole(part, k, sign)
                side.ids[part], side.scores[part] = whole.ids, whole.scores
    return sides


def _selected(engine: SelectingEngine, W: torch.Tensor, space: TokenRows, screen: Screen, k: int) -> list[Tokens]:
    """As ``_screened``, with an engine that keeps only the scores of few tokens; rows with many go to ``_screened``."""
    block = Block(W, space, screen)
    left = candidates(engine, block, k, 2 * few_tokens(0, k))
    sides = _ranked(block, left, k)
    others = (~(left[0][2] & left[1][2])).nonzero().flatten()
    if len(others):
        step = _screened_rows(screen)
        buffers = _buffers(len(others), screen)
        for part in torch.split(others, step):
            for side, found in zip(sides, _screened(W[part], space, screen, None, k, buffers)[0], strict=True):
                side.ids[part], side.scores[part] = found.ids, found.scores
    return sides


def _ranked(block: Block, left: Sequence[Candidates], k: int) -> list[Tokens]:
    """The k strongest of the candidates ``left`` on both sides, with sign times their scores, for rows with few."""
    scores = block.scores(torch.cat([row for row, _, _ in left]), torch.cat([token for _, token, _ in left]))
    sides = torch.split(scores, [len(row) for row, _, _ in left])
    return [
        block.ranked(row, token, sign * own, k) for own, sign, (row, token, _) in zip(sides, (1, -1), left, strict=True)
    ]
