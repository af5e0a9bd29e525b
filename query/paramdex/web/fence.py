"""SQL from visitors: run in processes of their own, capped in rows, bytes, time and memory (see sql_worker)."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from paramdex.web.rendering import Form, Rendered
from paramdex.web.sql_worker import read_message, write_message
from paramdex.web.turns import Share
from paramdex_schemas import QueryError

_GRACE = 0.5
"""Seconds that a worker has to notice that its time is up, before it is ended."""

_PAGES = Share(running=6, waiting=64, seconds=10)
_LOOKUPS = Share(running=2, waiting=16, seconds=30)


class BusyError(QueryError):
    """All workers are taken and enough questions wait."""


@dataclass(frozen=True)
class Limits:
    """What one SQL question may take, and how many questions of each sort are answered at a time."""

    rows: int = 10_000
    """rows in an answer"""
    seconds: float = 10.0
    """seconds until a query is stopped"""
    memory_mb: int = 512
    """megabytes that a query may hold"""
    answer_bytes: int = 32 << 20
    """bytes in an answer, as they are sent"""
    page_bytes: int = 256 << 10
    """bytes of JSON that a page shows"""
    workers: int = 4
    """queries that run at a time"""
    waiting: int = 16
    """queries that wait for them before others are turned away"""
    pages: Share = _PAGES
    """pages of one thing"""
    lookups: Share = _LOOKUPS
    """look-ups over whole models"""


@dataclass(frozen=True)
class Asked:
    """A visitor's SQL, and what he takes of its answer."""

    sql: str
    form: Form
    rows: int
    n_bytes: int


class Worker:
    """One process; it is started again where it had to be ended."""

    def __init__(self, atlas: Path, limits: Limits) -> None:
        self._limits = limits
        self._atlas = atlas
        command = [sys.executable, "-m", "paramdex.web.sql_worker", str(atlas), str(limits.memory_mb)]
        # Arrow's own allocator takes a gigabyte of addresses at once, which no limit could tell from memory in use
        environment = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2"}
        self.process = subprocess.Popen(  # noqa: S603  # this program's own
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in, self._out = self.process.stdin, self.process.stdout
        if read_message(self._out) != b"ready":
            self.end()
            raise QueryError("SQL cannot be asked now: its process did not start")

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self._in, self._out):
            with suppress(OSError):
                stream.close()

    def ask(self, asked: Asked) -> Rendered:
        """Raises QueryError for SQL that fails, or takes too much time or memory."""
        limits = self._limits
        late = threading.Event()

        def stop() -> None:
            late.set()
            self.process.kill()

        question = {"sql": asked.sql, "form": asked.form, "rows": asked.rows, "bytes": asked.n_bytes}
        question["seconds"] = limits.seconds
        timer = threading.Timer(limits.seconds + _GRACE, stop)
        timer.daemon = True
        timer.start()
        try:
            write_message(self._in, json.dumps(question).encode())
            message = read_message(self._out)
        except OSError:
            message = None
        finally:
            timer.cancel()
        if message is None:
            self.end()
            raise QueryError(self._too_much("time" if late.is_set() else "memory"))
        rest, _, answer = message.partition(b"\n")
        if rest == b"last":
            self.end()
        head, _, body = answer.partition(b"\n")
        said = json.loads(head)
        if "error" in said:
            if said["error"] in ("memory", "panic"):
                self.end()  # what it holds is best given back at once
            raise QueryError(
                said["message"].replace(str(self._atlas), self._atlas.name) or self._too_much(said["error"])
            )
        return Rendered(body, said["truncated"])

    def _too_much(self, what: str) -> str:
        if what == "time":
            return f"this took longer than {self._limits.seconds:g} seconds and was stopped; ask for less"
        return f"this takes more memory than the {self._limits.memory_mb} MB that a query may have; ask for less"


class Fence:
    """The door to SQL. Questions wait for a worker without holding one of the server's threads."""

    def __init__(self, atlas: Path, limits: Limits) -> None:
        self.limits = limits
        self._atlas = atlas.resolve()
        self._threads = ThreadPoolExecutor(limits.workers, thread_name_prefix="sql")
        self._own = threading.local()
        self._workers: set[Worker] = set()
        self._asked: set[Future[Rendered]] = set()

    def _run(self, asked: Asked) -> Rendered:
        worker: Worker | None = getattr(self._own, "worker", None)
        if worker is None or not worker.alive:
            if worker is not None:
                self._workers.discard(worker)
            worker = self._own.worker = Worker(self._atlas, self.limits)
            self._workers.add(worker)
        return worker.ask(asked)

    def warm(self) -> None:
        """Start the first worker, so that nobody waits for it."""
        self._threads.submit(self._run, Asked("SELECT 1", "json", 1, 1 << 20))

    async def ask(self, sql: str, form: Form, rows: int) -> Rendered:
        """The first rows, as they are sent. Who goes away while he waits for a worker leaves his place to others.

        Raises QueryError, BusyError.
        """
        if any("\ud800" <= character <= "\udfff" for character in sql):
            raise QueryError("this SQL is not valid UTF-8 text")
        if len(self._asked) >= self.limits.workers + self.limits.waiting:
            raise BusyError("too many queries are waiting; try again in some seconds")
        n_bytes = self.limits.page_bytes if form == "page" else self.limits.answer_bytes
        future = self._threads.submit(self._run, Asked(sql, form, min(rows, self.limits.rows), n_bytes))
        self._asked.add(future)
        future.add_done_callback(self._asked.discard)
        return await asyncio.wrap_future(future)  # cancelled with it, unless a worker has begun

    def close(self) -> None:
        """End all workers."""
        for worker in list(self._workers):
            worker.end()
        self._workers.clear()
        self._threads.shutdown(wait=True, cancel_futures=True)
