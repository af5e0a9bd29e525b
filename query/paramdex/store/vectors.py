"""The vectors of an atlas: vector files, spaces, and what takes the coordinates of one space to those of another.

Files are read when they are first needed, checked against their recorded SHA-256, and kept in memory. The rows of a
kind that has codes stay on the disk and are checked one by one when they are read; only ``check_all`` reads them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from paramdex.store import entries
from paramdex.store.nearest import Coded, Loaded, Rows, exact_products
from paramdex.store.spaces import SharedSpaces, Space, transfer_of
from paramdex_schemas import AtlasError, QueryError, atlas_files, isometry, vector_files
from paramdex_schemas.contents import Contents
from paramdex_schemas.isometry import Array
from paramdex_schemas.layout import Place
from paramdex_schemas.model import Model, Span

_BLOCK = 4096
"""Rows that are taken to another space at a time."""
GROUP = "paramdex.vectors"
"""The group of the entry points by which other packages bring openers, each named by its ending; see ``OPENERS``."""
_BROUGHT = "vector store"


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise QueryError(
            "vector search needs faiss; install it with: pip install 'paramdex[cpu]' (or 'paramdex[gpu]')"
        ) from error
    return faiss


@dataclass(frozen=True)
class Piece:
    """Vectors of a kind that are scored in one space, rows [start, end) of the kind. ``rows`` has their coordinates in
    the space, from row ``at`` on.
    """

    space: str
    rows: Rows
    start: int
    end: int
    at: int

    @property
    def span(self) -> Span:
        """Where they are in ``rows``."""
        return self.at, self.at + self.end - self.start

    def stored(self) -> Array:
        """Their normalized coordinates (n x r, float32)."""
        return self.rows.reconstruct_n(self.at, self.end - self.start)


@dataclass
class Vectors:
    """All vectors of an atlas, which lie in files of their own."""

    contents: Contents
    _indexes: dict[tuple[str, str], Rows] = field(default_factory=dict)
    _spaces: dict[tuple[str, str | None], Space] = field(default_factory=dict)
    _shared: dict[tuple[str, str], SharedSpaces] = field(default_factory=dict)
    _moves: dict[tuple[str, str, str, str], tuple[Array, Array]] = field(default_factory=dict)
    _transfers: dict[tuple[str, str, str, str], Array] = field(default_factory=dict)
    _rotations: list[Array] = field(default_factory=list)
    head_coordinates: dict[tuple[str, str, Place, str | None], Array] = field(default_factory=dict)
    """(model, kind, place, as in ``head_norms``) -> the coordinates of its vectors (n x r, float64), kept for some."""
    head_norms: dict[tuple[str, str, str | None], Array] = field(default_factory=dict)
    """(model, matrix, the model that it is compared with, or None for one of its own vocabulary) -> the norms of its
    heads' matrices, kept when they were needed once.
    """

    def _lists(self, model: str, name: str) -> bool:
        return name in self.contents.manifests[model].files

    def file(self, model: str, name: str, *, whole: bool = True) -> Path:
        """The path of a model's file, once its size and, with ``whole``, its SHA-256 are what was recorded.

        Raises AtlasError where they differ, or where the atlas lists no such file.
        """
        return self._checked(self.contents.folder(model), name, self.contents.manifests[model].files, whole=whole)

    @property
    def atlas(self) -> Path:
        return self.contents.atlas

    def _checked(self, folder: Path, name: str, files: Mapping[str, tuple[int, str]], *, whole: bool) -> Path:
        path = (folder / name).as_posix()
        if name not in files:
            raise AtlasError(f"{self.atlas} is damaged: it does not list {path}; copy it again or rebuild it")
        n_bytes, digest = files[name]
        return atlas_files.check(self.atlas, path, n_bytes, digest if whole else None)

    def _of_relation(self, a: Model, b: Model) -> Path | None:
        """The file of the transfers of two related models; None where they are not related. Raises AtlasError."""
        folder, about = self.contents.relation(a.name, b.name), self.contents.about(a.name, b.name)
        if folder is None or about is None:
            return None
        return self._checked(folder, atlas_files.TRANSFER, about.files, whole=True)

    def _other(self, model: str, space: str | None) -> str | None:
        """The name of a space as a model's files have it, which is none for that of its own embedding."""
        return None if space == self.contents.models[model].embedding else space

    def index(self, model: str, kind: str, space: str | None = None) -> Rows:
        """The normalized coordinates of the vectors of one kind by the model's own embedding: row i is the i-th
        parameter of that kind. With another ``space`` those of the vectors that it scores, in order; see ``pieces``.

        What opens them is chosen by the files that the kind has: from ``OPENERS``, or else from what other packages
        bring. Raises QueryError where that cannot be loaded.
        """
        stem = vector_files.stem(kind, self._other(model, space))
        if (model, stem) not in self._indexes:
            having = (opener for suffix, opener in reversed(OPENERS.items()) if self._lists(model, f"{stem}{suffix}"))
            opener = next(having, None) or self._opener_of_others(model, stem) or open_loaded
            self._indexes[model, stem] = opener(self, model, stem)
        return self._indexes[model, stem]

    def pieces(self, model: Model, kind: str, span: Span | None = None) -> Iterator[Piece]:
        """The vectors of a kind, or those of a span of its rows, by the space that scores them, in order."""
        first, last = (0, model.layout.blocks[kind].n_rows) if span is None else span
        for part in model.layout.parts(kind):
            start, end = max(first, part.start), min(last, part.end)
            if start < end:
                begin = part.start if self._other(model.name, part.space) is None else part.offset
                rows = self.index(model.name, kind, part.space)
                yield Piece(part.space, rows, start, end, begin + start - part.start)

    def _opener_of_others(self, model: str, stem: str) -> Opener | None:
        """What another package brings for a file that the kind has; None where no package does."""
        for suffix in entries.installed(GROUP, _BROUGHT):
            if not self._lists(model, f"{stem}{suffix}"):
                continue
            found = entries.load(GROUP, _BROUGHT, suffix)
            if found is not None:
                if not callable(found[0]):
                    raise entries.unusable(_BROUGHT, suffix, found[1], found[0], "a function")
                opener: Opener = found[0]
                return opener
        return None

    def rotation(self, stored: Array) -> Array:
        """A rotation in float64. Kinds of the same width share it, because the builder draws it from one seed."""
        for known in self._rotations:
            if np.array_equal(known, stored):
                return known
        self._rotations.append(stored.astype(np.float64))
        return self._rotations[-1]

    def space(self, model: str, space: str | None = None) -> Space:
        """A space of a model; None is its own embedding's."""
        name = self._other(model, space)
        if (model, name) not in self._spaces:
            self._spaces[model, name] = Space(self.file(model, atlas_files.space(name)))
        return self._spaces[model, name]

    def rows(self, model: str, kind: str, space: str | None = None) -> Array:
        """All normalized coordinates of one kind (n x r, float32); see ``index``."""
        index = self.index(model, kind, space)
        return index.reconstruct_n(0, index.ntotal)

    def transfer(self, a: Model, space_a: str, b: Model, space_b: str) -> Array:
        """T (r_b x r_a) from coordinates in a space of a into those in a space of b, a model of the same vocabulary or
        the same one. Of models that are not related it is made here, from the rows of both spaces.
        """
        if (a.name, space_a) == (b.name, space_b):
            return np.eye(self.space(a.name, space_a).root.rank)
        if self._is_later(a, space_a, b, space_b):
            return self.transfer(b, space_b, a, space_a).T
        key = a.name, space_a, b.name, space_b
        if key not in self._transfers:
            path = self.file(b.name, atlas_files.TRANSFER) if a.name == b.name else self._of_relation(a, b)
            if path is None:
                made = transfer_of(self.space(a.name, space_a), self.space(b.name, space_b))
                return self._transfers.setdefault(key, made)
            with safe_open(path, framework="np") as file:
                self._transfers[key] = file.get_tensor(atlas_files.transfer(space_a, space_b))
        return self._transfers[key]

    def _is_later(self, a: Model, space_a: str, b: Model, space_b: str) -> bool:
        """Whether the transfer of two spaces is kept from b's to a's."""
        if a.name == b.name:
            return a.spaces.index(space_a) > b.spaces.index(space_b)
        if self.contents.relation(a.name, b.name) is None:
            return a.model_id > b.model_id
        return not self.contents.is_first(a.name, b.name)

    def moved(self, coordinates: Array, a: Model, space_a: str, b: Model, space_b: str) -> Array:
        """Coordinates (r_a) in a space of a, taken into a space of b (r_b, float64); see ``transfer``."""
        if (a.name, space_a) == (b.name, space_b):
            return coordinates.astype(np.float64)
        return isometry.times_vector(self.transfer(a, space_a, b, space_b), coordinates)

    def shared(self, a: Model, b: Model, ids: Callable[[Model, Model], tuple[list[int], list[int]]]) -> SharedSpaces:
        """The spaces of two models of different vocabularies on the tokens that both have. ``ids`` gives those in each;
        where the models are related, it is not asked.
        """
        about = self.contents.about(a.name, b.name)
        first_is_b = a.model_id > b.model_id if about is None else not self.contents.is_first(a.name, b.name)
        first, second = (b, a) if first_is_b else (a, b)
        if (first.name, second.name) not in self._shared:
            stored = self._of_relation(first, second)
            known = dict(zip((first.name, second.name), ([], []) if stored else ids(first, second), strict=True))
            rows = lambda model, space: self.space(model, space).rows(known[model])  # noqa: E731
            n_tokens = len(known[first.name]) if about is None else about.n_tokens
            self._shared.setdefault((first.name, second.name), SharedSpaces(first.name, n_tokens, rows, stored))
        return self._shared[first.name, second.name]

    def shared_similarities(
        self, model: str, kind: str, piece: Piece, root: isometry.Root, other: str, query: Array
    ) -> Array:
        """The similarities (float32) of a piece of a kind with ``query``, on the tokens shared with ``other``, where
        the piece's space has the ``root``.

        The similarity of M x and q is <x, M^T q> / |M x|, so only the norms are kept, and a query moves no row.
        """
        move, norms = self._shared_move(model, kind, piece.space, root, other)
        products = exact_products(piece.rows, move.T @ query, np.arange(*piece.span))
        norms = norms[slice(*piece.span)]
        some = norms > isometry.RESTRICTED_TO_NOTHING
        return np.divide(products, norms, out=np.zeros_like(products), where=some).astype(np.float32)

    def _shared_move(self, model: str, kind: str, space: str, root: isometry.Root, other: str) -> tuple[Array, Array]:
        """M (shared rank x r), which takes rows to the coordinates of ``root``, and |M x| of every row (n, float64)."""
        key = model, kind, space, other
        if key not in self._moves:
            move, index = isometry.restriction(root, self.space(model, space).root), self.index(model, kind, space)
            parts = [
                np.linalg.norm(index.reconstruct_n(start, min(_BLOCK, index.ntotal - start)) @ move.T, axis=1)
                for start in range(0, index.ntotal, _BLOCK)
            ]
            self._moves[key] = move, np.concatenate([np.empty(0), *parts])
        return self._moves[key]


