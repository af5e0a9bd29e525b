"""Two models side by side: heat maps of how alike their layers are, and the most similar pairs of two layers."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from paramdex import Atlas
from paramdex.store.common_space import place_vectors
from paramdex.store.nearest import nearest_pairs
from paramdex.verbs.align import kinds_that_align
from paramdex.web.cards.lookups import described
from paramdex.web.cards.shapes import Named, Shape
from paramdex_schemas import AddressError, QueryError
from paramdex_schemas.addresses import STACKS
from paramdex_schemas.checks import suggest
from paramdex_schemas.layout import Place, place_name
from paramdex_schemas.model import Ranking

_PLACE = re.compile(rf"(?:({'|'.join(STACKS)})/)?L(\d{{1,9}})")


class HeatCell(Shape):
    a: str
    b: str
    score: float
    matched: bool
    feature_score: float | None


class HeatMap(Shape):
    """One kind of vector: the layers of model A x the layers of model B."""

    kind: str
    places_a: list[str]
    places_b: list[str]
    rows: list[list[HeatCell]]
    matched: float
    others: float | None
    low: float
    high: float


class Comparison(Shape):
    a: str
    b: str
    maps: list[HeatMap]
    notes: list[str]


class SimilarPair(Shape):
    rank: int
    similarity: float
    a: Named
    b: Named


class LayerPairs(Shape):
    """The most similar pairs of vectors of one kind between two layers."""

    a: str
    b: str
    kind: str
    compared: int
    rows: list[SimilarPair]
    notes: list[str]


def comparison(atlas: Atlas, a: str, b: str, kind: str | None = None) -> Comparison:
    """The alignment of two models: a heat map per kind, or that of one kind."""
    whole = _whole(atlas, a, b)
    if kind is None:
        return whole
    if kind not in kinds_that_align(atlas.models[a], atlas.models[b]):
        return _aligned(atlas, a, b, kind)  # which says why not
    return whole.model_copy(update={"maps": [each for each in whole.maps if each.kind == kind]})


@lru_cache(maxsize=64)
def _whole(atlas: Atlas, a: str, b: str) -> Comparison:
    """All kinds, kept: a reader who looks at one kind goes on to the others."""
    return _aligned(atlas, a, b, None)


def _aligned(atlas: Atlas, a: str, b: str, kind: str | None) -> Comparison:
    found = atlas.align(a, b, kind)
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for row in found.to_rows():
        by_kind.setdefault(row["kind"], []).append(row)
    return Comparison(a=a, b=b, maps=[_map(each, cells) for each, cells in by_kind.items()], notes=list(found.notes))


def _map(kind: str, cells: list[dict[str, Any]]) -> HeatMap:
    lines: dict[str, list[HeatCell]] = {}
    for row in cells:
        at = (place_name((row["stack_a"], row["layer_a"])), place_name((row["stack_b"], row["layer_b"])))
        lines.setdefault(at[0], []).append(
            HeatCell(a=at[0], b=at[1], score=row["score"], matched=row["matched"], feature_score=row["feature_score"])
        )
    matched = [row["score"] for row in cells if row["matched"]]
    others = [row["score"] for row in cells if not row["matched"]]
    scores = matched + others
    return HeatMap(
        kind=kind,
        places_a=list(lines),
        places_b=[cell.b for cell in next(iter(lines.values()))],
        rows=list(lines.values()),
        matched=sum(matched) / len(matched),
        others=sum(others) / len(others) if others else None,
        low=min(scores),
        high=max(scores),
    )


def layer_pairs(
    atlas: Atlas, a: str, b: str, kind: str, at: tuple[str, str], k: int = 20, by: Ranking | None = None
) -> LayerPairs:
    """The k most similar pairs of vectors of a kind, exactly: one from a layer of a, one from a layer of b.

    Raises AddressError for a model or layer that does not exist, QueryError for a kind that a model does not have.
    """
    models = (atlas.model(a), atlas.model(b))
    if a == b:
        raise QueryError(f"compare two different models, not {a} twice")
    places: list[Place] = []
    for model, text in zip(models, at, strict=True):
        atlas.scope(model.name, kind)  # which says where it has none
        match = _PLACE.fullmatch(text)
        place = (match[1], int(match[2])) if match else (None, None)
        known = model.layout.places(kind)
        if match is None or place not in known:
            raise AddressError(
                f"{model.name} has no {kind} in {text!r}; {suggest(text, [place_name(each) for each in known])}"
            )
        places.append(place)
    left, right, notes = place_vectors(atlas, *models, kind, (places[0], places[1]))
    hits = nearest_pairs(left, right, k)
    starts = [model.ids(kind, place)[0] for model, place in zip(models, places, strict=True)]
    ids = [(starts[0] + i, starts[1] + j) for _, i, j in hits]
    named = described(atlas, [each for pair in ids for each in pair], by)
    return LayerPairs(
        a=f"{a}/{at[0]}",
        b=f"{b}/{at[1]}",
        kind=kind,
        compared=len(left) * len(right),
        rows=[
            SimilarPair(rank=n, similarity=round(hit[0], 6), a=named[i], b=named[j])
            for n, (hit, (i, j)) in enumerate(zip(hits, ids, strict=True), start=1)
        ],
        notes=notes,
    )
