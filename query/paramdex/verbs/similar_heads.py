"""How alike two heads are as wholes: the cosine of their matrices in embedding space, exactly, from small products.

A head's matrix is M = Ec P^T Q Ec^T (V x V) for its factors P, Q (d_head x d): W_Q and W_K for QK, W_V and W_O for VO.
With the coordinates p = R P^T and q = R Q^T of both (r x d_head), R^T R = Ec^T Ec,

    <M1, M2> = tr(M1^T M2) = the sum of the entries of (p1^T p2) * (q1^T q2), d_head x d_head each,

and the cosine is <M1, M2> / (||M1|| ||M2||). As in all similarities, scores enter with their means over the tokens of
either side taken off; a mean over the keys is nothing that attention's softmax would notice.
"""

from __future__ import annotations

from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from paramdex.result import Result, arrow, table_of
from paramdex.store.common_space import Common, Side, compared
from paramdex.store.filters import ALL, Sieve, TokenFilter
from paramdex.store.head_matrices import coordinates, displacements, heads, owners
from paramdex_schemas import MATRICES, Address, QueryError
from paramdex_schemas.checks import check_text, suggest
from paramdex_schemas.errors import quoted
from paramdex_schemas.isometry import Array
from paramdex_schemas.layout import Place

if TYPE_CHECKING:
    from paramdex.atlas import Atlas
    from paramdex_schemas.model import Model

_SHOWN_PAIRS = 3
_KEPT = 1 << 23
"""Numbers of factors that are kept for the next head that is asked for, 64 MiB of them."""
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
    atlas: Atlas,
    where: Address,
    k: int,
    models: list[Model],
    matrix: str | None,
    layer: int | None,
    signs: tuple[int, ...],
    filter: TokenFilter | None,
    *,
    strict: bool,
) -> Result:
    """See ``Atlas.similar``. Models that cannot be compared are left out with a note, unless ``strict``."""
    if matrix is not None:
        matrix = check_text(matrix, QueryError(f"kind is text, not {quoted(matrix)}"))
    if matrix is not None and matrix not in MATRICES:
        raise QueryError(f"a head has no matrix {quoted(matrix)}; {suggest(matrix, MATRICES)}")
    own = atlas.models[where.model]
    own_id = own.head_id(where)
    found: list[dict[str, Any]] = []
    notes: list[str] = []

    def refuse(one: Model) -> None:
        _refuse_displacements(atlas, own, one)

    for both in compared(atlas, own, models, notes, strict=strict, refuse=refuse):
        one = both.right.model
        columns = heads(atlas, one).select(["head_id", "address", "layer"]).columns
        those = list(zip(*(column.to_pylist() for column in columns), strict=True))
        for each in MATRICES if matrix is None else [matrix]:
            found += [
                {"matrix": each, "similarity": float(cosine), "address": address, "id": head_id, "model": one}
                for (head_id, address, of_layer), cosine in zip(
                    those, head_cosines(atlas, both, where, each), strict=True
                )
                if layer in (None, of_layer) and head_id != own_id
            ]
    found.sort(key=lambda row: (row["matrix"], -max(sign * row["similarity"] for sign in signs), row["id"]))
    chosen = []
    for _, rows in groupby(found, key=lambda row: row["matrix"]):
        chosen += [row | {"rank": rank} for rank, row in enumerate(islice(rows, k), start=1)]
    sieve = Sieve(atlas.database, filter)
    pairs = _pairs(atlas, {row["id"]: row["model"] for row in chosen}, sieve)
    for row in chosen:
        row["top"] = pairs.get((row["id"], row["matrix"]), [])
    table = table_of(chosen, _SCHEMA)
    title = f"nearest to {where}: cosine of the heads' matrices, over all pairs of tokens"
    return Result(table, title, [*notes, *sieve.notes()])


