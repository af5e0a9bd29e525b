"""``similar`` for heads: the cosine of two heads' matrices over all pairs of tokens, exactly, from small products.

A head's matrix is M = Xc P^T Q Yc^T (V x V) for its factors P, Q (d_head x d): W_Q and W_K for QK, W_V and W_O for VO.
X and Y are the spaces that score them, in which they have the coordinates p = R P^T and q = S Q^T (r x d_head and s x
d_head), R^T R = Xc^T Xc and S^T S = Yc^T Yc. With the transfers T and U from the one head's spaces to the other's,

    <M1, M2> = tr(M1^T M2) = the sum of the entries of (p1^T T^T p2) * (q1^T U^T q2), d_head x d_head each,

and the cosine is <M1, M2> / (||M1|| ||M2||). As in all similarities, the means over the tokens of either side are
subtracted first. The softmax of attention ignores a mean over the keys anyway.
"""

from __future__ import annotations

from functools import cache
from itertools import groupby, islice
from typing import Any

import numpy as np
import pyarrow as pa

from paramdex.result import Result, table_of
from paramdex.store.common_space import Common, Half, compared
from paramdex.store.described import by_pairs
from paramdex.store.filters import Sieve
from paramdex.store.head_matrices import coordinates, displacements, owners, rows_of_heads
from paramdex.store.nearest import signs_of
from paramdex.store.scope import Scope
from paramdex.store.store import Store
from paramdex.store.token_filter import TokenFilter
from paramdex_schemas import MATRICES, Address, QueryError
from paramdex_schemas.checks import check_text, suggest
from paramdex_schemas.errors import quoted
from paramdex_schemas.isometry import Array
from paramdex_schemas.layout import Place
from paramdex_schemas.model import Model

_KEPT = 1 << 23
"""The most numbers of factors that are kept for the next head, 64 MiB in all."""
_SCHEMA = pa.schema(
    [
        ("matrix", pa.string()),
        ("rank", pa.int32()),
        ("similarity", pa.float32()),
        ("address", pa.string()),
        ("top", pa.list_(pa.string())),
    ]
)


def similar_heads(
    store: Store, where: Address, k: int, scope: Scope, matrix: str | None, side: str, filter: TokenFilter | None
) -> Result:
    """The k heads of a scope nearest to one, by each of its matrices or by one; see ``Atlas.similar``.

    Models that cannot be compared are left out with a note, unless the scope names its model: then QueryError is
    raised, as it is for a matrix that heads do not have.
    """
    signs = signs_of(side)
    if matrix is not None:
        matrix = check_text(matrix, QueryError(f"kind is text, not {quoted(matrix)}"))
    if matrix is not None and matrix not in MATRICES:
        raise QueryError(f"a head has no matrix {quoted(matrix)}; {suggest(matrix, MATRICES)}")
    own = store.models[where.model]
    own_id = own.head_id(where)
    found: list[dict[str, Any]] = []
    notes: list[str] = []

    def refuse(one: Model) -> None:
        _refuse_displacements(store, own, one)

    for both in compared(store, own, scope.models, notes, strict=scope.named, refuse=refuse):
        one = both.right.model
        columns = rows_of_heads(store, one).select(["head_id", "address", "layer"]).columns
        those = list(zip(*(column.to_pylist() for column in columns), strict=True))
        for each in MATRICES if matrix is None else [matrix]:
            found += [
                {"matrix": each, "similarity": float(cosine), "address": address, "id": head_id, "model": one}
                for (head_id, address, of_layer), cosine in zip(
                    those, head_cosines(store, both, where, each), strict=True
                )
                if scope.layer in (None, of_layer) and head_id != own_id
            ]
    found.sort(key=lambda row: (row["matrix"], -max(sign * row["similarity"] for sign in signs), row["id"]))
    chosen = []
    for _, rows in groupby(found, key=lambda row: row["matrix"]):
        chosen += [row | {"rank": rank} for rank, row in enumerate(islice(rows, k), start=1)]
    sieve = Sieve(store.database, filter)
    pairs = by_pairs(store, {(row["id"], row["matrix"]): row["model"] for row in chosen}, sieve)
    for row in chosen:
        row["top"] = pairs[row["id"], row["matrix"]]["top"]
    table = table_of(chosen, _SCHEMA)
    title = f"nearest to {where}: cosine of the heads' matrices, over all pairs of tokens"
    return Result(table, title, [*notes, *sieve.notes()])


def head_cosines(store: Store, both: Common, where: Address, matrix: str) -> Array:
    """The cosine (n_heads, float64) of a matrix of the left model's head with that of every head of the right model."""
    place, kinds, half = (where.stack, where.layer), MATRICES[matrix], both.right
    own = {kind: _factor(store, both.left, kind, place)[where.head or 0] for kind in kinds}
    p, q = own.values()
    norm = float(np.sqrt(((p @ p.T) * (q @ q.T)).sum()))

    @cache
    def moved(kind: str, into: str) -> Array:
        T = both.transfer(both.left.model.layout.space(kind, place), into)
        found: Array = own[kind] if T is None else own[kind] @ T.T
        return found

    key = (half.model.name, matrix, None if half.shared is None else half.other.name)
    known = half.vectors.head_norms.get(key)
    inner, norms = [np.empty(0)], [np.empty(0)]
    for there in half.model.layout.attention_places:
        P, Q = (_factor(store, half, kind, there) for kind in kinds)
        p, q = (moved(kind, half.model.layout.space(kind, there)) for kind in kinds)
        inner.append((_products(P, p) * _products(Q, q)).sum(axis=(1, 2)))
        if known is None:
            norms.append(np.sqrt(((P @ P.transpose(0, 2, 1)) * (Q @ Q.transpose(0, 2, 1))).sum(axis=(1, 2))))
    if known is None:
        known = half.vectors.head_norms[key] = np.concatenate(norms)
    dots, sizes = np.concatenate(inner), norm * known
    cosines: Array = np.divide(dots, sizes, out=np.zeros_like(dots), where=sizes > 0)
    return cosines


def _products(P: Array, p: Array) -> Array:
    """P p^T (n_heads x d_head x n) for P (n_heads x d_head x r) and p (n x r), as one product instead of n_heads."""
    n, d_head, r = P.shape
    return (P.reshape(n * d_head, r) @ p.T).reshape(n, d_head, len(p))


def _factor(store: Store, half: Half, kind: str, place: Place) -> Array:
    """The coordinates of one factor of every head of a place (n_heads x d_head x r, float64).

    Those of small models are kept, because every head that somebody looks at needs them again.
    """
    known = half.vectors.head_coordinates
    key = (half.model.name, kind, place, None if half.shared is None else half.other.name)
    if key not in known:
        rows = half.own(coordinates(store, half.model, kind, place)[0], half.model.layout.space(kind, place))
        if rows.size + sum(each.size for each in known.values()) > _KEPT:
            return _by_head(rows, half.model, kind, place)
        known[key] = rows
    return _by_head(known[key], half.model, kind, place)


def _by_head(rows: Array, model: Model, kind: str, place: Place) -> Array:
    of_head = owners(model, kind, place)
    n = max(of_head) + 1
    own = rows.reshape(n, len(rows) // n, rows.shape[1])
    return own if len(own) == len(of_head) else own[of_head]


def _refuse_displacements(store: Store, *models: Model) -> None:
    for name in sorted({model.name for model in models} & displacements(store)):
        raise QueryError(f"{name} is a displacement: its heads are differences, and similar does not compare those")
