"""The addresses of everything but SQL. A page and its ``.json`` ask the same question, one method of ``Answers``.

FastAPI evaluates annotations, and some here name variables of the function around them. So annotations are not
postponed in this module.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from paramdex.web.cards import questions
from paramdex.web.cards.choices import By, PairChoice
from paramdex.web.cards.comparison import Comparison, LayerPairs, comparison, layer_pairs
from paramdex.web.cards.head import HeadCard, head_card
from paramdex.web.cards.model import Home, ModelCard, home, model_card
from paramdex.web.cards.parameter import ParameterCard, parameter_card
from paramdex.web.cards.questions import AnySimilar, Found, Searched, Similar, SimilarHeads, Understood
from paramdex.web.cards.shapes import Problem, Shape, Side, Sides
from paramdex.web.html.pages import Pages
from paramdex.web.lookup_worker import Lookups
from paramdex.web.pool import Pool
from paramdex_schemas import Address, AddressError

Q = Annotated[str, Query(max_length=2000, description="words; double quotes keep the spaces of one")]
K = Annotated[int, Query(ge=1, le=200, description="how many results to give")]
ModelName = Annotated[str | None, Query(max_length=200, description="only this model")]
KindName = Annotated[str | None, Query(max_length=40, description="only this kind: ff_key, ff_value, ...")]
LayerNumber = Annotated[int | None, Query(ge=0, le=10**6, description="only this layer")]
AddressPath = Annotated[str, Path(max_length=500, description="MODEL, MODEL/L3/H5, MODEL/L3/ff_value/1024, ...")]
AddressQuery = Annotated[str, Query(max_length=500, description="the address of a parameter or a head")]
PlaceQuery = Annotated[str, Query(max_length=40, description="a layer: L3, or encoder/L3")]
Thing = Annotated[ModelCard | HeadCard | ParameterCard, Field(discriminator="type")]
PROBLEMS: dict[int | str, dict[str, Any]] = {status: {"model": Problem} for status in (400, 404, 422, 429, 503)}


class Elsewhere(Exception):  # noqa: N818  # a redirect, not an error
    """What was asked for is at another address, ``path``."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


def json_response(answer: Shape) -> Response:
    """An answer as JSON. It has its shape already, so FastAPI need not check it again."""
    return Response(answer.model_dump_json(), media_type="application/json")


class Answers:
    """The answer at every address. FastAPI fills a method's arguments from the path and the query string; the docstring
    is what /docs and openapi.json say of it.
    """

    def __init__(self, pool: Pool, lookups: Lookups) -> None:
        self._pool = pool
        self._lookups = lookups

    def home(self) -> Home:
        """The models of the atlas"""
        with self._pool.lend() as atlas:
            return home(atlas)

    def understood(self, q: Q) -> Understood:
        """How the search box reads what was typed"""
        return questions.understand(self._pool.atlas, q)  # needs only the models' names

    async def find(
        self,
        q: Q,
        k: K = 10,
        model: ModelName = None,
        kind: KindName = None,
        layer: LayerNumber = None,
        side: Side | None = None,
        by: By = None,
    ) -> Found:
        """Parameters and heads that have these words among their strongest tokens"""
        return await self._lookups.ask(questions.find, q, k, model=model, kind=kind, layer=layer, side=side, by=by)

    async def search(
        self,
        q: Q,
        k: K = 10,
        model: ModelName = None,
        kind: KindName = None,
        layer: LayerNumber = None,
        side: Sides = "top",
        by: By = None,
    ) -> Searched:
        """Parameters nearest to these words, ranked by z"""
        return await self._lookups.ask(questions.search, q, k, model=model, kind=kind, layer=layer, side=side, by=by)

    async def similar(
        self,
        address: AddressQuery,
        k: K = 5,
        model: ModelName = None,
        kind: KindName = None,
        side: Sides = "top",
        by: By = None,
    ) -> Similar | SimilarHeads:
        """Parameters nearest to a parameter, or heads nearest to a head"""
        questions.check_heads(self._pool.atlas, address, model)  # quick: refused before it queues
        return await self._lookups.ask(questions.similar, address, k, model=model, kind=kind, side=side, by=by)

    async def align(self, a: str, b: str, kind: KindName = None) -> Comparison:
        """How alike the layers of two models are"""
        return await self._lookups.ask(comparison, a, b, kind)

    async def pairs(
        self,
        a: str,
        b: str,
        kind: Annotated[str, Query(max_length=40)],
        layer_a: PlaceQuery,
        layer_b: PlaceQuery,
        k: K = 20,
        by: By = None,
    ) -> LayerPairs:
        """The most similar pairs of two layers"""
        return await self._lookups.ask(layer_pairs, a, b, kind, (layer_a, layer_b), k, by)

    def thing(
        self,
        request: Request,
        address: AddressPath,
        choice: Annotated[PairChoice, Depends()],
        k: K = 20,
        heads: Annotated[str, Query(max_length=40, description="model: the column that colours heads")] = "vo_norm",
        kind: Annotated[str | None, Query(max_length=40, description="model: the kind of vectors on the map")] = None,
        column: Annotated[str, Query(max_length=40, description="model: the column that colours vectors")] = "norm",
    ) -> ModelCard | HeadCard | ParameterCard:
        """A model, a layer, a head or a parameter"""
        card: ModelCard | HeadCard | ParameterCard
        with self._pool.lend() as atlas:
            if address.strip("/") == "":
                raise AddressError("give the address of a model, a head or a parameter")
            where = atlas.address(address.strip("/"))
            if where.is_parameter:
                card = parameter_card(atlas, where, choice, k)
            elif where.is_head:
                card = head_card(atlas, where, choice, k)
            else:
                card = model_card(atlas, where, heads=heads, kind=kind, column=column)
        if card.address != address:
            raise Elsewhere(f"/{card.address}" + (".json" if request.url.path.endswith(".json") else ""))
        return card


