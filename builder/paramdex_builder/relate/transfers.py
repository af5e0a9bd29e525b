"""The ways between the coordinates of a new model and those of the models it is related to, written to files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
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
"""Rows of another model's R that are read at a time."""


@dataclass(frozen=True)
class _Gathered:
    """Rows of E (S x d) by their ids, read slice by slice: from a tensor in memory, or from the file of a space, which
    is mapped anew for every slice so that no more of it stays in memory.
    """

    source: torch.Tensor | Path
    ids: torch.Tensor
    device: torch.device

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> torch.Tensor:
        if isinstance(self.source, torch.Tensor):
            return self.source[self.ids[part].to(self.device)]
        with safe_open(self.source, framework="pt") as file:
            E: torch.Tensor = file.get_tensor("embedding")
            return E[self.ids[part]].to(self.device)


def write_transfers(others: list[Related], space: Space, folder: Path, progress: Progress) -> None:
    """Write what takes coordinates of each other model into those of the new one, whose space is given."""
    same = [other for other in others if other.shared is None]
    if same:
        transfers = {
            other.name: Blocks((space.root.rank, other.root_shape[0]), "float64", _transfer(other, space))
            for other in same
        }
        write_tensors(folder / atlas_files.TRANSFER, transfers)
    for other in others:
        if other.shared is not None:
            widths = other.root_shape[1], space.embedding.shape[1]
            work = len(other.shared) + sum(space_work(len(other.shared), d) for d in widths)
            with progress.step(f"{folder.name} with {other.name}: measuring shared tokens", work) as advance:
                _write_shared(other, other.shared, space, folder / atlas_files.shared_space(other.name), advance)


def _transfer(other: Related, space: Space) -> Iterator[np.ndarray]:
    """The one transfer matrix, made when asked for. The other's root, which may be the larger, is read in parts."""
    with safe_open(other.folder / atlas_files.SPACE, framework="pt") as file:
        other_E, other_means, rows = file.get_slice("embedding"), file.get_tensor("means"), file.get_slice("root")
        cross = centred_gram(space.embedding, space.means, other_E, other_means.to(space.means.device))
        half = isometry.half_transfer(cross, space.root)
        del cross
        T = _whole_transfer(half, rows, other.root_shape[0])
    yield T


def _whole_transfer(half: np.ndarray, rows: Any, rank: int) -> np.ndarray:
    """``half`` R^+ for the ``rows`` of a root R of a rank, some at a time, of an array or a safetensors file."""
    T = np.empty((len(half), rank))
    for start in range(0, rank, _ROOT_ROWS):
        part = slice(start, min(start + _ROOT_ROWS, rank))
        T[:, part] = half @ isometry.Root(np.asarray(rows[part])).inverse
    return T


def _write_shared(other: Related, shared: Shared, space: Space, file: Path, advance: Advance) -> None:
    """Write the roots of both on the shared tokens and the transfer between them. Four matrices of the models' width
    are held at most: both roots and what becomes the transfer, or one root and what the other Gram matrix is decomposed
    in.
    """
    device = space.embedding.device
    earlier = _Gathered(other.folder / atlas_files.SPACE, shared.earlier, device)
    new = _Gathered(space.embedding, shared.new, device)
    means = column_means(earlier), column_means(new)
    roots = []
    for rows, mean in zip((earlier, new), means, strict=True):
        roots.append(isometry.gram_root(centred_gram(rows, mean, rows, mean, advance), len(shared)))
        advance(space_work(0, len(mean)))
    cross = centred_gram(new, means[1], earlier, means[0], advance)
    half = isometry.half_transfer(cross, roots[1])
    del cross
    T = _whole_transfer(half, roots[0].root, roots[0].rank)
    blocks = {"earlier": roots[0].root, "later": roots[1].root, "transfer": T}
    write_tensors(file, {name: Blocks(each.shape, "float64", [each]) for name, each in blocks.items()})
