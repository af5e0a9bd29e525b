"""The lists that are kept of a parameter: its strongest tokens by ``score`` and by ``token_z``, as one list a side.

The list of a side has the k tokens of largest score, then what else is among the k of largest token_z, in order of
(score, id) throughout. So the first k are the list by score; and the first k in order of (token_z, id) are the list by
token_z, because a token that is in none of both lists is beyond the k-th of each. On the side ``bottom`` largest means
most negative.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from paramdex_builder.project.block import Tokens, order
from paramdex_builder.project.readable import Readable
from paramdex_builder.project.space import TokenRows
from paramdex_builder.project.tokens import strongest_by_both, strongest_tokens, token_scores
from paramdex_builder.project.usual import Usual

SIDES = {"top": 1, "bottom": -1}


@dataclass(frozen=True)
class Unusual:
    """What the strongest tokens by token_z are found and judged with: what is usual for a kind, its rows x_t / sigma_t,
    and how readable lists are.
    """

    usual: Usual
    rows: TokenRows
    readable: Readable


@dataclass(frozen=True)
class Lists:
    """One side of n parameters: the tokens of all of them one after the other, ``counts`` (n, int64) of each."""

    counts: torch.Tensor
    ids: torch.Tensor
    """int64"""
    scores: torch.Tensor
    """float32"""
    token_z: torch.Tensor | None
    """float32; None where nothing is usual for the kind"""
    ranks_token_z: torch.Tensor | None
    """int16, from 1 on; 0 for a token that is not among the k by token_z"""
    readable: torch.Tensor | None
    """Of each parameter's list by token_z (n, float32)."""


def lists(rows: torch.Tensor, space: TokenRows, unusual: Unusual | None, k: int) -> dict[str, Lists]:
    """The lists of the vectors ``rows`` (n x d) on both sides, of k tokens by each ranking (all V where V < k)."""
    if unusual is None:
        return {side: _by_score(found) for side, found in _strongest(rows, space, k).items()}
    beyond = unusual.usual.unusual(rows)
    if rows.any(dim=1).all() and beyond.any(dim=1).all():
        by_score, by_z = strongest_by_both(rows, unusual.rows, unusual.usual.mean, k)
    else:
        by_score, by_z = _strongest(rows, space, k), _strongest(beyond, unusual.rows, k)
    found = {}
    for side, sign in SIDES.items():
        first, others = by_score[side], by_z[side]
        z = token_scores(beyond, unusual.rows, first.ids)
        scores = token_scores(rows, space, others.ids)
        found[side] = replace(_union(first, z, others, scores, sign), readable=unusual.readable(others.ids))
    return found


def _by_score(found: Tokens) -> Lists:
    n, k = found.ids.shape
    counts = torch.full((n,), k, device=found.ids.device)
    return Lists(counts, found.ids.flatten(), found.scores.flatten(), None, None, None)


def _union(first: Tokens, z: torch.Tensor, others: Tokens, scores: torch.Tensor, sign: int) -> Lists:
    """Of the ``first`` by score (n x k) with their ``z``, and the ``others`` by z with their ``scores``, every token
    once.
    """
    keys = order(sign * others.scores, others.ids)  # ascending, as the others are strongest first
    of_first = order(sign * z, first.ids)
    place = torch.searchsorted(keys, of_first).clamp_max(keys.shape[1] - 1)
    ranks = torch.where(keys.gather(1, place) == of_first, place + 1, 0).short()
    by_score = order(sign * scores, others.ids)
    beyond, places = by_score.sort(dim=1)
    is_new = beyond > order(sign * first.scores[:, -1:], first.ids[:, -1:])
    kept = torch.cat([torch.ones_like(is_new), is_new], 1)

    def both(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return torch.cat([own, other.gather(1, places)], 1)[kept]

    numbers = torch.arange(1, keys.shape[1] + 1, dtype=torch.int16, device=keys.device).expand_as(keys)
    return Lists(
        kept.sum(1),
        both(first.ids, others.ids),
        both(first.scores, scores),
        both(z, others.scores),
        both(ranks, numbers),
        None,
    )


def _strongest(rows: torch.Tensor, space: TokenRows, k: int) -> dict[str, Tokens]:
    """As ``strongest_tokens``. Rows of zeros, as what training did not move, get the first tokens, with score 0."""
    moved = rows.any(dim=1)
    if moved.all():
        return strongest_tokens(rows, space, k)
    k = min(k, space.size)
    found = strongest_tokens(rows[moved], space, k) if moved.any() else {}
    sides = {}
    for side in SIDES:
        ids = torch.arange(k, device=rows.device).repeat(len(rows), 1)
        scores = torch.zeros(ids.shape, device=rows.device)
        if side in found:
            ids[moved], scores[moved] = found[side].ids, found[side].scores
        sides[side] = Tokens(ids, scores)
    return sides
