"""The shape of an SQL answer, and the tables and columns that SQL can ask for."""

from __future__ import annotations

from typing import Any

from paramdex import Atlas
from paramdex.web.cards.shapes import Shape


class Column(Shape):
    name: str
    type: str


class Table(Shape):
    name: str
    columns: list[Column]


class SqlAnswer(Shape):
    q: str
    columns: list[Column]
    rows: list[dict[str, Any]]
    truncated: bool
    """Whether there are more rows than these."""
    limit: int
    seconds: float


def tables(atlas: Atlas) -> list[Table]:
    """The public tables of an atlas, with their columns."""
    found: dict[str, list[Column]] = {}
    for row in atlas.sql(
        "SELECT table_name, column_name, data_type FROM duckdb_columns() "
        "WHERE database_name = 'atlas' AND schema_name = 'main' ORDER BY table_oid, column_index"
    ):
        found.setdefault(row["table_name"], []).append(Column(name=row["column_name"], type=row["data_type"]))
    return [Table(name=name, columns=columns) for name, columns in found.items()]
