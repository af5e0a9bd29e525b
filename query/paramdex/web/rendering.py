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
class Question:
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


def render(question: Question, table: pa.Table) -> Rendered:
    """The first rows of an answer.

    Raises QueryError for values that have no such form and for a row that is too large, TimeoutError where it takes
    too long.
    """
    try:
        return {"csv": _csv, "parquet": _parquet}.get(question.form, _json)(question, table)
    except MemoryError:  # Arrow's too
        raise
    except (ValueError, OverflowError, TypeError, PydanticSerializationError, pa.ArrowException) as error:
        what = {"csv": "text", "parquet": "Parquet"}.get(question.form, "JSON")
        raise QueryError(f"a value of this answer has no {what} form ({error}); cast it to VARCHAR") from error


def _json(question: Question, table: pa.Table) -> Rendered:
    constants: Literal["constants", "null"] = "constants" if question.form == "page" else "null"
    columns = [{"name": field.name, "type": str(field.type)} for field in table.schema]
    head = b'{"q":%s,"columns":%s,"rows":[' % (to_json(question.sql), to_json(columns))
    left = question.n_bytes - len(head) - _TAIL
    rows, truncated = _fitting(question, table, left, lambda row: to_json(row, inf_nan_mode=constants))
    said = {"truncated": truncated, "limit": question.rows, "seconds": round(monotonic() - question.started, 4)}
    return Rendered(head + b",".join(rows) + b"]," + to_json(said)[1:], truncated)


def _csv(question: Question, table: pa.Table) -> Rendered:
    head = csv_line(table.schema.names).encode()
    rows, truncated = _fitting(
        question, table, question.n_bytes - len(head), lambda row: csv_line(row.values()).encode()
    )
    return Rendered(b"\n".join([head, *rows]), truncated)


def _fitting(
    question: Question, table: pa.Table, n_bytes: int, write: Callable[[dict[str, Any]], bytes]
) -> tuple[list[bytes], bool]:
    """The first rows as they are written, as many as there are bytes for, and whether there are more."""
    kept: list[bytes] = []
    left, start, n = n_bytes, 0, 8
    while start < min(question.rows, table.num_rows):
        if monotonic() > question.end:
            raise TimeoutError
        for row in Result(table.slice(start, min(n, question.rows - start))).to_rows():
            line = write(row)
            left -= len(line) + 1
            if left < 0:
                if not kept:
                    raise _too_large(question)
                return kept, True
            kept.append(line)
        start += n
        n = max(1, _AT_A_TIME * len(kept) // (n_bytes - left))  # rows are about as long as those before
    return kept, table.num_rows > question.rows


def _parquet(question: Question, table: pa.Table) -> Rendered:
    n = min(question.rows, table.num_rows)
    while n or not table.num_rows:
        if monotonic() > question.end:
            raise TimeoutError
        sink, kept = io.BytesIO(), table.slice(0, n)
        if kept.nbytes <= 2 * question.n_bytes:  # Parquet is seldom half of it; what is much more is not tried
            pq.write_table(kept, sink)
            if sink.tell() <= question.n_bytes:
                return Rendered(sink.getvalue(), n < table.num_rows)
        n //= 2
    raise _too_large(question)


def _too_large(question: Question) -> QueryError:
    return QueryError(f"one row of this is larger than {question.n_bytes / (1 << 20):g} MB; ask for less in a row")
