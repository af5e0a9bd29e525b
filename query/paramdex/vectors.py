"""The vectors of an atlas: FAISS indexes, embedding spaces, and the way from one model's coordinates to another's.

Files are read when first asked for, checked against their recorded SHA-256, and kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open

from paramdex_schemas import AtlasError, QueryError, atlas_files, isometry
from paramdex_schemas.isometry import Array

if TYPE_CHECKING:
    from paramdex.atlas import Model


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
        return isometry.Root(self._file.get_tensor("root"), self._file.get_tensor("inverse"), 0.0)

    def rows(self, ids: Array | list[int]) -> Array:
        """Rows of E (len(ids) x d), float64."""
        if len(ids) > 1000:
            return self._file.get_tensor("embedding")[np.asarray(ids)].astype(np.float64)
        view = self._file.get_slice("embedding")
        return np.concatenate([view[int(i) : int(i) + 1] for i in ids]).astype(np.float64)

    @cached_property
    def means(self) -> Array:
        return self._file.get_tensor("means")


@dataclass
class SharedSpace:
    """Two models' embedding spaces on the tokens whose text both have: the same formulas on those rows alone."""

    roots: tuple[isometry.Root, isometry.Root]
    transfer: Array
    n_tokens: int

    @classmethod
    def of(cls, a: Array, b: Array) -> SharedSpace:
        """From the rows of both embeddings for the shared tokens (S x d_a, S x d_b, float64)."""
        a, b = a - a.mean(axis=0), b - b.mean(axis=0)
        roots = (isometry.gram_root(a.T @ a, len(a)), isometry.gram_root(b.T @ b, len(b)))
        return cls(roots, isometry.transfer(b.T @ a, *roots), len(a))


@dataclass
class Vectors:
    """All vectors of an atlas folder. ``files`` maps a path to its recorded size and SHA-256."""

    atlas: Path
    files: dict[str, tuple[int, str]]
    _indexes: dict[tuple[str, str], Any] = field(default_factory=dict)
    _spaces: dict[str, Space] = field(default_factory=dict)
    _shared: dict[tuple[str, str], SharedSpace] = field(default_factory=dict)
    _moved: dict[tuple[str, str, str], Array] = field(default_factory=dict)

    def _checked(self, model: str, name: str) -> Path:
        path = atlas_files.model_folder(Path(), model) / name
        if path.as_posix() not in self.files:
            raise AtlasError(
                f"{self.atlas} is damaged: it does not list {path.as_posix()}; copy it again or rebuild it"
            )
        return atlas_files.check(self.atlas, path.as_posix(), *self.files[path.as_posix()])

    def check_all(self) -> int:
        """Check every file; give how many there are. Raises AtlasError for the first that differs."""
        for path, recorded in self.files.items():
            atlas_files.check(self.atlas, path, *recorded)
        return len(self.files)

    def index(self, model: str, kind: str) -> Any:
        """The FAISS index of one kind: row i is the i-th parameter of that kind, normalized coordinates."""
        if (model, kind) not in self._indexes:
            path = self._checked(model, atlas_files.index_name(kind))
            self._indexes[model, kind] = _faiss().read_index(str(path))
        return self._indexes[model, kind]

    def space(self, model: str) -> Space:
        if model not in self._spaces:
            self._spaces[model] = Space(self._checked(model, atlas_files.SPACE))
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
        with safe_open(self._checked(later.name, atlas_files.TRANSFER), framework="np") as file:
            T = file.get_tensor(earlier.name)
        return T if later is b else T.T

    def shared(self, a: Model, b: Model, ids: Callable[[], tuple[list[int], list[int]]]) -> SharedSpace:
        """The shared space of two models of different vocabularies; ``ids`` gives the shared tokens in each."""
        if (a.name, b.name) not in self._shared:
            left, right = ids()
            rows = (self.space(a.name).rows(left), self.space(b.name).rows(right))
            self._shared[a.name, b.name] = SharedSpace.of(*rows)
        return self._shared[a.name, b.name]

    def shared_rows(self, model: str, kind: str, root: isometry.Root, cache: str | None) -> Array:
        """Normalized coordinates (n x r, float32) of all rows of a kind on the shared tokens, under ``root``.

        ``cache`` names what they are kept under; None keeps nothing.
        """
        key = (model, kind, cache or "")
        if cache is None or key not in self._moved:
            move = root.root @ self.space(model).root.inverse
            rows = isometry.normalize(self.rows(model, kind) @ move.T).astype(np.float32)
            if cache is None:
                return rows
            self._moved[key] = rows
        return self._moved[key]

    def nearest(
        self, model: str, kind: str, query: Array, k: int, span: tuple[int, int] | None = None
    ) -> list[tuple[float, int]]:
        """(similarity, row) of the k rows of a kind nearest to ``query`` (r), within rows ``span`` where given."""
        faiss = _faiss()
        index = self.index(model, kind)
        first, last = span or (0, index.ntotal)
        parameters = faiss.SearchParameters(sel=faiss.IDSelectorRange(first, last)) if span else None
        scores, rows = index.search(
            np.ascontiguousarray(query[None, :], np.float32), min(k, last - first), params=parameters
        )
        return sorted(zip(scores[0].tolist(), rows[0].tolist(), strict=True), key=lambda hit: (-hit[0], hit[1]))
