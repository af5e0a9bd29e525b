"""The ways between the coordinates of spaces, written to files: from one of the new model's spaces to another, and to
each from those of the models that it is related to.

Every pair of spaces has one, since any two vectors may be compared. There may be twelve and more, as large as a root
each, and the spaces of an earlier model are as large as those of the new one. So one is made at a time, and of what
lies in files only slices are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from paramdex_builder.files.tensors import Blocks, write_tensors
from paramdex_builder.project.space import Space, centred_gram, column_means, space_work
from paramdex_builder.relate.models import Related, Shared
from paramdex_builder.work.progress import Advance, Progress
from paramdex_schemas import atlas_files, isometry

_ROOT_ROWS = 1024
"""Rows of a root that are read at a time."""


@dataclass(frozen=True)
class _Stored:
    """A matrix of a file, which is mapped anew for every part that is read, so that no more of it stays in memory."""

    file: Path
    name: str

    @property
    def shape(self) -> tuple[int, int]:
        with safe_open(self.file, framework="pt") as file:
            rows, columns = file.get_slice(self.name).get_shape()
        return rows, columns

    def __getitem__(self, part: slice | torch.Tensor) -> torch.Tensor:
        with safe_open(self.file, framework="pt") as file:
            whole: torch.Tensor = file.get_tensor(self.name)
            return whole[part]


@dataclass(frozen=True)
class _Gathered:
    """Rows of a matrix by their ids (S), on a device, when they are asked for."""

    rows: torch.Tensor | _Stored
    ids: torch.Tensor
    device: torch.device

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> torch.Tensor:
        return self.rows[self.ids[part]].to(self.device)


@dataclass(frozen=True)
class _Basis:
    """What the ways from and to a space are made of: its rows X (V x d; what has slices of rows), the means of their
    columns (d), and the root of their centred Gram matrix (r x d; what has slices of rows).
    """

    rows: Any
    means: torch.Tensor
    root: np.ndarray | _Stored

    @classmethod
    def of(cls, space: Space) -> _Basis:
        return cls(space.embedding, space.means, space.root.root)

    @classmethod
    def stored(cls, file: Path, device: torch.device) -> _Basis:
        """Of the file of a space."""
        with safe_open(file, framework="pt") as opened:
            means = opened.get_tensor("means").to(device)
        return cls(_Stored(file, "embedding"), means, _Stored(file, "root"))

    @property
    def rank(self) -> int:
        return int(self.root.shape[0])


def write_transfers(others: list[Related], spaces: dict[str, Space], folder: Path, progress: Progress) -> None:
    """Write what takes coordinates of each space of the new model into those of each after it, and coordinates of every
    space of each other model into those of every space of the new one. ``spaces`` has the new model's by name.
    """
    new = {name: _Basis.of(space) for name, space in spaces.items()}
    device = next(iter(new.values())).means.device
    pairs = {atlas_files.transfer(a, b): (new[a], new[b]) for a, b in combinations(new, 2)}
    for other in others:
        if other.shared is None:
            for source in other.model.spaces:
                basis = _Basis.stored(other.space_file(source), device)
                pairs |= {atlas_files.transfer(source, into, other.name): (basis, new[into]) for into in new}
    if pairs:
        work = sum(len(into.rows) for _, into in pairs.values())
        with progress.step(f"{folder.name}: measuring how spaces lie to each other", work) as advance:
            tensors = {name: _block(source, into, advance) for name, (source, into) in pairs.items()}
            write_tensors(folder / atlas_files.TRANSFER, tensors)
    for other in others:
        if other.shared is not None:
            _write_shared(other, other.shared, spaces, folder, progress)


def _block(source: _Basis, into: _Basis, advance: Advance) -> Blocks:
    return Blocks((into.rank, source.rank), "float64", _transfer(source, into, advance))


def _transfer(source: _Basis, into: _Basis, advance: Advance) -> Iterator[np.ndarray]:
    """The one transfer matrix, made when asked for: half R^+ for the root R of the source, some rows at a time."""
    cross = centred_gram(into.rows, into.means, source.rows, source.means, advance)
    half = isometry.half_transfer(cross, isometry.Root(np.asarray(into.root[:])))
    del cross
    T = np.empty((into.rank, source.rank))
    for start in range(0, source.rank, _ROOT_ROWS):
        part = slice(start, start + _ROOT_ROWS)
        T[:, part] = half @ isometry.Root(np.asarray(source.root[part])).inverse
    del half
    yield T


def _write_shared(other: Related, shared: Shared, spaces: dict[str, Space], folder: Path, progress: Progress) -> None:
    """Write the roots of the spaces of both models on the shared tokens and the transfers between them. The roots wait
    in files, so that of matrices of the models' width no more are held than decomposing one takes.
    """
    device = next(iter(spaces.values())).means.device
    files = {name: other.space_file(name) for name in other.model.spaces}
    earlier = {name: _Gathered(_Stored(file, "embedding"), shared.earlier, device) for name, file in files.items()}
    later = {name: _Gathered(space.embedding, shared.new, device) for name, space in spaces.items()}
    widths = [*(other.width for _ in earlier), *(len(space.means) for space in spaces.values())]
    work = len(earlier) * len(later) * len(shared) + sum(space_work(len(shared), d) for d in widths)
    with (
        TemporaryDirectory(prefix="scratch-", dir=folder.parent) as scratch,
        progress.step(f"{folder.name} with {other.name}: measuring shared tokens", work) as advance,
    ):
        a = {name: _measured(rows, Path(scratch) / f"earlier.{name}", advance) for name, rows in earlier.items()}
        b = {name: _measured(rows, Path(scratch) / f"later.{name}", advance) for name, rows in later.items()}
        tensors = {
            f"{side}/{name}": Blocks((basis.rank, len(basis.means)), "float64", _in_parts(basis.root))
            for side, bases in (("earlier", a), ("later", b))
            for name, basis in bases.items()
        }
        tensors |= {atlas_files.transfer(*pair): _block(a[pair[0]], b[pair[1]], advance) for pair in product(a, b)}
        write_tensors(folder / atlas_files.shared_space(other.name), tensors)


def _measured(rows: _Gathered, file: Path, advance: Advance) -> _Basis:
    """The basis of some rows of a space; its root is written to ``file``."""
    means = column_means(rows)
    root = isometry.gram_root(centred_gram(rows, means, rows, means, advance), len(rows)).root
    write_tensors(file, {"root": Blocks(root.shape, "float64", [root])})
    advance(space_work(0, len(means)))
    return _Basis(rows, means, _Stored(file, "root"))


def _in_parts(matrix: np.ndarray | _Stored) -> Iterator[np.ndarray]:
    return (np.asarray(matrix[start : start + _ROOT_ROWS]) for start in range(0, matrix.shape[0], _ROOT_ROWS))
