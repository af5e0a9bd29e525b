"""Searches: what the box was asked, which parameters have words among their strongest tokens, which are nearest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field

from paramdex import Atlas
from paramdex.plain import short
from paramdex.store.token_filter import TokenFilter
from paramdex.text import visible
from paramdex.web.cards.choices import split_words
from paramdex.web.cards.lookups import described, near, too_many_heads
from paramdex.web.cards.shapes import Named, Near, Shape, Side, Sides
from paramdex_schemas import KINDS, Address, QueryError, TokenError
from paramdex_schemas.layout import place_name
from paramdex_schemas.model import Ranking

COUNTED = 100
"""How many results the facets are counted over."""
_ADDRESS = re.compile(r"[^/\s]+(/(encoder|decoder|cross|[LHE]\d+|[a-z_]+|\d+))+/?")


class NearWords(Near):
    """A parameter near some words: ``z`` is the mean z of their tokens among its scores, ``words`` how many of them its
    model's vocabulary has.
    """

    z: float
    words: int


class NearHead(Shape):
    """A head whose whole matrix is like another's, by their cosine over all pairs of tokens."""

    matrix: Literal["QK", "VO"]
    rank: int
    similarity: float
    address: str
    pairs: list[str]
    """Its strongest pairs of two words."""


class Choice(Shape):
    """A value to filter by, and how many results have it."""

    value: str
    count: int


class Facets(Shape):
    model: list[Choice] = Field(default=[])
    layer: list[Choice] = Field(default=[])
    kind: list[Choice] = Field(default=[])
    side: list[Choice] = Field(default=[])


class FoundParameter(Named):
    side: Side
    words: int
    rank: int
    z: float | None
    token_z: float | None
    matched: list[str]


class FoundHead(Shape):
    address: str
    kind: str
    side: Side
    words: int
    rank: int | None
    z: float | None
    token_z: float | None
    pairs: list[str]


class Found(Shape):
    """Parameters and heads that have the words among their strongest tokens."""

    q: str
    words: list[str]
    parameters: list[FoundParameter]
    heads: list[FoundHead]
    facets: Facets
    counted: int
    """How many results, from the strongest on, the facets count."""
    notes: list[str]


class Searched(Shape):
    """Parameters nearest to the words over all scores, ranked by z. Models that have more of the words come first."""

    q: str
    words: list[str]
    side: Sides
    rows: list[NearWords]
    facets: Facets
    counted: int
    notes: list[str]


class Similar(Shape):
    """Parameters nearest to a parameter."""

    type: Literal["similar"] = "similar"
    address: str
    model: str
    kind: str
    rows: list[Near]
    notes: list[str]


class SimilarHeads(Shape):
    """Heads whose whole matrices are most like those of a head."""

    type: Literal["similar_heads"] = "similar_heads"
    address: str
    model: str
    rows: list[NearHead]
    notes: list[str]


AnySimilar = Annotated[Similar | SimilarHeads, Field(discriminator="type")]


class Understood(Shape):
    """How the search box read what was typed."""

    q: str
    kind: Literal["address", "words"]
    address: str | None
    words: list[str]
    says: str


def understand(atlas: Atlas, q: str) -> Understood:
    """Read what a person typed into the search box. Raises TokenError where it is empty."""
    text = q.strip().strip("/")
    looks = _ADDRESS.fullmatch(text) is not None
    if text in atlas.models or (looks and text.partition("/")[0] in atlas.models):
        return Understood(q=q, kind="address", address=text, words=[], says=f"the address {text}")
    words = split_words(q)
    if not words:
        raise TokenError("type a word, some words, a token or an address")
    if looks and "/L" in text:  # a typing error: show the addresses that exist, not words
        return Understood(q=q, kind="address", address=text, words=[], says=f"the address {text}")
    says = f"the word {_quoted(words)}" if len(words) == 1 else f"the {len(words)} words {_quoted(words)}"
    return Understood(q=q, kind="words", address=None, words=words, says=says)


def _quoted(words: list[str]) -> str:
    return ", ".join(f"“{visible(word)}”" for word in words)


def _layer_of(address: str) -> str:
    where = Address.parse(address)
    return place_name((where.stack, where.layer))


def _facets(rows: Iterable[dict[str, Any]]) -> Facets:
    """How many results each model, layer, kind and side has. Layers and kinds are in their own order."""
    found = list(rows)
    layers = Counter(_layer_of(row["address"]) for row in found)
    kinds = Counter(row["kind"] for row in found)
    known = [*KINDS, "QK", "VO"]
    return Facets(
        model=_choices(Counter(row["address"].partition("/")[0] for row in found)),
        layer=_choices({k: layers[k] for k in sorted(layers, key=_natural)}),
        kind=_choices({k: kinds[k] for k in known if k in kinds}),
        side=_choices(Counter(row["side"] for row in found)),
    )


