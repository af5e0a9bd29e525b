"""How alike two heads are as wholes: the cosine of their matrices in embedding space, exactly, from small products.

A head's matrix is M = Ec P^T Q Ec^T (V x V) for its factors P, Q (d_head x d): W_Q and W_K for QK, W_V and W_O for VO.
With the coordinates p = R P^T and q = R Q^T of both (r x d_head), R^T R = Ec^T Ec,

    <M1, M2> = tr(M1^T M2) = the sum of the entries of (p1^T p2) * (q1^T q2), d_head x d_head each,

and the cosine is <M1, M2> / (||M1|| ||M2||). As in all similarities, scores enter with their means over the tokens of
either side taken off; a mean over the keys is nothing that attention's softmax would notice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from paramdex.common import Common, Side, common
from paramdex.filters import ALL, Sieve, TokenFilter
from paramdex.head_factors import FACTORS, coordinates, displacements, owners
from paramdex.result import Result, visible
from paramdex_schemas import MATRICES, Address, QueryError
from paramdex_schemas.errors import nearest
from paramdex_schemas.isometry import Array
from paramdex_schemas.layout import Place

if TYPE_CHECKING:
    from paramdex.atlas import Atlas, Model

_SHOWN_PAIRS = 3
_SCHEMA = pa.schema(
    [("matrix", pa.string()), ("rank", pa.int32()), ("similarity", pa.float32()), ("address", pa.string()),
     ("top", pa.list_(pa.string()))]
)  # fmt: skip


def similar_heads(
    atlas: Atlas, where: Address, k: int, models: list[Model], matrix: str | None, layer: int | None,
    signs: tuple[int, ...], filter: TokenFilter | None,
) -> Result:  # fmt: skip
    """See ``Atlas.similar``. Of several models, those that cannot be compared are left out with a note."""
    if matrix is not None and matrix not in MATRICES:
        raise QueryError(f"a head has no matrix {matrix!r}; {nearest(matrix, MATRICES)}")
    own = atlas.models[where.model]
    matrices = [each for each in MATRICES if matrix in (None, each)]
    found: list[tuple[str, float, int]] = []
    notes: list[str] = []
    for one in models:
        try:
            _refuse_displacements(atlas, own, one)
            both = common(atlas, own, one)
        except QueryError as error:
            if len(models) == 1:
                raise
            notes.append(f"left out: {error}")
            continue
        notes += both.notes
        for each in matrices:
            cosines = head_cosines(atlas, both, where, each)
            rows = [row for row in range(len(cosines)) if one is not own or row != own.layout.head_row(where)]
            found += [(each, float(cosines[row]), one.first_head_id + row) for row in rows]
    chosen: list[dict[str, Any]] = []
    heads = {head_id: (address, place) for one in models for head_id, address, place in _heads(one)}
    for each in matrices:
        hits = [hit for hit in found if hit[0] == each and layer in (None, heads[hit[2]][1])]
        hits.sort(key=lambda hit: (-max(sign * hit[1] for sign in signs), hit[2]))
        chosen += [
            {"matrix": each, "rank": rank, "similarity": value, "address": heads[head_id][0], "id": head_id}
            for rank, (_, value, head_id) in enumerate(hits[:k], start=1)
        ]
    sieve = Sieve(atlas._database, filter)  # noqa: SLF001
    pairs = _pairs(atlas, [(model, row["id"]) for row in chosen for model in models if _has(model, row["id"])], sieve)
    for row in chosen:
        row["top"] = pairs.get((row["id"], row["matrix"]), [])
    table = pa.Table.from_pylist(chosen, schema=_SCHEMA)
    title = f"nearest to {where}: cosine of the heads' matrices, over all pairs of tokens"
    return Result(table, title, [*notes, *sieve.notes()])


def head_cosines(atlas: Atlas, both: Common, where: Address, matrix: str) -> Array:
    """The cosine (n_heads, float64) of a matrix of the left model's head with that of every head of the right one."""
    p, q = (_factor(atlas, both.left, kind, (where.stack, where.layer))[where.head or 0] for kind in FACTORS[matrix])
    norm = float(np.sqrt(((p @ p.T) * (q @ q.T)).sum()))
    if both.left.into is not None:
        p, q = p @ both.left.into.T, q @ both.left.into.T
    side = both.right
    key = (side.model.name, matrix, None if side.root is None else side.other.name)
    known = side.vectors.head_norms.get(key)
    inner, norms = [np.empty(0)], [np.empty(0)]
    for place in side.model.layout.attention_places:
        P, Q = (_factor(atlas, side, kind, place) for kind in FACTORS[matrix])
        inner.append(((P @ p.T) * (Q @ q.T)).sum(axis=(1, 2)))
        if known is None:
            norms.append(np.sqrt(((P @ P.transpose(0, 2, 1)) * (Q @ Q.transpose(0, 2, 1))).sum(axis=(1, 2))))
    if known is None:
        known = side.vectors.head_norms[key] = np.concatenate(norms)
    dots, sizes = np.concatenate(inner), norm * known
    return np.divide(dots, sizes, out=np.zeros_like(dots), where=sizes > 0)


def _factor(atlas: Atlas, side: Side, kind: str, place: Place) -> Array:
    """The coordinates of one factor of every head of a place (n_heads x d_head x r, float64)."""
    rows = side.own(coordinates(atlas, side.model, kind, place)[0])
    of_head = owners(side.model, kind, place)
    return rows.reshape(max(of_head) + 1, -1, rows.shape[1])[of_head]


def _refuse_displacements(atlas: Atlas, *models: Model) -> None:
    for name in sorted({model.name for model in models} & displacements(atlas)):
        raise QueryError(f"{name} is a displacement: its heads are differences, which are not compared whole")


def _heads(model: Model) -> list[tuple[int, str, int | None]]:
    """(head_id, address, layer) of every head of a model."""
    places = [
        (stack, layer, head)
        for stack, layer in model.layout.attention_places
        for head in range(model.layout.heads((stack, layer)).n_owners)
    ]
    return [
        (model.first_head_id + row, str(Address(model.name, layer, head, stack=stack)), layer)
        for row, (stack, layer, head) in enumerate(places)
    ]


def _has(model: Model, head_id: int) -> bool:
    return model.first_head_id <= head_id < model.first_head_id + model.layout.n_heads


def _pairs(atlas: Atlas, heads: list[tuple[Model, int]], sieve: Sieve) -> dict[tuple[int, str], list[str]]:
    """(head_id, matrix) -> its strongest pairs of two words that pass a filter."""
    models = {head_id: model for model, head_id in heads}
    rows = atlas._database.rows(  # noqa: SLF001
        "SELECT head_id, matrix, list({'source': source, 'target': target, 'source_id': source_id, "
        "'target_id': target_id} ORDER BY rank_distinct) FROM head_pairs "
        "WHERE head_id IN (SELECT unnest($ids)) AND side = 'top' AND rank_distinct <= $shown GROUP BY ALL",
        {"ids": list(models) or [-1], "shown": ALL if sieve else _SHOWN_PAIRS},
    )
    return {
        (head_id, matrix): [
            f"{visible(pairs[place]['source'])} → {visible(pairs[place]['target'])}"
            for place in sieve.pairs(models[head_id], pairs, _SHOWN_PAIRS)
        ]
        for head_id, matrix, pairs in rows
    }
