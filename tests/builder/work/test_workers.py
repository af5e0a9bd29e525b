"""Workers: the same results in the same order from one and from several, errors, and giving up what is not wanted."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError

import pytest
import torch

from paramdex_builder.work.workers import Workers, one_thread_each, stop_if_unwanted

CPU = torch.device("cpu")
MANY = Workers(CPU, 1 << 30)


@pytest.fixture(autouse=True)
def _two_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2  # also after an error
    torch.set_num_threads(before)


def test_results_come_in_order_from_threads_of_their_own() -> None:
    met = threading.Barrier(2, timeout=60)

    def work(n: int) -> tuple[int, int]:
        met.wait()  # not passed before two are at work
        return n, torch.get_num_threads()

    assert list(MANY.map(work, range(6), 1 << 20)) == [(n, 1) for n in range(6)]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_one_thread_each_however_many_there_are(threads: int) -> None:
    torch.set_num_threads(threads)
    met = threading.Barrier(threads, timeout=60)

    def work(n: int) -> tuple[int, int]:
        met.wait()  # not passed before all are at work
        return n, torch.get_num_threads()

    assert list(one_thread_each(work, range(6))) == [(n, 1) for n in range(6)]
    assert torch.get_num_threads() == threads
    torch.set_num_threads(2)


@pytest.mark.parametrize("workers", [Workers(CPU), Workers(CPU, (1 << 20) - 1), Workers(torch.device("meta"), 1 << 30)])
def test_one_at_a_time_where_memory_or_the_device_says_so(workers: Workers) -> None:
    here = threading.get_ident()

    def work(n: int) -> tuple[int, int, int]:
        return n, torch.get_num_threads(), threading.get_ident()

    assert list(workers.map(work, range(3), 1 << 20)) == [(n, 2, here) for n in range(3)]


@pytest.mark.waits
def test_an_error_is_raised_and_ends_the_others() -> None:
    begun, given_up = [], threading.Event()

    def work(n: int) -> None:
        begun.append(n)
        if n == 0:
            raise ValueError("no such head")
        try:
            while n == 1:
                stop_if_unwanted()
        except CancelledError:
            given_up.set()
            raise

    with pytest.raises(ValueError, match="no such head"):
        list(MANY.map(work, range(50), 1))
    assert given_up.is_set() or 1 not in begun
    assert len(begun) < 50


def test_what_is_left_is_given_up() -> None:
    begun = []

    def work(n: int) -> int:
        begun.append(n)
        while n == 1:
            stop_if_unwanted()
        return n

    results = MANY.map(work, range(50), 1)
    assert next(results) == 0
    results.close()
    assert len(begun) < 50
    stop_if_unwanted()  # this thread works for nobody
