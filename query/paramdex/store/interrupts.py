"""Stopping a question on a connection, at whatever moment the request to stop comes.

DuckDB drops an interrupt when the next query begins. An interrupt that comes just before that (the lock is taken, the
SQL is being parsed, one statement has ended and the next has not begun) stops nothing, and the thread that waits for
the end of the query waits forever. So a question is interrupted again and again until it has ended. The next question
on the connection is never interrupted.
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
    """A question to a connection. It lasts until the end of its ``with`` block."""

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
        """Interrupt the query that the question is running. Without effect if it runs none or has ended."""
        with self._ending:
            if not self._ended.is_set():
                self.interrupted = True
                self._connection.interrupt()

    def stop(self) -> None:
        """From another thread: interrupt the question until it has ended."""
        while not self._ended.is_set():
            self.interrupt()
            self._ended.wait(AGAIN)


@contextmanager
def time_limit(connection: duckdb.DuckDBPyConnection, seconds: float) -> Iterator[None]:
    """Stop questions to the connection within the block after ``seconds``."""
    with Question(connection) as question:
        timer = threading.Timer(seconds, question.stop)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


def stoppable(question: Question, ask: Callable[[], Answer]) -> Answer:
    """The result of ``ask``, called in another thread so that this one hears Ctrl-C and can stop the question.

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
        # Only Ctrl-C leads here without an answer; it may come again, even before the thread has begun.
        while not answer.done() and not answer.cancel():
            try:
                question.interrupt()
                wait([answer], AGAIN)
            except KeyboardInterrupt:
                continue
