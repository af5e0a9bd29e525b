"""Ask the server for as much as anybody can, and print how long its pages take meanwhile.

    python benchmarks/load.py demo.atlas [--seconds 30]

The server runs in a process of its own on loopback. At the same time, and again and again: four clients ask for SQL
whose answers are small in DuckDB and hundreds of megabytes as text; eight ask for what is nearest in all models, two
compare models; sockets send half a request, a byte at a time, or nothing, and others do not read their answers. One
reader asks for one page after the other, of those that a person would open.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import quote, urlsplit

import pyarrow as pa

import paramdex
from paramdex.result import Result

_ENUM = "SELECT ('x' || repeat('y', 3999))::ENUM ('x{}') AS e FROM range(10000)".format("y" * 3999)
FREEZING = [
    f"SELECT {', '.join(f'e AS e{i}' for i in range(10))} FROM ({_ENUM})",
    f"SELECT {', '.join(f'e AS e{i}' for i in range(40))} FROM ({_ENUM})",
    f"SELECT {', '.join(f'true AS b{i}' for i in range(400))} FROM range(10000)",
    "SELECT range(1000) AS x FROM range(10000)",
]
Where = tuple[str, int]


@contextmanager
def served(atlas: Path) -> Iterator[Where]:
    """A server of an atlas in a process of its own."""
    command = [sys.executable, "-m", "paramdex", "serve", str(atlas), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = urlsplit(next(word for word in server.stdout.readline().split() if word.startswith("http")))
            yield str(url.hostname), int(url.port or 80)
        finally:
            server.terminate()


def get(where: Where, path: str) -> int:
    """The status of an answer, which is read."""
    connection = HTTPConnection(*where, timeout=120)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def half_open(where: Where, sends: bytes, end: float) -> None:
    """A connection that sends something and then a byte per second, until it is closed; and once more."""
    while time.monotonic() < end:
        with suppress(OSError), socket.create_connection(where, timeout=1) as connection:
            connection.sendall(sends)
            while time.monotonic() < end:
                time.sleep(1)
                if sends:
                    connection.sendall(b"x")


def unread(where: Where, path: str, end: float) -> None:
    """A client that asks and does not read, until it is closed; and once more."""
    while time.monotonic() < end:
        with suppress(OSError), socket.create_connection(where, timeout=5) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            while time.monotonic() < end and connection.fileno() >= 0:
                time.sleep(1)
                connection.sendall(b"")


def pages_under_load(
    where: Where, pages: list[str], sql: list[str], lookups: list[str], seconds: float
) -> tuple[dict[str, list[float]], dict[str, collections.Counter[str]]]:
    """Seconds that each page took under load, and how what made the load was answered."""
    end = time.monotonic() + seconds
    said: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)

    def again(name: str, paths: Callable[[], str]) -> None:
        while time.monotonic() < end:
            try:
                status = str(get(where, paths()))
            except (OSError, HTTPException) as error:
                status = type(error).__name__
            said[name][status] += 1
            if status == "429":
                time.sleep(0.1)

    freezing = itertools.cycle(
        f"/sql{ending}?q={quote(each)}&limit=10000" for each in sql for ending in (".json", "", ".csv", ".parquet")
    )
    asked = itertools.cycle(lookups)
    load = [
        *(threading.Thread(target=again, args=("SQL", lambda: next(freezing))) for _ in range(4)),
        *(threading.Thread(target=again, args=("look-ups", lambda: next(asked))) for _ in range(10)),
        *(
            threading.Thread(target=half_open, args=(where, sends, end))
            for sends in (b"", b"GET / HTTP/1.1\r\nHost: ")
            for _ in range(20)
        ),
        *(threading.Thread(target=unread, args=(where, pages[0], end)) for _ in range(10)),
        *(threading.Thread(target=unread, args=(where, f"/sql.json?q={quote(sql[0])}", end)) for _ in range(2)),
    ]
    for thread in load:
        thread.daemon = True
        thread.start()
    took: dict[str, list[float]] = {page: [] for page in pages}
    pick = random.Random(0)
    time.sleep(min(2.0, seconds / 4))
    while time.monotonic() < end:
        page = pick.choice(pages)
        started = time.perf_counter()
        status = get(where, page)
        if status != 200:
            raise SystemExit(f"error: {page} was answered {status}")
        took[page].append(time.perf_counter() - started)
    for thread in load:
        thread.join(120)
    return took, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("atlas", type=Path)
    parser.add_argument("--seconds", type=float, default=30)
    options = parser.parse_args()
    with paramdex.open(options.atlas) as atlas:
        models = list(atlas.models)
        model = atlas.models.get("minilm") or next(iter(atlas.models.values()))
        run = model.layout.of("ff_value")[0]
        address = f"{model.name}/L{run.layer}/ff_value"
    pages = ["/", f"/{model.name}", f"/{model.name}/L{run.layer}", f"/{address}/3", f"/{model.name}/L{run.layer}/H1",
             f"/{address}/4.json", "/docs", "/sql"]  # fmt: skip
    lookups = [f"/similar?address={address}/{n}&model=all&k=200" for n in range(8)]
    lookups += [f"/align/{a}/{b}" for a, b in itertools.pairwise(models)]
    with served(options.atlas) as where:
        for page in pages:
            get(where, page)
        alone = {page: [] for page in pages}  # type: dict[str, list[float]]
        for page in pages * 5:
            started = time.perf_counter()
            get(where, page)
            alone[page].append(time.perf_counter() - started)
        took, said = pages_under_load(where, pages, FREEZING, lookups, options.seconds)
    rows = [
        {
            "page": page,
            "alone median s": statistics.median(alone[page]),
            "answers": len(took[page]),
            "under load median s": statistics.median(took[page] or [0.0]),
            "slowest s": max(took[page], default=0.0),
        }
        for page in pages
    ]
    print(Result(pa.Table.from_pylist(rows)))
    for name, statuses in said.items():
        print(f"{name}: " + ", ".join(f"{n} answered {status}" for status, n in sorted(statuses.items())))


if __name__ == "__main__":
    main()
