"""What is usual for the two tokens of a pair: how large their scores are over all heads of a model.

As in lists of parameters, few tokens crowd the pairs of most heads. Let S_h be the V x V scores of the n heads of a
model (QK or VO), each row less its mean over the targets: both matrices feed a softmax over targets, which ignores what
all targets of a source have in common (in some heads that is larger than all differences). Every head counts the same,
so S_h is divided by its root mean square. Then

    alpha_s^2 = mean over h and t of S_h(s, t)^2,     beta_t^2 = mean over h and s of S_h(s, t)^2

are what is usual for a source and for a target; the mean of either over all tokens is 1. For a pair of head h

    token_z = S_h(s, t) / (alpha_s beta_t)

Its rows and columns are those of S_h times one number each, so the strongest pairs by it are found as those by score
are (``pairs``). No mean over heads is taken off: that would not leave a matrix of low rank to scan.

With S_h = X P^T Q Y'^T, X the rows of sources, Y' those of targets less their mean, G_X = X^T X / V and G_Y' alike:

    alpha_s^2 = x_s^T M x_s,   M = mean over h of P^T (Q G_Y' Q^T) P / tr(P G_X P^T Q G_Y' Q^T)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file

from paramdex_builder.project.arithmetic import gamma64
from paramdex_builder.project.pair_sides import Side
from paramdex_builder.project.space import Space

LEAST = 8
"""With fewer heads nothing is usual."""
_CHUNK = 2048


class Squares(NamedTuple):
    """Of some heads: how many there are, and space -> the sums of M of its rows (d x d, float64), of sources and of
    targets.
    """

    n: int
    source: dict[Space, torch.Tensor]
    target: dict[Space, torch.Tensor]


def squares_of(P: torch.Tensor, Q: torch.Tensor, left: Space, right: Space) -> Squares:
    """Those of one head with the scores X P^T Q Y^T (P, Q: m x d); of none, where no scores of a source differ."""
    P, Q = P.double(), Q.double()
    of_target, of_source = Q @ right.grams[1] @ Q.T, P @ left.grams[0] @ P.T
    mean_square = float((of_target * of_source).sum())
    if not mean_square > 0:
        return Squares(0, {}, {})
    source, target = P.T @ (of_target / mean_square) @ P, Q.T @ (of_source / mean_square) @ Q
    return Squares(1, {left: source}, {right: target})


def summed(parts: Iterable[Squares]) -> Squares:
    """Those of all heads, added up in their order."""
    n = 0
    sides: tuple[dict[Space, torch.Tensor], dict[Space, torch.Tensor]] = ({}, {})
    for part in parts:
        n += part.n
        for side, own in zip(sides, part[1:], strict=True):
            for space, square in own.items():
                side[space] = side[space] + square if space in side else square
    return Squares(n, *sides)


@dataclass(frozen=True)
class UsualPairs:
    """alpha of the sources and beta of the targets (V each, float64); 0 for a token whose scores are all 0."""

    alpha: torch.Tensor
    beta: torch.Tensor

    @classmethod
    def of(cls, found: Squares) -> UsualPairs | None:
        """None where there are too few heads."""
        if found.n < LEAST:
            return None
        return cls(_usual(found.source, found.n, centre=False), _usual(found.target, found.n, centre=True))

    def source(self, A: Side) -> Side:
        """The rows a_s / alpha_s."""
        return Side(A.table, factors=_inverse(self.alpha))

    def target(self, B: Side, mean: torch.Tensor) -> Side:
        """The rows (b_t - mean) / beta_t; ``mean`` (m) is that of B."""
        return Side(B.table, mean=mean, factors=_inverse(self.beta))

    def sides(self, A: Side, B: Side, mean: torch.Tensor) -> tuple[Side, Side]:
        """A', B' with A' B'^T = token_z of a head with the scores A B^T; ``mean`` (m) is that of B."""
        return self.source(A).times(1 / root_mean_square(A, B)), self.target(B, mean)


def root_mean_square(A: Side, B: Side) -> float:
    """That of the scores A B^T of a head, each row less its mean; 1 where all of these are 0."""
    return max(float((A.gram * B.moments[1]).sum()) / len(A), 0.0) ** 0.5 or 1.0


def save_usual(path: Path, usual: Mapping[str, UsualPairs | None]) -> None:
    """Write what is usual by matrix, where it is known; ``load_usual`` reads it."""
    known = {matrix: each for matrix, each in usual.items() if each is not None}
    save_file(
        {f"{matrix}/{name}": side.cpu() for matrix, each in known.items() for name, side in vars(each).items()}, path
    )


def load_usual(path: Path, device: torch.device) -> dict[str, UsualPairs]:
    """Matrix -> what is usual for its pairs."""
    found = load_file(path, str(device))
    matrices = dict.fromkeys(name.partition("/")[0] for name in found)
    return {matrix: UsualPairs(found[f"{matrix}/alpha"], found[f"{matrix}/beta"]) for matrix in matrices}


def _inverse(usual: torch.Tensor) -> torch.Tensor:
    """1 over what is usual for each token; 0 where that is 0."""
    return torch.where(usual > 0, 1 / usual, 0.0)


def _usual(side: dict[Space, torch.Tensor], n: int, *, centre: bool) -> torch.Tensor:
    """sqrt(sum over the spaces of x_t^T M x_t / n) of every token (V). What rounding may leave of 0 is 0."""
    total: torch.Tensor = sum(_squares(space, M / n, centre=centre) for space, M in side.items())  # type: ignore[assignment]
    return total.sqrt()


def _squares(space: Space, M: torch.Tensor, *, centre: bool) -> torch.Tensor:
    """x_t^T M x_t of every row of a space (V), less the mean of all rows where it is to ``centre``."""
    rounding, parts = 4 * gamma64(len(M)) * float(M.norm()), []
    for start in range(0, len(space), _CHUNK):
        whole = space[start : start + _CHUNK]
        rows = whole - space.means if centre else whole
        square = ((rows @ M) * rows).sum(1)
        parts.append(square.where(square > rounding * (whole * whole).sum(1), 0.0))
    return torch.cat(parts)
