"""Stopping a question, however early: from another thread, by Ctrl-C, by a time limit, by closing the atlas."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import duckdb
import pytest

import paramdex
from paramdex import Atlas, AtlasError, QueryError
from paramdex.store import everything as of_everything
from paramdex.store.interrupts import Question, stoppable, time_limit

pytestmark = pytest.mark.waits

ENDLESS = "SELECT count(*) FROM range(10_000_000) AS a, range(10_000_000) AS b"


@pytest.fixture
def own(small_atlas: Path) -> Iterator[Atlas]:
    with paramdex.open(small_atlas) as atlas:
        yield atlas


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        yield connection


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt; of a run in the background it would be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Held:
    """Takes the place of a step before the query, and holds it up until it is let go."""

    def __init__(self, step: object) -> None:
        self.step = step
        self.reached, self.go = threading.Event(), threading.Event()

    def __call__(self, *arguments: object) -> object:
        self.reached.set()
        assert self.go.wait(60)
        return self.step(*arguments)  # type: ignore[operator]


def stopped(asked: Future) -> None:
    """The question has ended in the error of one that was stopped."""
    with pytest.raises(QueryError, match="interrupted: another thread stopped this question, or closed"):
        asked.result(60)


# ---- another thread


def test_an_interrupt_before_the_query_runs_is_kept(own: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes while the SQL is parsed: DuckDB itself drops it as the query begins."""
    held = Held(of_everything.read_statement)
    monkeypatch.setattr(of_everything, "read_statement", held)
    with ThreadPoolExecutor(2) as threads:
        asked = threads.submit(own.sql, ENDLESS)
        assert held.reached.wait(60)
        stopping = threads.submit(own.database.interrupt)
        time.sleep(0.1)  # several interrupts, all too early
        held.go.set()
        stopped(asked)
        stopping.result(60)
    monkeypatch.undo()
    assert own.sql("SELECT 1 AS x").to_rows() == [{"x": 1}]


def test_an_interrupt_at_any_moment_is_kept(own: Atlas) -> None:
    for n in range(20):
        with ThreadPoolExecutor(1) as thread:
            asked = thread.submit(own.sql, ENDLESS)
            while own.database.everything._question is None:
                pass
            time.sleep(n / 2000)
            own.database.interrupt()
            stopped(asked)
    assert own.sql("SELECT 1 AS x").to_rows() == [{"x": 1}]


def test_questions_of_paramdex_itself_are_stopped_too(own: Atlas) -> None:
    """And nothing is called damaged."""
    tables = own.database.of(own.models["bert"])
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(tables.rows, ENDLESS)
        while own.database._question is None:
            pass
        own.database.interrupt()
        stopped(asked)
    assert tables.rows("SELECT 1") == [(1,)]


def test_an_interrupt_never_hits_the_next_question(own: Atlas) -> None:
    """Of many short questions each ends in its answer or is stopped while it lasts; after the last nothing lingers."""
    done = threading.Event()

    def pester() -> None:
        while not done.is_set():
            own.database.interrupt()

    with ThreadPoolExecutor(1) as thread:
        pestering = thread.submit(pester)
        for n in range(200):
            with suppress(QueryError):  # it was hit while it lasted
                assert own.sql("SELECT ? AS x", [n]).to_rows() == [{"x": n}]
        done.set()
        pestering.result(60)
    for n in range(20):
        assert own.sql("SELECT ? AS x", [n]).to_rows() == [{"x": n}]


def test_to_interrupt_nothing_does_nothing(own: Atlas) -> None:
    own.database.interrupt()
    assert own.sql("SELECT 1 AS x").to_rows() == [{"x": 1}]
    own.close()
    own.database.interrupt()


