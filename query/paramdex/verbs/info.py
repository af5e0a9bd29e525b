"""``info``: the models of an atlas, and what it says of one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pyarrow as pa

from paramdex.result import Result, table_of
from paramdex.store.reading import READS, KindReads, reads_of_layers, reads_of_model, text_name
from paramdex.store.related import unrelated
from paramdex.store.store import Store
from paramdex_schemas import atlas_files
from paramdex_schemas.model import Model

_PRINTED = ["model", "family", "layers", "width", "heads", "neurons", "tokens", "parameters", "matrices", "reading"]
"""Columns of the table that are printed."""
_RENAMED = {
    "layers": "n_layers",
    "width": "d_model",
    "heads": "n_heads",
    "kv_heads": "n_kv_heads",
    "experts": "n_experts",
    "tokens": "vocabulary_size",
    "parameters": "n_parameters",
}
"""What a column of the table ``models`` is called here."""
_MODELS = pa.schema(
    [
        ("model", pa.string()),
        ("family", pa.string()),
        ("family_inferred", pa.bool_()),
        ("layers", pa.int32()),
        ("width", pa.int32()),
        ("heads", pa.int32()),
        ("kv_heads", pa.int32()),
        ("neurons", pa.int32()),
        ("experts", pa.int32()),
        ("stacks", pa.list_(pa.string())),
        ("tokens", pa.int32()),
        ("parameters", pa.int64()),
        ("matrices", pa.int64()),
        ("embedding", pa.string()),
        ("tied", pa.bool_()),
        ("fold_norm", pa.bool_()),
        ("reading", pa.string()),
        ("reading_text", pa.string()),
        ("reading_tokens", pa.int32()),
        ("rotary_left_out", pa.bool_()),
        ("dtype", pa.string()),
        ("top_k", pa.int32()),
        ("pair_k", pa.int32()),
        ("vocabulary", pa.string()),
        ("source", pa.string()),
        ("revision", pa.string()),
        ("base", pa.string()),
        ("weights_sha256", pa.string()),
        ("built_at", pa.timestamp("us")),
        ("builder_version", pa.string()),
    ]
)
_READINGS = pa.schema(
    [
        ("model", pa.string()),
        ("text", pa.string()),
        ("tokens", pa.int64()),
        ("kind", pa.string()),
        ("layers", pa.string()),
        ("reads", pa.string()),
    ]
)


@dataclass(frozen=True, repr=False)
class Info(Result):
    """The models, and how well their tables tell what their layers read, where that is known."""

    readings: Result | None = None

    def __str__(self) -> str:
        own = super().__str__()
        return own if self.readings is None else f"{own}\n\n{self.readings}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return super()._repr_html_() + ("" if self.readings is None else self.readings._repr_html_())


def info(store: Store) -> Info:
    """The models of an atlas, one row each. Notes say for which models no neighbors and alignments are kept."""
    table = rows_of_models(store)
    size = atlas_files.size(store.path)
    models = f"{len(table)} model" + ("" if len(table) == 1 else "s")
    notes = unrelated(store.database, list(store.models.values()))
    title = f"{store.path}: {models}, {size / 2**20:.0f} MiB"
    return Info(table, title, notes, table.select(_PRINTED), _readings(table, reads_of_layers(store)))


def rows_of_models(store: Store, models: Iterable[Model] | None = None) -> pa.Table:
    """A row for each model: what it is, and how much the atlas holds of it."""
    rows = []
    for model in store.models.values() if models is None else models:
        row = store.database.contents.manifests[model.name].row
        of = {new: row[old] for new, old in _RENAMED.items()}
        neurons = row["d_expert"] if row["d_ff"] is None else row["d_ff"]
        rows.append({**row, **of} | {"neurons": neurons, "matrices": 2 * model.layout.n_heads})
    return table_of(rows, _MODELS)


def _readings(models: pa.Table, known: Mapping[str, Sequence[KindReads]]) -> Result | None:
    """A row for each kind of each model of which something is known; what is as in the row above is not printed."""
    of_model = {row["model"]: row for row in models.select(["model", "reading_text", "reading_tokens"]).to_pylist()}
    rows = [
        {
            "model": model,
            "text": of_model[model]["reading_text"],
            "tokens": of_model[model]["reading_tokens"],
            "kind": each.kind,
            "layers": each.layers,
            "reads": each.values,
        }
        for model, kinds in known.items()
        for each in kinds
    ]
    if not rows:
        return None
    of_the_model = {"model": None, "text": None, "tokens": None}
    shown = [
        row | (of_the_model if before["model"] == row["model"] else {"text": text_name(row["text"])})
        for before, row in pairwise([of_the_model, *rows])
    ]
    title = f"reads, mean of each layer: {READS}"
    return Result(table_of(rows, _READINGS), title, shown=table_of(shown, _READINGS))


def info_of(store: Store, model: Model) -> Result:
    """The row of one model, printed as a list of its properties."""
    row = rows_of_models(store, [model])
    found = row.to_pylist()[0]
    found |= {f"reads of {each.kind}, {each.layers}": each.values for each in reads_of_model(store, model)}
    values = ["" if value is None else str(value) for value in found.values()]
    return Result(row, shown=pa.table({"property": list(found), "value": values}))
