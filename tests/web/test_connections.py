"""Sockets that never finish a request, or do not read an answer, are closed; those that do are served."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from paramdex.web.load import connections
from paramdex.web.serve import bind

pytestmark = pytest.mark.waits
BODY = b"x" * (16 << 20)
Where = tuple[str, int]


async def app(scope: Any, receive: Any, send: Any) -> None:
    body = BODY if scope["path"] == "/large" else b"small"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def where(monkeypatch: pytest.MonkeyPatch) -> Iterator[Where]:
    """A server whose patience is short and whose connections are few."""
    monkeypatch.setattr(connections, "SECONDS", 0.5)
    monkeypatch.setattr(connections, "MOST", 10)
    with bind("127.0.0.1", 0) as bound:
        config = uvicorn.Config(app, http=connections.Connection, ws="none", log_level="error", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        host, port = bound.getsockname()
        yield host, port
        server.should_exit = True
        thread.join(30)


def status(where: Where, path: str = "/") -> int:
    connection = http.client.HTTPConnection(*where, timeout=30)
    connection.request("GET", path)
    answer = connection.getresponse()
    assert len(answer.read()) == (len(BODY) if path == "/large" else 5)
    connection.close()
    return answer.status


def closed_after(connection: socket.socket, drip: bytes = b"") -> float:
    """Seconds until the server closes a connection on which ``drip`` is sent again and again."""
    started = time.monotonic()
    connection.settimeout(0.05)
    while time.monotonic() - started < 20:
        try:
            if drip:
                connection.sendall(drip)
            if connection.recv(4096) == b"":
                return time.monotonic() - started
        except TimeoutError:
            continue
        except OSError:
            return time.monotonic() - started
    return 20.0


@pytest.mark.parametrize(
    ("sent", "drip"),
    [
        (b"", b""),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n", b""),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"a"),
        (b"GET / HT", b""),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n", b"a"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", b""),
    ],
)
def test_a_request_that_never_ends(where: Where, sent: bytes, drip: bytes) -> None:
    with socket.create_connection(where) as connection:
        connection.sendall(sent)
        assert closed_after(connection, drip) < 10
    assert status(where) == 200


def test_an_answer_that_nobody_reads(where: Where) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(where)
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        time.sleep(3)
        read = 0
        connection.settimeout(10)
        try:
            while piece := connection.recv(1 << 20):
                read += len(piece)
        except OSError:
            pass
        assert read < len(BODY)
    assert status(where, "/large") == 200


def test_an_answer_that_is_read_slowly_arrives(where: Where) -> None:
    """It takes several times as long as a request may."""
    with socket.create_connection(where, timeout=30) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        read, started = b"", time.monotonic()
        while piece := connection.recv(1 << 18):
            read += piece
            time.sleep(0.02)
    assert read.endswith(BODY)
    assert time.monotonic() - started > 1


def test_a_flood_of_silent_connections_shuts_nobody_out(where: Where) -> None:
    silent = [socket.create_connection(where) for _ in range(60)]
    assert status(where) == 200
    for connection in silent:
        connection.close()


def test_one_connection_for_many_requests(where: Where) -> None:
    connection = http.client.HTTPConnection(*where, timeout=30)
    for _ in range(8):
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"small"
        time.sleep(0.1)
    connection.close()
