"""``paramdex serve``: the application on a port of this machine."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable
from contextlib import suppress

import uvicorn

from paramdex import Atlas
from paramdex.web.app import LOOPBACK, make_app
from paramdex.web.load.connections import Connection
from paramdex.web.sql.fence import Limits
from paramdex_schemas import QueryError

_SWITCH = 0.0005
"""Seconds that a thread which makes a page keeps Python to itself, where the one that hears all clients wants it."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises QueryError where the port is taken or the host is none of this machine's."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)  # who comes before the server is up waits for it
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no name of a host"
        raise QueryError(f"cannot listen on {host} port {port}: {reason}; give another --port or --host") from error
    return bound


class Server(uvicorn.Server):
    """uvicorn's, that does not wait for questions that processes are at, and makes no error of cutting one short."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logging.getLogger("uvicorn.error").addFilter(lambda record: record.levelno >= logging.CRITICAL)
        await asyncio.to_thread(self.config.app.state.close)  # type: ignore[union-attr]
        await super().shutdown(sockets)


def serve(atlas: Atlas, host: str, port: int, limits: Limits, say: Callable[[str], None]) -> None:
    """Serve until interrupted. ``say`` is told the address once the port is open; port 0 takes any that is free."""
    with bind(host, port) as bound:
        name = f"[{host}]" if ":" in host else host
        hosts = LOOPBACK if host.lower() in ("127.0.0.1", "localhost", "::1") else None
        app = make_app(atlas, limits, hosts)
        say(f"http://{name}:{bound.getsockname()[1]}/")
        config = uvicorn.Config(app, http=Connection, ws="none", log_level="warning", timeout_graceful_shutdown=3)
        sys.setswitchinterval(_SWITCH)
        with suppress(KeyboardInterrupt):  # uvicorn has ended in good order by then
            Server(config).run(sockets=[bound])
