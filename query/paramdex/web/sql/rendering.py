"""The answer to a visitor's SQL as bytes: JSON, CSV or Parquet. What counts is what is sent, not what Arrow holds.

A column of an ENUM holds each of its values once, and JSON writes it in every row: ten such columns are a megabyte in
Arrow and 400 in JSON. So rows are written a few at a time, and as many are kept as the answer has bytes for.
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
"""``page`` is JSON for a page of this server's own, which shows NaN and infinity."""
_AT_A_TIME = 1 << 18
"""Bytes that are written before the clock is looked at again."""
_TAIL = 100
"""Bytes that JSON has behind the rows, at most."""


@dataclass(frozen=True)
class RenderRequest:
    """What is asked, and what its answer may have: rows, bytes, and seconds (of ``monotonic``'s clock)."""

    sql: str
    form: Form
    rows: int
    n_bytes: int
    started: float
    end: float


@dataclass(frozen=True)
class Rendered:
    """An answer's bytes, and whether there are more rows than it holds."""

    body: bytes
    truncated: bool


def render(asked: RenderRequest, table: pa.Table) -> Rendered:
    """The first rows of an answer.

    Raises QueryError for values that have no such form and for a row that is too large, TimeoutError where it takes
    too long.
    """
    try:
        return {"csv": _csv, "parquet": _parquet}.get(asked.form, _json)(asked, table)
    except MemoryError:  # Arrow's too
        raise
    except (ValueError, OverflowError, TypeError, PydanticSerializationError, pa.ArrowException) as error:
        what = {"csv": "text", "parquet": "Parquet"}.get(asked.form, "JSON")
        raise QueryError(f"a value of this answer has no {what} form ({error}); cast it to VARCHAR") from error


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
    """The first rows as they are written, as many as there are bytes for, and whether there are more."""
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
        n = max(1, _AT_A_TIME * len(kept) // (n_bytes - left))  # rows are about as long as those before
    return kept, table.num_rows > asked.rows


def _parquet(asked: RenderRequest, table: pa.Table) -> Rendered:
    n = min(asked.rows, table.num_rows)
    while n or not table.num_rows:
        if monotonic() > asked.end:
            raise TimeoutError
        sink, kept = io.BytesIO(), table.slice(0, n)
        if kept.nbytes <= 2 * asked.n_bytes:  # Parquet is seldom half of it; what is much more is not tried
            pq.write_table(kept, sink)
            if sink.tell() <= asked.n_bytes:
                return Rendered(sink.getvalue(), n < table.num_rows)
        n //= 2
    raise _too_large(asked)


def _too_large(asked: RenderRequest) -> QueryError:
    return QueryError(f"one row of this is larger than {asked.n_bytes / (1 << 20):g} MB; ask for less in a row")