def head_cosines(atlas: Atlas, both: Common, where: Address, matrix: str) -> Array:
    """The cosine (n_heads, float64) of a matrix of the left model's head with that of every head of the right one."""
    p, q = (_factor(atlas, both.left, kind, (where.stack, where.layer))[where.head or 0] for kind in MATRICES[matrix])
    norm = float(np.sqrt(((p @ p.T) * (q @ q.T)).sum()))
    if both.left.into is not None:
        p, q = p @ both.left.into.T, q @ both.left.into.T
    side = both.right
    key = (side.model.name, matrix, None if side.root is None else side.other.name)
    known = side.vectors.head_norms.get(key)
    inner, norms = [np.empty(0)], [np.empty(0)]
    for place in side.model.layout.attention_places:
        P, Q = (_factor(atlas, side, kind, place) for kind in MATRICES[matrix])
        inner.append((_products(P, p) * _products(Q, q)).sum(axis=(1, 2)))
        if known is None:
            norms.append(np.sqrt(((P @ P.transpose(0, 2, 1)) * (Q @ Q.transpose(0, 2, 1))).sum(axis=(1, 2))))
    if known is None:
        known = side.vectors.head_norms[key] = np.concatenate(norms)
    dots, sizes = np.concatenate(inner), norm * known
    return np.divide(dots, sizes, out=np.zeros_like(dots), where=sizes > 0)


def _products(P: Array, p: Array) -> Array:
    """P p^T (n_heads x d_head x n) of P (n_heads x d_head x r) and p (n x r), as one product in place of n_heads."""
    n, d_head, r = P.shape
    return (P.reshape(n * d_head, r) @ p.T).reshape(n, d_head, len(p))


def _factor(atlas: Atlas, side: Side, kind: str, place: Place) -> Array:
    """The coordinates of one factor of every head of a place (n_heads x d_head x r, float64).

    Those of small models are kept, which are asked for again with every head that somebody looks at.
    """
    known = side.vectors.head_factors
    key = (side.model.name, kind, place, None if side.root is None else side.other.name)
    if key not in known:
        rows = side.own(coordinates(atlas, side.model, kind, place)[0])
        if rows.size + sum(each.size for each in known.values()) > _KEPT:
            return _by_head(rows, side.model, kind, place)
        known[key] = rows
    return _by_head(known[key], side.model, kind, place)


def _by_head(rows: Array, model: Model, kind: str, place: Place) -> Array:
    of_head = owners(model, kind, place)
    n = max(of_head) + 1
    own = rows.reshape(n, len(rows) // n, rows.shape[1])
    return own if len(own) == len(of_head) else own[of_head]


def _refuse_displacements(atlas: Atlas, *models: Model) -> None:
    for name in sorted({model.name for model in models} & displacements(atlas)):
        raise QueryError(f"{name} is a displacement: its heads are differences, which are not compared whole")


def _pairs(atlas: Atlas, models: dict[int, Model], sieve: Sieve) -> dict[tuple[int, str], list[str]]:
    """(head_id, matrix) -> its strongest pairs of two words that pass a filter; ``models`` has that of each head."""
    found: dict[tuple[int, str], list[dict[str, int]]] = {}
    for head_id, matrix, source_id, target_id in atlas.database.rows(
        "SELECT head_id, matrix, source_id, target_id FROM store.pairs "
        "WHERE head_id IN (SELECT unnest($ids)) AND is_top AND rank_distinct <= $shown ORDER BY rank_distinct",
        {"ids": list(models) or [-1], "shown": ALL if sieve else _SHOWN_PAIRS},
    ):
        found.setdefault((head_id, matrix), []).append({"source_id": source_id, "target_id": target_id})
    texts = {one.vocabulary: atlas.database.tokens(one.vocabulary, "text") for one in models.values()}

    def pair(model: Model, ids: dict[str, int]) -> str:
        source, target = (texts[model.vocabulary][ids[end]].as_py() for end in ("source_id", "target_id"))
        return arrow(source, target)

    return {
        of: [pair(models[of[0]], pairs[place]) for place in sieve.pairs(models[of[0]], pairs, _SHOWN_PAIRS)]
        for of, pairs in found.items()
    }
