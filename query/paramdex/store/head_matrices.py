"""What the matrices of heads are made of: the coordinates of a head's vectors, with their lengths."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from paramdex.store.moments import moments
from paramdex.store.store import Store
from paramdex_schemas.isometry import Array
from paramdex_schemas.layout import Place
from paramdex_schemas.model import Model


def coordinates(store: Store, model: Model, kind: str, place: Place) -> tuple[Array, Array]:
    """R w of all of a place's vectors w of a kind (n x r, float64), and the mean of the V scores of each (n).

    R is the root of the space that scores them, ``model.layout.space(kind, place)``, and w what they are there: of the
    reading space, pulled back. The atlas has normalized coordinates, and ||R w|| = sqrt(V) std.
    """
    mean, std = (each.astype(np.float64) for each in moments(store.database, model, model.ids(kind, place)))
    (piece,) = store.vectors.pieces(model, kind, model.layout.places(kind)[place])
    rows = piece.stored().astype(np.float64)
    return rows * (std * model.vocabulary_size**0.5)[:, None], mean


def owners(model: Model, kind: str, place: Place) -> list[int]:
    """Which owner the vectors of a kind have, for every head of a place; a group of heads may share one."""
    run = next(run for run in model.layout.of(kind) if run.place == place)
    n_heads = model.layout.heads(place).n_owners
    return [head // run.group if run.owner == "kv_head" else head for head in range(n_heads)]


def rows_of_heads(store: Store, model: Model) -> pa.Table:
    """The rows of store.heads of a model, in the order of its heads; read once."""
    sql = (
        f"SELECT head_id + {model.first_head_id} AS head_id, model || '/' || path AS address, stack, layer, kv_head, "
        "qk_norm, qk_mean, qk_std, vo_norm, vo_mean, vo_std FROM store.heads, store.models ORDER BY head_id"
    )
    return store.database.of(model).kept(sql)


def displacements(store: Store) -> set[str]:
    """The models whose heads' matrices are differences of two matrices, and so no products of their vectors."""
    return {name for name, one in store.database.contents.manifests.items() if one.row["base"] is not None}
