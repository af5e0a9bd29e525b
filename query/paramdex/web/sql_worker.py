"""The process that runs a visitor's SQL: a DuckDB of its own, fenced by DuckDB and by the operating system.

DuckDB's memory limit counts what its buffers hold, not what one expression makes: ``repeat('x', 3_000_000_000)`` takes
6 GB under a limit of 256 MB and cannot be interrupted. So SQL runs in a process that the kernel denies more memory,
that can write no file, and that the server ends when it does not answer in time; nothing it does harms another
question.

    python -m paramdex.web.sql_worker ATLAS MEMORY_MB

reads messages from standard input and writes one to standard output for each. A message is its length (8 bytes) and
its bytes. A question is JSON: sql, rows, seconds, bytes. An answer is the line "more" or "last" (the process ends), a
line of JSON (error, or truncated) and the Arrow table.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import duckdb
import pyarrow as pa

from paramdex.database import Database, reading_statement
from paramdex.interrupts import time_limit
from paramdex.web.sources import public_source
from paramdex_schemas import QueryError

_EXPLAIN = re.compile(r"\s*EXPLAIN\b\s*(ANALYZE\b\s*)?(\([^()]*\)\s*)?", re.IGNORECASE)
_ACCOUNTS = {
    "duckdb_columns", "duckdb_functions", "duckdb_keywords", "duckdb_tables", "duckdb_types", "duckdb_views",
    "pragma_version",
}  # fmt: skip
"""Of DuckDB's accounts of itself those that hold no path of the machine."""
_TABLE_FUNCTIONS = _ACCOUNTS | {"generate_series", "json_each", "json_tree", "range", "repeat", "repeat_row", "unnest"}
"""Those that read neither files nor what is named to them as text."""
_HIDDEN = re.compile(
    r"(duckdb|pragma)_.*|pg_settings|current_setting|getenv|which_secret|write_log|json_(execute|serialize_plan).*"
)
"""Tables and other functions that would tell of the machine, or run what is given to them as text."""


def read_message(stream: IO[bytes]) -> bytes | None:
    """The next message, or None where the other side is gone."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    size = int.from_bytes(head, "big")
    body = stream.read(size)
    return body if len(body) == size else None


def write_message(stream: IO[bytes], body: bytes) -> None:
    stream.write(len(body).to_bytes(8, "big") + body)
    stream.flush()


def data_bytes() -> int:
    """The memory that this process has for itself; 0 where the system does not tell."""
    with suppress(OSError):
        found = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"))
        return 1024 * int(found[1]) if found else 0
    return 0


def confine(most_bytes: int) -> None:
    """Deny this process files to write, core dumps and, where it can be told, more memory than ``most_bytes``."""
    with suppress(ImportError, OSError, ValueError):  # other systems than Linux have less of this
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        os.nice(10)  # pages come before SQL
        if data_bytes():
            resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))


def connect(atlas: Path, memory_mb: int) -> duckdb.DuckDBPyConnection:
    """The atlas as visitors see it: all its tables and views under their names, in a database of views in memory.

    Of the models, where they were built from stands there as ``public_source`` has it.
    """
    settings = {
        "autoload_known_extensions": "false", "python_enable_replacements": "false",
        "memory_limit": f"{memory_mb}MB", "threads": "1",
    }  # fmt: skip
    connection = Database(atlas, settings).connection
    known = connection.execute("SELECT source FROM store.models UNION SELECT base FROM store.models").fetchall()
    told = {source: public_source(source) for (source,) in known if source is not None}
    of_tables = "SELECT table_name FROM duckdb_tables() WHERE database_name = 'atlas' AND schema_name = 'store'"
    of_views = "SELECT sql FROM duckdb_views() WHERE database_name = 'atlas' AND NOT internal ORDER BY view_oid"
    tables, views = ([text for (text,) in connection.execute(sql).fetchall()] for sql in (of_tables, of_views))
    connection.execute("USE memory")
    connection.execute("CREATE SCHEMA store")
    # a table, not a view: nothing that DuckDB knows of its values comes from the file
    connection.execute(
        "CREATE TABLE store.models AS SELECT m.* REPLACE (map_extract_value(told, source) AS source, "
        "map_extract_value(told, base) AS base) "
        "FROM atlas.store.models AS m, (SELECT map($from, $to) AS told) ORDER BY model_id",
        {"from": list(told), "to": list(told.values())},
    )
    for table in tables:
        if table != "models":
            connection.execute(f"CREATE VIEW store.{table} AS FROM atlas.store.{table}")
    for view in views:
        connection.execute(view)
    return connection


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """All nodes of a syntax tree."""
    if isinstance(tree, dict):
        yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _nodes(child)


def check(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Raises QueryError unless ``sql`` is one statement that reads and asks nothing about the machine."""
    statement = reading_statement(connection, sql)
    query = statement.query
    if statement.type == duckdb.StatementType.EXPLAIN:
        query = _EXPLAIN.sub("", query, count=1)
    ((text,),) = connection.execute("SELECT json_serialize_sql(?)", [query]).fetchall()
    tree = json.loads(text)
    if tree["error"]:
        raise QueryError("an atlas is read-only: only SELECT, and EXPLAIN of a SELECT, are allowed")
    for node in _nodes(tree):
        name = str(node.get("function_name") or node.get("table_name") or "").lower()
        called = node["function"]["function_name"].lower() if node.get("type") == "TABLE_FUNCTION" else None
        if (_HIDDEN.fullmatch(name) and name not in _ACCOUNTS) or called not in (None, *_TABLE_FUNCTIONS):
            raise QueryError(f"{called or name} is not for visitors: SQL here reads the atlas's own tables")
        if "table_name" in node and "atlas" in (str(node.get(at)).lower() for at in ("catalog_name", "schema_name")):
            raise QueryError(f"write the name of the table {node['table_name']} without atlas before it")


