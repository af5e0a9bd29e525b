"""What the pages ask of an atlas beyond its verbs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from paramdex import Atlas
from paramdex.plain import short
from paramdex.store.described import by_tokens
from paramdex.store.filters import Sieve
from paramdex.store.nearest import Hit
from paramdex.store.token_filter import TokenFilter
from paramdex.web.cards.shapes import Named, Near, Standing, Token
from paramdex_schemas import Address
from paramdex_schemas.isometry import Array
from paramdex_schemas.model import Model, Ranking

SHOWN = 6
"""Tokens that describe a parameter in a list."""
MOST_COMPARED = 1_000_000
"""Entries of the small products, d_head x d_head for each head, that are made for one page: a tenth of a second."""


def too_many_heads(model: Model) -> bool:
    """Whether a model has more heads than are compared with one while a reader waits."""
    runs = [model.layout.heads(place) for place in model.layout.attention_places]
    return sum(run.n_owners * run.size**2 for run in runs) > MOST_COMPARED


class Items(dict[int, Token]):
    """token_id -> the item of a vocabulary, made when first asked for."""

    def __init__(self, atlas: Atlas, vocabulary: str) -> None:
        super().__init__()
        self._columns = [atlas.database.tokens(vocabulary, column) for column in ("token", "text")]

    def __missing__(self, token_id: int) -> Token:
        spelled, read = (column[token_id].as_py() for column in self._columns)
        self[token_id] = Token(token_id=token_id, token=spelled, text=read)
        return self[token_id]


def described(atlas: Atlas, param_ids: Iterable[int], by: Ranking | None) -> dict[int, Named]:
    """param_id -> the parameter with its strongest tokens by a ranking, or by its model's own."""
    asked = list(dict.fromkeys(param_ids))
    if not asked:
        return {}
    found = {}
    items: dict[str, Items] = {}
    for param_id, each in by_tokens(atlas, asked, Sieve(atlas.database, TokenFilter(by=by)), SHOWN).items():
        of = items.setdefault(each.vocabulary, Items(atlas, each.vocabulary))
        sides = {side: [of[i] for i in ids] for side, ids in each.ids.items()}
        kind = str(Address.parse(each.address).kind)
        found[param_id] = Named(address=each.address, kind=kind, **sides)
    return found


def near(hits: Iterable[Hit], named: Mapping[int, Named]) -> list[Near]:
    """Hits as rows, in their order, each with what ``described`` says of it."""
    return [
        Near(**dict(named[i]), rank=n, similarity=short(similarity)) for n, (similarity, i) in enumerate(hits, start=1)
    ]


def standing(values: Array, own: int) -> Standing:
    """Where one of some numbers stands among all of them."""
    return Standing(
        larger=int((values > values[own]).sum()),
        of=len(values),
        least=short(values.min()),
        most=short(values.max()),
        quartiles=[short(q) for q in np.quantile(values, [0.25, 0.5, 0.75])],
    )
