"""Several pieces of work at a time, each by one thread.

PyTorch's own threads share every product and wait for each other after it. Most products of a build are small: two
threads take turns at them no faster than one, and far slower where other programs want the cores. Pieces of work that
do not depend on each other need not wait, so each gets a thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch

Item = TypeVar("Item")
Done = TypeVar("Done")
_own = threading.local()


def stop_if_unwanted() -> None:
    """Long pieces of work call this now and then. Raises CancelledError where nobody waits for them any more."""
    stopped: threading.Event | None = getattr(_own, "stopped", None)
    if stopped is not None and stopped.is_set():
        raise CancelledError


@dataclass(frozen=True)
class Workers:
    """Runs as many pieces of work at a time as there are cores and memory for; on a GPU, one."""

    device: torch.device
    spare: int = 0
    """Bytes that all but the first may hold."""

    def map(self, function: Callable[[Item], Done], items: Iterable[Item], held: int) -> Iterator[Done]:
        """The function of each item, in order; ``held`` is about how many bytes one call holds.

        What a call raises is raised here, and the others are given up. While they run, PyTorch's threads are shared
        out among them.
        """
        threads = torch.get_num_threads()
        n = min(threads, 1 + self.spare // max(held, 1)) if self.device.type == "cpu" else 1
        if n == 1:
            yield from map(function, items)
            return
        yield from _pooled(function, items, n, threads // n)


def one_thread_each(function: Callable[[Item], Done], items: Iterable[Item]) -> Iterator[Done]:
    """The function of each item, in order, as many at a time as PyTorch has threads. Each call has one of them, as it
    would if there were no more: sums that many threads share out are rounded otherwise, so that results would depend
    on how many there are.
    """
    yield from _pooled(function, items, torch.get_num_threads(), 1)


def _pooled(function: Callable[[Item], Done], items: Iterable[Item], n: int, threads_each: int) -> Iterator[Done]:
    """The function of each item, in order, ``n`` at a time. What a call raises is raised here, the others given up."""
    threads, stopped = torch.get_num_threads(), threading.Event()

    def begin() -> None:
        _own.stopped = stopped
        torch.set_num_threads(threads_each)  # a thread of Python's has a number of its own for some libraries

    pool = ThreadPoolExecutor(n, initializer=begin)
    # Not threadpoolctl: it limits the pools of other libraries, but leaves the number that PyTorch goes by.
    torch.set_num_threads(threads_each)
    try:
        yield from pool.map(function, items)
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