def router(pool: Pool, lookups: Lookups, pages: Pages, app: FastAPI) -> APIRouter:
    """All routes. The order matters: the last one takes every other path as an address."""
    routes, answers = APIRouter(), Answers(pool, lookups)
    _add_search_box(routes, pages, answers)
    _add_choice_of_models(routes, pages)
    _add_docs(routes, pages, app)
    add = partial(_add_both, routes, pages)
    add("/align/{a}/{b}/pairs", "pairs.html", answers.pairs, LayerPairs, name="pairs_data")
    add("/align/{a}/{b}", "align.html", answers.align, Comparison)
    add("/find", "find.html", answers.find, Found)
    add("/search", "search.html", answers.search, Searched)
    add("/similar", "{type}.html", answers.similar, AnySimilar)
    add("/", "home.html", answers.home, Home)
    add("/{address:path}", "{type}.html", answers.thing, Thing)
    return routes


def _add_both(
    routes: APIRouter,
    pages: Pages,
    path: str,
    template: str,
    ask: Callable[..., Any],
    shape: Any,
    name: str | None = None,
) -> None:
    """A question's page at ``path`` and its data at ``path.json``.

    ``{type}`` in ``template`` stands for the answer's type. ``name`` is the operation's name in openapi.json; without
    one it is the template's.
    """

    @routes.get(f"{path}.json", response_model=shape, responses=PROBLEMS, summary=ask.__doc__, name=name or template)
    def data(answer: Annotated[Any, Depends(ask)]) -> Response:
        return json_response(answer)

    @routes.get(path, include_in_schema=False)
    def page(request: Request, answer: Annotated[Any, Depends(ask)]) -> Response:
        filled = template if "{" not in template else template.format(type=answer.type)
        return HTMLResponse(pages.render(filled, request, answer=answer))


def _add_search_box(routes: APIRouter, pages: Pages, answers: Answers) -> None:
    """The search box: an address redirects to its page; words show both searches side by side."""

    @routes.get("/ask", include_in_schema=False)
    async def ask(
        request: Request, meant: Annotated[Understood, Depends(answers.understood)], by: By = None
    ) -> Response:
        if meant.address is not None:
            return RedirectResponse(f"/{meant.address}?asked=address" + (f"&by={by}" if by else ""), 303)
        both = {"found": await answers.find(meant.q, 6, by=by), "searched": await answers.search(meant.q, 6, by=by)}
        return HTMLResponse(await run_in_threadpool(pages.render, "ask.html", request, meant=meant, **both))

    @routes.get("/ask.json", response_model=Understood, responses=PROBLEMS, summary=answers.understood.__doc__)
    def asked(meant: Annotated[Understood, Depends(answers.understood)]) -> Response:
        return json_response(meant)


def _add_choice_of_models(routes: APIRouter, pages: Pages) -> None:
    """The form that chooses two models to compare."""

    @routes.get("/align", include_in_schema=False)
    def choose(request: Request, a: str | None = None, b: str | None = None) -> Response:
        if a and b and a != b:
            return RedirectResponse(f"/align/{Address(a)}/{Address(b)}", 303)
        return HTMLResponse(pages.render("align_choose.html", request, a=a, b=b))


def _add_docs(routes: APIRouter, pages: Pages, app: FastAPI) -> None:
    """The page that documents the API."""

    @routes.get("/docs", include_in_schema=False)
    def docs(request: Request) -> Response:
        return HTMLResponse(pages.render("docs.html", request, api=copy.deepcopy(app.openapi())))
