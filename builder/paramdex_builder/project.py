"""Projection: the strongest tokens of every parameter, both sides, exact.

A stored score is the float64 value of E w rounded to float32; tokens are ordered by (stored score, token id). To get
there fast, one float32 GEMM screens all V scores and only the survivors are scored again in float64.

The screening is certified. For n x d float32 operands and any order of summation, the computed s~ of s = <e, w> has

    |s~ - s| <= gamma_d ||e|| ||w||,   gamma_d = d u / (1 - d u),  u = 2^-24          (Higham 2002, section 3.1)

(by Cauchy-Schwarz on sum |e_i w_i|). Let b = gamma_d max||e|| ||w||. If the (k + PAD)-th largest s~ lies more than 3b
below the k-th largest, then every token outside the k + PAD survivors has s < s~_k - 2b, while k survivors have
s >= s~_k - b: a gap of b >= 2 ulp(s) at d >= 2, which rounding to float32 cannot close. So the top k lie among the
survivors. The few rows where this cannot be certified (near ties) are scored in float64 over the whole vocabulary; so
are those whose scores could leave float32's range, where the bound does not hold (see ``screening_bound``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paramdex_builder.space import Space

PAD = 14
_U = 2.0**-24
SMALLEST, LARGEST = 2.0**-126, 2.0**126
"""Sums of smaller terms may lose them, sums of larger ones may overflow, in float32."""
_BLOCK_BYTES = 64 << 20
"""Bytes of a block of screened scores."""


@dataclass
class Tokens:
    """The strongest tokens of n parameters on one side: ``ids`` (n x k, int64) and ``scores`` (n x k, float32)."""

    ids: torch.Tensor
    scores: torch.Tensor


def gamma(n: int) -> float:
    """gamma_n = n u / (1 - n u) for float32's unit roundoff u."""
    return n * _U / (1 - n * _U)


def screening_bound(d: int, norms: torch.Tensor) -> torch.Tensor:
    """How far a float32 <e, w> of d terms can be from the true one, from ||e|| ||w|| (``norms``, float64).

    Terms that underflow cost up to float32's smallest normal number each; infinite where a sum could overflow.
    """
    return torch.where(norms < LARGEST, gamma(d) * norms + d * SMALLEST, torch.inf)


def moments(rows: torch.Tensor, space: Space) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and population standard deviation (both n, float64) of the V scores of every row (n x d), in closed form.

    mean = <column means of E, w>; std = ||Ec w|| / sqrt(V) = ||R w|| / sqrt(V).
    """
    mean = rows.double() @ space.means
    std = space.coordinates(rows).norm(dim=1) / space.size**0.5
    return mean, std


def rank(scores: torch.Tensor, ids: torch.Tensor, k: int) -> Tokens:
    """The k largest of each row of ``scores`` (n x m, float32), ties by the smaller id (``ids``, n x m)."""
    by_id = ids.argsort(dim=1, stable=True)
    scores, ids = scores.gather(1, by_id), ids.gather(1, by_id)
    by_score = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return Tokens(ids.gather(1, by_score), scores.gather(1, by_score))


def _exact(rows: torch.Tensor, ids: torch.Tensor, E: torch.Tensor) -> torch.Tensor:
    """The stored scores (n x m, float32) of the tokens ``ids`` (n x m) for every row (n x d)."""
    out = torch.empty(ids.shape, dtype=torch.float32, device=ids.device)
    step = max(1, _BLOCK_BYTES // (8 * ids.shape[1] * E.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        out[part] = torch.bmm(E[ids[part]].double(), rows[part].double().unsqueeze(2)).squeeze(2).float()
    return out


def _whole(row: torch.Tensor, E: torch.Tensor, k: int, sign: int) -> Tokens:
    """One row's tokens from float64 scores over the whole vocabulary."""
    scores = torch.cat([(chunk.double() @ row.double()).float() for chunk in E.split(8192)]) * sign
    ids = torch.arange(len(E), device=E.device)
    order = scores.argsort(descending=True, stable=True)[:k]  # stable: equal scores stay in order of id
    return Tokens(ids[order].unsqueeze(0), scores[order].unsqueeze(0))


def _side(
    screened: torch.Tensor, rows: torch.Tensor, E: torch.Tensor, bound: torch.Tensor, k: int, sign: int
) -> Tokens:
    """One side of a block; ``sign`` is 1 for top and -1 for bottom."""
    width = min(k + PAD, len(E))
    best = screened.topk(width, dim=1, largest=sign > 0)
    found = rank(_exact(rows, best.indices, E) * sign, best.indices, k)
    if width < len(E):
        values = best.values * sign
        unsure = (~(values[:, k - 1] - values[:, -1] > 3 * bound)).nonzero().flatten().tolist()
        for i in unsure:
            whole = _whole(rows[i], E, k, sign)
            found.ids[i], found.scores[i] = whole.ids[0], whole.scores[0]
    return Tokens(found.ids, found.scores * sign)


def strongest_tokens(rows: torch.Tensor, space: Space, k: int) -> dict[str, Tokens]:
    """The k strongest tokens of every row (n x d, float32), as {"top": ..., "bottom": ...}, on the device of E.

    Sides are ordered strongest first; where V < k, all V tokens are given.
    """
    E = space.embedding
    k = min(k, len(E))
    sides: dict[str, list[Tokens]] = {"top": [], "bottom": []}
    for block in rows.to(E.device).split(max(1, _BLOCK_BYTES // (4 * len(E)))):
        screened = block @ E.T
        bound = screening_bound(E.shape[1], space.longest * block.double().norm(dim=1))
        for side, sign in (("top", 1), ("bottom", -1)):
            sides[side].append(_side(screened, block, E, bound, k, sign))
    return {
        side: Tokens(torch.cat([t.ids for t in parts]), torch.cat([t.scores for t in parts]))
        for side, parts in sides.items()
    }
