"""Runs SQL from visitors in processes of its own, with limits on rows, bytes, time and memory (see worker)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from paramdex.web.load.processes import GRACE, Crew, Process
from paramdex.web.load.shares import LateError, Share
from paramdex.web.sql.rendering import Form, Rendered
from paramdex_schemas import QueryError

_PAGES = Share(running=6, waiting=64, seconds=10)
_LOOKUPS = Share(running=2, waiting=16, seconds=60)


@dataclass(frozen=True)
class Limits:
    """How much one SQL query may use, and how many questions of each sort are answered at a time."""

    rows: int = 10_000
    """rows in an answer"""
    seconds: float = 10.0
    """seconds until a query is stopped"""
    memory_mb: int = 512
    """megabytes of memory that a query may use"""
    answer_bytes: int = 32 << 20
    """bytes in an answer, as it is sent"""
    page_bytes: int = 256 << 10
    """bytes of JSON behind a page"""
    workers: int = 4
    """how many queries run at a time"""
    waiting: int = 16
    """how many queries may wait before the next is turned away"""
    pages: Share = _PAGES
    """pages that show one thing"""
    lookups: Share = _LOOKUPS
    """questions over whole models"""


class Fence:
    """Sends SQL to a worker. A query that waits for one holds none of the server's threads."""

    def __init__(self, atlas: Path, limits: Limits) -> None:
        self.limits = limits
        self._atlas = atlas.resolve()
        self._crew = Crew(self._start, Share(limits.workers, limits.waiting, limits.seconds))
        self.warm = self._crew.warm
        self.close = self._crew.close

    def _start(self) -> Process:
        # Arrow's own allocator reserves a gigabyte of addresses, which a limit cannot tell from memory in use
        environment = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2"}
        module = "paramdex.web.sql.worker"
        return Process(module, str(self._atlas), str(self.limits.memory_mb), environment=environment)

    async def ask(self, sql: str, form: Form, rows: int) -> Rendered:
        """The first rows, as bytes to send. Raises QueryError for SQL that fails or takes too much time or memory;
        BusyError where the queue is full; EndingError.
        """
        if any("\ud800" <= character <= "\udfff" for character in sql):
            raise QueryError("this SQL is not valid UTF-8 text")
        limits = self.limits
        n_bytes = limits.page_bytes if form == "page" else limits.answer_bytes
        question = {
            "sql": sql,
            "form": form,
            "rows": min(rows, limits.rows),
            "bytes": n_bytes,
            "seconds": limits.seconds,
        }
        return await self._crew.ask(lambda worker: self._answer(worker, json.dumps(question).encode()))

    def _answer(self, worker: Process, question: bytes) -> Rendered:
        try:
            reply = worker.exchange(question, self.limits.seconds + GRACE)
        except LateError as error:
            raise QueryError(self._too_much("time")) from error
        if reply is None:
            raise QueryError(self._too_much("memory"))
        rest, _, answer = reply.partition(b"\n")
        if rest == b"last":
            worker.end()
        head, _, body = answer.partition(b"\n")
        said = json.loads(head)
        if "error" in said:
            if said["error"] in ("memory", "panic"):
                worker.end()  # frees its memory at once
            message = said["message"].replace(str(self._atlas), self._atlas.name)
            raise QueryError(message or self._too_much(said["error"]), but="\n")
        return Rendered(body, said["truncated"])

    def _too_much(self, what: str) -> str:
        if what == "time":
            return f"this took longer than {self.limits.seconds:g} seconds and was stopped; ask for less"
        return f"this takes more memory than the {self.limits.memory_mb} MB that a query may use; ask for less"
