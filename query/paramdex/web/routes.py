"""The addresses of everything but SQL. Each question is one function, asked by a page and by its ``.json``.

FastAPI reads annotations, and these name local functions: so they are not postponed here.
"""

import copy
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from paramdex.web.cards import model as overview
from paramdex.web.cards import questions
from paramdex.web.cards.choices import PairChoice
from paramdex.web.cards.head import head_card
from paramdex.web.cards.parameter import parameter_card
from paramdex.web.cards.shapes import (
    AnySimilar,
    Comparison,
    Found,
    HeadCard,
    Home,
    LayerPairs,
    ModelCard,
    ParameterCard,
    Problem,
    Searched,
    Shape,
    Similar,
    SimilarHeads,
    Thing,
    Understood,
)
from paramdex.web.html.pages import Pages
from paramdex.web.load.lookup_worker import Lookups
from paramdex.web.pool import Pool
from paramdex_schemas import Address, AddressError

Q = Annotated[str, Query(max_length=2000, description="words; one in double quotes keeps its spaces")]
K = Annotated[int, Query(ge=1, le=200, description="how many to give")]
ModelName = Annotated[str | None, Query(max_length=200, description="only in this model")]
KindName = Annotated[str | None, Query(max_length=40, description="only of this kind: ff_key, ff_value, ...")]
LayerNumber = Annotated[int | None, Query(ge=0, le=10**6, description="only in this layer")]
Side = Literal["top", "bottom"]
Sides = Literal["top", "bottom", "both"]
AddressPath = Annotated[str, Path(max_length=500, description="MODEL, MODEL/L3/H5, MODEL/L3/ff_value/1024, ...")]
AddressQuery = Annotated[str, Query(max_length=500, description="the address of a parameter or a head")]
PlaceQuery = Annotated[str, Query(max_length=40, description="a layer: L3, or encoder/L3")]
PROBLEMS: dict[int | str, dict[str, Any]] = {status: {"model": Problem} for status in (400, 404, 422, 429, 503)}


