"""The database of an atlas: opened read-only and fenced, with errors in plain words."""

from __future__ import annotations

import copy
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager, suppress
from datetime import date, time, timedelta
from decimal import Decimal
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any
from uuid import UUID
from weakref import WeakSet

import duckdb
import numpy as np
import pyarrow as pa

from paramdex.store.interrupts import AGAIN, Question, stoppable
from paramdex.store.statements import read_statement
from paramdex_schemas import FORMAT_VERSION, AtlasError, QueryError, atlas_files, foreign
from paramdex_schemas.arguments import given_items
from paramdex_schemas.checks import check_text
from paramdex_schemas.errors import quoted

_DAMAGE = (duckdb.IOException, duckdb.InternalException, duckdb.FatalException, duckdb.SerializationException)
"""Errors that only a damaged file causes, whatever the SQL."""
_STOPPED = "interrupted: another thread stopped this question, or closed the atlas; ask again"
_PLAIN = (bool, int, float, bytes, bytearray, memoryview, Decimal, date, time, timedelta, UUID)
"""Types of single values that DuckDB takes, beside text and the missing values of pandas."""
_LONGEST = 500
"""Characters that are shown of a line of DuckDB's message, which may repeat all of a long query."""
_NOT_IN_ARROW = re.compile(r"\b(UHUGEINT|BIT|BIGNUM|TIME WITH TIME ZONE)\b")


@cache
def named_query(name: str) -> str:
    """The text of ``sql/NAME.sql``."""
    return (resources.files("paramdex") / "sql" / f"{name}.sql").read_text("utf-8")


