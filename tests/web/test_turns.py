"""Turns: who has one, who waits, who is turned away, and what becomes of those that take too long or go away."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from paramdex.web.app import _QUEUED
from paramdex.web.load.processes import Crew, Process
from paramdex.web.load.shares import BusyError, EndingError, LateError, Share
from paramdex.web.load.turns import Turns
from paramdex_schemas import QueryError
from web_helpers import LIMITS, server

HELPERS = Path(__file__).parents[1] / "helpers"

pytestmark = pytest.mark.waits


class Panic(BaseException):
    """As a Rust library raises it."""


class Client:
    """One who asks, over a server of ``make``; ``gone`` is set where he goes away."""

    def __init__(self, turns: Turns, path: str = "/x", takes: Callable[[], Awaitable[None]] | None = None) -> None:
        self.gone = asyncio.Event()
        self.messages: list[Any] = []
        self._takes = takes
        scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
        self.task = asyncio.create_task(turns(scope, self._receive, self._send))

    async def _receive(self) -> Any:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if self._takes:
            await self._takes()
        self.messages.append(message)

    async def status(self) -> int | None:
        await asyncio.wait_for(self.task, 30)
        return self.messages[0]["status"] if self.messages else None


def make(work: Callable[[str], None], share: Share, seconds: float = 30) -> Turns:
    """Turns before an application that does ``work`` in a thread."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await run_in_threadpool(work, scope["path"])
        await PlainTextResponse("done")(scope, receive, send)

    def respond(request: Request, error: BusyError | LateError) -> Response:
        return PlainTextResponse(str(error), 429 if isinstance(error, BusyError) else 503)

    return Turns(app, share, re.compile("/queued"), seconds, "/files", respond)


