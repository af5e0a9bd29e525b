"""Hubs: tokens that stand in very many lists. The share of all places that the HUBS commonest tokens take.

A list has PLACES places, of one vector's strongest tokens; or, of a head, those of the source and the target of each of
its PAIRS strongest pairs of different words. The baseline is what lists of tokens that are drawn uniformly would give:
with few lists, even those have a share that is not small. So compare shares of as many lists.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from paramdex_builder.project.pair_sides import Side
from paramdex_builder.project.pairs import Words, strongest_pairs

HUBS, PLACES, PAIRS = 100, 10, 50
PairRanking = Callable[[Side, Side], tuple[Side, Side]]
"""Takes the sides A, B (V x d_head each) of a head's matrix A B^T to those whose product ranks its pairs."""


def share(ids: torch.Tensor, V: int) -> float:
    """The share of the places ``ids`` (any shape, of V tokens) that the HUBS commonest tokens take."""
    counts = torch.bincount(ids.flatten(), minlength=V)
    return float(counts.topk(min(HUBS, V)).values.sum()) / ids.numel()


def uniform(n: int, k: int, V: int, generator: torch.Generator) -> torch.Tensor:
    """``n`` lists of ``k`` different tokens of V, each set equally likely (n x k): Floyd's way to sample (Bentley and
    Floyd 1987), for all lists at once.
    """
    chosen = torch.full((n, k), -1)
    for place, last in enumerate(range(V - k, V)):
        drawn = torch.randint(last + 1, (n, 1), generator=generator)
        chosen[:, place : place + 1] = torch.where((chosen == drawn).any(dim=1, keepdim=True), last, drawn)
    return chosen


class Baseline:
    """Shares of uniform lists: ``draws`` of them for each number and length of lists, drawn once."""

    def __init__(self, V: int, draws: int, generator: torch.Generator) -> None:
        self.V, self.draws, self.generator = V, draws, generator
        self._drawn: dict[tuple[int, int], torch.Tensor] = {}

    def shares(self, n: int, k: int) -> torch.Tensor:
        """Of n lists of k tokens (``draws``, float64)."""
        if (n, k) not in self._drawn:
            found = [share(uniform(n, k, self.V, self.generator), self.V) for _ in range(self.draws)]
            self._drawn[n, k] = torch.tensor(found, dtype=torch.float64)
        return self._drawn[n, k]


def pair_places(A: torch.Tensor, B: torch.Tensor, words: Words, ranking: PairRanking) -> torch.Tensor:
    """The sources and targets of the PAIRS strongest pairs of different words of A B^T (both V x d_head, float64), as
    ``ranking`` has them: fewer where there are fewer (2 x n ids).
    """
    pairs = strongest_pairs(*ranking(Side(A), Side(B)), words, PAIRS)["top"].distinct
    return torch.stack([pairs.source, pairs.target])