class Database:
    """A read-only connection to the DuckDB file of an atlas. It can reach no other file.

    Threads that share one wait for each other; with a ``fork`` each they do not.
    """

    def __init__(self, atlas: Path, settings: Mapping[str, str] | None = None) -> None:
        """Open an atlas. ``settings`` are further settings of DuckDB.

        Raises AtlasError if ``atlas`` is not an atlas, is damaged or has another format.
        """
        self.atlas = atlas
        self._kept: dict[tuple[str, ...], pa.Table] = {}
        self._statements: dict[str, duckdb.Statement] = {}
        self._lock = threading.RLock()
        self._question: Question | None = None
        self._forking = threading.Lock()
        self._all: WeakSet[Database] = WeakSet([self])
        file = atlas_files.database(atlas)
        with foreign.reading(atlas, AtlasError):
            if not file.is_file():
                if atlas.exists() and not atlas.is_dir():
                    what = f"it is a file; give the folder that holds {atlas_files.DATABASE}"
                    raise AtlasError(f"{atlas} is not an atlas: {what}")
                what = "there is no such folder" if not atlas.exists() else f"it holds no {atlas_files.DATABASE}"
                raise AtlasError(f"{atlas} is not an atlas: {what}; make one with: paramdex build MODEL -o {atlas}")
        # DuckDB must not fetch extensions from the network, not even for a file that looks like another database's.
        # It gets no folder to spill to, because SQL could read other files in it.
        fenced = {"autoinstall_known_extensions": "false", "temp_directory": ""}
        self.connection = self._first = duckdb.connect(config={**(settings or {}), **fenced})
        try:
            quoted = str(file).replace("'", "''")
            self.connection.execute(f"ATTACH '{quoted}' AS atlas (TYPE duckdb, READ_ONLY)")
            self.connection.execute("USE atlas")
            # DuckDB would draw its progress bar on standard output, under `python -m` even if a program reads that.
            if sys.stdout is None or not sys.stdout.isatty():
                with suppress(duckdb.InvalidInputException):  # of a notebook without ipywidgets, which has none
                    self.connection.execute("SET enable_progress_bar = false")
            self.connection.execute("SET enable_external_access = false")
            self.connection.execute("SET lock_configuration = true")
            found = self.connection.execute("SELECT format_version FROM store.atlas").fetchall()
        except duckdb.Error as error:
            self.connection.close()
            if isinstance(error, duckdb.CatalogException):
                raise AtlasError(f"{atlas} is not an atlas: its database has no table store.atlas") from error
            if "Could not set lock" in str(error):
                raise AtlasError(
                    f"{atlas} is in use: another program has its database open for writing; close that and try again"
                ) from error
            if "Permission denied" in str(error):
                raise AtlasError(f"{atlas} cannot be read: no permission to open {atlas_files.DATABASE}") from error
            raise self._damaged(error) from error
        if found != [(FORMAT_VERSION,)]:
            self.connection.close()
            version = found[0][0] if found else "unknown"
            older = isinstance(version, int) and version < FORMAT_VERSION
            what = "build it again" if older else "install a newer one with: pip install -U paramdex"
            raise AtlasError(f"{atlas} has format {version}, this paramdex reads format {FORMAT_VERSION}; {what}")

    def fork(self) -> Database:
        """A second connection to the same open file, for another thread. Kept tables are shared.

        Raises AtlasError if the file has been closed.
        """
        twin = copy.copy(self)
        twin._lock = threading.RLock()  # noqa: SLF001  # of this class
        twin._question = None  # noqa: SLF001
        with self._forking, self._failing():
            twin.connection = self._first.cursor()  # of the first one, as closing a connection closes its cursors
            twin.connection.execute("USE atlas")
            self._all.add(twin)
        return twin

    def interrupt(self) -> None:
        """Stop the question of another thread, which then raises QueryError, and wait until it has ended."""
        question = self._question
        if question is not None:
            question.stop()

    def close(self) -> None:
        """Close the connection. Closing the first one closes those of all its forks. Questions of other threads are
        stopped first.
        """
        with ExitStack() as taken:
            taken.enter_context(self._forking)
            for each in list(self._all) if self.connection is self._first else [self]:
                while not each._lock.acquire(timeout=AGAIN):  # noqa: SLF001  # of this class
                    each.interrupt()
                taken.callback(each._lock.release)  # noqa: SLF001
            self.connection.close()

    def _damaged(self, error: Exception) -> AtlasError:
        del error  # DuckDB's own account of it, which stays as the cause
        return AtlasError(
            f"{self.atlas} is damaged: {atlas_files.DATABASE} is not what was written; "
            "copy the atlas again or rebuild it"
        )

    def _failed(self, error: duckdb.Error) -> AtlasError:
        """Why one of paramdex's own queries failed: the atlas was closed, memory ran out, or the file is damaged."""
        if isinstance(error, duckdb.ConnectionException):
            return AtlasError(f"{self.atlas} has been closed; open it again")
        if isinstance(error, duckdb.OutOfMemoryException):
            return AtlasError(f"{self.atlas}: this question takes more memory than there is")
        return self._damaged(error)

    def _parsed(self, sql: str) -> duckdb.Statement:
        """One of paramdex's own queries, parsed once: parsing takes DuckDB as long as finding a row by its number."""
        if sql not in self._statements:
            (self._statements[sql],) = self.connection.extract_statements(sql)
        return self._statements[sql]

    @contextmanager
    def _turn(self) -> Iterator[Question]:
        """The turn to ask a question: there is one at a time per connection, and other threads can stop it.

        Raises KeyboardInterrupt if DuckDB notices Ctrl-C before Python does and raises an error of its own for it.
        """
        with self._lock, Question(self.connection) as question:
            before, self._question = self._question, question
            try:
                yield question
            except (RuntimeError, duckdb.InterruptException) as error:
                ctrl_c = isinstance(error, RuntimeError) or not question.interrupted
                if ctrl_c and "interrupt" in str(error).lower():
                    raise KeyboardInterrupt from error
                raise
            finally:
                self._question = before

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """The turn for one of paramdex's own queries. Raises AtlasError if the database cannot be read."""
        with self._failing(), self._turn():
            yield

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Raises AtlasError if the database cannot be read, QueryError if another thread stopped the question."""
        try:
            yield
        except duckdb.InterruptException as error:
            raise QueryError(_STOPPED) from error
        except duckdb.Error as error:
            raise self._failed(error) from error

    def rows(self, sql: str, values: Any = None) -> list[tuple[Any, ...]]:
        """The rows of one of paramdex's own queries. Raises AtlasError where the database cannot be read."""
        with self._asking():
            return self.connection.execute(self._parsed(sql), values or []).fetchall()

    def arrays(self, sql: str, values: Any = None) -> dict[str, np.ndarray]:
        """The columns of one of paramdex's own queries, none of which has NULLs. Raises AtlasError as ``rows`` does."""
        with self._asking():
            found = self.connection.execute(self._parsed(sql), values or []).fetchnumpy()
        return {name: np.ma.getdata(column) for name, column in found.items()}

    def kept(self, sql: str, *values: str | int) -> pa.Table:
        """The rows of one of paramdex's own queries, read once and kept, each column in one chunk.

        Raises AtlasError as ``rows`` does.
        """
        key = (sql, *map(str, values))
        if key not in self._kept:
            with self._asking():
                self._kept[key] = _arrow(self.connection, self._parsed(sql), list(values)).combine_chunks()
        return self._kept[key]

    def tokens(self, vocabulary: str, column: str) -> pa.Array:
        """A column of ``store.tokens`` for one vocabulary, by token_id."""
        sql = f"SELECT {column} FROM store.tokens WHERE vocabulary = ? ORDER BY token_id"
        return self.kept(sql, vocabulary)[0].chunk(0)

    def texts(self, vocabulary: str, ids: Iterable[int]) -> list[str]:
        """How some items of a vocabulary read, in the order of ``ids``."""
        column = self.tokens(vocabulary, "text")
        return [column[i].as_py() for i in ids]

    def table(self, sql: str, values: Any = None) -> pa.Table:
        """The rows of one of paramdex's own queries. Raises AtlasError where the database cannot be read."""
        with self._asking():
            return _arrow(self.connection, self._parsed(sql), values)

    def named(self, name: str, values: Any = None) -> pa.Table:
        """As ``table``, for the query ``sql/NAME.sql``."""
        return self.table(named_query(name), values)

    def named_rows(self, name: str, values: Any = None) -> list[dict[str, Any]]:
        """The rows of the query ``sql/NAME.sql`` as dictionaries. DuckDB plans it once; for ``named`` twice."""
        with self._asking():
            cursor = self.connection.execute(self._parsed(named_query(name)), values or [])
            columns = [column[0] for column in cursor.description]
            return [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]

    def user_query(self, sql: str, values: Any = None) -> pa.Table:
        """The rows of a user's SQL, which must be one statement that reads. Columns of the same name are numbered.

        Raises QueryError for SQL that fails or would write, AtlasError for a damaged or closed database.
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
                raise QueryError(_STOPPED) from error
            if _is_damage(error):
                raise self._damaged(error) from error
            if isinstance(error, duckdb.ConnectionException):
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
    check: Callable[[duckdb.DuckDBPyRelation], None] = lambda _: None,
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


def _is_damage(error: duckdb.Error) -> bool:
    """Whether the file is damaged, not the SQL wrong. DuckDB 2.0 raises a bare Error for a bad checksum."""
    return isinstance(error, _DAMAGE) or (type(error) is duckdb.Error and "corrupt" in str(error).lower())


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
