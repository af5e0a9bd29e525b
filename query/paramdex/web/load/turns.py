"""Pages take turns, and nobody waits for an answer forever.

A page is made in a thread, and a thread cannot be stopped. So a client that has waited too long gets an error, but the
turn is taken until the thread has ended. A client that goes away while it queues leaves its place at once. SQL and
questions over whole models are answered by processes, which have queues of their own (see processes). An answer is sent
after its turn, so a client that reads slowly holds up nobody.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paramdex.web.load.shares import BusyError, LateError, Share


class Queue:
    """Turns, and the clients that wait for one. A client counts from ``enter`` to ``leave``."""

    def __init__(self, share: Share) -> None:
        self.share = share
        self._turns = asyncio.Semaphore(share.running)
        self._there = 0

    @property
    def full(self) -> bool:
        return self._there >= self.share.running + self.share.waiting

    async def enter(self) -> None:
        """Wait for a turn."""
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
    """Middleware that gives every page its turn, and every request an answer in time.

    Paths that ``queued`` matches have queues of their own and are stopped after ``seconds``. Paths that begin with
    ``files`` are static files and pass through. ``respond`` answers a request that was refused or took too long.
    """

    def __init__(
        self,
        app: ASGIApp,
        share: Share,
        queued: re.Pattern[str],
        seconds: float,
        files: str,
        respond: Callable[[Request, BusyError | LateError], Response],
    ) -> None:
        self.app = app
        self._pages = Queue(share)
        self._queued = queued
        self._seconds = seconds
        self._files = files
        self._respond = respond

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(self._files):
            await self.app(scope, receive, send)
            return
        gone = asyncio.create_task(_gone(receive))
        try:
            queued = self._queued.fullmatch(scope["path"]) is not None
            answer = await (self._asked(scope, gone) if queued else self._page(scope, gone))
        finally:
            gone.cancel()
        if isinstance(answer, BusyError | LateError):
            await self._respond(Request(scope), answer)(scope, receive, send)
            return
        for message in answer:
            await send(message)

    async def _page(self, scope: Scope, gone: asyncio.Task[None]) -> list[Message] | BusyError | LateError:
        """The ASGI messages of a page, none where its client is gone; or the error where it was not made."""
        if self._pages.full:
            return _busy("too many pages are waiting")
        seconds = self._pages.share.seconds
        entered = asyncio.create_task(self._pages.enter())
        mine = False
        try:
            mine = await _first(entered, gone, seconds)
        finally:
            if not mine and not entered.cancel():
                self._pages.leave()
        if not mine:
            return [] if gone.done() else _busy("too many pages are ahead of this one")
        answer, making = self._answer(scope, gone)
        making.add_done_callback(lambda _: self._pages.leave())
        if await _first(making, gone, seconds):
            making.result()
            return answer
        return [] if gone.done() else _late(seconds)

    async def _asked(self, scope: Scope, gone: asyncio.Task[None]) -> list[Message] | BusyError | LateError:
        """As ``_page``, for a path with a queue of its own: cancelling the request takes it out of that queue."""
        answer, asking = self._answer(scope, gone)
        try:
            if await _first(asking, gone, self._seconds):
                asking.result()
                return answer
        finally:
            asking.cancel()
        return [] if gone.done() else _late(self._seconds)

    def _answer(self, scope: Scope, gone: asyncio.Task[None]) -> tuple[list[Message], asyncio.Task[None]]:
        """Start the application: the list that its messages go to, and the task that ends when all are there."""
        answer: list[Message] = []

        async def collect(message: Message) -> None:
            answer.append(message)

        async def no_body() -> Message:
            await asyncio.wait((gone,))
            return {"type": "http.disconnect"}

        task = asyncio.create_task(_sound(self.app(scope, no_body, collect)))
        task.add_done_callback(_heard)
        return answer, task


async def _gone(receive: Receive) -> None:
    """Returns when the client has gone. No request here has a body, so what comes of one is ignored."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _first(task: asyncio.Task[None], gone: asyncio.Task[None], seconds: float) -> bool:
    """Whether a task finished before the client went away and before the time was up."""
    await asyncio.wait((task, gone), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    return task.done()


async def _sound(answering: Awaitable[None]) -> None:
    """Turn a library's panic into an error of this request alone: it is not an Exception, and would end the server."""
    try:
        await answering
    except (Exception, asyncio.CancelledError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise RuntimeError(f"a library panicked: {error}") from error


def _heard(task: asyncio.Task[None]) -> None:
    """Take note of a task's error, so that asyncio does not log one whose client is gone."""
    if not task.cancelled():
        task.exception()


def _late(seconds: float) -> LateError:
    return LateError(f"this takes longer than {seconds:g} seconds; ask for less, say of one model, or try again")


def _busy(why: str) -> BusyError:
    return BusyError(f"{why}; try again in a few seconds")
