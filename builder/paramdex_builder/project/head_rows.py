"""The rows of a place's heads: the numbers of their matrices, their strongest pairs, their singular directions."""

from __future__ import annotations

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
from paramdex_builder.project.pair_sides import Side
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
from paramdex_builder.project.usual_pairs import Squares, UsualPairs, root_mean_square, squares_of, summed
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


_TOGETHER = 4
"""At most so many heads that share keys and values are worked on by one thread."""


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
    every = list(product(MATRICES, _together(run, scoring)))
    work = partial(_matrices, vectors, first, usual, words, kept)
    each_held = matrices_held(scoring.main.size, run, scoring.weights.n_terms)
    found: dict[tuple[int, str], _Matrix] = {}
    for (matrix, some), matrices in zip(every, workers.map(work, every, each_held), strict=True):
        found |= {(head, matrix): each for head, each in zip(some, matrices, strict=True)}
        advance(len(some))
    ordered = [found[at] for at in product(range(run.n_owners), MATRICES)]
    for (head, _), each in found.items():
        heads[head] |= each.numbers
    pairs = [table for each in ordered for table in each.pairs]
    of_directions = [DIRECTIONS.empty_table(), *(table for each in ordered for table in each.directions)]
    return pa.Table.from_pylist(heads, schema=HEADS), pa.concat_tables(pairs), pa.concat_tables(of_directions)


def _together(run: Run, scoring: Scoring) -> list[range]:
    """The heads of a place, in runs of those that are worked on together: they share keys and values. (Those of several
    terms share none: each head's are of the rank of its own matrix.)
    """
    step = min(run.group, _TOGETHER) if scoring.weights.n_terms == 1 else 1
    starts = ((start, start + run.group) for start in range(0, run.n_owners, run.group))
    return [range(at, min(at + step, end)) for start, end in starts for at in range(start, end, step)]


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


def matrices_held(V: int, run: Run, n_terms: int) -> int:
    """About how many bytes the heads that are worked on together take: E P^T of each of their sides, in float64; those
    of one matrix as they are screened, and as they are made for that; and tiles.
    """
    m = run.size * n_terms
    sides = 1 + (min(run.group, _TOGETHER) if n_terms == 1 else 1)
    return (8 * sides + 16) * V * m + 64 * V + (32 << 20)


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


class _Key(NamedTuple):
    """Whose vectors one side of a matrix has: those of an owner of a ``kind``, by its number within the place."""

    kind: str
    owner: int


class _Factors(NamedTuple):
    """P and Q of a matrix P^T Q (m x d each): of what is scored, and of the model's own vectors."""

    scored: tuple[torch.Tensor, torch.Tensor]
    own: tuple[torch.Tensor, torch.Tensor]
    keys: tuple[_Key, _Key]


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
        owners = [head // run.group if kind in ("attn_key", "attn_value") else head for kind in MATRICES[matrix]]
        has_terms = len(left.scored) > 1

        def both(of_left: list[torch.Tensor], of_right: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            P, Q = left.owner(of_left, owners[0], run.size), right.owner(of_right, owners[1], run.size)
            return of_rank(*balanced(P, Q)) if len(of_left) > 1 else (P, Q)

        scored = both(left.scored, right.scored)
        is_own = left.scored is left.own and right.scored is right.own
        of_left, of_right = (
            _Key(kind, head if has_terms else owner) for kind, owner in zip(MATRICES[matrix], owners, strict=True)
        )
        return _Factors(scored, scored if is_own else both(left.own, right.own), (of_left, of_right))


@dataclass(frozen=True)
class _Scored:
    """One side of a matrix: its vectors and the space that scores them, the products, and by token_z."""

    rows: torch.Tensor
    space: Space
    side: Side
    unusual: Side | None


def _matrices(
    place: _Place,
    first: int,
    usual: Mapping[str, UsualPairs],
    words: Words,
    kept: Kept,
    of: tuple[str, range],
) -> list[_Matrix]:
    """What is kept of one matrix, ``of`` its name and of some heads (within the place)."""
    matrix, heads = of
    every = [place.factors(head, matrix) for head in heads]
    known = _sides(place, matrix, every, usual.get(matrix))
    found = []
    for head, each in zip(heads, every, strict=True):
        left, right = (known[key] for key in each.keys)
        mean, std = pair_moments(left.side, right.side)
        lists = Ranked(left.side, right.side, strongest_pairs(left.side, right.side, words, kept.pairs))
        unusual = None
        if left.unusual is not None and right.unusual is not None:
            A, B = left.unusual.times(1 / root_mean_square(left.side, right.side)), right.unusual
            unusual = Ranked(A, B, strongest_pairs(A, B, words, kept.pairs))
        of_left, of_right = (Factor(one.rows, one.space, one.side.table) for one in (left, right))
        name = matrix.lower()
        found.append(
            _Matrix(
                {f"{name}_norm": frobenius(*each.own), f"{name}_mean": mean, f"{name}_std": std},
                [pair_rows(lists, unusual, words, first + head, matrix, side) for side in ("top", "bottom")],
                list(_direction_rows(directions(of_left, of_right, kept.directions), first + head, matrix)),
            )
        )
    return found


def _sides(place: _Place, matrix: str, every: Sequence[_Factors], usual: UsualPairs | None) -> dict[_Key, _Scored]:
    """The sides of some heads by whose vectors they have: those that share a space in one product."""
    spaces = [vectors.space for vectors in place.sides(matrix)]
    distinct: dict[Space, dict[_Key, torch.Tensor]] = {space: {} for space in spaces}
    for found in every:
        for space, key, rows in zip(spaces, found.keys, found.scored, strict=True):
            distinct[space].setdefault(key, rows)
    known: dict[_Key, _Scored] = {}
    for space, vectors in distinct.items():
        tables = factors(space.embedding, list(vectors.values()))
        for (key, rows), table in zip(vectors.items(), tables, strict=True):
            side, unusual = Side(table), None
            if usual is not None:
                is_source = key.kind == MATRICES[matrix][0]
                unusual = usual.source(side) if is_source else usual.target(side, rows.double() @ space.means)
            known[key] = _Scored(rows, space, side, unusual)
    return known


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
