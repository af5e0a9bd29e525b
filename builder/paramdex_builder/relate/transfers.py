"""The ways between the coordinates of spaces, written to files: from one of a model's spaces to another, and from those
of one model to those of another that it is related to.

Every pair of spaces has one, since any two vectors may be compared. There may be twelve and more, as large as a root
each. So one is made at a time, and of what lies in files only slices are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
from paramdex_builder.relate.models import Pair
from paramdex_schemas import atlas_files, isometry
from paramdex_schemas.progress import Advance, Progress

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
class _Rows:
    """The rows of a matrix in a file, or those with some ids (S), on a device, when they are asked for."""

    stored: _Stored
    device: torch.device
    ids: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.stored.shape[0] if self.ids is None else len(self.ids)

    def __getitem__(self, part: slice) -> torch.Tensor:
        return self.stored[part if self.ids is None else self.ids[part]].to(self.device)


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
        return cls(_Rows(_Stored(file, "embedding"), device), means, _Stored(file, "root"))

    @property
    def rank(self) -> int:
        return int(self.root.shape[0])


def write_own_transfers(name: str, spaces: Mapping[str, Space], folder: Path, progress: Progress) -> None:
    """Write what takes coordinates of each space of a model into those of each after it; nothing where it has one.
    ``spaces`` has them by name, ``folder`` is the model's.
    """
    bases = {space: _Basis.of(each) for space, each in spaces.items()}
    pairs = {atlas_files.transfer(a, b): (bases[a], bases[b]) for a, b in combinations(bases, 2)}
    if not pairs:
        return
    work = sum(len(into.rows) for _, into in pairs.values())
    with progress.step(f"{name}: measuring how spaces lie to each other", work) as advance:
        tensors = {each: _block(source, into, advance) for each, (source, into) in pairs.items()}
        write_tensors(folder / atlas_files.TRANSFER, tensors)


def write_transfers(pair: Pair, folder: Path, device: torch.device, progress: Progress) -> None:
    """Write what takes coordinates of every space of a into those of every space of b, to the ``folder`` of the
    relation. On shared tokens the roots of all these spaces stand there, too. The roots wait in files, so that of
    matrices of the models' width no more are held than decomposing one takes.
    """
    files = {side: [model.space_file(space) for space in model.model.spaces] for side, model in pair.sides.items()}
    work = len(files["a"]) * len(files["b"]) * pair.n_tokens
    if pair.shared is not None:
        work += sum(len(own) * space_work(pair.n_tokens, pair.sides[side].width) for side, own in files.items())
    what = f"{pair.b.name} with {pair.a.name}: measuring how spaces lie to each other"
    with TemporaryDirectory(prefix="scratch-", dir=folder) as scratch, progress.step(what, work) as advance:
        bases = {
            side: {
                space: _basis(pair, side, file, Path(scratch), device, advance)
                for space, file in zip(pair.sides[side].model.spaces, own, strict=True)
            }
            for side, own in files.items()
        }
        tensors = {}
        if pair.shared is not None:
            tensors = {
                atlas_files.shared_root(side, space): Blocks((each.rank, len(each.means)), "float64", _parts(each.root))
                for side, of_side in bases.items()
                for space, each in of_side.items()
            }
        tensors |= {
            atlas_files.transfer(source, into): _block(bases["a"][source], bases["b"][into], advance)
            for source, into in product(bases["a"], bases["b"])
        }
        write_tensors(folder / atlas_files.TRANSFER, tensors)


def _basis(pair: Pair, side: str, file: Path, scratch: Path, device: torch.device, advance: Advance) -> _Basis:
    """Of the file of a space of one of two models, on the tokens by which they are compared."""
    ids = pair.tokens(side)
    if ids is None:
        return _Basis.stored(file, device)
    return _measured(_Rows(_Stored(file, "embedding"), device, ids), scratch / f"{side}.{file.name}", advance)


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


def _measured(rows: _Rows, file: Path, advance: Advance) -> _Basis:
    """The basis of some rows of a space; its root is written to ``file``."""
    means = column_means(rows)
    root = isometry.gram_root(centred_gram(rows, means, rows, means, advance), len(rows)).root
    write_tensors(file, {"root": Blocks(root.shape, "float64", [root])})
    advance(space_work(0, len(means)))
    return _Basis(rows, means, _Stored(file, "root"))


def _parts(matrix: np.ndarray | _Stored) -> Iterator[np.ndarray]:
    return (np.asarray(matrix[start : start + _ROOT_ROWS]) for start in range(0, matrix.shape[0], _ROOT_ROWS))
