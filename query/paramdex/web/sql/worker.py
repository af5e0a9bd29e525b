"""The process that runs a visitor's SQL: a DuckDB of its own, fenced in by DuckDB's settings and the operating system.

DuckDB's memory limit counts its buffers, not the values that an expression makes: ``repeat('x', 3_000_000_000)`` takes
6 GB under a limit of 256 MB, and cannot be interrupted. So SQL runs in a process whose memory the kernel limits, that
cannot write files, and that the server kills when it does not answer in time. No query can harm another.

    python -m paramdex.web.sql.worker ATLAS MEMORY_MB

reads messages from standard input and answers each on standard output (see load.processes). A question is JSON: sql,
form, rows, seconds, bytes. An answer is the line "more" or "last" (the process ends after it), a line of JSON (error,
or truncated), and the bytes for the visitor. These are written here, so that they count towards the query's time and
memory.
"""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any, get_args

import duckdb

from paramdex.store.everything import Everything
from paramdex.store.interrupts import time_limit
from paramdex.web.cards.sources import public_source
from paramdex.web.load.processes import read_message, write_message
from paramdex.web.sql.rendering import Form, RenderRequest, render
from paramdex.web.sql.visitors import first_rows, internal_views, readable
from paramdex_schemas import QueryError
from paramdex_schemas.contents import read_contents


def data_bytes() -> int:
    """Bytes of private memory of this process; 0 where the system does not tell."""
    with suppress(OSError):
        found = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"))
        return 1024 * int(found[1]) if found else 0
    return 0


def confine(most_bytes: int) -> None:
    """Forbid this process files, core dumps and, where memory can be measured, more of it than ``most_bytes``."""
    with suppress(ImportError, OSError, ValueError):  # systems other than Linux have only some of these
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        os.nice(10)  # pages come before SQL
        if data_bytes():
            resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))


def connect(atlas: Path, memory_mb: int) -> duckdb.DuckDBPyConnection:
    """The public tables of the atlas. That of models is a copy, in which ``source`` and ``base`` are cut by
    ``public_source``.
    """
    settings = {
        "autoload_known_extensions": "false",
        "python_enable_replacements": "false",
        "memory_limit": f"{memory_mb}MB",
        "threads": "1",
    }
    connection = Everything(read_contents(atlas), settings).connection
    known = connection.execute("SELECT source FROM models UNION SELECT base FROM models").fetchall()
    told = {source: public_source(source) for (source,) in known if source is not None}
    # a table, not a view: DuckDB's statistics of it cannot tell what is in the file
    connection.execute(
        "CREATE TABLE told AS SELECT m.* REPLACE (map_extract_value(told, source) AS source, "
        "map_extract_value(told, base) AS base) FROM models AS m, (SELECT map($from, $to) AS told)",
        {"from": list(told), "to": list(told.values())},
    )
    connection.execute("DROP VIEW models")
    connection.execute("ALTER TABLE told RENAME TO models")
    return connection


def answer(database: duckdb.DuckDBPyConnection, asked: dict[str, Any], hidden: frozenset[str]) -> bytes:
    """The bytes that answer one question. It runs on a connection of its own."""
    started = monotonic()
    wanted = RenderRequest(
        asked["sql"], asked["form"], asked["rows"], asked["bytes"], started, started + asked["seconds"]
    )
    connection = database.cursor()
    try:
        with time_limit(connection, asked["seconds"]):
            connection.execute("USE memory")
            connection.execute("BEGIN TRANSACTION READ ONLY")  # because EXPLAIN ANALYZE runs what it explains
            reads = readable(connection, wanted.sql, hidden)
            found = render(wanted, first_rows(connection, reads, wanted.rows + 1, hidden).to_arrow_table())
        return json.dumps({"truncated": found.truncated}).encode() + b"\n" + found.body
    except (duckdb.InterruptException, TimeoutError):
        return _error("time", "")
    except (MemoryError, duckdb.OutOfMemoryException):
        return _error("memory", "")
    except duckdb.PermissionException:
        return _error("query", "SQL reads the atlas's own tables and nothing else: no files, no settings")
    except QueryError as error:
        return _error("query", str(error))
    except Exception as error:  # noqa: BLE001  # whatever it is, the query caused it; the next one may work
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        return _error("query", "\n".join(lines) or type(error).__name__)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001  # a library's panic: this process is not used again
        return _error("panic", f"this answer cannot be written: {error}")
    finally:
        connection.close()


def _error(kind: str, message: str) -> bytes:
    return json.dumps({"error": kind, "message": message}).encode() + b"\n"


def main() -> None:
    atlas, memory_mb = Path(sys.argv[1]).resolve(), int(sys.argv[2])
    os.environ.clear()  # so that SQL can read nothing of it
    os.environ["HOME"] = "/"
    os.chdir("/")
    sys.setrecursionlimit(20_000)  # syntax trees of a thousand nested expressions
    connection = connect(atlas, memory_mb)
    hidden = internal_views(connection)
    # one query of each form first, so that the memory that libraries take for themselves counts against no query
    first = {"rows": 1000, "seconds": 60, "bytes": 1 << 20}
    for form in get_args(Form):
        for sql in ("SELECT * FROM models", "SELECT token, count(*) FROM tokens GROUP BY token ORDER BY 2 LIMIT 1000"):
            answer(connection, {"sql": sql, "form": form, **first}, hidden)
    start, share = data_bytes(), memory_mb << 20
    confine(start + 5 * share // 2)
    write_message(sys.stdout.buffer, b"ready")
    tired = False
    while not tired and (message := read_message(sys.stdin.buffer)) is not None:
        reply = answer(connection, json.loads(message), hidden)
        tired = data_bytes() > start + 1.5 * share  # more than DuckDB's buffers: a new process takes the next question
        write_message(sys.stdout.buffer, (b"last\n" if tired else b"more\n") + reply)


if __name__ == "__main__":
    main()
