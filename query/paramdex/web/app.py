"""The server: a pure function from an open atlas to an application.

Everything has one address. With ``.json`` at its end, the same address gives the data.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from hashlib import blake2b
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paramdex import Atlas, __version__
from paramdex.web.cards.shapes import Fault, Problem
from paramdex.web.errors import fault
from paramdex.web.html.pages import STATIC, Pages
from paramdex.web.load.turns import Turns
from paramdex.web.lookup_worker import Lookups
from paramdex.web.pool import Pool
from paramdex.web.routes import Elsewhere, router
from paramdex.web.sql.answer import tables
from paramdex.web.sql.fence import Fence, Limits
from paramdex.web.sql.routes import sql_router
from paramdex_schemas import ParamdexError, QueryError

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_CHANGING = re.compile(rf"{STATIC}/|/sql(\.\w+)?$")
_QUEUED = re.compile(r"/(sql(\.\w+)?|(find|search|similar|ask)(\.json)?|align(/.*)?)")
"""Paths whose questions are answered by processes, which have queues of their own."""
LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})


class Assets(StaticFiles):
    """Files whose addresses change with their content, so a browser asks for each only once."""

    def file_response(self, *args: Any, **values: Any) -> Response:
        answer = super().file_response(*args, **values)
        answer.headers["cache-control"] = "public, max-age=31536000, immutable"
        return answer


class Guard:
    """Puts the security headers on every answer, and refuses what pages of other sites should not get.

    Only the server's own host names are answered: a site that makes its name resolve to this machine (DNS rebinding)
    cannot read the atlas. A page of another site cannot load a picture, a script or data from here either; a link from
    it to a page here works.

    Nothing is compressed (starlette's GZip): one tag would name two forms of a page, large answers would be compressed
    outside the turns that share the processors, and on this machine it saves nothing. A proxy in front can do it.

    starlette's TrustedHost refuses in plain text, but every refusal here is a Problem with these headers. starlette's
    CORS only grants other sites access; it refuses nothing.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None) -> None:
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if self.hosts is not None and _name(host) not in self.hosts:
            said = Fault(status=400, kind="request", message="this server does not answer to that host name")
            await _json(said)(scope, receive, guarded)
            return
        if headers.get(b"sec-fetch-site") == b"cross-site" and headers.get(b"sec-fetch-dest") != b"document":
            said = Fault(status=403, kind="request", message="this server does not answer pages of other sites")
            await _json(said)(scope, receive, guarded)
            return
        await self.app(scope, receive, guarded)


