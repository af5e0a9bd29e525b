"""What is usual for a token: the mean and the deviation of its scores over all vectors of a kind that one space scores.

Some tokens stand in the lists of very many vectors: their rows are long, or point where most vectors do. Such hubs
(Radovanovic, Nanopoulos, Ivanovic 2010) crowd out what is particular to a vector. ``token_z`` says how unusual a score
is for its token. With r the n vectors of a kind, r^ their mean and C = sum (r - r^) (r - r^)^T / n:

    token_z = <x_t, r - r^> / sigma_t,    sigma_t^2 = x_t^T C x_t

This is exactly the score less the mean of the token's n scores, in their population standard deviations. It is linear
in r, with one factor for each token, so the strongest tokens by it are found as those by score are (``tokens``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file

from paramdex_builder.project.arithmetic import gamma64
from paramdex_builder.project.space import TokenRows, scaled

LEAST = 50
"""Of fewer vectors nothing is usual. (Of n numbers none is further than sqrt(n - 1) deviations from their mean.)"""
_CHUNK = 2048


class Moments(NamedTuple):
    """How many vectors there are, their mean (d, float64), and sum (r - mean) (r - mean)^T (d x d, float64)."""

    n: int
    mean: torch.Tensor
    scatter: torch.Tensor


def moments(rows: torch.Tensor) -> Moments:
    """Those of some vectors (n x d, n > 0)."""
    wide = rows.double()
    mean = wide.mean(0)
    centred = wide - mean
    return Moments(len(rows), mean, centred.T @ centred)


def merged(parts: Iterable[Moments]) -> Moments:
    """The moments of all vectors from those of their parts (at least one), in their order (Chan, Golub, LeVeque 1983,
    formula 2.1).
    """
    every = iter(parts)
    n, mean, scatter = next(every)
    mean, scatter = mean.clone(), scatter.clone()
    for m, other, own in every:
        apart = other - mean
        scatter += own + torch.outer(apart, apart) * (n * m / (n + m))
        mean += apart * (m / (n + m))
        n += m
    return Moments(n, mean, scatter)


@dataclass(frozen=True)
class Usual:
    """The mean of the vectors of a kind (d, float64), and the deviation of every token's scores over them (V, float32);
    0 for a token whose scores do not vary. ``chance`` is what ``readable.by_chance`` gives of the kind.
    """

    mean: torch.Tensor
    deviations: torch.Tensor
    chance: tuple[float, float] = (math.nan, math.nan)

    @classmethod
    def of(cls, space: TokenRows, found: Moments) -> Usual:
        """A deviation no larger than what rounding may leave of one is 0."""
        C, d = found.scatter / found.n, len(found.mean)
        length = float(C.trace() + found.mean @ found.mean) ** 0.5  # a vector's, on average
        of_sum, of_vectors = 4 * gamma64(d) * float(C.norm()), (16 * gamma64(d) * length) ** 2
        parts = []
        for start in range(0, len(space), _CHUNK):
            rows = space[start : start + _CHUNK]
            square, norm = ((rows @ C) * rows).sum(1), (rows * rows).sum(1)
            parts.append(square.where(square > norm * max(of_sum, of_vectors), 0.0).sqrt().float())
        return cls(found.mean, torch.cat(parts))

    def rows(self, space: TokenRows) -> TokenRows:
        """The rows x_t / sigma_t of a space; zeros for a token whose scores do not vary."""
        sigma = self.deviations.double()
        return scaled(space, torch.where(sigma > 0, 1 / sigma, 0.0))

    def unusual(self, rows: torch.Tensor) -> torch.Tensor:
        """r - r^ of vectors r (n x d): n x d, float64."""
        return rows.double() - self.mean

    def save(self, path: Path) -> None:
        chance = torch.tensor(self.chance, dtype=torch.float64)
        save_file({"mean": self.mean.cpu(), "deviations": self.deviations.cpu(), "chance": chance}, path)

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Usual:
        found = load_file(path, str(device))
        mean, deviation = found["chance"].tolist()
        return cls(found["mean"], found["deviations"], (mean, deviation))
