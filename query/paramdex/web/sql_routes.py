"""SQL by HTTP: the page with its editor, and the answer as JSON, CSV or Parquet."""

from __future__ import annotations

import io
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response

from paramdex.result import Result
from paramdex.web.examples import EXAMPLES
from paramdex.web.fence import BusyError, Fence, Rows
from paramdex.web.pages import Pages
from paramdex.web.shapes import Column, Problem, SqlAnswer
from paramdex_schemas import QueryError

SHOWN = 200
"""Rows on the page; downloads give more."""
Sql = Annotated[str, Query(max_length=20_000, description="one SELECT over the atlas's tables")]
Most = Annotated[int, Query(ge=1, le=10_000, description="at most this many rows")]
_PROBLEMS: dict[int | str, dict[str, Any]] = {status: {"model": Problem} for status in (400, 422, 429)}


def to_answer(q: str, found: Rows, limit: int) -> SqlAnswer:
    """Raises QueryError for values that JSON cannot have."""
    columns = [Column(name=field.name, type=str(field.type)) for field in found.table.schema]
    try:
        rows = Result(found.table).to_rows()
        answer = SqlAnswer(
            q=q, columns=columns, rows=rows, truncated=found.truncated, limit=limit, seconds=round(found.seconds, 4)
        )
        answer.model_dump_json()
    except (ValueError, OverflowError, TypeError, pa.ArrowException) as error:
        raise QueryError(f"a value of this answer has no JSON form ({error}); cast it to VARCHAR") from error
    return answer


def sql_router(fence: Fence, pages: Pages) -> APIRouter:
    routes = APIRouter()
    tables = pages.tables()

    @routes.get("/sql", include_in_schema=False)
    async def page(request: Request, q: Annotated[str, Query(max_length=20_000)] = "") -> Response:
        answer, error, status = None, None, 200
        if q.strip():
            try:
                answer = to_answer(q, await fence.ask(q, SHOWN), SHOWN)
            except QueryError as failed:
                error, status = str(failed), 429 if isinstance(failed, BusyError) else 400
        text = pages.render("sql.html", request, answer=answer, error=error, tables=tables, examples=EXAMPLES)
        return HTMLResponse(text, status)

    @routes.get("/sql.json", response_model=SqlAnswer, responses=_PROBLEMS, summary="The rows of one SELECT")
    async def data(q: Sql, limit: Most = 1000) -> Response:
        answer = to_answer(q, await fence.ask(q, limit), limit)
        return Response(answer.model_dump_json(), media_type="application/json")

    def download(body: str | bytes, media_type: str, found: Rows, ending: str) -> Response:
        headers = {
            "content-disposition": f'attachment; filename="paramdex.{ending}"',
            "x-truncated": str(found.truncated).lower(),
        }
        return Response(body, media_type=media_type, headers=headers)

    @routes.get("/sql.csv", response_class=Response, summary="The rows of one SELECT as CSV",
                responses={**_PROBLEMS, 200: {"content": {"text/csv": {}}}})  # fmt: skip
    async def csv(q: Sql, limit: Most = 10_000) -> Response:
        found = await fence.ask(q, limit)
        try:
            return download(Result(found.table).to_csv(), "text/csv", found, "csv")
        except (ValueError, OverflowError, TypeError, pa.ArrowException) as error:
            raise QueryError(f"a value of this answer has no text form ({error}); cast it to VARCHAR") from error

    @routes.get("/sql.parquet", response_class=Response, summary="The rows of one SELECT as Parquet",
                responses={**_PROBLEMS, 200: {"content": {"application/vnd.apache.parquet": {}}}})  # fmt: skip
    async def parquet(q: Sql, limit: Most = 10_000) -> Response:
        found = await fence.ask(q, limit)
        sink = io.BytesIO()
        try:
            pq.write_table(found.table, sink)
        except pa.ArrowException as error:
            raise QueryError(f"Parquet cannot hold this answer ({error}); cast what it names to VARCHAR") from error
        return download(sink.getvalue(), "application/vnd.apache.parquet", found, "parquet")

    return routes
