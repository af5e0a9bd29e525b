"""``check``: whether every file and table of an atlas is what was written."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from paramdex.result import Result
from paramdex.store.database import Tables
from paramdex.store.store import Store
from paramdex_schemas import AtlasError, atlas_files


def check(store: Store) -> Result:
    """Compare every file of an atlas with its SHA-256, and the rows of every table with how many were written. The
    result counts the rows of the tables.

    Raises AtlasError for the first that differs.
    """
    database, rows, n_files = store.database, dict[str, int](), 0
    every: list[tuple[Tables, Mapping[str, tuple[int, str]], Mapping[str, int]]] = []
    for name, manifest in database.contents.manifests.items():
        every.append((database.of(store.models[name]), manifest.files, manifest.tables))
    names = database.contents.names
    for a, b in database.contents.related:
        models = store.models[names[a]], store.models[names[b]]
        relation, about = database.relation(*models), database.about(*models)
        if relation is not None and about is not None:
            every.append((relation, about.files, about.tables))
    for tables, files, counts in every:
        for file, (n_bytes, digest) in files.items():
            atlas_files.check(store.path, f"{tables.folder}/{file}", n_bytes, digest)
        n_files += len(files)
        for table, n_rows in counts.items():
            ((found,),) = tables.rows(f"SELECT count(*) FROM store.{table}")
            if found != n_rows:
                raise AtlasError(atlas_files.damaged(store.path, f"{tables.folder}/{atlas_files.TABLES}"))
            rows[table] = rows.get(table, 0) + found
    found_rows = [{"what": f"table {table}", "rows": n} for table, n in sorted(rows.items())]
    return Result(pa.Table.from_pylist(found_rows), notes=[f"{n_files} files are as they were written"])
