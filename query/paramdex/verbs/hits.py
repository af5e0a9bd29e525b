"""The parameters nearest to words or to a parameter, and the list in which a reader meets them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from paramdex.result import Result, table_of, visible
from paramdex.store.common_space import Common, compared
from paramdex.store.filters import ALL, Sieve, TokenFilter
from paramdex.store.nearest import Hit, nearest, signs_of, strongest_hits
from paramdex.store.postings import Postings, Strongest
from paramdex.store.words import Wanted
from paramdex_schemas import Address
from paramdex_schemas.isometry import Array, times_vector

if TYPE_CHECKING:
    from paramdex.atlas import Atlas
    from paramdex_schemas.model import Model

Described = dict[int, tuple[str, list[str], list[str]]]
"""param_id -> (address, its strongest tokens on top, and at the bottom)."""
_SHOWN_TOKENS = 5
"""Tokens by which a parameter is described in a list."""


class WordHit(NamedTuple):
    """A parameter near to words. ``z`` is the mean z of their tokens among its scores, ``words`` how many of the words
    its model's vocabulary has.
    """

    similarity: float
    param_id: int
    z: float
    words: int


def hits_of_words(
    atlas: Atlas, wanted: list[Wanted], models: list[Model], k: int, kind: str | None, layer: int | None, side: str
) -> list[WordHit]:
    """See ``Atlas.search``. Those of most words first, of as many those of largest z, ties by param_id.

    Let s be a parameter's V scores, of mean a and standard deviation b, and v the indicator of m tokens, whose mean z
    is z. Then <s - a, v - m / V> is the tokens' sum of s - a, m z b; |s - a| is b sqrt(V), |v - m / V|^2 is
    m (1 - m / V). So the correlation is

        r = m z b / (b sqrt(V) sqrt(m (V - m) / V)) = z sqrt(m / (V - m)):

    in one vocabulary z is r times one number, the k of largest r are the k of largest z, and models of it are in the
    order of r. Between vocabularies r is the larger, for the same z, the fewer tokens there are. (Scores without
    variation have no z; their r is 0, and so is what is called their z.)
    """
    hits: list[WordHit] = []
    for item in wanted:
        for one in models:
            if one.vocabulary == item.vocabulary:
                ids = sorted(set(item.ids))
                query, scale = _indicator(atlas, one, ids), (one.vocabulary_size / len(ids) - 1) ** 0.5
                for each in one.layout.kinds if kind is None else [kind]:
                    if each in one.layout.kinds:
                        found = hits_in_model(atlas, one, each, query, k, layer, side)
                        hits += [WordHit(r, param_id, r * scale, item.known) for r, param_id in found]
    signs = signs_of(side)
    return sorted(hits, key=lambda hit: (-hit.words, -max(sign * hit.z for sign in signs), hit.param_id))[:k]


def hits_of_parameter(
    atlas: Atlas,
    where: Address,
    models: list[Model],
    k: int,
    kind: str,
    layer: int | None,
    side: str,
    *,
    strict: bool = True,
) -> tuple[list[Hit], list[str]]:
    """See ``Atlas.similar``. Models that cannot be compared are left out with a note, unless ``strict``."""
    own, of = atlas.models[where.model], str(where.kind)
    own_id = own.param_id(where)
    row = own_id - own.first(of)
    (vector,) = atlas.vectors.index(own.name, of).reconstruct_n(row, 1)
    hits: list[Hit] = []
    notes: list[str] = []
    for both in compared(atlas, own, [one for one in models if kind in one.layout.kinds], notes, strict=strict):
        one, into = both.right.model, both.left.into
        if one.vocabulary == own.vocabulary:
            query = vector.astype(np.float64) if into is None else times_vector(into, vector)
            found = hits_in_model(atlas, one, kind, query, k + 1, layer, side)
            hits += [hit for hit in found if hit[1] != own_id]
        else:
            hits += _across(vector, both, kind, k, layer, side)
    return strongest_hits(hits, k, side), notes


def hits_in_model(
    atlas: Atlas, model: Model, kind: str, query: Array, k: int, layer: int | None, side: str
) -> list[Hit]:
    """The k parameters of a kind nearest to a query in the model's own coordinates."""
    first = model.first(kind)
    found = nearest(atlas.vectors.index(model.name, kind), query, k, _spans(model, kind, layer), signs_of(side))
    return [(similarity, first + row) for similarity, row in found]