Opener = Callable[[Vectors, str, str], Rows]
"""Opens vectors of a kind of a model: called with the vectors of the atlas, the model, and what the names of the files
begin with, KIND or KIND.SPACE.
"""


def open_loaded(vectors: Vectors, model: str, stem: str) -> Rows:
    """All rows of a file, read into memory."""
    _faiss()  # not used here; but whether it must be installed should not depend on the size of a model
    return Loaded(vector_files.load_rows(vectors.file(model, vector_files.index_name(stem))))


def open_coded(vectors: Vectors, model: str, stem: str) -> Rows:
    """Codes, mapped, and the rows that they stand for, left on the disk."""
    faiss = _faiss()
    path = vectors.file(model, vector_files.index_name(stem), whole=False)
    mapped = getattr(faiss, "IO_FLAG_MMAP_IFC", 0)  # FAISS before 1.11 reads the file
    with safe_open(vectors.file(model, vector_files.scale_name(stem)), framework="np") as file:
        scale = {tensor: file.get_tensor(tensor) for tensor in file.keys()}  # noqa: SIM118  # no mapping
    scale["rotation"] = vectors.rotation(scale["rotation"])
    index = faiss.read_index(str(vectors.file(model, vector_files.codes_name(stem))), mapped)
    damaged = atlas_files.damaged(vectors.atlas, path.relative_to(vectors.atlas).as_posix())
    return Coded(vector_files.open_rows(path), index, scale, damaged)


OPENERS: dict[str, Opener] = {".faiss": open_loaded, ".codes.faiss": open_coded}
"""Ending of a file's name after its kind and space -> what opens the vectors that have such a file. Where several fit,
the last one counts.

A package of your own brings one in its pyproject.toml, and it opens all vectors that have a KIND.npy or KIND.SPACE.npy
and none of these:

    [project.entry-points."paramdex.vectors"]
    ".npy" = "their_package.vectors:open_npy"

``OPENERS[".npy"] = open_npy`` does the same in one process. The explorer answers from several.
"""
