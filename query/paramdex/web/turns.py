"""Everyone in turn: look-ups over whole models queue apart from pages, and no answer is waited for without end.

A thread that multiplies matrices cannot be stopped. So who has waited too long is told so, and the turn is taken until
its thread has ended; who goes away while he queues leaves his place at once. An answer is sent after its turn: a reader
who takes it slowly holds up nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paramdex.web.shapes import Fault


@dataclass(frozen=True)
class Share:
    """What questions of one sort may take of the server."""

    running: int
    """answered at a time"""
    waiting: int
    """waiting for them before others are turned away"""
    seconds: float
    """seconds that one may wait for its turn, and take once it has it"""


class Queue:
    """Turns of one sort. A place is held from ``enter`` to ``leave``."""

    def __init__(self, share: Share) -> None:
        self.share = share
        self._turns = asyncio.Semaphore(share.running)
        self._there = 0

    @property
    def full(self) -> bool:
        return self._there >= self.share.running + self.share.waiting

    async def enter(self) -> None:
        """Waits until it is one's turn."""
        self._there += 1
        try:
            await self._turns.acquire()
        except BaseException:
            self._there -= 1
            raise

    def leave(self) -> None:
        self._there -= 1
        self._turns.release()


class Turns:
    """Gives every question its turn in the queue of its sort, if it has one, and an answer in time.

    ``sort`` says which queue a path belongs to; None for what has a queue of its own, and "" for what is sent at once.
    """

    def __init__(
        self, app: ASGIApp, shares: dict[str, Share], sort: Callable[[str], str | None], seconds: float,
        respond: Callable[[Request, Fault, dict[str, str]], Response],
    ) -> None:  # fmt: skip
        self.app = app
        self._queues = {name: Queue(share) for name, share in shares.items()}
        self._sort = sort
        self._seconds = seconds
        self._respond = respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sort = self._sort(scope["path"]) if scope["type"] == "http" else ""
        if sort == "":
            await self.app(scope, receive, send)
            return
        gone = asyncio.create_task(_gone(receive))
        try:
            answer = await self._answer(scope, self._queues[sort] if sort else None, gone)
        finally:
            gone.cancel()
        if isinstance(answer, Fault):
            await self._respond(Request(scope), answer, {"retry-after": "5"})(scope, receive, send)
            return
        for message in answer:
            await send(message)

    async def _answer(self, scope: Scope, queue: Queue | None, gone: asyncio.Task[None]) -> list[Message] | Fault:
        """The messages of an answer, none where nobody waits for them; or why there are none."""
        if queue is not None:
            if queue.full:
                return _busy("too many questions are waiting")
            entered = asyncio.create_task(queue.enter())
            mine = False
            try:
                mine = await _first(entered, gone, queue.share.seconds)
            finally:
                if not mine and not entered.cancel():
                    queue.leave()
            if not mine:
                return [] if gone.done() else _busy("too many questions are before this one")
        answer: list[Message] = []

        async def collect(message: Message) -> None:
            answer.append(message)

        async def nothing() -> Message:
            with suppress(asyncio.CancelledError):
                await asyncio.shield(gone)
            return {"type": "http.disconnect"}

        running = asyncio.create_task(_sound(self.app(scope, nothing, collect)))
        if queue is not None:
            running.add_done_callback(lambda _: queue.leave())
        seconds = self._seconds if queue is None else queue.share.seconds
        try:
            if await _first(running, gone, seconds):
                running.result()
                return answer
        finally:
            running.add_done_callback(_heard)
            if queue is None:
                running.cancel()
        said = f"this takes longer than {seconds:g} seconds; ask for less, in one model say, or try again"
        return [] if gone.done() else Fault(status=503, kind="busy", message=said)


async def _gone(receive: Receive) -> None:
    """Ends when who asked is no longer there. No question has a body: what comes of one is let go."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _first(task: asyncio.Task[None], gone: asyncio.Task[None], seconds: float) -> bool:
    """Whether a task is done before who asked is gone and before the time is up."""
    await asyncio.wait((task, gone), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    return task.done()


async def _sound(answering: object) -> None:
    """A library that panics fails this question alone: what it raises is no Exception, and would end the server."""
    try:
        await answering  # type: ignore[misc]
    except (Exception, asyncio.CancelledError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise RuntimeError(f"a library panicked: {error}") from error


def _heard(task: asyncio.Task[None]) -> None:
    """An error of an answer that nobody waits for is no news."""
    if not task.cancelled():
        task.exception()


def _busy(why: str) -> Fault:
    return Fault(status=429, kind="busy", message=f"{why}; try again in some seconds")
