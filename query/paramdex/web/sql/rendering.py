"""The answer to a visitor's SQL as bytes: JSON, CSV or Parquet. The limit is on what is sent, not on what Arrow holds.

An ENUM column holds each of its values once, but JSON writes the value in every row: ten such columns take one megabyte
in Arrow and 400 in JSON. So rows are written a few at a time, until the answer is as large as it may be.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import PydanticSerializationError, to_json

from paramdex.result import Result, csv_line
from paramdex_schemas import QueryError

Form = Literal["json", "page", "csv", "parquet"]
"""``page`` is JSON for this server's own page, which shows NaN and infinity."""
_AT_A_TIME = 1 << 18
"""Bytes that are written between two looks at the clock."""
_TAIL = 100
"""Most bytes that JSON has after the rows."""


@dataclass(frozen=True)
class RenderRequest:
    """What is asked, and the limits of its answer: rows, bytes, and when time is up (``monotonic``, in seconds)."""

    sql: str
    form: Form
    rows: int
    n_bytes: int
    started: float
    end: float


@dataclass(frozen=True)
class Rendered:
    """An answer's bytes, and whether rows were left out."""

    body: bytes
    truncated: bool


def render(asked: RenderRequest, table: pa.Table) -> Rendered:
    """The first rows of an answer.

    Raises QueryError for a value that cannot be written in this form and for a row that is too large; TimeoutError
    where time is up.
    """
    try:
        return {"csv": _csv, "parquet": _parquet}.get(asked.form, _json)(asked, table)
    except MemoryError:  # Arrow's too
        raise
    except (ValueError, OverflowError, TypeError, PydanticSerializationError, pa.ArrowException) as error:
        what = {"csv": "text", "parquet": "Parquet"}.get(asked.form, "JSON")
        raise QueryError(f"a value of this answer cannot be written as {what} ({error}); cast it to VARCHAR") from error


def _json(asked: RenderRequest, table: pa.Table) -> Rendered:
    constants: Literal["constants", "null"] = "constants" if asked.form == "page" else "null"
    columns = [{"name": field.name, "type": str(field.type)} for field in table.schema]
    head = b'{"q":%s,"columns":%s,"rows":[' % (to_json(asked.sql), to_json(columns))
    left = asked.n_bytes - len(head) - _TAIL
    rows, truncated = _fitting(asked, table, left, lambda row: to_json(row, inf_nan_mode=constants))
    said = {"truncated": truncated, "limit": asked.rows, "seconds": round(monotonic() - asked.started, 4)}
    return Rendered(head + b",".join(rows) + b"]," + to_json(said)[1:], truncated)


def _csv(asked: RenderRequest, table: pa.Table) -> Rendered:
    head = csv_line(table.schema.names).encode()
    rows, truncated = _fitting(asked, table, asked.n_bytes - len(head), lambda row: csv_line(row.values()).encode())
    return Rendered(b"\n".join([head, *rows]), truncated)


def _fitting(
    asked: RenderRequest, table: pa.Table, n_bytes: int, write: Callable[[dict[str, Any]], bytes]
) -> tuple[list[bytes], bool]:
    """The first rows, written, as many as fit into n_bytes; and whether rows were left out."""
    kept: list[bytes] = []
    left, start, n = n_bytes, 0, 8
    while start < min(asked.rows, table.num_rows):
        if monotonic() > asked.end:
            raise TimeoutError
        for row in Result(table.slice(start, min(n, asked.rows - start))).to_rows():
            line = write(row)
            left -= len(line) + 1
            if left < 0:
                if not kept:
                    raise _too_large(asked)
                return kept, True
            kept.append(line)
        start += n
        n = max(1, _AT_A_TIME * len(kept) // (n_bytes - left))  # as if rows were as long as those so far
    return kept, table.num_rows > asked.rows


def _parquet(asked: RenderRequest, table: pa.Table) -> Rendered:
    n = min(asked.rows, table.num_rows)
    while n or not table.num_rows:
        if monotonic() > asked.end:
            raise TimeoutError
        sink, kept = io.BytesIO(), table.slice(0, n)
        if kept.nbytes <= 2 * asked.n_bytes:  # Parquet is seldom less than half of that
            pq.write_table(kept, sink)
            if sink.tell() <= asked.n_bytes:
                return Rendered(sink.getvalue(), n < table.num_rows)
        n //= 2
    raise _too_large(asked)


def _too_large(asked: RenderRequest) -> QueryError:
    return QueryError(f"one row of this is larger than {asked.n_bytes / (1 << 20):g} MB; ask for less in a row")
