"""``info``: the models of an atlas, and what it says of one."""

from __future__ import annotations

import pyarrow as pa

from paramdex.result import Result
from paramdex.store.related import unrelated
from paramdex.store.store import Store
from paramdex_schemas import atlas_files
from paramdex_schemas.model import Model

_PRINTED = ["model", "family", "layers", "width", "heads", "neurons", "tokens", "parameters", "matrices"]
"""Columns of the table that are printed."""


def info(store: Store) -> Result:
    """The models of an atlas, one row each. Notes say for which models no neighbors and alignments are kept."""
    table = store.database.named("info")
    size = atlas_files.size(store.path)
    models = f"{len(table)} model" + ("" if len(table) == 1 else "s")
    notes = unrelated(store.database, list(store.models.values()))
    return Result(table, f"{store.path}: {models}, {size / 2**20:.0f} MiB", notes, table.select(_PRINTED))


def info_of(store: Store, model: Model) -> Result:
    """The row of one model, printed as a list of its properties."""
    table = store.database.named("info")
    row = table.slice(table["model"].to_pylist().index(model.name), 1)
    values = ["" if value is None else str(value) for value in row.to_pylist()[0].values()]
    return Result(row, shown=pa.table({"property": row.column_names, "value": values}))
