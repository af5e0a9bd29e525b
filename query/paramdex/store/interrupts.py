"""Stopping what runs on a connection, however early one asks for it.

DuckDB drops an interrupt as the next query begins. One that comes a moment before that (the lock is taken, the SQL is
being parsed, a statement has ended and the next has not begun) stops nothing, and whoever waits for the query then
waits for good. So a question is interrupted again and again until it has ended, and only while it lasts: the next
question of the connection is never hit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Self, TypeVar

import duckdb

Answer = TypeVar("Answer")
AGAIN = 0.02
"""Seconds between two interrupts."""


class Question:
    """What is asked of a connection, from its making to the end of its ``with`` block."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        self.interrupted = False
        self._ending = threading.Lock()
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._ending:
            self._ended.set()

    def interrupt(self) -> None:
        """Interrupt the query that the question runs now; without effect where it runs none, or has ended."""
        with self._ending:
            if not self._ended.is_set():
                self.interrupted = True
                self._connection.interrupt()

    def stop(self) -> None:
        """Interrupt whatever the question runs until it has ended, from another thread."""
        while not self._ended.is_set():
            self.interrupt()
            self._ended.wait(AGAIN)


@contextmanager
def time_limit(connection: duckdb.DuckDBPyConnection, seconds: float) -> Iterator[None]:
    """Stop what is asked of the connection within the block once ``seconds`` have passed."""
    with Question(connection) as question:
        timer = threading.Timer(seconds, question.stop)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


def stoppable(question: Question, ask: Callable[[], Answer]) -> Answer:
    """What ``ask`` gives, called in a thread of its own: the one that waits hears Ctrl-C, and stops the question.

    Raises what ``ask`` raises, and KeyboardInterrupt once ``ask`` has ended.
    """
    answer: Future[Answer] = Future()

    def run() -> None:
        if answer.set_running_or_notify_cancel():
            try:
                answer.set_result(ask())
            except BaseException as error:  # noqa: BLE001  # it is raised where it is waited for
                answer.set_exception(error)

    try:
        threading.Thread(target=run, name="question").start()
        return answer.result()
    finally:
        # Reached with no answer by Ctrl-C alone, which may come again, and before the thread has begun.
        while not answer.done() and not answer.cancel():
            try:
                question.interrupt()
                wait([answer], AGAIN)
            except KeyboardInterrupt:
                continue
