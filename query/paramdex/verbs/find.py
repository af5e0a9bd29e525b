"""Find: the parameters and heads that have some tokens among their strongest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from paramdex.result import Result, table_of
from paramdex.store import pair_postings as head_postings
from paramdex.store.filters import Sieve, TokenFilter
from paramdex.store.pair_postings import Asked
from paramdex.store.postings import Postings
from paramdex_schemas import MATRICES

if TYPE_CHECKING:
    from paramdex.store.database import Database
    from paramdex.store.words import Wanted
    from paramdex_schemas.model import Model

_FOUND = pa.schema(
    [
        ("address", pa.string()),
        ("kind", pa.string()),
        ("side", pa.string()),
        ("words", pa.int32()),
        ("rank", pa.int32()),
        ("z", pa.float32()),
        ("tokens", pa.list_(pa.string())),
    ]
)


def find(
    database: Database,
    wanted: list[Wanted],
    chosen: list[Model],
    notes: list[str],
    k: int,
    kind: str | None,
    layer: int | None,
    filter: TokenFilter | None,
) -> Result:
    """See ``Atlas.find``; ``wanted`` are items of the vocabularies of the ``chosen`` models."""
    sieve, postings, notes = Sieve(database, filter), Postings(database), notes.copy()
    parameters: list[dict[str, Any]] = []
    heads: list[dict[str, Any]] = []
    for item, models in _groups(wanted, chosen, sieve, notes):
        of = {"vocabulary": item.vocabulary}
        spans = [span for one in models for span in one.spans(kind, layer)] if kind not in MATRICES else []
        if spans:
            for row in postings.holders(item, [one.span for one in models], spans, k):
                owner = next(one for one in models if one.span[0] <= row["id"] < one.span[1])
                where = owner.address(row["id"])
                parameters.append(row | of | {"address": str(where), "kind": where.kind, "lists": [row["ids"]]})
        if kind is None or kind in MATRICES:
            asked = Asked(
                kind,
                layer,
                sieve.mask(models[0]),
                identical=not (filter and filter.no_identical),
                same_word=not (filter and filter.no_same_word),
            )
            for one in models:
                found = head_postings.holders(database, item, one.model_id, asked, k)
                heads += [row | of for row in found]
    order = lambda row: (  # noqa: E731
        -row["words"],
        -row.get("linked", 0),
        math.inf if row["z"] is None else -row["z"],
        row["id"],
    )
    rows = [*sorted(parameters, key=order)[:k], *sorted(heads, key=order)[:k]]
    texts = postings.texts([(row["vocabulary"], i) for row in rows for ids in row["lists"] for i in ids])
    for row in rows:  # a parameter's tokens, or the two of each of a head's pairs
        items = zip(*row["lists"], strict=True)
        row["tokens"] = [" → ".join(texts[row["vocabulary"], i] for i in item) for item in items]
    return Result(table_of(rows, _FOUND), notes=[*notes, *sieve.notes()])


def _groups(
    wanted: list[Wanted], chosen: list[Model], sieve: Sieve, notes: list[str]
) -> Iterator[tuple[Wanted, list[Model]]]:
    """The wanted items of each vocabulary with the models that have it; with a filter, which may let other tokens
    pass in each model, model by model, those that pass.
    """
    for item in wanted:
        models = [one for one in chosen if one.vocabulary == item.vocabulary]
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
