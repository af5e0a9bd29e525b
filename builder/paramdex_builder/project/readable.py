"""Whether a list of tokens says anything: how alike its tokens are to the model itself, beside lists by chance.

The coherence of a list is the mean cosine of its tokens' rows, two by two, centred over all tokens. The rows are those
of Z, what layer 0 makes of each token, where a model has them: of what we tried without a second model, they agree best
with how alike the words are to another one (README). Else they are those of the model's own embedding.

Lists by chance: the tokens of any direction in which a kind's vectors are spread have something in common, because rows
lie in clusters. So the null is of random vectors that have the mean and covariance of the kind, which are listed as its
vectors are. ``readable`` is the coherence in standard deviations of theirs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from paramdex_builder.project.space import TokenRows
from paramdex_builder.project.tokens import strongest_tokens
from paramdex_builder.project.usual import Moments

TOKENS = 20
"""The most tokens of a list that are compared."""
DRAWS = 512
_CHUNK_BYTES = 1 << 20
"""Bytes of tokens' rows in float64 that are held at a time on a processor: they stay in a core's cache."""


def coherence(ids: torch.Tensor, rows: TokenRows) -> torch.Tensor:
    """The mean cosine (n, float64) of the rows of the tokens ``ids`` (n x k, k > 1), two by two; 0 beside a row that is
    their mean.

    With u_i the centred rows at length 1: sum over i != j of <u_i, u_j> is ||sum u_i||^2 - sum ||u_i||^2.
    """
    k = ids.shape[1]
    found = []
    for part in torch.split(ids, max(1, _CHUNK_BYTES // (8 * k * rows.embedding.shape[1]))):
        centred = rows.embedding[part].double() - rows.means
        norm = centred.norm(dim=2, keepdim=True)
        unit = torch.where(norm > 0, centred / norm, 0.0)
        found.append((unit.sum(1).square().sum(1) - unit.square().sum((1, 2))) / (k * (k - 1)))
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64, device=rows.device)


@dataclass(frozen=True)
class Readable:
    """The rows by which tokens are alike, and the ``mean`` and ``deviation`` of the coherence of lists by chance."""

    rows: TokenRows
    mean: float
    deviation: float

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """Of the strongest tokens of n vectors (n x k): n, float32; NaN where there is nothing to compare with."""
        if not self.deviation > 0:
            return torch.full((len(ids),), torch.nan, device=ids.device)
        return ((coherence(ids[:, :TOKENS], self.rows) - self.mean) / self.deviation).float()


def by_chance(found: Moments, by: TokenRows, rows: TokenRows, k: int) -> tuple[float, float]:
    """The mean and deviation of the coherence, by ``rows``, of the lists of vectors by chance. They have the moments
    ``found`` of their kind, and are listed by the rows ``by`` (x_t / sigma_t), at most k tokens; NaN for lists of one.
    """
    k = min(TOKENS, by.size, k)
    if k < 2:
        return math.nan, math.nan
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(DRAWS, len(found.mean), generator=generator, dtype=torch.float64).to(by.device)
    values, vectors = torch.linalg.eigh(found.scatter / found.n)
    drawn = noise * values.clamp_min(0).sqrt() @ vectors.T
    every = torch.cat([coherence(side.ids, rows) for side in strongest_tokens(drawn, by, k).values()])
    return float(every.mean()), float(every.std(correction=0))
