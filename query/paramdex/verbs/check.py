"""``check``: whether every file and table of an atlas is what was written."""

from __future__ import annotations

import pyarrow as pa

from paramdex.result import Result
from paramdex.store.store import Store


def check(store: Store) -> Result:
    """Read every table and file of an atlas and compare them with their checksums. The rows count those of the tables.

    Raises AtlasError for the first that differs.
    """
    rows = []
    for (name,) in store.database.rows(
        "SELECT table_name FROM duckdb_tables() WHERE schema_name = 'store' ORDER BY table_name"
    ):
        # hashing a table reads all of it, and DuckDB checks every block that it reads
        ((count, _),) = store.database.rows(f"SELECT count(*), bit_xor(hash(t)) FROM store.{name} AS t")
        rows.append({"what": f"table {name}", "rows": count})
    n_files = store.vectors.check_all()
    return Result(pa.Table.from_pylist(rows), notes=[f"{n_files} files beside the database are as they were written"])
