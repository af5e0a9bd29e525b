"""The selection of ``tokens`` on a GPU: tokens are selected where their screened scores are made.

``tokens`` finds a threshold among a row's V screened scores t~, so it has to keep them. Here the threshold is known
before: the mean of t = <e - c, w> over all tokens is 0 and its standard deviation ||R w|| / sqrt(V), so theta is z
deviations. The z is taken from some rows of the weights, so that a few more than k tokens are left.
``kernels.triton.tokens_reaching`` writes down the tokens with t~ >= theta, and no others.

**Exact.** t~ is not rounded once more here, so |t~ - t| <= b of each token (``tokens``); what is written down is less,
by up to |t~| / 2^14. A token that was left out has t <= t~ + b < theta + b for the largest b. Let t_k be the k-th
largest t~ - b of those written down: k tokens have t >= t_k. Let slack be what float32 may round off. Where
theta + b <= t_k - slack, no token left out is among the top k, and neither is one with t~ + b < t_k - slack. How good z
is only decides for how many rows this holds. The other rows, and those with more tokens on the two sides than there is
room for, get their answer from ``tokens``.
"""

from __future__ import annotations

import torch

from paramdex_builder.project.arithmetic import kth_largest
from paramdex_builder.project.block import Block, Candidates
from paramdex_builder.project.engines import SelectingEngine

_SAMPLE = 64
"""From so many rows we learn how many deviations theta is."""
_LEAST = 0.05
"""This share of them has its k-th largest t~ below theta."""
_GOOD = 7 / 8
"""Where a smaller share of the rows is done than this, theta is looked for again."""


def candidates(engine: SelectingEngine, block: Block, k: int, room: int) -> tuple[Candidates, Candidates]:
    """The candidates of the top and of the bottom; rows with few have no more than ``room`` on both sides together."""
    known = block.screen.deviations
    while True:
        fresh = k not in known
        if fresh:
            known[k] = _deviations(block, k)
        left = _candidates(engine, block, k, room, known[k])
        if fresh or float(torch.stack([few for _, _, few in left]).double().mean()) >= _GOOD:
            return left
        del known[k]  # other rows than these had other tails


def _deviation(block: Block) -> torch.Tensor:
    """About the standard deviation of every row's t (n, float32)."""
    assert block.screen.root is not None
    found: torch.Tensor = (block.low @ block.screen.root.T).float().norm(dim=1)
    return found


def _deviations(block: Block, k: int) -> float:
    """A number of deviations beyond which almost all rows have k tokens, on either side."""
    n = len(block.low)
    sample = torch.linspace(0, n - 1, min(_SAMPLE, n), device=block.low.device).long()
    t = (block.low[sample] @ block.screen.rows[: len(block.E)].T).float()
    deviation = _deviation(block)[sample]
    kth = torch.cat([kth_largest(side, k) / deviation for side in (t, -t)])
    kth = kth[kth.isfinite()]
    return float(kth.quantile(_LEAST)) if len(kth) else 0.0


def _candidates(
    engine: SelectingEngine, block: Block, k: int, room: int, deviations: float
) -> tuple[Candidates, Candidates]:
    """``candidates`` with theta at a number of ``deviations``."""
    screen, here = block.screen, block.low.device
    bound = block.bounds(screen.errors.max(), screen.norms.max(), slice(None))
    theta = (deviations * _deviation(block).double() - 2 * bound - block.slack).clamp_min(0).float()
    theta = theta.where(block.slack.isfinite(), torch.inf)
    count, token, value = engine.tokens_reaching(block.low, screen.rows, len(block.E), theta, room)
    row = torch.arange(len(block.low), device=here)[:, None]
    place = torch.arange(room, device=here)
    token, value = token.where(place < count[:, None], 0), value.where(place < count[:, None], 0.0).double()
    bounds = block.bounds(screen.errors[token], screen.norms[token], row) + 2.0**-14 * value.abs()
    sides = []
    for sign in (1, -1):
        own = torch.where(sign * value > 0, sign * value, -torch.inf)  # there is 0 where there is no token
        least = kth_largest(own - bounds, k) - block.slack
        few = (count <= room) & (theta.double() + bound <= least)
        at = ((own + bounds >= least[:, None]) & few[:, None]).flatten().nonzero().flatten()
        sides.append(Candidates(at // room, token.flatten()[at], few))
    return sides[0], sides[1]
