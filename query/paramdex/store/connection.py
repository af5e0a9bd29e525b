"""A connection to DuckDB that several threads may share: they ask one question at a time, and any can stop it.

With a ``fork`` each they do not wait for each other. Closing the connection that was opened first closes those of all
its forks.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self
from weakref import WeakSet

import duckdb

from paramdex.store.interrupts import AGAIN, Question
from paramdex_schemas import AtlasError, QueryError, atlas_files

_DAMAGE = (duckdb.IOException, duckdb.InternalException, duckdb.FatalException, duckdb.SerializationException)
"""Errors that only a damaged file causes, whatever the SQL."""
STOPPED = "interrupted: another thread stopped this question, or closed the atlas; ask again"
VERIFIED = 32 << 20
"""Files of tables of so many bytes at most are read once before they are opened: 20 milliseconds."""
FENCED = {"autoinstall_known_extensions": "false", "temp_directory": ""}
"""DuckDB must not fetch extensions from the network, not even for a file that looks like another database's. It gets no
folder to spill to, because SQL could read other files in it.
"""


def is_damage(error: duckdb.Error) -> bool:
    """Whether the file is damaged, not the SQL wrong. DuckDB 2.0 raises a bare Error for a bad checksum."""
    return isinstance(error, _DAMAGE) or (type(error) is duckdb.Error and "corrupt" in str(error).lower())


class Connection:
    """A connection to a DuckDB in memory, to which files of an atlas are attached."""

    def __init__(self, atlas: Path, settings: Mapping[str, str] | None = None) -> None:
        """``settings`` are further settings of DuckDB."""
        self.atlas = atlas
        self.closed = False
        self._lock = threading.RLock()
        self._question: Question | None = None
        self._forking = threading.Lock()
        self._all: WeakSet[Connection] = WeakSet([self])
        self.connection = self._first = duckdb.connect(config={**(settings or {}), **FENCED})
        # DuckDB would draw its progress bar on standard output, under `python -m` even if a program reads that.
        if sys.stdout is None or not sys.stdout.isatty():
            with suppress(duckdb.InvalidInputException):  # of a notebook without ipywidgets, which has none
                self.connection.execute("SET enable_progress_bar = false")

    def fork(self) -> Self:
        """A second connection to the same files, for another thread. Raises AtlasError if the atlas has been closed."""
        twin = copy.copy(self)
        twin._lock = threading.RLock()  # noqa: SLF001  # of this class
        twin._question = None  # noqa: SLF001
        with self._forking, self._failing():
            twin.connection = self._first.cursor()  # of the first one, as closing a connection closes its cursors
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
                each.closed = True
                while not each._lock.acquire(timeout=AGAIN):  # noqa: SLF001
                    each.interrupt()
                taken.callback(each._lock.release)  # noqa: SLF001
            self.connection.close()

    def attach(self, name: str, path: str, recorded: tuple[int, str]) -> None:
        """Attach a file of the atlas, for reading, once its size is what was ``recorded``, and its SHA-256 where that
        takes no time. Raises AtlasError where it cannot be read or differs.

        DuckDB checks every block that it reads, but takes a block that lies in another's place.
        """
        n_bytes, digest = recorded
        atlas_files.check(self.atlas, path, n_bytes, digest if n_bytes <= VERIFIED else None)
        quoted = str(self.atlas / path).replace("'", "''")
        try:
            self.connection.execute(f"ATTACH '{quoted}' AS {name} (TYPE duckdb, READ_ONLY)")
        except duckdb.InterruptException:
            raise  # somebody stopped it, which says nothing of the file
        except duckdb.ConnectionException as error:
            raise self._failed(error) from error
        except duckdb.Error as error:
            if "Could not set lock" in str(error):
                raise AtlasError(
                    f"{self.atlas} is in use: another program has {path} open for writing; close that and try again"
                ) from error
            if "Permission denied" in str(error):
                raise AtlasError(f"{self.atlas} cannot be read: no permission to open {path}") from error
            raise self.damaged(path) from error

    def has_been_closed(self) -> AtlasError:
        """The error of one that is asked after it was closed."""
        return AtlasError(f"{self.atlas} has been closed; open it again")

    def damaged(self, path: str) -> AtlasError:
        """The error for a file that is not as it was written."""
        return AtlasError(
            f"{self.atlas} is damaged: {path} is not what was written; copy the atlas again or rebuild it"
        )

    def _where(self) -> str:
        """What messages call the file that is asked."""
        return "tables.duckdb of a model"

    def _failed(self, error: duckdb.Error) -> AtlasError:
        """Why one of paramdex's own queries failed: the atlas was closed, memory ran out, or the file is damaged."""
        if isinstance(error, duckdb.ConnectionException):
            return self.has_been_closed()
        if isinstance(error, duckdb.OutOfMemoryException):
            return AtlasError(f"{self.atlas}: this question takes more memory than there is")
        return self.damaged(self._where())

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
    def _failing(self) -> Iterator[None]:
        """Raises AtlasError if the database cannot be read, QueryError if another thread stopped the question."""
        try:
            yield
        except duckdb.InterruptException as error:
            raise QueryError(STOPPED) from error
        except duckdb.Error as error:
            raise self._failed(error) from error