def run(connection: duckdb.DuckDBPyConnection, sql: str, rows: int, n_bytes: int) -> tuple[pa.Table, bool]:
    """The first rows of a query, as many as ``rows`` and ``n_bytes`` allow, and whether there are more."""
    check(connection, sql)
    connection.execute("USE memory")
    connection.execute("BEGIN TRANSACTION READ ONLY")  # EXPLAIN ANALYZE runs what it explains
    table = connection.sql(sql).limit(rows + 1).to_arrow_table()
    kept = table.slice(0, rows)
    while kept.nbytes > n_bytes and kept.num_rows:
        kept = kept.slice(0, kept.num_rows // 2)
    if not kept.num_rows and table.num_rows:
        raise QueryError(f"one row of this is larger than {n_bytes >> 20} MB; ask for less in a row")
    return kept, kept.num_rows < table.num_rows


def answer(database: duckdb.DuckDBPyConnection, question: dict[str, Any]) -> bytes:
    """The bytes that answer one question, asked on a connection that ends with it."""
    connection = database.cursor()
    try:
        with time_limit(connection, question["seconds"]):
            table, truncated = run(connection, question["sql"], question["rows"], question["bytes"])
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return json.dumps({"truncated": truncated}).encode() + b"\n" + sink.getvalue()
    except duckdb.InterruptException:
        return _error("time", "")
    except (MemoryError, duckdb.OutOfMemoryException, pa.ArrowMemoryError):
        return _error("memory", "")
    except duckdb.PermissionException:
        return _error("query", "SQL reads the atlas's own tables and nothing else: no files, no settings")
    except QueryError as error:
        return _error("query", str(error))
    except Exception as error:  # noqa: BLE001  # whatever it is, it was the question's doing, and the next is welcome
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        return _error("query", "\n".join(lines) or type(error).__name__)
    finally:
        connection.close()


def _error(kind: str, message: str) -> bytes:
    return json.dumps({"error": kind, "message": message}).encode() + b"\n"


def main() -> None:
    atlas, memory_mb = Path(sys.argv[1]).resolve(), int(sys.argv[2])
    os.environ.clear()  # nothing here is anyone's to read
    os.environ["HOME"] = "/"
    os.chdir("/")
    connection = connect(atlas, memory_mb)
    # one of each, so that what the libraries take for themselves is not held against anybody's question
    for sql in ("SELECT * FROM models", "SELECT token, count(*) FROM tokens GROUP BY token ORDER BY 2 LIMIT 1000"):
        answer(connection, {"sql": sql, "rows": 1000, "seconds": 60, "bytes": 1 << 20})
    start, share = data_bytes(), memory_mb << 20
    confine(start + 5 * share // 2)
    write_message(sys.stdout.buffer, b"ready")
    tired = False
    while not tired and (message := read_message(sys.stdin.buffer)) is not None:
        reply = answer(connection, json.loads(message))
        tired = data_bytes() > start + 1.5 * share  # more than DuckDB's buffers; the next question starts afresh
        write_message(sys.stdout.buffer, (b"last\n" if tired else b"more\n") + reply)


if __name__ == "__main__":
    main()
