"""What search, similar and lens share: the parameters nearest to a query, and the table that lists them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import pyarrow as pa

from paramdex.result import Result, table_of
from paramdex.store.described import passing, strongest
from paramdex.store.filters import Sieve
from paramdex.store.nearest import Hit, nearest, signs_of, strongest_hits
from paramdex.store.scope import Scope
from paramdex.store.store import Store
from paramdex.store.token_filter import TokenFilter
from paramdex.text import visible
from paramdex_schemas.isometry import Array
from paramdex_schemas.model import Model

_SCHEMA = pa.schema(
    [
        ("rank", pa.int32()),
        ("similarity", pa.float32()),
        ("address", pa.string()),
        ("top", pa.list_(pa.string())),
        ("bottom", pa.list_(pa.string())),
    ]
)


def hits_in_model(
    store: Store, model: Model, query: Callable[[str], Array], k: int, scope: Scope, side: str
) -> list[Hit]:
    """The k parameters of each kind of a scope nearest to a query, which for each space of the model that it is asked
    for has the coordinates there (r, float64).
    """
    query, signs, hits = cache(query), signs_of(side), []
    for kind in scope.kinds(model):
        found: list[Hit] = []
        for span in scope.rows(model, kind):
            for piece in store.vectors.pieces(model, kind, span):
                first = model.first(kind) + piece.start - piece.at
                near = nearest(piece.rows, query(piece.space), k, [piece.span], signs)
                found += [(similarity, first + row) for similarity, row in near]
        hits += strongest_hits(found, k, side)
    return hits


def listed(
    store: Store,
    hits: list[Hit],
    title: str | None,
    notes: Sequence[str],
    filter: TokenFilter | None = None,
    of: int | None = None,
) -> Result:
    """A table of parameters, in the order of ``hits``, each with its strongest tokens that pass the filter. The title
    names those of the parameter ``of``, if there is one.
    """
    sieve = Sieve(store.database, filter)
    ids = [param_id for _, param_id in hits]
    found = strongest(store, ids if of is None else [*ids, of], sieve)
    described = passing(store, {i: found[i] for i in ids}, sieve)
    if of is not None:
        own = passing(store, {of: found[of]}, Sieve(store.database, filter))[of]  # the notes do not count its list
        title = f"{title}: {', '.join(map(visible, own.top))}"
    rows = [
        {"rank": n, "similarity": similarity, "address": one.address, "top": one.top, "bottom": one.bottom}
        for n, (similarity, one) in enumerate(((similarity, described[i]) for similarity, i in hits), start=1)
    ]
    return Result(table_of(rows, _SCHEMA), title, [*notes, *sieve.notes()])
