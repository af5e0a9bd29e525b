"""What a head's matrices are made of, from the atlas: the coordinates of its vectors, with their lengths."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from paramdex_schemas.isometry import Array
from paramdex_schemas.layout import Place

if TYPE_CHECKING:
    from paramdex.atlas import Atlas
    from paramdex_schemas.model import Model


def coordinates(atlas: Atlas, model: Model, kind: str, place: Place) -> tuple[Array, Array]:
    """R w of all of a place's vectors w of a kind (n x r, float64), and the mean of the V scores of each (n).

    The atlas has normalized coordinates, and ||R w|| = sqrt(V) std.
    """
    start, end = model.layout.places(kind)[place]
    block = model.layout.blocks[kind]
    first = model.first_param_id + block.first
    found = atlas.database.kept(
        "SELECT mean, std FROM store.parameters WHERE param_id BETWEEN ? AND ? ORDER BY param_id",
        first,
        first + block.n_rows - 1,
    )
    means, stds = (found[name].to_numpy()[start:end].astype(np.float64) for name in ("mean", "std"))
    rows = atlas.vectors.index(model.name, kind).reconstruct_n(start, end - start).astype(np.float64)
    return rows * (stds * model.vocabulary_size**0.5)[:, None], means


def owners(model: Model, kind: str, place: Place) -> list[int]:
    """Of every head of a place the number of the owner of its vectors of a kind, which a group of heads may share."""
    run = next(run for run in model.layout.of(kind) if run.place == place)
    n_heads = model.layout.heads(place).n_owners
    return [head // run.group if run.owner == "kv_head" else head for head in range(n_heads)]


def heads(atlas: Atlas, model: Model) -> pa.Table:
    """The rows of store.heads of a model, in the order of its heads; read once."""
    sql = (
        "SELECT head_id, address, stack, layer, kv_head, qk_norm, qk_mean, qk_std, vo_norm, vo_mean, vo_std "
        "FROM store.heads WHERE model_id = ? ORDER BY head_id"
    )
    return atlas.database.kept(sql, model.model_id)


def displacements(atlas: Atlas) -> set[str]:
    """The models whose heads' matrices are no products of their vectors, but differences of two matrices."""
    found = atlas.database.kept("SELECT model FROM store.models WHERE base IS NOT NULL")
    return set(found["model"].to_pylist())
