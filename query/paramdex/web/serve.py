"""``paramdex serve``: runs the application on a port of this machine."""

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
"""Seconds after which a thread that makes a page lets the event loop run (Python's thread switch interval)."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises QueryError where the port is taken or this machine does not have the host."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)  # clients that come before the server is up wait
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a host name"
        raise QueryError(f"cannot listen on {host} port {port}: {reason}; give another --port or --host") from error
    return bound


class Server(uvicorn.Server):
    """uvicorn's server. When it stops, it cuts short what processes are answering, and logs no error for that."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logging.getLogger("uvicorn.error").addFilter(lambda record: record.levelno >= logging.CRITICAL)
        await asyncio.to_thread(self.config.app.state.close)  # type: ignore[union-attr]
        await super().shutdown(sockets)


def serve(atlas: Atlas, host: str, port: int, limits: Limits, say: Callable[[str], None]) -> None:
    """Serve until interrupted. ``say`` gets the URL once the port is open; port 0 takes any free one."""
    with bind(host, port) as bound:
        name = f"[{host}]" if ":" in host else host
        hosts = LOOPBACK if host.lower() in ("127.0.0.1", "localhost", "::1") else None
        app = make_app(atlas, limits, hosts)
        say(f"http://{name}:{bound.getsockname()[1]}/")
        config = uvicorn.Config(app, http=Connection, ws="none", log_level="warning", timeout_graceful_shutdown=3)
        sys.setswitchinterval(_SWITCH)
        with suppress(KeyboardInterrupt):  # uvicorn has shut down cleanly by then
            Server(config).run(sockets=[bound])