def _across(vector: Array, both: Common, kind: str, k: int, layer: int | None, side: str) -> list[Hit]:
    """As ``hits_in_model``, for a vector of the one model among those of the other, which has another vocabulary."""
    query, model = both.left.moved(vector.astype(np.float64)[None])[0], both.right.model
    first = model.first(kind)
    hits: list[Hit] = []
    for span in _spans(model, kind, layer):
        scores = both.right.similarities(kind, query, span)
        strength = np.max([sign * scores for sign in signs_of(side)], axis=0)
        best = np.lexsort((np.arange(len(scores)), -strength))[:k]
        hits += [(float(scores[row]), first + span[0] + int(row)) for row in best]
    return strongest_hits(hits, k, side)


def _spans(model: Model, kind: str, layer: int | None) -> list[tuple[int, int]]:
    """The rows of a kind's index that a layer has, in every stack; all rows where no layer is asked for."""
    if layer is None:
        return [(0, model.layout.blocks[kind].n_rows)]
    return list(model.layout.places(kind, layer).values())


def _indicator(atlas: Atlas, model: Model, ids: list[int]) -> Array:
    """R^-T Ec^T v / ||v_c|| for the indicator v of tokens ``ids``: its inner product with normalized coordinates is
    the Pearson correlation with v. ||v_c||^2 = m (1 - m / V) for m tokens.
    """
    space = atlas.vectors.space(model.name)
    m, V = len(ids), model.vocabulary_size
    total = (space.rows(ids) - space.means).sum(axis=0)
    norm = (m * (1 - m / V)) ** 0.5
    root = space.root
    return times_vector(root.root, total) / (root.values * norm) if norm else np.zeros(root.rank)


def tokens_of(atlas: Atlas, param_ids: list[int], sieve: Sieve) -> Described:
    """Parameters with their strongest tokens that pass the sieve."""
    return _passing(atlas, _read(atlas, param_ids, sieve), sieve)


def listed(
    atlas: Atlas,
    hits: list[Hit],
    title: str | None,
    notes: Sequence[str],
    filter: TokenFilter | None = None,
    of: int | None = None,
) -> Result:
    """Parameters in order of similarity, each with its strongest tokens that pass the filter; the title has those of
    the parameter ``of`` too.
    """
    sieve = Sieve(atlas.database, filter)
    ids = [param_id for _, param_id in hits]
    found = _read(atlas, ids if of is None else [*ids, of], sieve)
    tokens = _passing(atlas, {i: found[i] for i in ids}, sieve)
    if of is not None:
        _, top, _ = _passing(atlas, {of: found[of]}, Sieve(atlas.database, filter))[of]
        title = f"{title}: {', '.join(map(visible, top))}"
    rows = [
        {"rank": n, "similarity": similarity, "address": tokens[i][0], "top": tokens[i][1], "bottom": tokens[i][2]}
        for n, (similarity, i) in enumerate(hits, start=1)
    ]
    schema = pa.schema(
        [
            ("rank", pa.int32()),
            ("similarity", pa.float32()),
            ("address", pa.string()),
            ("top", pa.list_(pa.string())),
            ("bottom", pa.list_(pa.string())),
        ]
    )
    return Result(table_of(rows, schema), title, [*notes, *sieve.notes()])


def listed_by_words(
    atlas: Atlas, hits: list[WordHit], notes: Sequence[str], filter: TokenFilter | None = None
) -> Result:
    """As ``listed``, with the z of the words; how many words a model has is printed where that differs."""
    found = listed(atlas, [(hit.similarity, hit.param_id) for hit in hits], None, notes, filter)
    words, z = pa.array([hit.words for hit in hits], pa.int32()), pa.array([hit.z for hit in hits], pa.float32())
    table = found.table.add_column(1, "words", words).add_column(2, "z", z)
    return replace(found, table=table, shown=table.drop_columns("words") if len(words.unique()) < 2 else None)


def _read(atlas: Atlas, param_ids: list[int], sieve: Sieve) -> dict[int, Strongest]:
    return Postings(atlas.database).parameters(param_ids, ALL if sieve else _SHOWN_TOKENS)


def _passing(atlas: Atlas, found: dict[int, Strongest], sieve: Sieve) -> Described:
    owners, postings = {i: atlas.owner(i) for i in found}, Postings(atlas.database)
    chosen = {
        (i, side): [ids[place] for place in sieve.tokens(owners[i], ids, _SHOWN_TOKENS)]
        for i, one in found.items()
        for side, ids in one.tokens.items()
    }
    texts = postings.texts((owners[i].vocabulary, each) for (i, _), ids in chosen.items() for each in ids)
    sides = {(i, side): [texts[owners[i].vocabulary, each] for each in ids] for (i, side), ids in chosen.items()}
    return {i: (one.address, sides[i, "top"], sides[i, "bottom"]) for i, one in found.items()}
