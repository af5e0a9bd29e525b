"""Results: an Arrow table that prints well in a terminal and a notebook, and converts to what a program needs."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from paramdex.picture import Picture, save
from paramdex.plain import json_text, plain_values
from paramdex.text import visible
from paramdex_schemas import QueryError
from paramdex_schemas.arguments import given_items, given_path
from paramdex_schemas.checks import check_text
from paramdex_schemas.errors import escaped, quoted

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Group

SHOWN_ROWS = 200
"""Rows that are printed as a table; the other formats give all."""
WIDTH = 100
"""Columns of a table where the output is no terminal."""
_LEAST_TEXT = 12
"""Columns that a text keeps in a narrow terminal."""
_GAP = 3
"""Columns between two columns of a table."""


def table_of(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """A table with the schema's columns. Other keys of the rows are dropped; those that a row lacks are null."""
    return pa.Table.from_struct_array(pa.array(rows, pa.struct(list(schema))))


@dataclass(frozen=True, repr=False)
class Result:
    """The answer to a question. ``table`` holds its rows; ``title``, ``shown`` and ``notes`` are for people."""

    table: pa.Table
    title: str | None = None
    notes: Sequence[str] = ()
    shown: pa.Table | None = field(default=None, repr=False)
    """What is printed in place of ``table``, where another shape reads better. It may be made when it is printed, if
    ``table`` alone is enough to make it.
    """

    def __post_init__(self) -> None:
        """Raises QueryError for a field of another type."""
        tables = (self.table,) if self.shown is None else (self.table, self.shown)
        if not all(isinstance(table, pa.Table) for table in tables):
            raise QueryError(f"a result takes pyarrow tables, not {', '.join(map(quoted, tables))}")
        texts = given_items(self.notes, QueryError(f"notes are a sequence of texts, not {quoted(self.notes)}"))
        for text in texts if self.title is None else [self.title, *texts]:
            check_text(text, QueryError(f"titles and notes are valid UTF-8 text, not {quoted(text)}"))

    @property
    def _printed(self) -> pa.Table:
        return self.table if self.shown is None else self.shown

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.to_rows())

    @property
    def columns(self) -> list[str]:
        return list(self.table.column_names)

    def to_arrow(self) -> pa.Table:
        return self.table

    def to_pandas(self) -> pd.DataFrame:
        """As a pandas DataFrame. Raises QueryError where pandas is not installed or cannot hold the values."""
        try:
            return self.table.to_pandas()
        except ImportError as error:
            raise QueryError("this needs pandas; install it with: pip install pandas") from error
        except (pa.ArrowException, ValueError) as error:  # years after 9999, unions
            raise QueryError(f"pandas cannot hold these values ({error}); cast them to VARCHAR in SQL") from error

    def to_rows(self) -> list[dict[str, Any]]:
        """The rows as dictionaries of plain Python values."""
        columns = [plain_values(self.table.column(i)) for i in range(self.table.num_columns)]
        return [dict(zip(self.columns, row, strict=True)) for row in zip(*columns, strict=True)]

    def to_json(self) -> str:
        """One JSON array of row objects, one row per line. NaN and infinity, which JSON lacks, become null."""
        rows = [json_text(row) for row in self.to_rows()]
        return "[" + ",\n ".join(rows) + "]"

    def to_csv(self) -> str:
        """Comma-separated values with a header. Lists and structs are written as JSON."""
        return "\n".join(map(csv_line, [self.columns, *(row.values() for row in self.to_rows())]))

    def render(self, output: str) -> str:
        """The result as ``table``, ``json`` or ``csv`` text. Raises QueryError for another format."""
        if not isinstance(output, str) or output not in ("table", "json", "csv"):
            raise QueryError(f"a result is rendered as table, json or csv, not {quoted(output)}")
        if output == "table":
            return str(self)
        return self.to_json() if output == "json" else self.to_csv()

    def _rich(self) -> Group:
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        shown = self._printed
        parts: list[Any] = [Text(line) for line in map(visible, (self.title or "").splitlines())]
        if shown.num_rows:
            grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
            for column in shown.schema:
                justify: Any = "right" if _is_number(column) else "left"
                grid.add_column(Text(visible(column.name)), justify=justify, overflow="fold", no_wrap=_is_whole(column))
            for row in zip(*_cells(shown), strict=True):
                grid.add_row(*(Text(cell) for cell in row))
            parts.append(grid)
        else:
            parts.append(Text("(no rows)"))
        if shown.num_rows > SHOWN_ROWS:
            parts.append(Text(f"... {shown.num_rows - SHOWN_ROWS:,} more rows; --format csv or json gives all"))
        return Group(*parts, *(Text(escaped(note, but="\n")) for note in self.notes))

    def _least_width(self) -> int:
        """The width in characters at which no number and no address is cut; texts fold."""
        from rich.cells import cell_len

        shown = self._printed
        widths = [
            max(map(cell_len, [name, *cells])) for name, cells in zip(shown.column_names, _cells(shown), strict=True)
        ]
        needed = [
            width if _is_whole(column) else min(width, _LEAST_TEXT)
            for width, column in zip(widths, shown.schema, strict=True)
        ]
        return sum(needed) + _GAP * len(needed)

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        width = max(shutil.get_terminal_size((WIDTH, 24)).columns, self._least_width())
        # plain text everywhere: rich would draw into a notebook by itself, and write bold text if FORCE_COLOR is set
        console = Console(file=text, width=width, color_system=None, force_terminal=False, force_jupyter=False)
        console.print(self._rich())
        return "\n".join(line.rstrip() for line in text.getvalue().split("\n")).rstrip("\n")

    __repr__ = __str__
    """A Python prompt shows the answer itself."""

    def _repr_html_(self) -> str:
        from html import escape

        whole = self._printed
        shown = whole.slice(0, SHOWN_ROWS)
        head = "".join(f"<th>{escape(name)}</th>" for name in shown.column_names)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
            for row in zip(*_cells(shown), strict=True)
        )
        title = f"<p>{escape(self.title)}</p>" if self.title else ""
        more = [f"... {len(whole) - len(shown):,} more rows"] if len(whole) > len(shown) else []
        notes = "".join(f"<p>{escape(note)}</p>" for note in [*more, *self.notes])
        return f"{title}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"


