"""The tables of an atlas, as paramdex itself asks them: each model has a file of its own, attached when it is first
asked for.

What a user's SQL sees is another connection (``everything``), which can reach no other file.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Self

import duckdb
import numpy as np
import pyarrow as pa

from paramdex.store.connection import Connection
from paramdex.store.everything import Everything
from paramdex_schemas import atlas_files
from paramdex_schemas.contents import Contents, Relation
from paramdex_schemas.everything import catalog
from paramdex_schemas.model import Model


@cache
def named_query(name: str) -> str:
    """The text of ``sql/NAME.sql``."""
    return (resources.files("paramdex") / "sql" / f"{name}.sql").read_text("utf-8")


def _arrow(connection: duckdb.DuckDBPyConnection, sql: str | duckdb.Statement, values: Any) -> pa.Table:
    relation = connection.sql(sql, params=values) if values else connection.sql(sql)
    return relation.to_arrow_table()


@dataclass(frozen=True)
class Tables:
    """The tables of one model, or of a relation of two: those of its file, with numbers that count from 0."""

    database: Database
    folder: str
    """within the atlas"""

    def rows(self, sql: str, values: Any = None) -> list[tuple[Any, ...]]:
        """The rows of a query. Raises AtlasError where the file cannot be read."""
        with self.database.asking(self.folder) as connection:
            return connection.execute(self.database.parsed(sql), values or []).fetchall()

    def arrays(self, sql: str, values: Any = None) -> dict[str, np.ndarray]:
        """The columns of a query, none of which has NULLs. Raises AtlasError as ``rows`` does."""
        with self.database.asking(self.folder) as connection:
            found = connection.execute(self.database.parsed(sql), values or []).fetchnumpy()
        return {name: np.ma.getdata(column) for name, column in found.items()}

    def table(self, sql: str, values: Any = None) -> pa.Table:
        """The rows of a query. Raises AtlasError as ``rows`` does."""
        with self.database.asking(self.folder) as connection:
            return _arrow(connection, self.database.parsed(sql), values)

    def kept(self, sql: str, *values: str | int) -> pa.Table:
        """The rows of a query, read once and kept, each column in one chunk. Raises AtlasError as ``rows`` does."""
        key = (self.folder, sql, *map(str, values))
        if key not in self.database.kept:
            self.database.kept[key] = self.table(sql, list(values)).combine_chunks()
        return self.database.kept[key]

    def named_rows(self, name: str, values: Any = None) -> list[dict[str, Any]]:
        """The rows of the query ``sql/NAME.sql`` as dictionaries."""
        with self.database.asking(self.folder) as connection:
            cursor = connection.execute(self.database.parsed(named_query(name)), values or [])
            columns = [column[0] for column in cursor.description]
            return [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]


class Database(Connection):
    """A read-only connection to the tables of an atlas. Threads that share one wait for each other; with a ``fork``
    each they do not.
    """

    def __init__(self, contents: Contents) -> None:
        super().__init__(contents.atlas)
        self.contents = contents
        self.kept: dict[tuple[str, ...], pa.Table] = {}
        """Tables that were read once, shared by forks."""
        self._statements: dict[str, duckdb.Statement] = {}
        self._attached: set[str] = set()
        self._attaching = threading.Lock()
        self._of_vocabulary: dict[str, str] = {}
        self._public: list[Everything] = []  # the first connection to it, of which all have forks
        self._own_public: Everything | None = None
        self._asked = "memory"
        for name, model in contents.models.items():
            self._of_vocabulary.setdefault(model.vocabulary, name)

    def fork(self) -> Self:
        """As ``Connection.fork``. Kept tables and attached files are shared."""
        twin = super().fork()
        twin._own_public = None  # noqa: SLF001  # of this class
        twin._asked = "memory"  # noqa: SLF001
        return twin

    def close(self) -> None:
        """As ``Connection.close``."""
        for public in self._public if self.connection is self._first else filter(None, [self._own_public]):
            public.close()
        super().close()

    def interrupt(self) -> None:
        """As ``Connection.interrupt``, of whatever is asked: one of paramdex's own questions or a user's SQL."""
        super().interrupt()
        if self._own_public is not None:
            self._own_public.interrupt()

    def of(self, model: Model) -> Tables:
        """The tables of a model."""
        return Tables(self, self.contents.folder(model.name).as_posix())

    def of_vocabulary(self, vocabulary: str) -> Tables:
        """The tables of the first model that has a vocabulary, whose items are those of all that have it."""
        return self.of(self.contents.models[self._of_vocabulary[vocabulary]])

    def relation(self, a: Model, b: Model) -> Tables | None:
        """The tables of the relation of two models, in either order; None where they are not related."""
        found = self.contents.relation(a.name, b.name)
        return None if found is None else Tables(self, found.as_posix())

    def about(self, a: Model, b: Model) -> Relation | None:
        """What is known of the relation of two models, as ``relation``. Raises AtlasError for a damaged manifest."""
        return self.contents.about(a.name, b.name)

    def tokens(self, vocabulary: str, column: str) -> pa.Array:
        """A column of ``store.tokens`` for one vocabulary, by token_id."""
        sql = f"SELECT {column} FROM store.tokens ORDER BY token_id"
        return self.of_vocabulary(vocabulary).kept(sql)[0].chunk(0)

    def texts(self, vocabulary: str, ids: Iterable[int]) -> list[str]:
        """How some items of a vocabulary read, in the order of ``ids``."""
        column = self.tokens(vocabulary, "text")
        return [column[i].as_py() for i in ids]

    def shared_tokens(self, a: Model, b: Model) -> pa.Table:
        """The tokens whose text the vocabularies of two models both have: token_a, token_b, and more."""
        folders = [self.of(model).folder for model in (a, b)]
        sql = atlas_files.shared_tokens(*(f"{catalog(folder)}.store.tokens" for folder in folders))
        with self.asking(*folders) as connection:
            return _arrow(connection, sql, None)

    @property
    def everything(self) -> Everything:
        """What a user's SQL sees, attached when it is first asked for. Raises AtlasError where that cannot be read."""
        if self.closed:
            raise self.has_been_closed()
        if self._own_public is None:
            with self._attaching:
                if not self._public:
                    self._public.append(Everything(self.contents))
                if self._own_public is None:  # another thread may have come first
                    self._own_public = self._public[0].fork()
        return self._own_public

    def parsed(self, sql: str) -> duckdb.Statement:
        """One of paramdex's own queries, parsed once: parsing takes DuckDB as long as finding a row by its number."""
        if sql not in self._statements:
            (self._statements[sql],) = self.connection.extract_statements(sql)
        return self._statements[sql]

    @contextmanager
    def asking(self, *folders: str) -> Iterator[duckdb.DuckDBPyConnection]:
        """The turn for one of paramdex's own queries, on the tables in a folder; those of others are attached too.

        Raises AtlasError if they cannot be read.
        """
        with self._failing(), self._turn():
            for folder in folders:
                self._attach(folder)
            if self._asked != folders[0]:
                self.connection.execute(f"USE {catalog(folders[0])}")
                self._asked = folders[0]
            yield self.connection

    def _attach(self, folder: str) -> None:
        if folder in self._attached:
            return
        with self._attaching:
            if folder not in self._attached:
                self.attach(catalog(folder), f"{folder}/{atlas_files.TABLES}", self.contents.tables(folder))
                self._attached.add(folder)

    def _where(self) -> str:
        return str(Path(self._asked) / atlas_files.TABLES)
