"""Closes connections that never finish a request, and those that do not read their answer.

uvicorn closes a connection that is idle after an answer. But it waits forever for the first request, for the rest of a
request that comes byte by byte, and for a client that does not read.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

SECONDS = 10.0
"""Seconds in which a request must arrive, and in which a client must read some of its answer."""
MOST = 400
"""Connections at a time. One more closes the one that has been silent for longest. Systems allow 1024 files."""
_LEAST = 1 << 16
"""Bytes of an answer that a client must read in SECONDS, where that many are left."""


class Connection(H11Protocol):
    """uvicorn's HTTP connection, which checks itself twice in SECONDS."""

    silent_since: float | None = None
    """When the wait for a request began; None while a request is being answered."""
    _left: tuple[float, int] | None = None
    """When the client was last seen to read, and how many bytes were left then."""
    _look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.silent_since = self.loop.time()
        self._look = self.loop.call_later(SECONDS / 2, self._watch)
        if len(self.connections) > MOST:
            silent = [each for each in self.connections if isinstance(each, Connection) and each.silent_since]
            min(silent, key=lambda each: each.silent_since or 0.0).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self.silent_since = None

    def on_response_complete(self) -> None:
        self.silent_since = self.loop.time()
        super().on_response_complete()  # goes on with a request that has arrived already

    def _watch(self) -> None:
        now, left = self.loop.time(), self.transport.get_write_buffer_size()
        if not left:
            self._left = None
            stuck = self.silent_since is not None and now - self.silent_since >= SECONDS
        elif self._left is None or left > self._left[1] or left <= self._left[1] - _LEAST:
            self._left = (now, left)
            stuck = False
        else:
            stuck = now - self._left[0] >= SECONDS
        if stuck:
            self.transport.abort()
        else:
            self._look = self.loop.call_later(SECONDS / 2, self._watch)