@dataclass(frozen=True, repr=False)
class Drawn(Result):
    """A result that has a picture too."""

    def figure(self) -> Any:
        """The picture as a matplotlib Figure. Raises QueryError where matplotlib is not installed."""
        raise NotImplementedError

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw the picture into a file and return its path; the ending chooses the format. Without a path, return a
        picture that a notebook shows. Raises QueryError where it cannot be drawn or written.
        """
        if path is None:
            return Picture(self.figure())
        place = given_path(path, "a picture's file", QueryError)
        return save(self.figure(), place)


def _is_number(column: pa.Field) -> bool:
    return bool(pa.types.is_integer(column.type) or pa.types.is_floating(column.type))


def _is_whole(column: pa.Field) -> bool:
    """Whether the values of a column are never folded."""
    return _is_number(column) or column.name == "address"


def _cells(shown: pa.Table) -> list[list[str]]:
    """The columns of a table as they are printed, of the first SHOWN_ROWS rows."""
    return [
        [_cell(value) for value in plain_values(shown.column(i).slice(0, SHOWN_ROWS))] for i in range(shown.num_columns)
    ]


def csv_line(row: Iterable[Any]) -> str:
    """A row of comma-separated values, without a line end.

    >>> csv_line([1, 'a,"b', None, ["x"]])
    '1,"a,""b",,"[""x""]"'
    """
    import csv

    line = io.StringIO()  # a new one per line: csv quotes only the line ends that it writes itself
    cells = [json_text(value) if isinstance(value, (list, dict)) else value for value in row]
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue()[:-2]


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
