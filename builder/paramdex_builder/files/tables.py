"""Opening DuckDB files for writing, and reading several at once: how DuckDB is set up, and how it is interrupted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import duckdb
import pyarrow as pa

from paramdex_builder.work.memory import MOST_FOR_DUCKDB
from paramdex_schemas import atlas_files


@contextmanager
def new_tables(path: Path, memory: int = MOST_FOR_DUCKDB) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection whose current database is the new file ``path``, in a storage version that older clients can read.
    What is written is one transaction.
    """
    config: dict[str, str | bool | int | float | list[str]] = {
        "temp_directory": str(path.parent / "duckdb-temp"),
        "memory_limit": f"{memory >> 20}MiB",
    }
    with _connected(config) as connection:
        _attach(connection, "made", path, f"STORAGE_VERSION '{atlas_files.STORAGE_VERSION}'")
        connection.execute("USE made")
        connection.execute("BEGIN")
        yield connection
        connection.execute("COMMIT")
        connection.execute("USE memory")
        connection.execute("DETACH made")  # checkpoints


@contextmanager
def tables(files: Mapping[str, Path]) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to some files by the names that they are to have, for reading."""
    with _connected({}) as connection:
        for name, path in files.items():
            _attach(connection, name, path, "READ_ONLY")
        yield connection


def insert(connection: duckdb.DuckDBPyConnection, sql: str, given: pa.Table, values: object = None) -> None:
    """Run ``sql`` with the Arrow table ``given`` visible under that name."""
    connection.register("given", given)
    connection.execute(sql, values or [])
    connection.unregister("given")


def counted(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """How many rows each table has of the schema ``store`` of the current database."""
    names = connection.execute(
        "SELECT table_name FROM duckdb_tables() WHERE database_name = current_database() AND schema_name = 'store' "
        "ORDER BY table_oid"
    ).fetchall()
    counts = {name: connection.execute(f"SELECT count(*) FROM store.{name}").fetchall() for (name,) in names}
    return {name: n for name, ((n,),) in counts.items()}


@contextmanager
def _connected(config: dict[str, str | bool | int | float | list[str]]) -> Iterator[duckdb.DuckDBPyConnection]:
    with _interruptible(), closing(duckdb.connect(config=config)) as connection:
        with suppress(duckdb.InvalidInputException):  # a notebook without ipywidgets has no bar
            connection.execute("SET enable_progress_bar = false")  # under `python -m` it would write to standard output
        yield connection


def _attach(connection: duckdb.DuckDBPyConnection, name: str, path: Path, options: str) -> None:
    quoted = str(path).replace("'", "''")
    connection.execute(f"ATTACH '{quoted}' AS {name} ({options})")


@contextmanager
def _interruptible() -> Iterator[None]:
    """DuckDB also hears Ctrl-C, and raises errors of its own. Raises KeyboardInterrupt in their place."""
    try:
        yield
    except (RuntimeError, duckdb.Error) as error:
        if re.search("Query interrupted|KeyboardInterrupt|INTERRUPT Error", str(error)):
            raise KeyboardInterrupt from error
        raise
