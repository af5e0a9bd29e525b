"""``directions``: the singular directions of a head's two matrices, each as the tokens it reads and writes."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from paramdex.result import Result, table_of
from paramdex.store.filters import Sieve
from paramdex.store.store import Store
from paramdex.store.token_filter import TokenFilter
from paramdex_schemas import MATRICES, Address, AddressError, QueryError
from paramdex_schemas.errors import quoted

LISTS = ("source_top", "target_top", "source_bottom", "target_bottom")
_SHOWN_TOKENS = 5
_SCHEMA = pa.schema(
    [
        ("matrix", pa.string()),
        ("direction", pa.int32()),
        ("singular_value", pa.float32()),
        ("share", pa.float32()),
        *((name, pa.list_(pa.string())) for name in LISTS),
    ]
)


def directions(store: Store, address: str | Address, k: int, matrix: str | None, filter: TokenFilter | None) -> Result:
    """See ``Atlas.directions``."""
    where = store.address(address)
    model = store.models[where.model]
    if not where.is_head:
        example = model.layout.example(where)
        head = Address(where.model, example.layer, 0, stack=example.stack)
        raise AddressError(f"directions takes a head, {head}, say, not {where}")
    if matrix is not None and not (isinstance(matrix, str) and matrix in MATRICES):
        raise QueryError(f"matrix is {' or '.join(MATRICES)}, not {quoted(matrix)}")
    sieve = Sieve(store.database, filter)
    tables = store.database.of(model)
    values = {"head_id": model.layout.head_row(where), "k": k, "matrix": matrix}
    rows: list[dict[str, Any]] = []
    for found in tables.named_rows("directions", values):
        row = {name: found[name] for name in ("matrix", "direction", "singular_value", "share")}
        for name in LISTS:
            ids = found["tokens"][name]
            passing = sieve.directions(model, ids, _SHOWN_TOKENS)
            row[name] = store.database.texts(model.vocabulary, [ids[place] for place in passing])
        rows.append(row)
    notes = sieve.notes()
    found_k = max((row["direction"] for row in rows), default=0)
    if found_k < k:
        ((kept_k,),) = tables.rows("SELECT directions_k FROM store.models")
        if not kept_k:
            notes.append(f"{model.name} was built without directions; build it anew with --directions-k 8")
        elif not found_k:
            notes.append(f"the matrices of {where} are zero")
        elif found_k == kept_k:
            more = "build with a larger --directions-k to keep more"
            notes.append(f"the atlas keeps {kept_k} directions per matrix; {more}")
    shown = [
        {
            "matrix": row["matrix"] if side == "top" else None,
            "n": row["direction"] if side == "top" else None,
            "value": row["singular_value"] if side == "top" else None,
            "share": row["share"] if side == "top" else None,
            "reads (query)": row[f"source_{side}"][:_SHOWN_TOKENS],
            "writes (key)": row[f"target_{side}"][:_SHOWN_TOKENS],
        }
        for row in rows
        for side in ("top", "bottom")
    ]
    schema = pa.schema(
        [
            ("matrix", pa.string()),
            ("n", pa.int32()),
            ("value", pa.float32()),
            ("share", pa.float32()),
            ("reads (query)", pa.list_(pa.string())),
            ("writes (key)", pa.list_(pa.string())),
        ]
    )
    title = (
        f"{where}: singular directions of its matrices over tokens, VO read → written, QK query → key\n"
        "Each has two lines, its opposite ends: tokens on one line belong together"
    )
    table = table_of(rows, _SCHEMA)
    return Result(table, title, notes, table_of(shown, schema))