class Gate:
    """Work that ends when it is let go, and how many are at it."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.at_work = 0
        self.most = 0
        self.began = 0
        self._lock = threading.Lock()

    def __call__(self, path: str) -> None:
        if path == "/quick":
            return
        with self._lock:
            self.began += 1
            self.at_work += 1
            self.most = max(self.most, self.at_work)
        self.open.wait(30)
        with self._lock:
            self.at_work -= 1


async def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


def test_turns_are_taken_and_the_rest_is_turned_away() -> None:
    async def run() -> None:
        gate = Gate()
        turns = make(gate, Share(running=2, waiting=3, seconds=30))
        clients = [Client(turns) for _ in range(5)]
        await until(lambda: gate.began == 2)
        late = Client(turns)
        assert await late.status() == 429
        gate.open.set()
        assert [await client.status() for client in clients] == [200] * 5
        assert (gate.most, gate.began) == (2, 5)
        assert await Client(turns).status() == 200

    asyncio.run(run())


def test_who_goes_away_leaves_his_place() -> None:
    async def run() -> None:
        gate = Gate()
        turns = make(gate, Share(running=1, waiting=1, seconds=30))
        first = Client(turns)
        await until(lambda: gate.began == 1)
        for _ in range(20):  # each in the one place that there is
            waiting = Client(turns)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert await Client(turns).status() == 429
            waiting.gone.set()
            assert await waiting.status() is None
        last = Client(turns)
        gate.open.set()
        assert [await first.status(), await last.status()] == [200, 200]
        assert gate.began == 2

    asyncio.run(run())


def test_a_late_page_is_given_up_and_its_turn_is_not() -> None:
    async def run() -> None:
        gate = Gate()
        turns = make(gate, Share(running=1, waiting=1, seconds=0.3))
        first = Client(turns)
        assert await first.status() == 503
        assert b"longer than 0.3 seconds" in first.messages[1]["body"]
        assert gate.at_work == 1
        waiting = Client(turns)
        assert await waiting.status() == 429
        assert gate.began == 1  # its thread still has the turn
        gate.open.set()
        await until(lambda: gate.at_work == 0)
        assert await Client(turns, "/quick").status() == 200

    asyncio.run(run())


def test_who_reads_slowly_holds_up_nobody() -> None:
    async def run() -> None:
        gate, never = Gate(), asyncio.Event()
        gate.open.set()

        async def takes() -> None:
            await never.wait()

        turns = make(gate, Share(running=1, waiting=0, seconds=30))
        slow = Client(turns, takes=takes)
        await until(lambda: gate.began == 1 and gate.at_work == 0)
        await asyncio.sleep(0.05)
        assert [await Client(turns).status() for _ in range(3)] == [200] * 3
        never.set()
        assert await slow.status() == 200

    asyncio.run(run())


def test_a_panic_is_an_error_of_one_question() -> None:
    async def run() -> None:
        def panic(path: str) -> None:
            if path == "/panic":
                raise Panic("out of bounds")

        turns = make(panic, Share(running=1, waiting=1, seconds=30))
        for _ in range(3):
            with pytest.raises(RuntimeError, match="a library panicked: out of bounds"):
                await Client(turns, "/panic").status()
        assert await Client(turns).status() == 200

    asyncio.run(run())


@pytest.mark.parametrize(
    ("path", "queued"),
    [("/sql", True), ("/sql.csv", True), ("/find", True), ("/search.json", True), ("/similar", True), ("/ask", True),
     ("/align/a/b.json", True), ("/align/a/b/pairs", True), ("/align", True), ("/", False), ("/gpt2/L0/H1", False),
     ("/find-x/L0", False), ("/find.v2/L0", False), ("/docs", False), ("/aligned", False), ("/sql.v2/L1", False)],
)  # fmt: skip
def test_which_paths_have_queues_of_their_own(path: str, queued: bool) -> None:
    assert (_QUEUED.fullmatch(path) is not None) == queued


def test_a_look_up_that_takes_too_long_is_stopped(small_atlas: Path) -> None:
    """Whichever it is; the server says so in the shape of its errors, and its pages are as they were."""
    # A busy machine may take long to start the process, and that is not what is tested.
    with server(small_atlas, replace(LIMITS, seconds=60, lookups=Share(1, 2, 0.001))) as client:
        for path in (
            "/search.json?q=canada",
            "/find.json?q=canada",
            "/align/gpt2-a/bert.json",
            "/similar.json?address=gpt2-a/L0/ff_key/1&model=all",
        ):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5"), answer.text
            assert answer.json()["error"]["kind"] == "busy"
            assert "took longer than 0.001 seconds" in answer.json()["error"]["message"]
        assert "took longer than" in client.get("/search?q=canada").text
        assert client.get("/gpt2-a/L0/ff_value/1.json").status_code == 200
    with server(small_atlas, replace(LIMITS, lookups=Share(1, 2, 60))) as client:
        assert client.get("/search.json?q=canada").status_code == 200


def test_a_page_that_takes_too_long_is_given_up(small_atlas: Path) -> None:
    with server(small_atlas, replace(LIMITS, pages=Share(1, 2, 0.0))) as client:
        answer = client.get("/gpt2-a.json")
        assert (answer.status_code, answer.json()["error"]["kind"]) in ((503, "busy"), (429, "busy"))
        assert answer.headers["retry-after"] == "5"
        assert client.get("/-/static/style.css").status_code == 200


@pytest.fixture
def crew() -> Iterator[Crew]:
    path = str(HELPERS)
    crew = Crew(lambda: Process("slow_worker", environment={"PYTHONPATH": path}), Share(1, 2, 1))
    yield crew
    crew.close()


def told(message: str, seconds: float = 30) -> Callable[[Process], bytes | None]:
    return lambda process: process.exchange(message.encode(), seconds)


def test_a_process_that_is_late_or_dies_is_replaced(crew: Crew) -> None:
    async def run() -> None:
        first, _, echo = (await crew.ask(told("echo a")) or b"").partition(b" ")
        assert echo == b"a"
        assert (await crew.ask(told("echo b")) or b"").startswith(first)
        started = time.monotonic()
        with pytest.raises(LateError, match=r"longer than 0\.2 seconds"):
            await crew.ask(told("sleep 60", 0.2))
        assert time.monotonic() - started < 10
        second, _, echo = (await crew.ask(told("echo c")) or b"").partition(b" ")
        assert (echo, second != first) == (b"c", True)
        assert await crew.ask(told("die")) is None
        assert not (await crew.ask(told("echo d")) or b"").startswith(second)

    asyncio.run(run())


def test_what_a_process_had_open_is_closed_when_it_dies_between_questions(crew: Crew) -> None:
    def of(process: Process) -> Process:
        return process

    async def run() -> None:
        process = await crew.ask(of)
        process.process.kill()
        process.process.wait()
        assert await crew.ask(of) is not process
        for stream in (process.process.stdin, process.process.stdout):
            assert stream is not None
            assert stream.closed

    asyncio.run(run())


def test_a_crew_turns_away_and_lets_go(crew: Crew) -> None:
    async def run() -> None:
        await crew.ask(told("echo warm"))
        running = asyncio.create_task(crew.ask(told("sleep 1")))
        waiting = [asyncio.create_task(crew.ask(told(f"echo {i}"))) for i in range(2)]
        await asyncio.sleep(0.1)
        with pytest.raises(BusyError):
            await crew.ask(told("echo x"))
        waiting[0].cancel()
        await asyncio.wait((waiting[0],))
        another = await asyncio.wait_for(crew.ask(told("echo y")), 30)
        assert (another or b"").endswith(b" y")
        assert (await waiting[1] or b"").endswith(b" 1")
        assert (await running or b"").endswith(b" 1")

    asyncio.run(run())


def test_a_process_that_does_not_start() -> None:
    with pytest.raises(QueryError, match="did not start"):
        Process("no_such_module_of_ours").start()


@pytest.mark.parametrize("starting", [True, False])
def test_a_crew_ends_at_once(crew: Crew, starting: bool) -> None:
    """What is asked and what waits is told so, whether its process is ready or starts; no other process is made."""

    async def run() -> None:
        if not starting:
            await crew.ask(told("echo warm"))
        asked = [asyncio.create_task(crew.ask(told("sleep 60"))) for _ in range(3)]
        await until(lambda: len(crew._processes) == 1)
        began = time.monotonic()
        await asyncio.to_thread(crew.close)
        assert [type(each) for each in await asyncio.gather(*asked, return_exceptions=True)] == [EndingError] * 3
        with pytest.raises(EndingError):
            await crew.ask(told("echo x"))
        assert time.monotonic() - began < 10
        (process,) = crew._processes
        assert not process.alive

    asyncio.run(run())
