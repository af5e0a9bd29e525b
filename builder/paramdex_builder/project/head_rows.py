"""The rows of a place's heads: the numbers of their matrices, their strongest pairs, their singular directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from paramdex_builder.project.directions import Direction, Factor, directions
from paramdex_builder.project.pairs import (
    HeadPairs,
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
PAIRS = pa.schema(
    [
        ("row", pa.int64()),
        ("matrix", pa.string()),
        ("is_top", pa.bool_()),
        ("rank", pa.int16()),
        ("rank_distinct", pa.int16()),
        ("same_word", pa.bool_()),
        ("source_id", pa.int32()),
        ("target_id", pa.int32()),
        ("score", pa.float32()),
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
    """How much is kept of a matrix: pairs per side and list, and directions."""

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
    words: Words,
    kept: Kept,
    workers: Workers,
    advance: Callable[[int], None],
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """The rows of ``heads``, ``pairs`` and ``directions`` of one place. ``run`` is its run of attn_query, ``first`` the
    number of its first head.
    """
    vectors = {kind: _Vectors.of(scoring, kind, run) for kind in ATTENTION}
    heads: list[dict[str, Any]] = [
        {"row": first + head, "stack": run.stack, "layer": run.layer, "head": head, "kv_head": head // run.group}
        | {"space": run.space}
        for head in range(run.n_owners)
    ]
    every = list(product(range(run.n_owners), MATRICES))
    work = partial(_matrix, vectors, run, first, words, kept)
    each_held = matrix_held(scoring.main.size, run.size * scoring.weights.n_terms)
    pairs, found_directions = [], [DIRECTIONS.empty_table()]
    for (head, _), found in zip(every, workers.map(work, every, each_held), strict=True):
        heads[head] |= found.numbers
        pairs += found.pairs
        found_directions += found.directions
        advance(1)
    return pa.Table.from_pylist(heads, schema=HEADS), pa.concat_tables(pairs), pa.concat_tables(found_directions)


def matrix_held(V: int, m: int) -> int:
    """About how many bytes a matrix of m terms takes: E P^T and E Q^T, in float64 and as screened, and tiles."""
    return 40 * V * m + (32 << 20)


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


def _matrix(
    vectors: dict[str, _Vectors],
    run: Run,
    first: int,
    words: Words,
    kept: Kept,
    of: tuple[int, str],
) -> _Matrix:
    """What is kept of one matrix, ``of`` a head (within its place) and by name."""
    head, matrix = of
    left, right = (vectors[kind] for kind in MATRICES[matrix])
    shared = [head // run.group if kind in ("attn_key", "attn_value") else head for kind in MATRICES[matrix]]

    def both(of_left: list[torch.Tensor], of_right: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        P, Q = left.owner(of_left, shared[0], run.size), right.owner(of_right, shared[1], run.size)
        return of_rank(*balanced(P, Q)) if len(of_left) > 1 else (P, Q)

    P, Q = both(left.scored, right.scored)
    own = (P, Q) if left.scored is left.own and right.scored is right.own else both(left.own, right.own)
    if left.space is right.space:
        A, B = factors(left.space.embedding, [P, Q])
    else:
        (A,), (B,) = factors(left.space.embedding, [P]), factors(right.space.embedding, [Q])
    mean, std = pair_moments(A, B)
    name = matrix.lower()
    sides = Factor(P, left.space, A), Factor(Q, right.space, B)
    return _Matrix(
        {f"{name}_norm": frobenius(*own), f"{name}_mean": mean, f"{name}_std": std},
        [
            _pair_rows(found, words, first + head, matrix, is_top=side == "top")
            for side, found in strongest_pairs(A, B, words, kept.pairs).items()
        ],
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


def _pair_rows(found: HeadPairs, words: Words, row: int, matrix: str, *, is_top: bool) -> pa.Table:
    """The rows of one side: every pair of the two lists once, with its rank in each."""
    ranks: dict[tuple[int, int], list[Any]] = {}
    for place, pairs in enumerate((found.all, found.distinct)):
        entries = zip(pairs.source.tolist(), pairs.target.tolist(), pairs.score.tolist(), strict=True)
        for nth, (source_id, target_id, score) in enumerate(entries, start=1):
            ranks.setdefault((source_id, target_id), [None, None, score])[place] = nth
    source = np.array([pair[0] for pair in ranks], dtype=np.int32)
    target = np.array([pair[1] for pair in ranks], dtype=np.int32)
    number = words.number.cpu().numpy()
    columns = {
        "row": np.full(len(ranks), row),
        "matrix": [matrix] * len(ranks),
        "is_top": np.full(len(ranks), is_top),
        "rank": [entry[0] for entry in ranks.values()],
        "rank_distinct": [entry[1] for entry in ranks.values()],
        "same_word": number[source] == number[target],
        "source_id": source,
        "target_id": target,
        "score": np.array([entry[2] for entry in ranks.values()], dtype=np.float32),
    }
    return pa.table([pa.array(columns[field.name], field.type) for field in PAIRS], schema=PAIRS)
