"""Two models in common coordinates, in which inner products are those of their V scores.

The V scores of a vector that lies in a space X, less their mean and divided by their norm, are B c. B = Xc R^+ has
orthonormal columns, and c (r) are the vector's normalized coordinates. So the Pearson correlation of a vector c in the
space t of the left model with a vector d in the space s of the right one is

    <B_t c, B_s d> = <T c, d>    with the transfer T = B_s^T B_t.

Where the right model's vectors lie in one space, the left one's meet them in its coordinates. Where they lie in
several, s = 1, 2, ..., the common coordinates are those of all these spaces side by side:

    c becomes (T_1 c, T_2 c, ...),    d of the space s becomes (0, ..., d, ..., 0), with d in the place of s,

whose inner product is <T_s c, d> again: exact, whatever the spaces have in common. (Of two vectors of one side it is no
correlation.) Models of two vocabularies meet on the tokens whose text both have, by the same formulas on those rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from paramdex.store.database import Database
from paramdex.store.spaces import SharedSpaces
from paramdex.store.store import Store
from paramdex.store.vectors import Piece, Vectors
from paramdex_schemas import QueryError, isometry
from paramdex_schemas.isometry import Array
from paramdex_schemas.layout import Place
from paramdex_schemas.model import Model, Span


@dataclass(frozen=True)
class Half:
    """One of two models; ``shared`` are the spaces of both on the tokens that both have (None: that is all tokens)."""

    vectors: Vectors
    model: Model
    other: Model
    shared: SharedSpaces | None

    def root(self, space: str) -> isometry.Root:
        """The root of one of the model's spaces, on the tokens that both have."""
        if self.shared is None:
            return self.vectors.space(self.model.name, space).root
        return self.shared.root(self.model.name, space)

    def own(self, rows: Array, space: str) -> Array:
        """Rows of coordinates in one of the model's spaces, taken to those under ``root``; not normalized."""
        if self.shared is None:
            return rows
        return rows @ isometry.restriction(self.root(space), self.vectors.space(self.model.name, space).root).T

    def normalized(self, rows: Array, space: str) -> Array:
        """As ``own``, of normalized rows, normalized again."""
        if self.shared is None:
            return rows
        return isometry.normalize(self.own(rows, space), isometry.RESTRICTED_TO_NOTHING)

    def similarities(self, kind: str, piece: Piece, query: Array) -> Array:
        """Pearson correlations (float32) of a piece of a kind with a query in coordinates under the ``root`` of its
        space, where the models have different vocabularies.
        """
        root = self.root(piece.space)
        return self.vectors.shared_similarities(self.model.name, kind, piece, root, self.other.name, query)


@dataclass(frozen=True)
class Common:
    """Two models whose vectors are compared, with notes for the reader."""

    left: Half
    right: Half
    notes: list[str]

    def transfer(self, source: str, into: str) -> Array | None:
        """T, from coordinates in a space of the left model to those in a space of the right one, under their roots.
        None if they are the same.
        """
        a, b, shared = self.left.model, self.right.model, self.left.shared
        if shared is not None:
            return shared.transfer(a.name, source, b.name, into)
        return None if (a.name, source) == (b.name, into) else self.left.vectors.transfer(a, source, b, into)

    def moved(self, rows: Array, source: str, into: Sequence[str]) -> Array:
        """Normalized rows of the left model in its space ``source`` (n x r), taken to the coordinates of one space of
        the right model, or to those of several side by side; see the module.
        """
        rows = self.left.normalized(rows, source)
        found = [rows if T is None else rows @ T.T for T in (self.transfer(source, space) for space in into)]
        return found[0] if len(found) == 1 else np.concatenate(found, axis=1)

    def rows(
        self, kind: str, left: Sequence[Span | None] = (None,), right: Sequence[Span | None] = (None,)
    ) -> tuple[Array, Array]:
        """The vectors of a kind of both, or spans of their rows (n x r and m x r, float32), in common coordinates."""
        ours, theirs = (
            [piece for span in spans for piece in half.vectors.pieces(half.model, kind, span)]
            for half, spans in ((self.left, left), (self.right, right))
        )
        spaces = list(dict.fromkeys(piece.space for piece in theirs))
        return (
            _stacked([self.moved(piece.stored(), piece.space, spaces) for piece in ours]),
            _stacked([self._beside(piece, spaces) for piece in theirs]),
        )

    def _beside(self, piece: Piece, spaces: list[str]) -> Array:
        """A piece of the right model in the coordinates of ``spaces`` side by side: zero but for those of its own."""
        rows = self.right.normalized(piece.stored(), piece.space)
        if len(spaces) == 1:
            return rows
        ends = np.cumsum([self.right.root(space).rank for space in spaces])
        found = np.zeros((len(rows), ends[-1]), np.float32)
        end = ends[spaces.index(piece.space)]
        found[:, end - rows.shape[1] : end] = rows
        return found


def _stacked(pieces: list[Array]) -> Array:
    """Rows below each other, float32; one piece is not copied."""
    found = [piece.astype(np.float32, copy=False) for piece in pieces]
    return found[0] if len(found) == 1 else np.concatenate(found)


def common(store: Store, a: Model, b: Model) -> Common:
    """Two models in common coordinates. Raises QueryError where they share too few tokens."""
    shared = None if a.vocabulary == b.vocabulary else _shared(store, a, b)
    notes = [] if shared is None else [shared_note(a, b, shared.n_tokens)]
    return Common(Half(store.vectors, a, b, shared), Half(store.vectors, b, a, shared), notes)


def place_vectors(
    store: Store, a: Model, b: Model, kind: str, at: tuple[Place, Place]
) -> tuple[Array, Array, list[str]]:
    """The vectors of a kind in a place of each of two models, in common coordinates: their inner products are the
    Pearson correlations. With them, notes for the reader. Raises QueryError where the models share too few tokens.
    """
    both = common(store, a, b)
    spans = [model.layout.places(kind)[place] for model, place in zip((a, b), at, strict=True)]
    left, right = both.rows(kind, spans[:1], spans[1:])
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


def _shared(store: Store, a: Model, b: Model) -> SharedSpaces:
    """The spaces of two models of different vocabularies on the tokens that both have."""
    return store.vectors.shared(a, b, partial(shared_tokens, store.database))


def shared_tokens(database: Database, a: Model, b: Model) -> tuple[list[int], list[int]]:
    """The ids of the tokens whose text both models have, in each of them. Raises QueryError if there are too few."""
    found = database.shared_tokens(a, b)
    if len(found) < 2:
        raise QueryError(f"{a.name} and {b.name} share {len(found)} tokens: too few to compare them on")
    return found["token_a"].to_pylist(), found["token_b"].to_pylist()
