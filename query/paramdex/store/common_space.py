"""Two models in common coordinates, in which inner products are those of their V scores.

Models of one vocabulary meet in the second one's coordinates, models of two vocabularies on the tokens whose text both
have (see ``SharedSpace``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from paramdex.store.database import Database
from paramdex.store.related import related_on
from paramdex.store.store import Store
from paramdex.store.vectors import SharedSpace, Vectors
from paramdex_schemas import QueryError, atlas_files, isometry
from paramdex_schemas.isometry import Array
from paramdex_schemas.layout import Place
from paramdex_schemas.model import Model


@dataclass(frozen=True)
class Half:
    """One of two models. ``root`` is the root of its embedding restricted to the shared tokens (None: all its tokens).
    ``into`` takes coordinates under that root to the common ones (None: they are the same).
    """

    vectors: Vectors
    model: Model
    other: Model
    root: isometry.Root | None
    into: Array | None

    def stored(self, kind: str, span: tuple[int, int] | None = None) -> Array:
        """Rows of a kind as the atlas stores them (n x r, float32): normalized, in the model's own coordinates."""
        index = self.vectors.index(self.model.name, kind)
        start, end = span or (0, index.ntotal)
        return index.reconstruct_n(start, end - start)

    def own(self, rows: Array) -> Array:
        """Rows in the model's own coordinates, taken to those on the tokens that both have; not normalized."""
        if self.root is None:
            return rows
        return rows @ isometry.restriction(self.root, self.vectors.space(self.model.name).root).T

    def moved(self, rows: Array) -> Array:
        """Normalized rows in the model's own coordinates, taken to the common ones: their inner products with
        ``comparable`` rows of the other half are the Pearson correlations of the scores.
        """
        if self.root is not None:
            rows = isometry.normalize(self.own(rows), isometry.RESTRICTED_TO_NOTHING)
        return rows if self.into is None else rows @ self.into.T

    def comparable(self, kind: str, span: tuple[int, int] | None = None) -> Array:
        """Rows of a kind, or a span of them, in the common coordinates (n x r, float32); see ``moved``."""
        return self.moved(self.stored(kind, span)).astype(np.float32, copy=False)

    def similarities(self, kind: str, query: Array, span: tuple[int, int]) -> Array:
        """Pearson correlations (float32) of the rows of a span with ``query``, a moved vector of the other model."""
        if self.root is None:
            return self.stored(kind, span) @ query.astype(np.float32)
        return self.vectors.shared_similarities(self.model.name, kind, self.root, self.other.name, query, span)


@dataclass(frozen=True)
class Common:
    """Two models in common coordinates, those of ``right``, with notes for the reader."""

    left: Half
    right: Half
    notes: list[str]


def common(store: Store, a: Model, b: Model) -> Common:
    """Two models in common coordinates. Raises QueryError where they share too few tokens."""
    vectors = store.vectors
    if a.vocabulary == b.vocabulary:
        into = None if a is b else vectors.transfer(a, b)
        return Common(Half(vectors, a, b, None, into), Half(vectors, b, a, None, None), [])
    shared, flipped = _shared(store, a, b)
    root_a, root_b = reversed(shared.roots) if flipped else shared.roots
    into = shared.transfer.T if flipped else shared.transfer
    note = shared_note(a, b, shared.n_tokens)
    return Common(Half(vectors, a, b, root_a, into), Half(vectors, b, a, root_b, None), [note])


def place_vectors(
    store: Store, a: Model, b: Model, kind: str, at: tuple[Place, Place]
) -> tuple[Array, Array, list[str]]:
    """The vectors of a kind in a place of each of two models, in common coordinates: their inner products are the
    Pearson correlations. With them, notes for the reader. Raises QueryError where the models share too few tokens.
    """
    both = common(store, a, b)
    left, right = (
        half.comparable(kind, half.model.layout.places(kind)[place])
        for half, place in zip((both.left, both.right), at, strict=True)
    )
    return left, right, both.notes


def shared_note(a: Model, b: Model, n_tokens: int) -> str:
    """The note on two models of different vocabularies that are compared on ``n_tokens``."""
    shares = ", ".join(f"{n_tokens / model.vocabulary_size:.0%} of {model.name}'s" for model in (a, b))
    return f"{a.name} and {b.name} are compared on the {n_tokens:,} tokens whose text both have ({shares})"


def compared(
    store: Store,
    own: Model,
    models: Iterable[Model],
    notes: list[str],
    *,
    strict: bool,
    refuse: Callable[[Model], None] = lambda _: None,
) -> Iterator[Common]:
    """``own`` with each of ``models`` in common coordinates. Notes for the reader are added to ``notes``.

    A model that cannot be compared, or for which ``refuse`` raises QueryError, is left out with a note. If ``strict``,
    the error is raised instead.
    """
    for one in models:
        try:
            refuse(one)
            both = common(store, own, one)
        except QueryError as error:
            if strict:
                raise
            notes.append(f"left out: {error}")
            continue
        notes += both.notes
        yield both


def _shared(store: Store, a: Model, b: Model) -> tuple[SharedSpace, bool]:
    """The shared space of two models of different vocabularies, and whether its first model is ``b``."""
    first, second = sorted((a, b), key=lambda model: model.model_id)
    tokens = lambda: shared_tokens(store.database, first, second)  # noqa: E731
    return store.vectors.shared(first, second, tokens, related_on(store.database, first, second)), first is b


def shared_tokens(database: Database, a: Model, b: Model) -> tuple[list[int], list[int]]:
    """The ids of the tokens whose text both models have, in each of them. Raises QueryError if there are too few."""
    found = database.table(atlas_files.shared_tokens(), {"a": a.vocabulary, "b": b.vocabulary})
    if len(found) < 2:
        raise QueryError(f"{a.name} and {b.name} share {len(found)} tokens: too few to compare them on")
    return found["token_a"].to_pylist(), found["token_b"].to_pylist()
