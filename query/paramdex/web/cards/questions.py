"""The questions of the search box: what is meant, who has these words among its strongest, who is nearest to them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

from paramdex import Atlas
from paramdex.plain import short
from paramdex.store.nearest import Hit
from paramdex.text import visible
from paramdex.web.cards.choices import split_words
from paramdex.web.cards.lookups import described, too_many_heads
from paramdex.web.cards.shapes import (
    Choice,
    Facets,
    Found,
    FoundHead,
    FoundParameter,
    Near,
    NearHead,
    NearWords,
    Searched,
    Similar,
    SimilarHeads,
    Understood,
)
from paramdex_schemas import KINDS, Address, QueryError, TokenError
from paramdex_schemas.layout import place_name

COUNTED = 100
"""Results that facets are counted over."""
_ADDRESS = re.compile(r"[^/\s]+(/(encoder|decoder|cross|[LHE]\d+|[a-z_]+|\d+))+/?")


def understand(atlas: Atlas, q: str) -> Understood:
    """Read what a person typed into the search box. Raises TokenError where it is empty."""
    text = q.strip().strip("/")
    looks = _ADDRESS.fullmatch(text) is not None
    if text in atlas.models or (looks and text.partition("/")[0] in atlas.models):
        return Understood(q=q, kind="address", address=text, words=[], says=f"the address {text}")
    words = split_words(q)
    if not words:
        raise TokenError("type a word, some words, a token or an address")
    if looks and "/L" in text:  # a slip of the pen: say which addresses there are, not which words
        return Understood(q=q, kind="address", address=text, words=[], says=f"the address {text}")
    says = f"the word {_quoted(words)}" if len(words) == 1 else f"the {len(words)} words {_quoted(words)}"
    return Understood(q=q, kind="words", address=None, words=words, says=says)


def _quoted(words: list[str]) -> str:
    return ", ".join(f"“{visible(word)}”" for word in words)


def _layer_of(address: str) -> str:
    where = Address.parse(address)
    return place_name((where.stack, where.layer))


def _facets(rows: Iterable[dict[str, Any]]) -> Facets:
    """How often each model, layer, kind and side comes; layers and kinds in their own order."""
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
    side: Literal["top", "bottom"] | None = None,
) -> Found:
    """Parameters and heads that have the words among their strongest: k of each."""
    words = split_words(q)
    result = atlas.find(words, max(k, COUNTED), model=model, kind=kind, layer=layer)
    rows = [row for row in result.to_rows() if side in (None, row["side"])]
    parameters = [row for row in rows if row["kind"] in KINDS][:k]
    ids = [atlas.models[where.model].param_id(where) for where in (Address.parse(row["address"]) for row in parameters)]
    named = described(atlas, ids)
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
    side: Literal["top", "bottom", "both"] = "top",
) -> Searched:
    """The k parameters nearest to the words."""
    words = split_words(q)
    hits, notes = atlas.search_hits(words, max(k, COUNTED), model=model, kind=kind, layer=layer, side=side)
    found = [(atlas.owner(hit.param_id).address(hit.param_id), hit.similarity) for hit in hits]
    facets = _facets(
        {"address": str(where), "kind": where.kind, "side": "top" if similarity > 0 else "bottom"}
        for where, similarity in found
    )
    near = _near(atlas, [(hit.similarity, hit.param_id) for hit in hits[:k]])
    rows = [NearWords(**dict(one), z=short(hit.z), words=hit.words) for one, hit in zip(near, hits[:k], strict=True)]
    return Searched(q=q, words=words, side=side, rows=rows, facets=facets, counted=len(hits), notes=notes)


def similar(
    atlas: Atlas,
    address: str,
    k: int = 5,
    *,
    model: str | None = None,
    kind: str | None = None,
    side: Literal["top", "bottom", "both"] = "top",
) -> Similar | SimilarHeads:
    """The k parameters nearest to one, or the k heads nearest to one by each matrix, in its own or another model."""
    where = atlas.address(address)
    if where.is_head:
        return _similar_heads(atlas, where, k, model or where.model, kind, side)
    hits, notes = atlas.similar_hits(address, k, model=model, kind=kind, side=side)
    return Similar(
        address=str(where),
        model=model or where.model,
        kind=kind or str(where.kind),
        rows=_near(atlas, hits),
        notes=notes,
    )


def check_heads(atlas: Atlas, address: str, model: str | None) -> None:
    """Raises QueryError where an address is a head's and a model has too many to compare while a reader waits."""
    where = atlas.address(address)
    for one in atlas.models.values():
        if where.is_head and (model or where.model) in (one.name, "all") and too_many_heads(one):
            raise QueryError(
                f"{one.name} has too many heads to compare while you wait; "
                f"paramdex similar ATLAS {where} --in {model or where.model} does it"
            )


def _similar_heads(atlas: Atlas, where: Address, k: int, model: str, kind: str | None, side: str) -> SimilarHeads:
    """Raises QueryError where a model has too many heads to compare while a reader waits."""
    check_heads(atlas, str(where), model)
    result = atlas.similar(str(where), k, model=model, kind=kind, side=side)
    rows = [
        NearHead(pairs=row.pop("top"), **row | {"similarity": short(row["similarity"])}) for row in result.to_rows()
    ]
    return SimilarHeads(address=str(where), model=model, rows=rows, notes=list(result.notes))


def _near(atlas: Atlas, hits: list[Hit]) -> list[Near]:
    """Hits with their strongest tokens."""
    named = described(atlas, [i for _, i in hits])
    return [
        Near(**dict(named[i]), rank=n, similarity=short(similarity)) for n, (similarity, i) in enumerate(hits, start=1)
    ]