# ---- Ctrl-C


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("delay", [0, 0.001, 0.01, 0.1, 0.3])
def test_ctrl_c_at_any_moment_stops_a_question(own: Atlas, delay: float) -> None:
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012  # the signal may come before the question
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT)).start()
        own.sql(ENDLESS)
    assert own.sql("SELECT 1 AS x").to_rows() == [{"x": 1}]


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_before_the_query_runs(connection: duckdb.DuckDBPyConnection) -> None:
    """It is pressed twice, while the thread that asks has not come to its query."""
    begun = threading.Event()

    def late() -> object:
        begun.set()
        time.sleep(0.2)
        return connection.execute(ENDLESS).fetchall()

    def press() -> None:
        assert begun.wait(60)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)

    presser = threading.Thread(target=press)
    presser.start()
    with pytest.raises(KeyboardInterrupt), Question(connection) as question:
        stoppable(question, late)
    presser.join()
    assert connection.execute("SELECT 1").fetchall() == [(1,)]


def test_errors_of_what_is_asked_come_through(connection: duckdb.DuckDBPyConnection) -> None:
    with Question(connection) as question:
        assert stoppable(question, lambda: connection.execute("SELECT 7").fetchall()) == [(7,)]
        with pytest.raises(duckdb.CatalogException, match="no_such_table"):
            stoppable(question, lambda: connection.execute("FROM no_such_table"))


# ---- time limits


@pytest.mark.parametrize("seconds", [0, 0.001, 0.05])
def test_a_time_limit_that_comes_early_is_kept(connection: duckdb.DuckDBPyConnection, seconds: float) -> None:
    with pytest.raises(duckdb.InterruptException), time_limit(connection, seconds):  # noqa: PT012
        time.sleep(0.1)
        connection.execute(ENDLESS).fetchall()
    assert connection.execute("SELECT 1").fetchall() == [(1,)]


def test_a_time_limit_between_two_statements(connection: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(duckdb.InterruptException), time_limit(connection, 0.05):  # noqa: PT012
        while True:
            connection.execute("SELECT 1").fetchall()


def test_a_time_limit_ends_with_its_block(connection: duckdb.DuckDBPyConnection) -> None:
    with time_limit(connection, 0.05):
        assert connection.execute("SELECT 1").fetchall() == [(1,)]
    began = time.perf_counter()
    while time.perf_counter() - began < 0.2:
        assert connection.execute("SELECT 1").fetchall() == [(1,)]


# ---- closing


def test_closing_an_atlas_stops_what_it_and_its_forks_are_asked(small_atlas: Path) -> None:
    atlas = paramdex.open(small_atlas)
    several = [atlas, atlas.fork(), atlas.fork().fork()]
    with ThreadPoolExecutor(3) as threads:
        asked = [threads.submit(one.sql, ENDLESS) for one in several]
        while any(one.database.everything._question is None for one in several):
            pass
        atlas.close()
        for each in asked:
            stopped(each)
    for one in several:
        with pytest.raises(AtlasError, match="has been closed"):
            one.sql("SELECT 1")


def test_closing_a_fork_stops_its_own_question_alone(own: Atlas) -> None:
    fork, other = own.fork(), own.fork()
    with ThreadPoolExecutor(2) as threads:
        mine, others = threads.submit(fork.sql, ENDLESS), threads.submit(other.sql, ENDLESS)
        while fork.database.everything._question is None or other.database.everything._question is None:
            pass
        fork.close()
        stopped(mine)
        assert not others.done()
        assert own.sql("SELECT 1 AS x").to_rows() == [{"x": 1}]
        other.database.interrupt()
        stopped(others)


def test_questions_that_wait_for_their_turn_while_the_atlas_closes(small_atlas: Path) -> None:
    """Each is stopped or finds the atlas closed; none waits for good."""
    atlas = paramdex.open(small_atlas)
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(atlas.sql, ENDLESS) for _ in range(4)]
        while atlas.database.everything._question is None:
            pass
        atlas.close()
        for each in asked:
            with pytest.raises((QueryError, AtlasError), match=r"^interrupted: |has been closed"):
                each.result(60)
