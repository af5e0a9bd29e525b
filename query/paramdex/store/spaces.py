"""The spaces of models, in which vectors have their V scores: each alone, and two models' on the tokens that both have.

A space is one matrix X with a row for every token: an embedding, or the states that enter or leave layer 0. A vector w
that is scored in it has the scores X w and the coordinates R w, where R is its root (see
``paramdex_schemas.isometry``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from paramdex_schemas import atlas_files, isometry
from paramdex_schemas.isometry import Array

_BLOCK_NUMBERS = 1 << 20
"""Numbers of X that are converted to float64 at a time."""


@dataclass
class Space:
    """One space of a model, from its file."""

    path: Path

    @cached_property
    def _file(self) -> Any:
        return safe_open(self.path, framework="np")

    @cached_property
    def root(self) -> isometry.Root:
        return isometry.Root(self._file.get_tensor("root"))

    def rows(self, ids: Array | list[int]) -> Array:
        """Rows of X (len(ids) x d), float64."""
        if not 0 < len(ids) <= 1000:
            found: Array = self._file.get_tensor("embedding")[np.asarray(ids, np.int64)].astype(np.float64)
            return found
        view = self._file.get_slice("embedding")
        return np.concatenate([view[int(i) : int(i) + 1] for i in ids]).astype(np.float64)

    @property
    def width(self) -> int:
        """d"""
        return int(self._file.get_slice("embedding").get_shape()[1])

    def blocks(self, step: int | None = None) -> Iterator[Array]:
        """All rows of X (float64), in order, a block of ``step`` at a time."""
        view = self._file.get_slice("embedding")
        n_rows, width = view.get_shape()
        step = step or max(1, _BLOCK_NUMBERS // width)
        for start in range(0, n_rows, step):
            yield view[start : min(start + step, n_rows)].astype(np.float64)

    @cached_property
    def means(self) -> Array:
        found: Array = self._file.get_tensor("means")
        return found


def transfer_of(a: Space, b: Space) -> Array:
    """T (r_b x r_a) from coordinates in one space into those in another, of the same tokens."""
    cross = np.zeros((b.width, a.width))
    for x, y in _together(a, b):
        cross += (y - b.means).T @ (x - a.means)
    found: Array = isometry.transfer(cross, a.root, b.root)
    return found


def _together(a: Space, b: Space) -> Iterator[tuple[Array, Array]]:
    """Blocks of the rows of two spaces, of the same tokens."""
    step = max(1, _BLOCK_NUMBERS // max(a.width, b.width))
    return zip(a.blocks(step), b.blocks(step), strict=True)


@dataclass
class SharedSpaces:
    """The spaces of two models on the tokens whose text both have: the usual formulas on those rows only.

    ``earlier`` is the name of the one that was in the atlas first, ``rows`` gives those of a model and its space
    (n_tokens x d, float64). Where the builder has related the two, ``stored`` is the file of the relation, and no rows
    are read.
    """

    earlier: str
    n_tokens: int
    rows: Callable[[str, str], Array]
    stored: Path | None = None
    _roots: dict[tuple[str, str], isometry.Root] = field(default_factory=dict)
    _transfers: dict[tuple[str, str], Array] = field(default_factory=dict)

    def root(self, model: str, space: str) -> isometry.Root:
        """The root of a space of one of the two models on the shared tokens."""
        if (model, space) not in self._roots:
            if self.stored is None:
                return self._root_of(model, space, self._centred(model, space))
            side = "a" if model == self.earlier else "b"
            self._roots[model, space] = isometry.Root(self._tensor(self.stored, atlas_files.shared_root(side, space)))
        return self._roots[model, space]

    def transfer(self, a: str, space_a: str, b: str, space_b: str) -> Array:
        """T (r_b x r_a) from coordinates under the one model's ``root`` into those under the other's."""
        if a != self.earlier:
            return self.transfer(b, space_b, a, space_a).T
        if (space_a, space_b) not in self._transfers:
            if self.stored is None:
                rows = self._centred(a, space_a), self._centred(b, space_b)
                roots = self._root_of(a, space_a, rows[0]), self._root_of(b, space_b, rows[1])
                found = isometry.transfer(rows[1].T @ rows[0], *roots)
            else:
                found = self._tensor(self.stored, atlas_files.transfer(space_a, space_b))
            self._transfers[space_a, space_b] = found
        return self._transfers[space_a, space_b]

    def _centred(self, model: str, space: str) -> Array:
        rows = self.rows(model, space)
        found: Array = rows - rows.mean(axis=0)
        return found

    def _root_of(self, model: str, space: str, centred: Array) -> isometry.Root:
        """The root of centred rows. Of several threads that come here all get the one that is kept: another one of the
        same rows may have other signs.
        """
        if (model, space) not in self._roots:
            return self._roots.setdefault((model, space), isometry.gram_root(centred.T @ centred, len(centred)))
        return self._roots[model, space]

    @staticmethod
    def _tensor(path: Path, name: str) -> Array:
        with safe_open(path, framework="np") as file:
            found: Array = file.get_tensor(name)
        return found
