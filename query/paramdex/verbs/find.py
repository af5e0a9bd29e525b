"""``find``: the parameters and heads that have some tokens among their strongest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from paramdex.result import Result, table_of
from paramdex.store import pair_postings
from paramdex.store.filters import Sieve
from paramdex.store.postings import Postings
from paramdex.store.scope import Scope
from paramdex.store.store import Store
from paramdex.store.token_filter import TokenFilter
from paramdex.store.words import Wanted
from paramdex.text import some
from paramdex_schemas import MATRICES
from paramdex_schemas.model import RANKINGS, Model

_NAMED = 5
"""The most models of a ranking in a note."""
_FOUND = pa.schema(
    [
        ("address", pa.string()),
        ("kind", pa.string()),
        ("side", pa.string()),
        ("words", pa.int32()),
        ("rank", pa.int32()),
        ("z", pa.float32()),
        ("token_z", pa.float32()),
        ("tokens", pa.list_(pa.string())),
    ]
)


def find(store: Store, tokens: str | Iterable[str], k: int, scope: Scope, filter: TokenFilter | None) -> Result:
    """See ``Atlas.find``."""
    wanted, notes = store.resolve(scope, tokens)
    sieve = Sieve(store.database, filter)
    postings = Postings(store, sieve.ranking)
    parameters: list[dict[str, Any]] = []
    heads: list[dict[str, Any]] = []
    for item, models in _groups(wanted, scope, sieve, notes):
        of = {"vocabulary": item.vocabulary}
        spans = [span for model in models for span in scope.ids(model)] if scope.kind not in MATRICES else []
        if spans:
            for row in postings.holders(item, models, spans, k):
                where = store.owner(row["id"]).address(row["id"])
                parameters.append(row | of | {"address": str(where), "kind": where.kind, "lists": [row["ids"]]})
        if scope.kind is None or scope.kind in MATRICES:
            for model in models:
                asked = pair_postings.PairsAsked(
                    scope.kind,
                    scope.layer,
                    sieve.mask(model),
                    identical=not (filter and filter.no_identical),
                    same_word=not (filter and filter.no_same_word),
                    by=sieve.ranking(model),
                )
                heads += [row | of for row in pair_postings.holders(store, model, item, asked, k)]
    rows = [*sorted(parameters, key=_order)[:k], *sorted(heads, key=_order)[:k]]
    for row in rows:  # a parameter's tokens, or the two of each of a head's pairs
        lists = [store.database.texts(row["vocabulary"], ids) for ids in row["lists"]]
        row["tokens"] = [" → ".join(texts) for texts in zip(*lists, strict=True)]
    return Result(table_of(rows, _FOUND), notes=[*notes, *_of_rankings(store, rows, sieve), *sieve.notes()])


def _order(row: dict[str, Any]) -> tuple[float, ...]:
    """Most words first, then most pairs of two of the words, then the largest z, or token_z where that ranks the row's
    tokens; rows without one last.
    """
    strength = math.inf if row["strength"] is None else -row["strength"]
    return -row["words"], -row.get("linked", 0), strength, row["id"]


def _of_rankings(store: Store, rows: list[dict[str, Any]], sieve: Sieve) -> list[str]:
    """The note on rows that are ranked differently, each by the ranking of its model."""
    found = {row["address"].partition("/")[0] for row in rows}
    names = {by: [n for n, one in store.models.items() if n in found and sieve.ranking(one) == by] for by in RANKINGS}
    if not all(names.values()):
        return []
    told = "; ".join(f"{some(own, _NAMED)} by {by}" for by, own in names.items())
    return [f"each model is ranked by its own ranking: {told} (--by ranks all alike)"]


def _groups(wanted: list[Wanted], scope: Scope, sieve: Sieve, notes: list[str]) -> Iterator[tuple[Wanted, list[Model]]]:
    """The wanted items of each vocabulary with the models that have it. A filter may let other tokens pass in each
    model; then every model comes alone, with the items that pass in it.
    """
    for item in wanted:
        models = scope.of(item.vocabulary)
        if not sieve:
            yield item, models
            continue
        for one in models:
            left = sieve.wanted(one, item)
            out = [word for word in dict.fromkeys(item.words) if word not in left.words]
            if out:
                notes.append(f"filtered: no token of {', '.join(out)} passes in {one.name}")
            if left.ids:
                yield left, [one]