def _natural(name: str) -> list[Any]:
    """L2 before L10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _choices(counts: dict[str, int]) -> list[Choice]:
    return [Choice(value=value, count=count) for value, count in counts.items() if value]


def find(
    atlas: Atlas,
    q: str,
    k: int = 10,
    *,
    model: str | None = None,
    kind: str | None = None,
    layer: int | None = None,
    side: Side | None = None,
    by: Ranking | None = None,
) -> Found:
    """Parameters and heads that have the words among their strongest tokens: k of each."""
    words = split_words(q)
    result = atlas.find(words, max(k, COUNTED), model=model, kind=kind, layer=layer, filter=TokenFilter(by=by))
    rows = [row for row in result.to_rows() if side in (None, row["side"])]
    parameters = [row for row in rows if row["kind"] in KINDS][:k]
    ids = [atlas.models[where.model].param_id(where) for where in (Address.parse(row["address"]) for row in parameters)]
    named = described(atlas, ids, by)
    return Found(
        q=q,
        words=words,
        parameters=[
            FoundParameter(
                **dict(named[i]),
                side=row["side"],
                words=row["words"],
                rank=row["rank"],
                z=row["z"],
                token_z=row["token_z"],
                matched=row["tokens"],
            )
            for i, row in zip(ids, parameters, strict=True)
        ],
        heads=[
            FoundHead(
                address=row["address"],
                kind=row["kind"],
                side=row["side"],
                words=row["words"],
                rank=row["rank"],
                z=row["z"],
                token_z=row["token_z"],
                pairs=row["tokens"],
            )
            for row in rows
            if row["kind"] not in KINDS
        ][:k],
        facets=_facets(rows),
        counted=len(rows),
        notes=list(result.notes),
    )


def search(
    atlas: Atlas,
    q: str,
    k: int = 10,
    *,
    model: str | None = None,
    kind: str | None = None,
    layer: int | None = None,
    side: Sides = "top",
    by: Ranking | None = None,
) -> Searched:
    """The k parameters nearest to the words."""
    words = split_words(q)
    hits, notes = atlas.search_hits(words, max(k, COUNTED), model=model, kind=kind, layer=layer, side=side)
    found = [(atlas.owner(hit.param_id).address(hit.param_id), hit.similarity) for hit in hits]
    facets = _facets(
        {"address": str(where), "kind": where.kind, "side": "top" if similarity > 0 else "bottom"}
        for where, similarity in found
    )
    named = described(atlas, [hit.param_id for hit in hits[:k]], by)
    those = near([(hit.similarity, hit.param_id) for hit in hits[:k]], named)
    rows = [NearWords(**dict(one), z=short(hit.z), words=hit.words) for one, hit in zip(those, hits[:k], strict=True)]
    return Searched(q=q, words=words, side=side, rows=rows, facets=facets, counted=len(hits), notes=notes)


def similar(
    atlas: Atlas,
    address: str,
    k: int = 5,
    *,
    model: str | None = None,
    kind: str | None = None,
    side: Sides = "top",
    by: Ranking | None = None,
) -> Similar | SimilarHeads:
    """The k parameters nearest to a parameter, or the k heads nearest to a head by each matrix."""
    where = atlas.address(address)
    if where.is_head:
        return _similar_heads(atlas, where, k, model or where.model, kind, side, by)
    hits, notes = atlas.similar_hits(address, k, model=model, kind=kind, side=side)
    return Similar(
        address=str(where),
        model=model or where.model,
        kind=kind or str(where.kind),
        rows=near(hits, described(atlas, [i for _, i in hits], by)),
        notes=notes,
    )


def check_heads(atlas: Atlas, address: str, model: str | None) -> None:
    """Raises QueryError where the address is a head's, and a model has too many heads to compare at once."""
    where = atlas.address(address)
    for one in atlas.models.values():
        if where.is_head and (model or where.model) in (one.name, "all") and too_many_heads(one):
            raise QueryError(
                f"{one.name} has too many heads to compare while you wait; "
                f"run paramdex similar ATLAS {where} --in {model or where.model} instead"
            )


def _similar_heads(
    atlas: Atlas, where: Address, k: int, model: str, kind: str | None, side: str, by: Ranking | None
) -> SimilarHeads:
    """Raises QueryError where a model has too many heads to compare while a reader waits."""
    check_heads(atlas, str(where), model)
    result = atlas.similar(str(where), k, model=model, kind=kind, side=side, filter=TokenFilter(by=by))
    rows = [
        NearHead(pairs=row.pop("top"), **row | {"similarity": short(row["similarity"])}) for row in result.to_rows()
    ]
    return SimilarHeads(address=str(where), model=model, rows=rows, notes=list(result.notes))
