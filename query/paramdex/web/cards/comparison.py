"""Two models side by side: the heat maps of their alignment, and the most similar pairs of two layers."""

from __future__ import annotations

import re
from typing import Any

from paramdex import Atlas
from paramdex.web.cards.lookups import described, nearest_pairs, place_vectors
from paramdex.web.cards.shapes import Comparison, HeatCell, HeatMap, LayerPairs, SimilarPair
from paramdex_schemas import KINDS, AddressError, QueryError
from paramdex_schemas.addresses import STACKS
from paramdex_schemas.checks import suggest
from paramdex_schemas.layout import Place, place_name

_PLACE = re.compile(rf"(?:({'|'.join(STACKS)})/)?L(\d{{1,9}})")


def comparison(atlas: Atlas, a: str, b: str, kind: str | None = None) -> Comparison:
    """The alignment of two models, a heat map a kind."""
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


def layer_pairs(atlas: Atlas, a: str, b: str, kind: str, at: tuple[str, str], k: int = 20) -> LayerPairs:
    """The k most similar pairs of vectors of a kind, one in a layer of each model, exactly."""
    for name in (a, b):
        if name not in atlas.models:
            raise AddressError(f"there is no model {name!r}; {suggest(name, atlas.models)}")
    models = (atlas.models[a], atlas.models[b])
    if a == b:
        raise QueryError(f"compare two different models, not {a} twice")
    places: list[Place] = []
    for model, text in zip(models, at, strict=True):
        if kind not in model.layout.kinds:
            raise QueryError(f"{model.name} has no vectors of kind {kind!r}; {suggest(kind, model.layout.kinds)}")
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
    named = described(atlas, [each for pair in ids for each in pair])
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


def comparable_kinds(atlas: Atlas, a: str, b: str) -> list[str]:
    """The kinds that align compares."""
    kinds = [atlas.models[name].layout.kinds for name in (a, b)]
    return [kind for kind in KINDS if KINDS[kind].form == "weight" and all(kind in each for each in kinds)]
