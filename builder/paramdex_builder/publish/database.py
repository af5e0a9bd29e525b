"""Opening the database of an atlas for writing: how DuckDB is set up, and how it is interrupted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import duckdb

from paramdex_builder.work.memory import MOST_FOR_DUCKDB
from paramdex_schemas import atlas_files


@contextmanager
def database(
    path: Path, *, create: bool = False, read_only: bool = False, memory: int = MOST_FOR_DUCKDB
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection whose current database is the file ``path``, in a storage version that older clients can read."""
    with _interruptible(), closing(duckdb.connect(config={} if read_only else _config(path, memory))) as connection:
        with suppress(duckdb.InvalidInputException):  # a notebook without ipywidgets has no bar
            connection.execute("SET enable_progress_bar = false")  # under `python -m` it would write to standard output
        created = f" (STORAGE_VERSION '{atlas_files.STORAGE_VERSION}')" if create else ""
        options = " (READ_ONLY)" if read_only else created
        quoted = str(path).replace("'", "''")
        connection.execute(f"ATTACH '{quoted}' AS atlas{options}")
        connection.execute("USE atlas")
        yield connection
        connection.execute("USE memory")
        connection.execute("DETACH atlas")  # checkpoints


@contextmanager
def _interruptible() -> Iterator[None]:
    """DuckDB also hears Ctrl-C, and raises errors of its own. Raises KeyboardInterrupt in their place."""
    try:
        yield
    except (RuntimeError, duckdb.Error) as error:
        if re.search("Query interrupted|KeyboardInterrupt|INTERRUPT Error", str(error)):
            raise KeyboardInterrupt from error
        raise


def _config(path: Path, memory: int) -> dict[str, str | bool | int | float | list[str]]:
    return {"temp_directory": str(path.parent / "duckdb-temp"), "memory_limit": f"{memory >> 20}MiB"}
