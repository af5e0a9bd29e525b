"""``lens``: the strongest tokens of any vector of the residual stream (logit lens), and the parameters nearest to it.

The vector may be one that is written, such as a steering vector or a row of a sparse autoencoder's decoder. A vector w
of the model's width has the V scores E w, where E is the embedding that the atlas keeps, and the coordinates R w, which
are compared with those of the model's parameters. Or it may be one that reads at some place, such as a probe or a row
of an encoder: then it has the scores X r in the space X of what reads there, where r is w pulled back by the place's
map.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from paramdex.result import Result, table_of
from paramdex.store.filters import Sieve
from paramdex.store.nearest import Hit, strongest_hits
from paramdex.store.scope import Scope
from paramdex.store.store import Store
from paramdex.store.token_filter import TokenFilter
from paramdex.verbs.hits import hits_in_model, listed
from paramdex.verbs.user_readers import Meant, meant
from paramdex.verbs.user_vectors import UserVectors, user_vectors
from paramdex_schemas import QueryError, isometry
from paramdex_schemas.isometry import Array, strongest

MOST_ROWS = 200
"""The most rows that are listed, one line each."""
_SHOWN_TOKENS = 5
_AT_A_TIME = 16
"""Rows of a matrix whose V scores are in memory at a time."""


@dataclass(frozen=True, repr=False)
class Lens(Result):
    """What one vector says. ``table`` has a row for every token and every parameter; ``what`` tells which it is."""

    tokens: Result | None = None
    parameters: Result | None = None

    def __str__(self) -> str:
        return f"{self.tokens}\n\n{self.parameters}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "".join(part._repr_html_() for part in (self.tokens, self.parameters) if part is not None)


# Nine arguments: the vector is found and meant by four (vector, row, name, reads).
def lens(
    store: Store,
    vector: Any,
    scope: Scope,
    k: int,
    row: int | None,
    name: str | None,
    reads: str | None,
    side: str,
    filter: TokenFilter | None,
) -> Result:
    """See ``Atlas.lens``; the vector is one of the scope's one model."""
    model = scope.model
    how = meant(store, model, reads)
    space = store.vectors.space(model.name, how.space)
    given = user_vectors(vector, len(space.means), model.name, row, name)
    sieve = Sieve(store.database, filter)
    if given.single:
        return _one(store, given, how, k, scope, side, sieve)
    if len(given.rows) > MOST_ROWS:
        raise QueryError(f"{given.says} has {len(given.rows):,} rows; choose one with row 0 to {len(given.rows) - 1}")
    lines: list[dict[str, Any]] = []
    mask = sieve.mask(model)
    for start in range(0, len(given.rows), _AT_A_TIME):
        rows = given.rows[start : start + _AT_A_TIME]
        pulled = how.pulled_back(rows)
        scores = np.concatenate([block @ pulled.T for block in space.blocks()]).T.astype(np.float32)
        for number, w, r, values in zip(given.numbers[start:], rows, pulled, scores, strict=False):
            line: dict[str, Any] = {"row": number, "norm": float(np.linalg.norm(w))}
            if w.any():
                texts = store.database.tokens(model.vocabulary, "text")
                for each, sign in (("top", 1), ("bottom", -1)):
                    line[each] = texts.take(pa.array(strongest(sign * values, _SHOWN_TOKENS, mask))).to_pylist()
                hits = _nearest(store, how.space, r, 1, scope, side)
                line |= {"nearest": str(model.address(hits[0][1])), "similarity": hits[0][0]} if hits else {}
            lines.append(line)
    schema = pa.schema(
        [
            ("row", pa.int64()),
            ("norm", pa.float32()),
            ("top", pa.list_(pa.string())),
            ("bottom", pa.list_(pa.string())),
            ("nearest", pa.string()),
            ("similarity", pa.float32()),
        ]
    )
    zeros = [str(line["row"]) for line in lines if "top" not in line]
    notes = [f"rows of zeros, which say nothing: {', '.join(zeros)}"] if zeros else []
    title = f"{given.says}: {len(lines)} vectors of {model.name}{how.where}; choose one row to see more{how.read_by}"
    return Result(table_of(lines, schema), title, [*how.notes, *notes, *sieve.notes()])


def _one(store: Store, given: UserVectors, how: Meant, k: int, scope: Scope, side: str, sieve: Sieve) -> Lens:
    """One vector: its tokens on both sides, and the parameters nearest to it."""
    model, space = scope.model, store.vectors.space(scope.model.name, how.space)
    (w,), (r,) = given.rows, how.pulled_back(given.rows)
    # Row by row, not by BLAS, so a score depends on neither threads nor blocks, and equal rows have equal scores.
    exact = np.concatenate([(block * r).sum(axis=1) for block in space.blocks()])
    scores = exact.astype(np.float32)
    mean, std = exact.mean(), exact.std()
    mask = sieve.mask(model)
    token, text = (store.database.tokens(model.vocabulary, column) for column in ("token", "text"))
    sides = []
    for each, sign in (("top", 1), ("bottom", -1)):
        ids = strongest(sign * scores, k, mask)
        z = pa.array((scores[ids] - mean) / std, pa.float32()) if std > 0 else pa.nulls(len(ids), pa.float32())
        columns = {
            "side": pa.array([each] * len(ids), pa.string()),
            "rank": pa.array(range(1, len(ids) + 1), pa.int32()),
            "token_id": pa.array(ids, pa.int32()),
            "token": token.take(pa.array(ids)),
            "text": text.take(pa.array(ids)),
            "score": scores[ids],
            "z": z,
        }
        sides.append(pa.table(columns))
    table = pa.concat_tables(sides)
    shown: dict[str, Any] = {"rank": sides[0]["rank"]}  # the mask lets equally many pass on both sides
    for each, rows in zip(("top", "bottom"), sides, strict=True):
        shown |= {each: rows["text"], f"{each} score": rows["score"], f"{each} z": rows["z"]}
    numbers = f"norm {np.linalg.norm(w):.4g}; scores over {len(scores):,} tokens: mean {mean:.4g}, std {std:.4g}"
    title = f"{given.says}: a vector of {model.name}{how.where}\n{numbers}{how.read_by}"
    tokens = Result(table, title, [*how.notes, *sieve.notes()], pa.table(shown))

    hits = _nearest(store, how.space, r, k, scope, side)
    parameters = listed(store, hits, f"nearest parameters of {model.name}", [], sieve.filter)
    whole = pa.concat_tables(
        [
            table.add_column(0, "what", pa.array(["token"] * len(table), pa.string())),
            parameters.table.add_column(0, "what", pa.array(["parameter"] * len(hits), pa.string())),
        ],
        promote_options="default",
    )
    notes = list(dict.fromkeys([*tokens.notes, *parameters.notes]))
    return Lens(whole, tokens.title, notes, tokens=tokens, parameters=parameters)


def _nearest(store: Store, space: str, r: Array, k: int, scope: Scope, side: str) -> list[Hit]:
    """The k parameters of the scope's one model nearest to what the vector r (d) says in a space."""
    model = scope.model
    root = store.vectors.space(model.name, space).root
    own = isometry.times_vector(root.root, r)
    length = float(np.linalg.norm(own))
    own = own / length if length > root.rounding * np.linalg.norm(r) else np.zeros_like(own)
    query = partial(store.vectors.moved, own, model, space, model)
    return strongest_hits(hits_in_model(store, model, query, k, scope, side), k, side)
