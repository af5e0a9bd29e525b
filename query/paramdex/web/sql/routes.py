"""SQL over HTTP: the page with its editor, and answers as JSON, CSV or Parquet, sent as the worker wrote them."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response
from starlette.concurrency import run_in_threadpool

from paramdex.web.cards.shapes import Problem
from paramdex.web.html.pages import Pages
from paramdex.web.load.shares import BusyError, EndingError
from paramdex.web.sql.answer import SqlAnswer, Table
from paramdex.web.sql.examples import EXAMPLES
from paramdex.web.sql.fence import Fence
from paramdex.web.sql.rendering import Form
from paramdex_schemas import QueryError

SHOWN = 200
"""Rows on the page; downloads give more."""
Sql = Annotated[str, Query(max_length=20_000, description="one SELECT over the atlas's tables, in DuckDB's SQL")]
Most = Annotated[int, Query(ge=1, le=10_000, description="at most this many rows")]
_PROBLEMS: dict[int | str, dict[str, Any]] = {status: {"model": Problem} for status in (400, 422, 429, 503)}


def sql_router(fence: Fence, pages: Pages, tables: list[Table]) -> APIRouter:
    routes = APIRouter()

    @routes.get("/sql", include_in_schema=False)
    async def page(request: Request, q: Annotated[str, Query(max_length=20_000)] = "") -> Response:
        body, error, status = None, None, 200
        if q.strip():
            try:
                body = (await fence.ask(q, "page", SHOWN)).body
            except EndingError:
                raise
            except QueryError as failed:
                error, status = str(failed), 429 if isinstance(failed, BusyError) else 400

        def render() -> str:
            answer = None if body is None else SqlAnswer(**json.loads(body))
            return pages.render("sql.html", request, answer=answer, error=error, tables=tables, examples=EXAMPLES)

        return HTMLResponse(await run_in_threadpool(render), status)

    @routes.get("/sql.json", response_model=SqlAnswer, responses=_PROBLEMS, summary="The rows of one SELECT")
    async def data(q: Sql, limit: Most = 1000) -> Response:
        return Response((await fence.ask(q, "json", limit)).body, media_type="application/json")

    async def download(q: str, form: Form, limit: int, media_type: str) -> Response:
        found = await fence.ask(q, form, limit)
        headers = {
            "content-disposition": f'attachment; filename="paramdex.{form}"',
            "x-truncated": str(found.truncated).lower(),
        }
        return Response(found.body, media_type=media_type, headers=headers)

    @routes.get(
        "/sql.csv",
        response_class=Response,
        summary="The rows of one SELECT as CSV",
        responses={**_PROBLEMS, 200: {"content": {"text/csv": {}}}},
    )
    async def csv(q: Sql, limit: Most = 10_000) -> Response:
        return await download(q, "csv", limit, "text/csv")

    @routes.get(
        "/sql.parquet",
        response_class=Response,
        summary="The rows of one SELECT as Parquet",
        responses={**_PROBLEMS, 200: {"content": {"application/vnd.apache.parquet": {}}}},
    )
    async def parquet(q: Sql, limit: Most = 10_000) -> Response:
        return await download(q, "parquet", limit, "application/vnd.apache.parquet")

    return routes
