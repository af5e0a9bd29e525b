"""``search``: the parameters nearest to a set of words, over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from paramdex.result import Result
from paramdex.store.nearest import signs_of
from paramdex.store.scope import Scope
from paramdex.store.store import Store
from paramdex.store.token_filter import TokenFilter
from paramdex.store.words import Wanted
from paramdex.verbs.hits import hits_in_model, listed
from paramdex_schemas.isometry import Array, times_vector
from paramdex_schemas.model import Model


class WordHit(NamedTuple):
    """A parameter near to words. ``z`` is the mean z of their tokens among its scores, ``words`` the number of words
    that its model's vocabulary has.
    """

    similarity: float
    param_id: int
    z: float
    words: int


def search(
    store: Store, words: str | Iterable[str], k: int, scope: Scope, side: str, filter: TokenFilter | None
) -> Result:
    """See ``Atlas.search``."""
    hits, notes = search_hits(store, words, k, scope, side)
    found = listed(store, [(hit.similarity, hit.param_id) for hit in hits], None, notes, filter)
    n_words, z = pa.array([hit.words for hit in hits], pa.int32()), pa.array([hit.z for hit in hits], pa.float32())
    table = found.table.add_column(1, "words", n_words).add_column(2, "z", z)
    return replace(found, table=table, shown=table.drop_columns("words") if len(n_words.unique()) < 2 else None)


def search_hits(
    store: Store, words: str | Iterable[str], k: int, scope: Scope, side: str
) -> tuple[list[WordHit], list[str]]:
    """What ``search`` finds, and its notes."""
    wanted, notes = store.resolve(scope, words)
    if len({item.known for item in wanted}) > 1:
        notes = [*notes, "parameters of models that have more of the words come first"]
    return hits_of_words(store, wanted, k, scope, side), notes


def hits_of_words(store: Store, wanted: list[Wanted], k: int, scope: Scope, side: str) -> list[WordHit]:
    """The k parameters nearest to the wanted items. Models that have the most words come first, then the largest z;
    equal ones are in order of param_id.

    Let s be a parameter's V scores, of mean a and standard deviation b, and v the indicator of m tokens, whose mean z
    is z. Then <s - a, v - m / V> is the tokens' sum of s - a, m z b; |s - a| is b sqrt(V), |v - m / V|^2 is
    m (1 - m / V). So the correlation is

        r = m z b / (b sqrt(V) sqrt(m (V - m) / V)) = z sqrt(m / (V - m)):

    within one vocabulary z is r times a constant, so the k largest r are the k largest z. Between vocabularies the same
    z has a larger r where there are fewer tokens. (Scores that do not vary have no z: their r is 0, and so is the z
    that is given.)
    """
    hits: list[WordHit] = []
    for item in wanted:
        ids = sorted(set(item.ids))
        for model in scope.of(item.vocabulary):
            query = partial(_indicator, store, model, ids)
            scale = (model.vocabulary_size / len(ids) - 1) ** 0.5
            found = hits_in_model(store, model, query, k, scope, side)
            hits += [WordHit(r, param_id, r * scale, item.known) for r, param_id in found]
    signs = signs_of(side)
    return sorted(hits, key=lambda hit: (-hit.words, -max(sign * hit.z for sign in signs), hit.param_id))[:k]


def _indicator(store: Store, model: Model, ids: list[int], space: str) -> Array:
    """R^-T Xc^T v / ||v_c|| for the indicator v of tokens ``ids`` and a space X: its inner product with normalized
    coordinates there is the Pearson correlation with v. ||v_c||^2 = m (1 - m / V) for m tokens.
    """
    X = store.vectors.space(model.name, space)
    m, V = len(ids), model.vocabulary_size
    total = (X.rows(ids) - X.means).sum(axis=0)
    norm = (m * (1 - m / V)) ** 0.5
    return times_vector(X.root.root, total) / (X.root.values * norm) if norm else np.zeros(X.root.rank)
