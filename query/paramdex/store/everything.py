"""A user's SQL over all tables of an atlas: read-only, fenced, with errors in plain words."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import duckdb
import numpy as np
import pyarrow as pa

from paramdex.store.connection import STOPPED, Connection, is_damage
from paramdex.store.interrupts import stoppable
from paramdex.store.statements import read_statement
from paramdex_schemas import QueryError
from paramdex_schemas.arguments import given_items
from paramdex_schemas.checks import check_text
from paramdex_schemas.contents import Contents
from paramdex_schemas.errors import quoted
from paramdex_schemas.everything import attached, catalog, views

_PLAIN = (bool, int, float, bytes, bytearray, memoryview, Decimal, date, time, timedelta, UUID)
"""Types of single values that DuckDB takes, beside text and the missing values of pandas."""
_LONGEST = 500
"""Characters that are shown of a line of DuckDB's message, which may repeat all of a long query."""
_NOT_IN_ARROW = re.compile(r"\b(UHUGEINT|BIT|BIGNUM|TIME WITH TIME ZONE)\b")


class Everything(Connection):
    """The public tables over all models of an atlas, which SQL can read, and no other file."""

    def __init__(self, contents: Contents, settings: Mapping[str, str] | None = None) -> None:
        """``settings`` are further settings of DuckDB. Raises AtlasError where a file cannot be read."""
        super().__init__(contents.atlas, settings)
        try:
            with self._failing():
                for name, path in attached(contents).items():
                    self.attach(catalog(name), path, contents.tables(name))
                for view in views(contents):
                    self.connection.execute(view)
                self.connection.execute("SET enable_external_access = false")
                self.connection.execute("SET lock_configuration = true")
        except BaseException:
            self.connection.close()
            raise

    def query(self, sql: str, values: Any = None) -> pa.Table:
        """The rows of a user's SQL, which must be one statement that reads. Columns of the same name are numbered.

        Raises QueryError for SQL that fails or would write, AtlasError for a damaged or closed atlas.
        """
        values = _values(values)
        try:
            with self._lock:
                try:
                    with self._turn() as question:
                        text = read_statement(self.connection, sql).text
                        # EXPLAIN ANALYZE runs what it explains, so the scratch database must not change either
                        self.connection.execute("BEGIN TRANSACTION READ ONLY")
                        table = stoppable(question, lambda: _arrow(self.connection, text, values, check_types))
                finally:  # outside of the turn, so that no interrupt leaves the transaction open
                    with suppress(duckdb.Error):  # none was begun, or after damage none is left
                        self.connection.execute("ROLLBACK")
        except duckdb.Error as error:
            if isinstance(error, duckdb.InterruptException):
                raise QueryError(STOPPED) from error
            if is_damage(error) or isinstance(error, duckdb.ConnectionException):
                raise self._failed(error) from error
            if isinstance(error, duckdb.PermissionException):
                raise QueryError("SQL reads the atlas's own tables and nothing else: no files, no settings") from error
            lines = [line[:_LONGEST] for line in str(error).strip().splitlines() if line.strip()]
            raise QueryError("\n".join(lines) or type(error).__name__, but="\n") from error
        return table.rename_columns(_distinct(table.column_names))


def _arrow(
    connection: duckdb.DuckDBPyConnection,
    sql: str | duckdb.Statement,
    values: Any,
    check: Callable[[duckdb.DuckDBPyRelation], None],
) -> pa.Table:
    relation = connection.sql(sql, params=values) if values else connection.sql(sql)
    if relation is None:
        return pa.table({})
    check(relation)
    return relation.to_arrow_table()


def check_types(relation: duckdb.DuckDBPyRelation) -> None:
    """Raises QueryError for a column whose values Arrow would change, or hold as bytes without a meaning."""
    for name, of in zip(relation.columns, relation.types, strict=True):
        found = _NOT_IN_ARROW.search(str(of))
        if found:
            what = f"the column {name!r} is of type {found[0]}"
            raise QueryError(f"{what}, which Arrow does not hold; cast it to VARCHAR")


def _values(given: Any) -> list[Any] | dict[str, Any] | None:
    """The values for ``?`` or ``$name``, as plain Python. Raises QueryError for anything but sequences and mappings."""
    if given is None:
        return None
    if isinstance(given, Mapping):
        pairs = given_items(given.items(), QueryError(f"values cannot be read from {quoted(given)}"))
        unnamed = "values are named by text, not"
        return {check_text(name, QueryError(f"{unnamed} {quoted(name)}")): _value(each) for name, each in pairs}
    wrong = QueryError(f"values are a sequence, one per ?, or a dictionary of names, not {quoted(given)}")
    if isinstance(given, AbstractSet):
        raise wrong
    return [_value(each) for each in given_items(given, wrong)]


def _value(given: Any, levels: int = 8) -> Any:
    """A value as DuckDB takes it: numbers of NumPy and PyTorch become Python's own, arrays become lists, and items of
    lists and dictionaries likewise, down to ``levels``. Raises QueryError for what no column can hold.
    """
    wrong = QueryError(f"SQL has no value such as {quoted(given)}; give a number, a text, a date or a list of them")
    try:
        if isinstance(given, (np.ndarray, np.generic)) and given.dtype.kind in "mM":
            given = given.astype(f"{given.dtype.kind}8[us]")  # of nanoseconds Python gets bare numbers
        if hasattr(given, "tolist"):
            given = given.tolist()
        elif hasattr(given, "to_pylist") or hasattr(given, "as_py"):
            given = given.to_pylist() if hasattr(given, "to_pylist") else given.as_py()
    except Exception as cause:  # the value's own
        raise wrong from cause
    if isinstance(given, str):
        return check_text(given, wrong)
    if isinstance(given, (list, tuple, dict)):
        if not levels:
            raise wrong
        if isinstance(given, dict):
            return {_value(name, 0): _value(each, levels - 1) for name, each in given.items()}
        return [_value(each, levels - 1) for each in given]
    if given is None or isinstance(given, _PLAIN) or type(given).__module__.partition(".")[0] == "pandas":
        return given
    raise wrong


def _distinct(names: list[str]) -> list[str]:
    """Names of which no two are the same: the second ``x`` becomes ``x_2``.

    >>> _distinct(["x", "y", "x"])
    ['x', 'y', 'x_2']
    """
    distinct: list[str] = []
    for name in names:
        number, unique = 1, name
        while unique in distinct:
            number += 1
            unique = f"{name}_{number}"
        distinct.append(unique)
    return distinct
