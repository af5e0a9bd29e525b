"""Fills the templates. Everything is escaped, and every page gets the few words and numbers that all need."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from importlib import resources
from typing import Any
from urllib.parse import urlencode

from fastapi import Request
from jinja2 import Environment, PackageLoader, StrictUndefined, pass_context
from jinja2.runtime import Context

from paramdex import Atlas, __version__
from paramdex.store.reading import READS, text_name
from paramdex.web.html import drawing
from paramdex_schemas import KINDS, Address, AddressError
from paramdex_schemas.model import RANKINGS

STATIC = "/-/static"
"""Free for files, because no model's name begins with a dash."""
_ADDRESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*(/[A-Za-z0-9_]+)*")


def assets() -> dict[str, str]:
    """Name -> address of every style sheet, script and picture. A file that changes gets another address."""
    files = (resources.files("paramdex.web") / "static").iterdir()
    return {file.name: f"{STATIC}/{file.name}?v={sha256(file.read_bytes()).hexdigest()[:12]}" for file in files}


def _keeping(chip: Callable[..., Any]) -> Callable[..., Any]:
    """The macro ``chip`` as a function of a token, and of whether it was asked for, that keeps the page's ranking."""

    @pass_context
    def kept(context: Context, token: Any, hit: bool = False) -> Any:
        return chip(token, hit, context.get("by"))

    return kept


@pass_context
def _href(context: Context, address: str) -> str:
    """The link to an address, which keeps the page's ranking."""
    by = context.get("by")
    return drawing.href(address) + (f"?by={by}" if by else "")


class Pages:
    """The templates, for the server of one atlas."""

    def __init__(self, atlas: Atlas) -> None:
        self._atlas = atlas
        self._environment = Environment(
            loader=PackageLoader("paramdex.web"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= {
            "pieces": drawing.pieces,
            "ask_for": drawing.ask_for,
            "number": drawing.number,
            "href": _href,
            "text_name": text_name,
            "says": lambda kind: KINDS[kind].says if kind in KINDS else "",
        }
        chip = self._environment.get_template("_chip.html").module.chip  # type: ignore[attr-defined]  # a macro
        self._environment.globals |= {
            "atlas_name": atlas.path.name,
            "models": list(atlas.models),
            "version": __version__,
            "reads_says": READS,
            "asset": assets(),
            "chip": _keeping(lru_cache(1 << 14)(chip)),  # a page has hundreds, many of them the same
            "chip_once": _keeping(chip),  # a token with its score is not met again: not worth caching
            "rankings": RANKINGS,
            "level": drawing.level,
            "draw": drawing.draw,
            "bar": drawing.bar,
            "norm_scale": drawing.norm_scale,
            "score_scale": drawing.score_scale,
            "is_address": self.is_address,
        }

    def render(self, template: str, request: Request, **values: Any) -> str:
        """A template filled for a request.

        In a template, ``here(name=value)`` is the page's own address with a query value changed; None removes it.
        ``by`` is the ranking that was asked for, if any. Links to other pages keep it: ``kept`` are the query values.
        """

        def here(**changes: Any) -> str:
            kept = dict(request.query_params.multi_items()) | changes
            query = urlencode({key: value for key, value in kept.items() if value is not None})
            return request.url.path + (f"?{query}" if query else "")

        query = f"?{request.url.query}" if request.url.query else ""
        path = request.url.path
        values = {"q": request.query_params.get("q", ""), "query": dict(request.query_params)} | values
        by = next((each for each in RANKINGS if each == request.query_params.get("by")), None)
        values |= {"by": by, "kept": {"by": by} if by else {}}
        return self._environment.get_template(template).render(
            **values, here=here, path=path, data_url=("/.json" if path == "/" else f"{path}.json") + query
        )

    def is_address(self, value: Any) -> bool:
        """Whether a value in a table is the address of something that has a page."""
        if not isinstance(value, str) or not _ADDRESS.fullmatch(value) or value.split("/")[0] not in self._atlas.models:
            return False
        try:
            where = Address.parse(value)
            self._atlas.models[where.model].layout.check(where)
        except AddressError:
            return False
        return True
