"""The rows of a place's heads: the numbers of their matrices, their strongest pairs, their singular directions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from paramdex_builder.project.directions import Direction, Factor, directions
from paramdex_builder.project.pair_rows import Ranked, pair_rows
from paramdex_builder.project.pairs import (
    Words,
    balanced,
    factors,
    frobenius,
    of_rank,
    pair_moments,
    strongest_pairs,
)
from paramdex_builder.project.scoring import Scoring
from paramdex_builder.project.space import Space
from paramdex_builder.project.usual_pairs import Squares, UsualPairs, squares_of, summed
from paramdex_builder.work.workers import Workers
from paramdex_schemas import MATRICES, Run

HEADS = pa.schema(
    [
        ("row", pa.int64()),
        ("stack", pa.string()),
        ("layer", pa.int16()),
        ("head", pa.int16()),
        ("kv_head", pa.int16()),
        ("space", pa.string()),
        *((f"{matrix}_{number}", pa.float32()) for matrix in ("qk", "vo") for number in ("norm", "mean", "std")),
    ]
)
DIRECTIONS = pa.schema(
    [
        ("row", pa.int64()),
        ("matrix", pa.string()),
        ("direction", pa.int16()),
        ("singular_value", pa.float32()),
        ("share", pa.float32()),
        ("is_source", pa.bool_()),
        ("is_top", pa.bool_()),
        ("rank", pa.int16()),
        ("token_id", pa.int32()),
        ("score", pa.float32()),
    ]
)
"""One row per token of a direction; it carries the numbers of the direction."""

ATTENTION = tuple(kind for factors in MATRICES.values() for kind in factors)


@dataclass(frozen=True)
class Kept:
    """How much is kept of a matrix: pairs per side and list, and directions. Pairs are listed by two rankings."""

    pairs: int
    directions: int


@dataclass(frozen=True)
class _Matrix:
    """What is kept of one matrix of a head."""

    numbers: dict[str, float]
    pairs: list[pa.Table]
    directions: list[pa.Table]


def head_rows(
    run: Run,
    first: int,
    scoring: Scoring,
    usual: Mapping[str, UsualPairs],
    words: Words,
    kept: Kept,
    workers: Workers,
    advance: Callable[[int], None],
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """The rows of ``heads``, ``pairs`` and ``directions`` of one place. ``run`` is its run of attn_query, ``first`` the
    number of its first head, ``usual`` is by matrix.
    """
    vectors = _Place.of(scoring, run)
    heads: list[dict[str, Any]] = [
        {"row": first + head, "stack": run.stack, "layer": run.layer, "head": head, "kv_head": head // run.group}
        | {"space": run.space}
        for head in range(run.n_owners)
    ]
    every = list(product(range(run.n_owners), MATRICES))
    work = partial(_matrix, vectors, first, usual, words, kept)
    each_held = matrix_held(scoring.main.size, run.size * scoring.weights.n_terms)
    pairs, found_directions = [], [DIRECTIONS.empty_table()]
    for (head, _), found in zip(every, workers.map(work, every, each_held), strict=True):
        heads[head] |= found.numbers
        pairs += found.pairs
        found_directions += found.directions
        advance(1)
    return pa.Table.from_pylist(heads, schema=HEADS), pa.concat_tables(pairs), pa.concat_tables(found_directions)


def head_squares(run: Run, scoring: Scoring) -> dict[str, Squares]:
    """Matrix -> the squares of the scores of the heads of one place, for what is usual. ``run`` is as above."""
    vectors = _Place.of(scoring, run)
    found: dict[str, Squares] = {}
    for matrix in MATRICES:
        left, right = vectors.sides(matrix)
        every = (vectors.factors(head, matrix).scored for head in range(run.n_owners))
        found[matrix] = summed(squares_of(P, Q, left.space, right.space) for P, Q in every)
    return found


def squares_held(scoring: Scoring, runs: Sequence[Run]) -> int:
    """About how many bytes ``head_squares`` of one place takes: its vectors, and two sums for each matrix."""
    d, n_terms = scoring.weights.d_model, scoring.weights.n_terms
    return 32 * d * (d + 4 * n_terms**2 * max((run.n_owners * run.size for run in runs), default=0))


def matrix_held(V: int, m: int) -> int:
    """About how many bytes a matrix of m terms takes: E P^T and E Q^T, in float64, for either ranking and as screened,
    and tiles.
    """
    return 56 * V * m + (32 << 20)


@dataclass(frozen=True)
class _Vectors:
    """The vectors of a kind in a place: as the model has them, and as they are scored, each a list of terms (n x d)."""

    own: list[torch.Tensor]
    scored: list[torch.Tensor]
    space: Space

    @classmethod
    def of(cls, scoring: Scoring, kind: str, run: Run) -> _Vectors:
        own = scoring.weights.head_rows(kind, run.place)
        return cls(own, scoring.head_rows(kind, run.place, own), scoring.head_space(kind, run.place))

    def owner(self, terms: list[torch.Tensor], number: int, size: int) -> torch.Tensor:
        """Of some terms, the vectors of one owner of ``size`` each, all terms one after the other."""
        rows = torch.cat([each[number * size : (number + 1) * size] for each in terms])
        return rows.to(self.space.embedding.device)


class _Factors(NamedTuple):
    """P and Q of a matrix P^T Q (m x d each): of what is scored, and of the model's own vectors."""

    scored: tuple[torch.Tensor, torch.Tensor]
    own: tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class _Place:
    """The vectors of all heads of one place, by kind."""

    run: Run
    vectors: dict[str, _Vectors]

    @classmethod
    def of(cls, scoring: Scoring, run: Run) -> _Place:
        return cls(run, {kind: _Vectors.of(scoring, kind, run) for kind in ATTENTION})

    def sides(self, matrix: str) -> tuple[_Vectors, _Vectors]:
        left, right = (self.vectors[kind] for kind in MATRICES[matrix])
        return left, right

    def factors(self, head: int, matrix: str) -> _Factors:
        """Those of a head, by its number within the place."""
        run, (left, right) = self.run, self.sides(matrix)
        shared = [head // run.group if kind in ("attn_key", "attn_value") else head for kind in MATRICES[matrix]]

        def both(of_left: list[torch.Tensor], of_right: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            P, Q = left.owner(of_left, shared[0], run.size), right.owner(of_right, shared[1], run.size)
            return of_rank(*balanced(P, Q)) if len(of_left) > 1 else (P, Q)

        scored = both(left.scored, right.scored)
        is_own = left.scored is left.own and right.scored is right.own
        return _Factors(scored, scored if is_own else both(left.own, right.own))


def _matrix(
    place: _Place, first: int, usual: Mapping[str, UsualPairs], words: Words, kept: Kept, of: tuple[int, str]
) -> _Matrix:
    """What is kept of one matrix, ``of`` a head (within its place) and by name."""
    head, matrix = of
    left, right = place.sides(matrix)
    (P, Q), own = place.factors(head, matrix)
    if left.space is right.space:
        A, B = factors(left.space.embedding, [P, Q])
    else:
        (A,), (B,) = factors(left.space.embedding, [P]), factors(right.space.embedding, [Q])
    mean, std = pair_moments(A, B)
    name = matrix.lower()
    sides = Factor(P, left.space, A), Factor(Q, right.space, B)
    lists = Ranked(A, B, strongest_pairs(A, B, words, kept.pairs))
    unusual = None
    if matrix in usual:
        A, B = usual[matrix].factors(A, B, math.hypot(mean, std))
        unusual = Ranked(A, B, strongest_pairs(A, B, words, kept.pairs))
    return _Matrix(
        {f"{name}_norm": frobenius(*own), f"{name}_mean": mean, f"{name}_std": std},
        [pair_rows(lists, unusual, words, first + head, matrix, side) for side in ("top", "bottom")],
        list(_direction_rows(directions(*sides, kept.directions), first + head, matrix)),
    )


def _direction_rows(found: list[Direction], row: int, matrix: str) -> Iterator[pa.Table]:
    """The rows of a head's directions, one table per list of tokens."""
    for number, direction in enumerate(found, start=1):
        for (role, side), (ids, scores) in direction.tokens.items():
            columns = {
                "row": np.full(len(ids), row),
                "matrix": [matrix] * len(ids),
                "direction": np.full(len(ids), number),
                "singular_value": [direction.singular_value] * len(ids),
                "share": [direction.share] * len(ids),
                "is_source": np.full(len(ids), role == "source"),
                "is_top": np.full(len(ids), side == "top"),
                "rank": range(1, len(ids) + 1),
                "token_id": ids,
                "score": scores,
            }
            yield pa.table([pa.array(columns[f.name], f.type) for f in DIRECTIONS], schema=DIRECTIONS)
