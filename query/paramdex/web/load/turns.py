"""Everyone in turn, and no answer is waited for without end.

A page is made in a thread, which cannot be stopped. So who has waited too long is told so, and the turn is taken until
its thread has ended; who goes away while he queues leaves his place at once. SQL and look-ups are answered by processes
that have queues of their own (see processes). An answer is sent after its turn: who reads it slowly holds up nobody.
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
    """Turns, and who waits for them. A place is held from ``enter`` to ``leave``."""

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
    """Gives every page its turn, and every question an answer in time.

    Paths that ``queued`` matches have queues of their own, and are stopped after ``seconds``; those that begin with
    ``files`` are files.
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
        """The messages of a page, none where nobody waits for them; or why there are none."""
        if self._pages.full:
            return _busy("too many pages are waited for")
        seconds = self._pages.share.seconds
        entered = asyncio.create_task(self._pages.enter())
        mine = False
        try:
            mine = await _first(entered, gone, seconds)
        finally:
            if not mine and not entered.cancel():
                self._pages.leave()
        if not mine:
            return [] if gone.done() else _busy("too many pages are before this one")
        answer, making = self._answer(scope, gone)
        making.add_done_callback(lambda _: self._pages.leave())
        if await _first(making, gone, seconds):
            making.result()
            return answer
        return [] if gone.done() else _late(seconds)

    async def _asked(self, scope: Scope, gone: asyncio.Task[None]) -> list[Message] | BusyError | LateError:
        """As ``_page``, of what leaves its queue where it is cancelled."""
        answer, asking = self._answer(scope, gone)
        try:
            if await _first(asking, gone, self._seconds):
                asking.result()
                return answer
        finally:
            asking.cancel()
        return [] if gone.done() else _late(self._seconds)

    def _answer(self, scope: Scope, gone: asyncio.Task[None]) -> tuple[list[Message], asyncio.Task[None]]:
        """The application at work, and the messages that it has sent when it is done."""
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
    """Ends when who asked is no longer there. No question has a body: what comes of one is let go."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _first(task: asyncio.Task[None], gone: asyncio.Task[None], seconds: float) -> bool:
    """Whether a task is done before who asked is gone and before the time is up."""
    await asyncio.wait((task, gone), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    return task.done()


async def _sound(answering: Awaitable[None]) -> None:
    """A library that panics fails this question alone: what it raises is no Exception, and would end the server."""
    try:
        await answering
    except (Exception, asyncio.CancelledError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise RuntimeError(f"a library panicked: {error}") from error


def _heard(task: asyncio.Task[None]) -> None:
    """An error of an answer that nobody waits for is no news."""
    if not task.cancelled():
        task.exception()


def _late(seconds: float) -> LateError:
    return LateError(f"this takes longer than {seconds:g} seconds; ask for less, in one model say, or try again")


def _busy(why: str) -> BusyError:
    return BusyError(f"{why}; try again in some seconds")
