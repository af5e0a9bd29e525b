"""Results: an Arrow table that prints well in a terminal and a notebook, and turns into what a program wants."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Group

FORMATS = ("table", "json", "csv")
SHOWN_ROWS = 200
"""Rows that are printed as a table; the other formats give all."""
WIDTH = 100
"""Columns of a table where the output is no terminal."""
_ESCAPES = {ord("\n"): "\\n", ord("\t"): "\\t", ord("\r"): "\\r"} | {
    code: f"\\x{code:02x}" for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t\r"
}


@dataclass(frozen=True)
class Result:
    """The answer to a question. ``table`` holds its rows; ``title``, ``shown`` and ``notes`` are for people."""

    table: pa.Table
    title: str | None = None
    notes: Sequence[str] = ()
    shown: pa.Table | None = field(default=None, repr=False)
    """What is printed in place of ``table``, where rows and columns read better in another shape."""

    def __len__(self) -> int:
        return self.table.num_rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.to_rows())

    @property
    def columns(self) -> list[str]:
        return list(self.table.column_names)

    def to_arrow(self) -> pa.Table:
        return self.table

    def to_pandas(self) -> pd.DataFrame:
        return self.table.to_pandas()

    def to_rows(self) -> list[dict[str, Any]]:
        """The rows as dictionaries of plain Python values."""
        columns = [_plain(self.table.column(i)) for i in range(self.table.num_columns)]
        return [dict(zip(self.columns, row, strict=True)) for row in zip(*columns, strict=True)]

    def to_json(self) -> str:
        """One JSON array of row objects, a row a line."""
        rows = [json.dumps(row, ensure_ascii=False, default=str) for row in self.to_rows()]
        return "[" + ",\n ".join(rows) + "]"

    def to_csv(self) -> str:
        """Comma-separated values with a header; lists are joined by a space."""
        import csv

        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        for row in self.to_rows():
            writer.writerow([" ".join(map(str, value)) if isinstance(value, list) else value for value in row.values()])
        return text.getvalue().rstrip("\n")

    def render(self, output: str) -> str:
        """The result as ``table``, ``json`` or ``csv`` text."""
        if output == "json":
            return self.to_json()
        if output == "csv":
            return self.to_csv()
        return str(self)

    def _rich(self) -> Group:
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        shown = self.table if self.shown is None else self.shown
        parts: list[Any] = [Text(self.title)] if self.title else []
        if shown.num_rows:
            grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
            for column in shown.schema:
                number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
                grid.add_column(
                    Text(column.name), justify="right" if number else "left", overflow="fold",
                    no_wrap=number or column.name == "address",
                )  # fmt: skip
            columns = [
                [_cell(value) for value in _plain(shown.column(i))[:SHOWN_ROWS]] for i in range(len(shown.schema))
            ]
            for row in zip(*columns, strict=True):
                grid.add_row(*(Text(cell) for cell in row))
            parts.append(grid)
        else:
            parts.append(Text("(no rows)"))
        if shown.num_rows > SHOWN_ROWS:
            parts.append(Text(f"... {shown.num_rows - SHOWN_ROWS:,} more rows; --format csv or json gives all"))
        return Group(*parts, *(Text(note) for note in self.notes))

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=shutil.get_terminal_size((WIDTH, 24)).columns, no_color=True).print(self._rich())
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def _repr_html_(self) -> str:
        from html import escape

        shown = (self.table if self.shown is None else self.shown).slice(0, SHOWN_ROWS)
        head = "".join(f"<th>{escape(name)}</th>" for name in shown.column_names)
        columns = [[escape(_cell(value)) for value in _plain(shown.column(i))] for i in range(shown.num_columns)]
        body = "".join(
            "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in zip(*columns, strict=True)
        )
        title = f"<p>{escape(self.title)}</p>" if self.title else ""
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        return f"{title}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"


def _plain(column: pa.ChunkedArray) -> list[Any]:
    """A column's values as plain Python: float32 in its own shortest form, whole decimals as integers."""
    values = column.to_pylist()
    if pa.types.is_float32(column.type):
        return [None if value is None else float(f"{value:.7g}") for value in values]
    if pa.types.is_decimal(column.type):
        return [int(v) if isinstance(v, Decimal) and v == int(v) else (None if v is None else float(v)) for v in values]
    return values


def visible(text: str) -> str:
    r"""Text as it is printed: a space at either end as ␣, control characters escaped.

    >>> visible(" Canada"), visible("a\nb")
    ('␣Canada', 'a\\nb')
    """
    inner = text.strip(" ")
    if inner != text:
        start = len(text) - len(text.lstrip(" "))
        text = "␣" * start + inner + "␣" * (len(text) - start - len(inner))
    return text.translate(_ESCAPES)


def _cell(value: Any) -> str:
    """A value as it stands in a printed table."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(_cell(item) for item in value)
    return visible(str(value))
