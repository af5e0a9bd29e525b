"""The database of an atlas: opened read-only and fenced, with errors in plain words."""

from __future__ import annotations

import copy
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
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
from paramdex.store.statements import reading
from paramdex_schemas import FORMAT_VERSION, AtlasError, QueryError, atlas_files, foreign
from paramdex_schemas.arguments import given_items
from paramdex_schemas.checks import check_text
from paramdex_schemas.errors import quoted

_DAMAGE = (duckdb.IOException, duckdb.InternalException, duckdb.FatalException, duckdb.SerializationException)
"""Errors that no SQL causes on an undamaged file."""
_STOPPED = "interrupted: another thread stopped this question, or closed the atlas; ask again"
_PLAIN = (bool, int, float, bytes, bytearray, memoryview, Decimal, date, time, timedelta, UUID)
"""What DuckDB takes for one value beside text; pandas has values of its own for what is missing."""
_LONGEST = 500
"""Characters of a line in which DuckDB repeats what it was given."""
_NOT_IN_ARROW = re.compile(r"\b(UHUGEINT|BIT|BIGNUM|TIME WITH TIME ZONE)\b")


@cache
def named_query(name: str) -> str:
    """The text of ``sql/NAME.sql``."""
    return (resources.files("paramdex") / "sql" / f"{name}.sql").read_text("utf-8")


class Database:
    """A read-only connection to an atlas's DuckDB file: no other file can be reached through it.

    Threads that share one wait for each other; with a ``fork`` each they do not.
    """

    def __init__(self, atlas: Path, settings: Mapping[str, str] | None = None) -> None:
        """Open an atlas; ``settings`` are DuckDB's own, beside those that are set here.

        Raises AtlasError where ``atlas`` is no atlas, is damaged or is of a newer format.
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
                    raise AtlasError(f"{atlas} is no atlas: {what}")
                what = "there is no such folder" if not atlas.exists() else f"it holds no {atlas_files.DATABASE}"
                raise AtlasError(f"{atlas} is no atlas: {what}; make one with: paramdex build MODEL -o {atlas}")
        # Nothing is ever fetched from the network, not even for a file that looks like another database's; and there
        # is no folder to spill to, since SQL could read whatever else lies in it.
        fenced = {"autoinstall_known_extensions": "false", "temp_directory": ""}
        self.connection = self._first = duckdb.connect(config={**(settings or {}), **fenced})
        try:
            quoted = str(file).replace("'", "''")
            self.connection.execute(f"ATTACH '{quoted}' AS atlas (TYPE duckdb, READ_ONLY)")
            self.connection.execute("USE atlas")
            # DuckDB's bar goes to standard output, and by `python -m` it would also where that is read by a program.
            if sys.stdout is None or not sys.stdout.isatty():
                with suppress(duckdb.InvalidInputException):  # of a notebook without ipywidgets, which has none
                    self.connection.execute("SET enable_progress_bar = false")
            self.connection.execute("SET enable_external_access = false")
            self.connection.execute("SET lock_configuration = true")
            found = self.connection.execute("SELECT format_version FROM store.atlas").fetchall()
        except duckdb.Error as error:
            self.connection.close()
            if isinstance(error, duckdb.CatalogException):
                raise AtlasError(f"{atlas} is no atlas: its database has no table store.atlas") from error
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
        """The same open file on a connection of its own, for another thread; what has been read and kept is shared.

        Raises AtlasError where the file has been closed.
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
        """Stop what another thread asks now, where QueryError is raised, and wait for its end."""
        question = self._question
        if question is not None:
            question.stop()

    def close(self) -> None:
        """Close the connection, the one that was opened with those of all its forks. What other threads ask is
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
        """Why one of paramdex's own queries failed: the file is to blame, or the machine, or it was closed."""
        if isinstance(error, duckdb.ConnectionException):
            return AtlasError(f"{self.atlas} has been closed; open it again")
        if isinstance(error, duckdb.OutOfMemoryException):
            return AtlasError(f"{self.atlas}: this question takes more memory than there is")
        return self._damaged(error)

    def _parsed(self, sql: str) -> duckdb.Statement:
        """One of paramdex's own queries; to parse it takes DuckDB as long as to find a row by its number."""
        if sql not in self._statements:
            (self._statements[sql],) = self.connection.extract_statements(sql)
        return self._statements[sql]

    @contextmanager
    def _turn(self) -> Iterator[Question]:
        """The connection's one question at a time, which other threads wait for and can stop.

        Raises KeyboardInterrupt where DuckDB hears Ctrl-C before Python does, and says so by an error of its own.
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
        """Of one of paramdex's own queries: raises AtlasError where the database cannot be read."""
        with self._failing(), self._turn():
            yield

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Raises AtlasError where the database cannot be read, QueryError where another thread stopped that."""
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
        """The rows of one of paramdex's own queries that is asked again and again; read once, each column in one piece.

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

    def table(self, sql: str, values: Any = None) -> pa.Table:
        """The rows of one of paramdex's own queries. Raises AtlasError where the database cannot be read."""
        with self._asking():
            return _arrow(self.connection, self._parsed(sql), values)

    def named(self, name: str, values: Any = None) -> pa.Table:
        """As ``table``, of the query ``sql/NAME.sql``."""
        return self.table(named_query(name), values)

    def named_rows(self, name: str, values: Any = None) -> list[dict[str, Any]]:
        """The rows of the query ``sql/NAME.sql`` as dictionaries; planned once, where ``named`` plans twice."""
        with self._asking():
            cursor = self.connection.execute(self._parsed(named_query(name)), values or [])
            columns = [column[0] for column in cursor.description]
            return [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]

    def user_query(self, sql: str, values: Any = None) -> pa.Table:
        """The rows of a user's SQL: one statement that reads. Columns of one name are numbered.

        Raises QueryError for SQL that fails or would write, AtlasError for a damaged or closed database.
        """
        values = _values(values)
        try:
            with self._lock:
                try:
                    with self._turn() as question:
                        text = reading(self.connection, sql).text
                        # EXPLAIN ANALYZE runs what it explains; so not even the scratch database beside the atlas
                        # changes
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
    """Raises QueryError for a type of which Arrow would hold another value, or bytes that mean nothing."""
    for name, of in zip(relation.columns, relation.types, strict=True):
        found = _NOT_IN_ARROW.search(str(of))
        if found:
            what = f"the column {name!r} is of type {found[0]}"
            raise QueryError(f"{what}, which Arrow does not hold; cast it to VARCHAR")


def _values(given: Any) -> list[Any] | dict[str, Any] | None:
    """What fills ``?`` or ``$name``, as plain Python. Raises QueryError for what has no order or items."""
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
    """A value as DuckDB takes it: one number of NumPy's or PyTorch's as Python's own, arrays as lists; items of lists
    and dictionaries, in few enough ``levels``, likewise. Raises QueryError for what no column can hold.
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
    """Whether the file is to blame, not the SQL. DuckDB 2.0 raises a bad checksum as a bare Error."""
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