class Unchanged:
    """Answers "not modified" (304) to a browser that has the page already: an atlas stays the same while it is served.

    Files have an expiry of their own. SQL is always run: it can ask for the time.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.run = secrets.token_bytes(16)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET" or _CHANGING.match(scope["path"]):
            await self.app(scope, receive, send)
            return
        asked = b"%s?%s" % (scope["path"].encode(), scope["query_string"])
        tag = f'"{blake2b(asked, digest_size=8, key=self.run).hexdigest()}"'.encode()
        headers = [(b"etag", tag), (b"cache-control", b"private, no-cache")]
        if dict(scope["headers"]).get(b"if-none-match", b"").removeprefix(b"W/") == tag:
            await send({"type": "http.response.start", "status": 304, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return

        async def tagged(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        await self.app(scope, receive, tagged)


def _name(host: str) -> str:
    """A host without its port, in lower case."""
    name, _, port = host.lower().rpartition(":")
    return name if port.isdigit() and name else host.lower()


def _json(said: Fault, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(Problem(error=said).model_dump(), said.status, headers)


def make_app(atlas: Atlas, limits: Limits | None = None, hosts: frozenset[str] | None = LOOPBACK) -> FastAPI:
    """The application over an open atlas. ``hosts`` are the names it answers to, None for any.

    The caller closes the atlas. The processes for look-ups and SQL start with the server and end with it.
    Raises QueryError where a model has the name of a page.
    """
    limits = limits or Limits()
    fence = Fence(atlas.path, limits)
    lookups = Lookups(atlas.path, limits.lookups)
    pool = Pool(atlas, limits.pages.running)  # one for each page that is made at a time
    pages = Pages(atlas)

    def close() -> None:
        fence.close()
        lookups.close()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        fence.warm()
        lookups.warm()
        yield
        close()

    app = FastAPI(
        title="paramdex",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        description="What the weights of language models say: every page of this server as data.",
        license_info={"name": "Apache-2.0"},
    )
    app.state.fence = fence
    app.state.close = close
    app.mount(STATIC, Assets(directory=str(resources.files("paramdex.web") / "static")), name="static")
    routers = [sql_router(fence, pages, tables(atlas)), router(pool, lookups, pages, app)]
    _check_names(atlas, [*app.routes, *(route for each in routers for route in each.routes)])
    for each in routers:
        app.include_router(each)
    respond = _responder(pages)
    tell = _teller(atlas, respond)
    _add_errors(app, tell, respond)
    longest = 2 * max(limits.seconds, limits.lookups.seconds)  # half of it may be spent in the queue
    app.add_middleware(Turns, share=limits.pages, queued=_QUEUED, seconds=longest, files=STATIC, respond=tell)
    app.add_middleware(Unchanged)
    app.add_middleware(Guard, hosts=hosts)  # the last added sees a request first
    return app


def _check_names(atlas: Atlas, routes: Iterable[BaseRoute]) -> None:
    """Every address has one meaning: raises QueryError for a model whose name is the path of a page."""
    taken = {route.path.split("/")[1] for route in routes if isinstance(route, Route | Mount)}
    for name in atlas.models:
        if name in taken or name.endswith(".json"):
            what = "would be its data's" if name not in taken else "is one of the server's own"
            raise QueryError(
                f"{atlas.path} cannot be served: the address of its model {name}, /{name}, {what}; "
                f"give it another one: paramdex rename {atlas.path} {name} NEWNAME"
            )


Respond = Callable[[Request, Fault, dict[str, str] | None], Response]


def _responder(pages: Pages) -> Respond:
    """Every error in one shape: a page for people, a Problem for programs."""

    def respond(request: Request, said: Fault, headers: dict[str, str] | None) -> Response:
        path = request.url.path
        for_program = path.rpartition("/")[2].rpartition(".")[2] in ("json", "csv", "parquet")
        if for_program or path.startswith(STATIC):
            return _json(said, headers)
        return HTMLResponse(pages.render("error.html", request, fault=said), said.status, headers)

    return respond


def _teller(atlas: Atlas, respond: Respond) -> Callable[[Request, ParamdexError], Response]:
    """What answers paramdex's own errors: the message, and the nearest addresses or words that exist."""

    def tell(request: Request, error: ParamdexError) -> Response:
        asked = str(request.path_params.get("address") or request.query_params.get("address") or "")
        if not asked and "a" in request.path_params:
            asked = next((request.path_params[x] for x in "ab" if request.path_params[x] not in atlas.models), "")
        said = fault(atlas, error, asked)
        return respond(request, said, {"retry-after": "5"} if said.kind == "busy" else None)

    return tell


def _add_errors(app: FastAPI, tell: Callable[[Request, ParamdexError], Response], respond: Respond) -> None:
    """Errors of paramdex go to ``tell``, all others to ``respond``."""

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, ParamdexError)
        return tell(request, error)

    async def elsewhere(request: Request, error: Exception) -> Response:
        assert isinstance(error, Elsewhere)
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(error.path + query, 307)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        wrong = [f"{item['loc'][-1]}: {item['msg'][:1].lower()}{item['msg'][1:]}" for item in error.errors()]
        return respond(request, Fault(status=422, kind="request", message="; ".join(wrong)), None)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        said = Fault(status=error.status_code, kind="request", message=f"{error.detail}")
        return respond(request, said, dict(error.headers or {}))

    async def unknown(request: Request, _: Exception) -> Response:
        said = Fault(status=500, kind="server", message="the server failed; your request is not to blame")
        return respond(request, said, None)

    handlers: dict[Any, Any] = {
        ParamdexError: ours,
        Elsewhere: elsewhere,
        RequestValidationError: invalid,
        HTTPException: http,
        Exception: unknown,
    }
    for cls, handler in handlers.items():
        app.add_exception_handler(cls, handler)