class Moved(Exception):  # noqa: N818  # not an error: the thing is elsewhere
    """The thing that was asked for has another address."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


def json_response(answer: Shape) -> Response:
    """An answer as it is: it has its shape, and is not checked against it once more."""
    return Response(answer.model_dump_json(), media_type="application/json")


def router(pool: Pool, lookups: Lookups, pages: Pages, app: FastAPI) -> APIRouter:
    """All routes; the last of them takes every path that is an address."""
    routes = APIRouter()

    def both(path: str, template: str, ask: Callable[..., Any], shape: Any, summary: str) -> None:
        """A question's page at ``path`` and its data at ``path.json``."""

        @routes.get(f"{path}.json", response_model=shape, responses=PROBLEMS, summary=summary, name=template)
        def data(answer: Annotated[Any, Depends(ask)]) -> Response:
            return json_response(answer)

        @routes.get(path, include_in_schema=False)
        def page(request: Request, answer: Annotated[Any, Depends(ask)]) -> Response:
            name = template if "{" not in template else template.format(type=answer.type)
            return HTMLResponse(pages.render(name, request, answer=answer))

    def home() -> Home:
        with pool.lend() as atlas:
            return overview.home(atlas)

    async def find(
        q: Q,
        k: K = 10,
        model: ModelName = None,
        kind: KindName = None,
        layer: LayerNumber = None,
        side: Side | None = None,
    ) -> Found:
        found: Found = await lookups.ask("find", q, k, model=model, kind=kind, layer=layer, side=side)
        return found

    async def search(
        q: Q, k: K = 10, model: ModelName = None, kind: KindName = None, layer: LayerNumber = None, side: Sides = "top"
    ) -> Searched:
        found: Searched = await lookups.ask("search", q, k, model=model, kind=kind, layer=layer, side=side)
        return found

    async def similar(
        address: AddressQuery, k: K = 5, model: ModelName = None, kind: KindName = None, side: Sides = "top"
    ) -> Similar | SimilarHeads:
        questions.check_heads(pool.atlas, address, model)  # needs no turn
        found: Similar | SimilarHeads = await lookups.ask("similar", address, k, model=model, kind=kind, side=side)
        return found

    async def align(a: str, b: str, kind: KindName = None) -> Comparison:
        found: Comparison = await lookups.ask("align", a, b, kind)
        return found

    async def pairs(
        a: str, b: str, kind: Annotated[str, Query(max_length=40)], layer_a: PlaceQuery, layer_b: PlaceQuery, k: K = 20
    ) -> LayerPairs:
        found: LayerPairs = await lookups.ask("pairs", a, b, kind, (layer_a, layer_b), k)
        return found

    def understand(q: Q) -> Understood:
        return questions.understand(pool.atlas, q)  # asks for nothing but the models' names

    def thing(
        request: Request,
        address: AddressPath,
        choice: Annotated[PairChoice, Depends()],
        k: K = 20,
        heads: Annotated[str, Query(max_length=40, description="model: the column that colours heads")] = "vo_norm",
        kind: Annotated[str | None, Query(max_length=40, description="model: the kind of vectors on the map")] = None,
        column: Annotated[str, Query(max_length=40, description="model: the column that colours vectors")] = "norm",
    ) -> ModelCard | HeadCard | ParameterCard:
        card: ModelCard | HeadCard | ParameterCard
        with pool.lend() as atlas:
            if address.strip("/") == "":
                raise AddressError("give the address of a model, a head or a parameter")
            where = atlas.address(address.strip("/"))
            if where.is_parameter:
                card = parameter_card(atlas, where, choice, k)
            elif where.is_head:
                card = head_card(atlas, where, choice, k)
            else:
                card = overview.model_card(atlas, where, heads=heads, kind=kind, column=column)
        if card.address != address:
            raise Moved(f"/{card.address}" + (".json" if request.url.path.endswith(".json") else ""))
        return card

    @routes.get("/ask", include_in_schema=False)
    async def ask(request: Request, meant: Annotated[Any, Depends(understand)]) -> Response:
        """The search box: an address leads to its page, words to both meanings side by side."""
        if meant.address is not None:
            return RedirectResponse(f"/{meant.address}?asked=address", 303)
        answers = {"found": await find(meant.q, 6), "searched": await search(meant.q, 6)}
        text = await run_in_threadpool(pages.render, "ask.html", request, meant=meant, **answers)
        return HTMLResponse(text)

    @routes.get(
        "/ask.json", response_model=Understood, responses=PROBLEMS, summary="What a search box would understand"
    )
    def asked(meant: Annotated[Any, Depends(understand)]) -> Response:
        return json_response(meant)

    @routes.get("/align", include_in_schema=False)
    def choose(request: Request, a: str | None = None, b: str | None = None) -> Response:
        if a and b and a != b:
            return RedirectResponse(f"/align/{Address(a)}/{Address(b)}", 303)
        return HTMLResponse(pages.render("align_choose.html", request, a=a, b=b))

    @routes.get("/docs", include_in_schema=False)
    def docs(request: Request) -> Response:
        return HTMLResponse(pages.render("docs.html", request, api=copy.deepcopy(app.openapi())))

    @routes.get(
        "/align/{a}/{b}/pairs.json",
        response_model=LayerPairs,
        responses=PROBLEMS,
        summary="The most similar pairs of two layers",
    )
    def pairs_data(answer: Annotated[Any, Depends(pairs)]) -> Response:
        return json_response(answer)

    @routes.get("/align/{a}/{b}/pairs", include_in_schema=False)
    def pairs_page(request: Request, a: str, b: str, answer: Annotated[Any, Depends(pairs)]) -> Response:
        return HTMLResponse(pages.render("pairs.html", request, answer=answer, a=a, b=b))

    both("/align/{a}/{b}", "align.html", align, Comparison, "How alike the layers of two models are")
    both("/find", "find.html", find, Found, "Parameters and heads that have these words among their strongest")
    both("/search", "search.html", search, Searched, "Parameters nearest to these words, by z")
    both("/similar", "{type}.html", similar, AnySimilar, "Parameters nearest to one, or heads nearest to one")
    both("/", "home.html", home, Home, "The models of the atlas")
    both("/{address:path}", "{type}.html", thing, Thing, "A model, a layer, a head or a parameter")
    return routes
