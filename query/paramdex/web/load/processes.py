"""Processes that answer questions, each one question at a time, and each question within its time limit.

A thread cannot be stopped while it multiplies matrices or writes text. A process can; it does not hold the server's GIL
either, and with a lower priority it leaves the processor to the pages.

A message is its length (8 bytes) and its bytes. ``multiprocessing.connection`` frames messages too, but not over a
subprocess's pipes on Windows, and its time limit (``poll``) ends with an answer's first byte: a process that stops in
the middle of one, or does not read a long question, would hold its thread for good.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import IO, Any, TypeVar

from paramdex.web.load.shares import BusyError, EndingError, LateError, Share
from paramdex_schemas import QueryError

T = TypeVar("T")
GRACE = 0.5
"""Seconds that a process has to notice that its time is up, before it is killed."""


def read_message(stream: IO[bytes]) -> bytes | None:
    """The next message, or None where the other side has closed."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    size = int.from_bytes(head, "big")
    body = stream.read(size)
    return body if len(body) == size else None


def write_message(stream: IO[bytes], body: bytes) -> None:
    stream.write(len(body).to_bytes(8, "big") + body)
    stream.flush()


class Process:
    """A Python module in a process of its own. It says "ready", then answers every message with one."""

    def __init__(self, module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(  # noqa: S603  # this program's own
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | dict(environment or {}),
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in, self._out = self.process.stdin, self.process.stdout

    def start(self) -> None:
        """Wait until the process is ready. Raises QueryError where it does not start."""
        if read_message(self._out) != b"ready":
            self.end()
            raise QueryError("this cannot be answered now: its process did not start; try again")

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self._in, self._out):
            with suppress(OSError):
                stream.close()

    def exchange(self, message: bytes, seconds: float) -> bytes | None:
        """The answer to a message; None where the process died of it. Raises LateError where it took longer than
        ``seconds`` and was killed.
        """
        late = threading.Event()

        def stop() -> None:
            late.set()
            self.process.kill()

        timer = threading.Timer(seconds, stop)
        timer.daemon = True
        timer.start()
        answer = None
        try:
            write_message(self._in, message)
            answer = read_message(self._out)
        except OSError:
            pass  # the process has died
        finally:
            timer.cancel()
        if answer is None:
            self.end()
            if late.is_set():
                raise LateError(f"this took longer than {seconds:g} seconds and was stopped; ask for less")
        return answer


class Crew:
    """Processes of one sort, and the queue before them. One starts when it is needed, and again after it has died."""

    def __init__(self, start: Callable[[], Process], share: Share) -> None:
        self._start = start
        self._share = share
        self._threads = ThreadPoolExecutor(share.running, thread_name_prefix="crew")
        self._own = threading.local()
        self._processes: set[Process] = set()
        self._asked: set[Future[Any]] = set()
        self._closed = False
        self._closing = threading.Lock()

    def _run(self, work: Callable[[Process], T]) -> T:
        process: Process | None = getattr(self._own, "process", None)
        try:
            if process is None or not process.alive:
                process = self._own.process = self._begun(process)
                process.start()
            return work(process)
        except QueryError:
            if self._closed:  # close() killed it while it answered
                raise EndingError from None
            raise

    def _begun(self, before: Process | None) -> Process:
        with self._closing:  # close() sees every process that was started
            if self._closed:
                raise EndingError
            if before is not None:
                before.end()  # it died between two questions, so nobody has closed its streams
                self._processes.discard(before)
            process = self._start()
            self._processes.add(process)
            return process

    def warm(self) -> None:
        """Start the first process now, so that the first question need not wait for it."""
        self._threads.submit(self._run, lambda process: process.alive)

    async def ask(self, work: Callable[[Process], T]) -> T:
        """What ``work`` returns, run in a thread with the next free process. A caller that is cancelled while it waits
        gives up its place. Raises BusyError where the queue is full, EndingError once the crew is closed.
        """
        if self._closed:
            raise EndingError
        if len(self._asked) >= self._share.running + self._share.waiting:
            raise BusyError("too many questions are waiting; try again in a few seconds")
        future = self._threads.submit(self._run, work)
        self._asked.add(future)
        future.add_done_callback(self._asked.discard)
        return await asyncio.wrap_future(future)  # cancelling this cancels the work, unless it has begun

    def close(self) -> None:
        """Kill all processes. Questions that were being answered, or waited, raise EndingError."""
        with self._closing:
            self._closed = True
            processes = list(self._processes)
        for process in processes:
            process.process.kill()
        self._threads.shutdown(wait=True)
        for process in processes:
            process.end()
