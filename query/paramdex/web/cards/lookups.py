"""What the pages ask of an atlas beyond its verbs, and atlases for several threads."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from paramdex import Atlas
from paramdex.store.common_space import common
from paramdex.store.postings import Postings
from paramdex.web.cards.shapes import Named, Standing, Token
from paramdex_schemas import Address
from paramdex_schemas.isometry import Array
from paramdex_schemas.layout import Place
from paramdex_schemas.model import Model

Row = tuple[Any, ...]
SHOWN = 6
"""Tokens that describe a parameter in a list."""
MOST_COMPARED = 1_000_000
"""Entries of the small products, d_head x d_head for each head, that are made for one page: a tenth of a second."""


def short(value: float | None) -> float:
    """A float32 in its own shortest form; 0 for none.

    >>> short(0.2206999957561493)
    0.2207
    """
    return 0.0 if value is None else float(str(np.float32(value)))


def too_many_heads(model: Model) -> bool:
    """Whether a model has more heads than are compared with one while a reader waits."""
    runs = [model.layout.heads(place) for place in model.layout.attention_places]
    return sum(run.n_owners * run.size**2 for run in runs) > MOST_COMPARED


class Pool:
    """Forks of one atlas, lent to one thread at a time."""

    def __init__(self, atlas: Atlas, n: int) -> None:
        self.atlas = atlas
        self._free: queue.LifoQueue[Atlas] = queue.LifoQueue()
        for _ in range(n):
            self._free.put(atlas.fork())

    @contextmanager
    def lend(self) -> Iterator[Atlas]:
        atlas = self._free.get()
        try:
            yield atlas
        finally:
            self._free.put(atlas)


def rows(atlas: Atlas, sql: str, values: Any = None) -> list[Row]:
    return atlas.database.rows(sql, values)


class Items(dict[int, Token]):
    """token_id -> the item of a vocabulary, made when first asked for."""

    def __init__(self, atlas: Atlas, vocabulary: str) -> None:
        super().__init__()
        self._columns = [atlas.database.tokens(vocabulary, column) for column in ("token", "text")]

    def __missing__(self, token_id: int) -> Token:
        spelled, read = (column[token_id].as_py() for column in self._columns)
        self[token_id] = Token(token_id=token_id, token=spelled, text=read)
        return self[token_id]


def described(atlas: Atlas, param_ids: Iterable[int]) -> dict[int, Named]:
    """param_id -> the parameter with its strongest tokens."""
    asked = list(dict.fromkeys(param_ids))
    if not asked:
        return {}
    found = {}
    items: dict[str, Items] = {}
    for param_id, each in Postings(atlas.database).parameters(asked, SHOWN).items():
        where = Address.parse(each.address)
        v = atlas.models[where.model].vocabulary
        of = items.setdefault(v, Items(atlas, v))
        sides = {side: [of[i] for i in ids] for side, ids in each.tokens.items()}
        found[param_id] = Named(address=each.address, kind=str(where.kind), **sides)
    return found


def standing(values: Array, own: int) -> Standing:
    """Where one of some numbers stands among all of them."""
    return Standing(
        larger=int((values > values[own]).sum()),
        of=len(values),
        least=short(values.min()),
        most=short(values.max()),
        quartiles=[short(q) for q in np.quantile(values, [0.25, 0.5, 0.75])],
    )


def numbers(atlas: Atlas, model: Model, kind: str, ids: tuple[int, int], column: str = "norm") -> Array:
    """A column (float32) of the parameters of a kind from one param_id up to another; read once."""
    first, end = model.ids(kind)
    found = atlas.database.kept(
        f"SELECT {column} FROM store.parameters WHERE param_id BETWEEN ? AND ? ORDER BY param_id",
        first,
        end - 1,
    )
    return found[column].to_numpy()[ids[0] - first : ids[1] - first]


def place_vectors(
    atlas: Atlas, a: Model, b: Model, kind: str, at: tuple[Place, Place]
) -> tuple[Array, Array, list[str]]:
    """The vectors of a kind in a place of each of two models, in common coordinates: their inner products are the
    Pearson correlations. And what a reader has to know of the comparison.
    """
    both = common(atlas, a, b)
    left, right = (
        side.unit(kind, side.model.layout.places(kind)[place])
        for side, place in zip((both.left, both.right), at, strict=True)
    )
    return left, right, both.notes


def nearest_pairs(left: Array, right: Array, k: int, block: int = 1024) -> list[tuple[float, int, int]]:
    """(similarity, i, j) of the k largest inner products of rows of ``left`` and ``right``, a block at a time.

    >>> nearest_pairs(np.eye(2), np.array([[0.0, 1.0]]), 1)
    [(1.0, 1, 0)]
    """
    best: list[tuple[float, int, int]] = []
    for start in range(0, len(left), block):
        scores = left[start : start + block] @ right.T
        n = min(k, scores.size)
        flat = np.argpartition(scores, scores.size - n, axis=None)[-n:]
        i, j = np.unravel_index(flat, scores.shape)
        best += zip(scores[i, j].tolist(), (i + start).tolist(), j.tolist(), strict=True)
        best = sorted(best, key=lambda hit: (-hit[0], hit[1], hit[2]))[:k]
    return best
