"""The vectors of an atlas: vector files, embedding spaces, and what takes one model's coordinates to another's.

Files are read when they are first needed, checked against their recorded SHA-256, and kept in memory. The rows of a
kind that has codes stay on the disk and are checked one by one when they are read; only ``check_all`` reads them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from paramdex.store import entries
from paramdex.store.nearest import Coded, Loaded, Rows, exact_products
from paramdex_schemas import AtlasError, QueryError, atlas_files, isometry, vector_files
from paramdex_schemas.isometry import Array
from paramdex_schemas.layout import Place
from paramdex_schemas.model import Model

_BLOCK = 4096
"""Rows that are taken to another space at a time."""
_BLOCK_NUMBERS = 1 << 20
"""Numbers of E that are converted to float64 at a time."""
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


@dataclass
class Space:
    """One model's embedding space, from its space.safetensors."""

    path: Path

    @cached_property
    def _file(self) -> Any:
        return safe_open(self.path, framework="np")

    @cached_property
    def root(self) -> isometry.Root:
        return isometry.Root(self._file.get_tensor("root"))

    def rows(self, ids: Array | list[int]) -> Array:
        """Rows of E (len(ids) x d), float64."""
        if not 0 < len(ids) <= 1000:
            found: Array = self._file.get_tensor("embedding")[np.asarray(ids, np.int64)].astype(np.float64)
            return found
        view = self._file.get_slice("embedding")
        return np.concatenate([view[int(i) : int(i) + 1] for i in ids]).astype(np.float64)

    def blocks(self) -> Iterator[Array]:
        """All rows of E (float64), in order, a block at a time."""
        view = self._file.get_slice("embedding")
        n_rows, width = view.get_shape()
        step = max(1, _BLOCK_NUMBERS // width)
        for start in range(0, n_rows, step):
            yield view[start : min(start + step, n_rows)].astype(np.float64)

    @cached_property
    def means(self) -> Array:
        found: Array = self._file.get_tensor("means")
        return found


@dataclass
class SharedSpace:
    """Two models' embedding spaces on the tokens whose text both have: the usual formulas on those rows only."""

    roots: tuple[isometry.Root, isometry.Root]
    transfer: Array
    n_tokens: int

    @classmethod
    def of(cls, a: Array, b: Array) -> SharedSpace:
        """Made of the rows of both embeddings for the S shared tokens (S x d_a, S x d_b, float64)."""
        a, b = a - a.mean(axis=0), b - b.mean(axis=0)
        roots = (isometry.gram_root(a.T @ a, len(a)), isometry.gram_root(b.T @ b, len(b)))
        return cls(roots, isometry.transfer(b.T @ a, *roots), len(a))


@dataclass
class Vectors:
    """All vectors of an atlas folder. ``files`` maps a path to its recorded size and SHA-256."""

    atlas: Path
    files: dict[str, tuple[int, str]]
    _indexes: dict[tuple[str, str], Rows] = field(default_factory=dict)
    _spaces: dict[str, Space] = field(default_factory=dict)
    _shared: dict[tuple[str, str], SharedSpace] = field(default_factory=dict)
    _moves: dict[tuple[str, str, str], tuple[Array, Array]] = field(default_factory=dict)
    _transfers: dict[tuple[str, str], Array] = field(default_factory=dict)
    _rotations: list[Array] = field(default_factory=list)
    head_coordinates: dict[tuple[str, str, Place, str | None], Array] = field(default_factory=dict)
    """(model, kind, place, as in ``head_norms``) -> the coordinates of its vectors (n x r, float64), kept for some."""
    head_norms: dict[tuple[str, str, str | None], Array] = field(default_factory=dict)
    """(model, matrix, the model that it is compared with, or None for one of its own vocabulary) -> the norms of its
    heads' matrices, kept when they were needed once.
    """

    def _lists(self, model: str, name: str) -> bool:
        return (atlas_files.model_folder(Path(), model) / name).as_posix() in self.files

    def file(self, model: str, name: str, *, whole: bool = True) -> Path:
        """The path of a model's file, once its size and, with ``whole``, its SHA-256 are what was recorded.

        Raises AtlasError where they differ, or where the atlas lists no such file.
        """
        path = atlas_files.model_folder(Path(), model) / name
        if not self._lists(model, name):
            raise AtlasError(
                f"{self.atlas} is damaged: it does not list {path.as_posix()}; copy it again or rebuild it"
            )
        n_bytes, digest = self.files[path.as_posix()]
        return atlas_files.check(self.atlas, path.as_posix(), n_bytes, digest if whole else None)

    def check_all(self) -> int:
        """Check every file, and return how many there are. Raises AtlasError for the first that differs."""
        for path, recorded in self.files.items():
            atlas_files.check(self.atlas, path, *recorded)
        return len(self.files)

    def index(self, model: str, kind: str) -> Rows:
        """The normalized coordinates of the vectors of one kind: row i is the i-th parameter of that kind.

        What opens them is chosen by the files that the kind has: from ``OPENERS``, or else from what other packages
        bring. Raises QueryError where that cannot be loaded.
        """
        if (model, kind) not in self._indexes:
            having = (opener for suffix, opener in reversed(OPENERS.items()) if self._lists(model, f"{kind}{suffix}"))
            opener = next(having, None) or self._opener_of_others(model, kind) or open_loaded
            self._indexes[model, kind] = opener(self, model, kind)
        return self._indexes[model, kind]

    def _opener_of_others(self, model: str, kind: str) -> Opener | None:
        """What another package brings for a file that the kind has; None where no package does."""
        for suffix in entries.installed(GROUP, _BROUGHT):
            if not self._lists(model, f"{kind}{suffix}"):
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

    def space(self, model: str) -> Space:
        if model not in self._spaces:
            self._spaces[model] = Space(self.file(model, atlas_files.SPACE))
        return self._spaces[model]

    def rows(self, model: str, kind: str) -> Array:
        """All normalized coordinates of one kind (n x r, float32)."""
        index = self.index(model, kind)
        return index.reconstruct_n(0, index.ntotal)

    def transfer(self, a: Model, b: Model) -> Array:
        """T (r_b x r_a) from a's coordinates into b's, for two models of one vocabulary."""
        if a.name == b.name:
            return np.eye(self.space(a.name).root.rank)
        later, earlier = (b, a) if b.model_id > a.model_id else (a, b)
        if (later.name, earlier.name) not in self._transfers:
            with safe_open(self.file(later.name, atlas_files.TRANSFER), framework="np") as file:
                self._transfers[later.name, earlier.name] = file.get_tensor(earlier.name)
        T = self._transfers[later.name, earlier.name]
        return T if later is b else T.T

    def shared(
        self, a: Model, b: Model, ids: Callable[[], tuple[list[int], list[int]]], n_stored: int | None = None
    ) -> SharedSpace:
        """The shared space of two models of different vocabularies, of which ``a`` was built first. ``ids`` gives the
        shared tokens in each. If the builder has related them, on ``n_stored`` tokens, it is read from a file of ``b``.
        """
        if (a.name, b.name) not in self._shared:
            if n_stored is not None:
                space = self._stored_shared(a, b, n_stored)
            else:
                left, right = ids()
                space = SharedSpace.of(self.space(a.name).rows(left), self.space(b.name).rows(right))
            self._shared[a.name, b.name] = space
        return self._shared[a.name, b.name]

    def _stored_shared(self, a: Model, b: Model, n_tokens: int) -> SharedSpace:
        with safe_open(self.file(b.name, atlas_files.shared_space(a.name)), framework="np") as file:
            roots = (isometry.Root(file.get_tensor("earlier")), isometry.Root(file.get_tensor("later")))
            return SharedSpace(roots, file.get_tensor("transfer"), n_tokens)

    def shared_similarities(
        self, model: str, kind: str, root: isometry.Root, other: str, query: Array, span: tuple[int, int]
    ) -> Array:
        """The similarities (float32) of the rows of a span with ``query``, on the tokens shared with ``other``.

        The similarity of M x and q is <x, M^T q> / |M x|, so only the norms are kept, and a query moves no row.
        """
        move, norms = self._shared_move(model, kind, root, other)
        products = exact_products(self.index(model, kind), move.T @ query, np.arange(*span))
        norms = norms[slice(*span)]
        some = norms > isometry.RESTRICTED_TO_NOTHING
        return np.divide(products, norms, out=np.zeros_like(products), where=some).astype(np.float32)

    def _shared_move(self, model: str, kind: str, root: isometry.Root, other: str) -> tuple[Array, Array]:
        """M (shared rank x r), which takes rows to the coordinates of ``root``, and |M x| of every row (n, float64)."""
        if (model, kind, other) not in self._moves:
            move, index = isometry.restriction(root, self.space(model).root), self.index(model, kind)
            parts = [
                np.linalg.norm(index.reconstruct_n(start, min(_BLOCK, index.ntotal - start)) @ move.T, axis=1)
                for start in range(0, index.ntotal, _BLOCK)
            ]
            self._moves[model, kind, other] = move, np.concatenate([np.empty(0), *parts])
        return self._moves[model, kind, other]


Opener = Callable[[Vectors, str, str], Rows]
"""Opens the vectors of a kind of a model: called with the vectors of the atlas, the model and the kind."""


def open_loaded(vectors: Vectors, model: str, kind: str) -> Rows:
    """All rows of a kind, read into memory."""
    _faiss()  # not used here; but whether it must be installed should not depend on the size of a model
    return Loaded(vector_files.load_rows(vectors.file(model, vector_files.index_name(kind))))


def open_coded(vectors: Vectors, model: str, kind: str) -> Rows:
    """The codes of a kind, mapped, and its rows, left on the disk."""
    faiss = _faiss()
    path = vectors.file(model, vector_files.index_name(kind), whole=False)
    mapped = getattr(faiss, "IO_FLAG_MMAP_IFC", 0)  # FAISS before 1.11 reads the file
    with safe_open(vectors.file(model, vector_files.scale_name(kind)), framework="np") as file:
        scale = {tensor: file.get_tensor(tensor) for tensor in file.keys()}  # noqa: SIM118  # no mapping
    scale["rotation"] = vectors.rotation(scale["rotation"])
    index = faiss.read_index(str(vectors.file(model, vector_files.codes_name(kind))), mapped)
    damaged = atlas_files.damaged(vectors.atlas, path.relative_to(vectors.atlas).as_posix())
    return Coded(vector_files.open_rows(path), index, scale, damaged)


OPENERS: dict[str, Opener] = {".faiss": open_loaded, ".codes.faiss": open_coded}
"""Ending of a file's name after its kind -> what opens the vectors of a kind that has such a file. Where several fit,
the last one counts.

A package of your own brings one in its pyproject.toml, and it opens every kind that has a KIND.npy and none of these:

    [project.entry-points."paramdex.vectors"]
    ".npy" = "their_package.vectors:open_npy"

``OPENERS[".npy"] = open_npy`` does the same in one process. The explorer answers from several.
"""
