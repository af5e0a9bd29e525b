"""``similar``: the parameters nearest to one, in its own model or in another; of a head, the nearest heads."""

from __future__ import annotations

from functools import cache, partial

import numpy as np

from paramdex.result import Result
from paramdex.store.common_space import Common, compared
from paramdex.store.nearest import Hit, signs_of, strongest_hits
from paramdex.store.scope import Scope
from paramdex.store.store import Store
from paramdex.store.token_filter import TokenFilter
from paramdex.verbs.hits import hits_in_model, listed
from paramdex.verbs.similar_heads import similar_heads
from paramdex_schemas import Address, AddressError
from paramdex_schemas.isometry import Array


def similar(
    store: Store,
    address: str | Address,
    k: int,
    model: str | None,
    kind: str | None,
    layer: int | None,
    side: str,
    filter: TokenFilter | None,
) -> Result:
    """See ``Atlas.similar``."""
    where = store.address(address)
    if where.is_head:
        scope = _beside(store, where, model, None, layer)
        return similar_heads(store, where, k, scope, kind, side, filter)
    hits, notes = similar_hits(store, where, k, model, kind, layer, side)
    own_id = store.models[where.model].param_id(where)
    return listed(store, hits, f"nearest to {where}", notes, filter, of=own_id)


def similar_hits(
    store: Store,
    address: str | Address,
    k: int,
    model: str | None,
    kind: str | None,
    layer: int | None,
    side: str,
) -> tuple[list[Hit], list[str]]:
    """What ``similar`` finds for a parameter, each a (similarity, param_id), and its notes."""
    where = store.address(address)
    if where.kind is None:
        example = store.models[where.model].layout.example(where)
        raise AddressError(f"similar takes the address of a parameter or a head, {example}, say, not {where}")
    scope = _beside(store, where, model, where.kind if kind is None else kind, layer)
    return hits_of_parameter(store, where, k, scope, side)


def _beside(store: Store, where: Address, model: str | None, kind: str | None, layer: int | None) -> Scope:
    """The scope of a search for things like one: its own model, unless ``model`` names another one or "all"."""
    every = isinstance(model, str) and model == "all"
    return store.scope(where.model if model is None else None if every else model, kind, layer)


def hits_of_parameter(store: Store, where: Address, k: int, scope: Scope, side: str) -> tuple[list[Hit], list[str]]:
    """The k parameters of the scope's one kind nearest to a parameter, and notes on the models that are compared on
    fewer tokens or left out.

    Raises QueryError where the scope names its model and that cannot be compared.
    """
    own, kind = store.models[where.model], str(where.kind)
    own_id = own.param_id(where)
    row = own_id - own.first(kind)
    (piece,) = store.vectors.pieces(own, kind, (row, row + 1))
    (vector,) = piece.stored()
    hits: list[Hit] = []
    notes: list[str] = []
    models = [model for model in scope.models if scope.kinds(model)]
    for both in compared(store, own, models, notes, strict=scope.named):
        other = both.right.model
        if other.vocabulary == own.vocabulary:
            query = partial(store.vectors.moved, vector, own, piece.space, other)
            found = hits_in_model(store, other, query, k + 1, scope, side)
            hits += [hit for hit in found if hit[1] != own_id]
        else:
            hits += _across(vector, piece.space, both, k, scope, side)
    return strongest_hits(hits, k, side), notes


def _across(vector: Array, space: str, both: Common, k: int, scope: Scope, side: str) -> list[Hit]:
    """As ``hits_in_model``, for a vector in a space of the left model among those of the right one, of another
    vocabulary.
    """
    query = cache(lambda into: both.moved(vector.astype(np.float64)[None], space, [into])[0])
    model, signs = both.right.model, signs_of(side)
    hits: list[Hit] = []
    for kind in scope.kinds(model):
        for span in scope.rows(model, kind):
            for piece in both.right.vectors.pieces(model, kind, span):
                scores = both.right.similarities(kind, piece, query(piece.space))
                strength = np.max([sign * scores for sign in signs], axis=0)
                best = np.lexsort((np.arange(len(scores)), -strength))[:k]
                first = model.first(kind) + piece.start
                hits += [(float(scores[row]), first + int(row)) for row in best]
    return strongest_hits(hits, k, side)
