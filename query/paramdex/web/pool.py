"""Atlases for several threads: forks of one, each lent to one thread at a time."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager

from paramdex import Atlas


class Pool:
    """Forks of one atlas, lent to one thread at a time."""

    def __init__(self, atlas: Atlas, n: int) -> None:
        self.atlas = atlas
        self._free: queue.LifoQueue[Atlas] = queue.LifoQueue()
        for _ in range(n):
            self._free.put(atlas.fork())

    @contextmanager
    def lend(self) -> Iterator[Atlas]:
        atlas = self._free.get()
        try:
            yield atlas
        finally:
            self._free.put(atlas)
