"""Units: finished pieces of a build, kept in the staging folder so that a killed build resumes where it was.

A unit is a Parquet file of rows and, for parameters, the coordinates of their vectors; it counts as finished once it
stands under its final name, to which it is renamed whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from paramdex_builder.project.block import Tokens
from paramdex_builder.project.space import Space
from paramdex_builder.project.tokens import strongest_tokens
from paramdex_schemas import Layout, Run
from paramdex_schemas.atlas_files import sha256

PARAMETERS = pa.schema(
    [
        ("row", pa.int64()), ("stack", pa.string()), ("layer", pa.int16()), ("head", pa.int16()),
        ("kv_head", pa.int16()), ("expert", pa.int16()), ("idx", pa.int32()),
        ("norm", pa.float32()), ("mean", pa.float32()), ("std", pa.float32()), ("projected_norm", pa.float32()),
        ("top_tokens", pa.list_(pa.int32())), ("top_scores", pa.list_(pa.float32())),
        ("bottom_tokens", pa.list_(pa.int32())), ("bottom_scores", pa.list_(pa.float32())),
    ]
)  # fmt: skip
_PIECE_ROWS = 16_384


@dataclass(frozen=True)
class Piece:
    """What one unit holds of a kind: a run of its parameters, or of a long one the rows of some of its ``owners``."""

    run: Run
    owners: range
    number: int
    """Counts the pieces of a kind."""

    @property
    def first(self) -> int:
        return self.run.first + self.owners.start * self.run.size

    @property
    def n_rows(self) -> int:
        return len(self.owners) * self.run.size


def pieces(layout: Layout, kind: str) -> list[Piece]:
    """The pieces of a kind, in order of its rows; each of whole owners, and of more than one only up to _PIECE_ROWS."""
    found: list[Piece] = []
    for run in layout.of(kind):
        step = max(1, _PIECE_ROWS // run.size) if run.owner == "expert" else run.n_owners
        for start in range(0, run.n_owners, step):
            found.append(Piece(run, range(start, min(start + step, run.n_owners)), len(found)))
    return found


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that it stands under its name only when it is whole and on the disk."""
    part = path.with_name(path.name + ".part")
    write(part)
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)


_DIGEST = b"coordinates_sha256"


class Units:
    """The finished units of one model, in ``folder``, for one ``plan``; units of another plan are thrown away."""

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(plan, indent=1, sort_keys=True)
        file = folder / "plan.json"
        if not file.is_file() or file.read_text("utf-8") != text:
            for old in folder.iterdir():
                old.unlink()
            write_whole(file, lambda part: part.write_text(text, "utf-8"))

    def _path(self, name: str, number: int, ending: str) -> Path:
        return self.folder / f"{name}-{number:05d}.{ending}"

    def has(self, name: str, number: int) -> bool:
        """Whether all files of the unit are there and whole; a damaged one is made again."""
        try:
            table = self.read(name, number)
            if name == "heads":
                self.read("pairs", number)
                self.read("directions", number)
                return True
            recorded = (table.schema.metadata or {}).get(_DIGEST)
            return recorded == sha256(self._path(name, number, "npy")).encode()
        except (OSError, pa.ArrowException):
            return False

    def write(self, name: str, number: int, table: pa.Table) -> None:
        """Write the rows of a unit; of a kind after its coordinates, whose digest they carry."""
        path = self._path(name, number, "parquet")
        beside = self._path(name, number, "npy")
        if beside.is_file():
            table = table.replace_schema_metadata({_DIGEST: sha256(beside)})
        write_whole(path, lambda part: pq.write_table(table, part, write_page_checksum=True))

    def read(self, name: str, number: int) -> pa.Table:
        return pq.read_table(self._path(name, number, "parquet"), page_checksum_verification=True)

    def write_coordinates(self, kind: str, number: int, rows: np.ndarray) -> None:
        def save(part: Path) -> None:
            with part.open("wb") as file:
                np.save(file, rows)  # without a copy

        write_whole(self._path(kind, number, "npy"), save)

    def coordinates(self, kind: str, number: int) -> np.ndarray:
        """Normalized coordinates of one unit (n x r, float32), mapped from the disk."""
        return np.load(self._path(kind, number, "npy"), mmap_mode="r", allow_pickle=False)


def parameter_unit(rows: torch.Tensor, piece: Piece, space: Space, top_k: int) -> tuple[pa.Table, np.ndarray]:
    """The table rows and normalized coordinates (n x r, float32) of the vectors ``rows`` (n x d) of a piece."""
    rows = rows.to(space.embedding.device)
    tokens = _tokens(rows, space, top_k)
    found = space.describe(rows)
    projected = (space.size * (found.mean**2 + found.std**2)).sqrt()
    heads, kv_heads, experts, indexes = zip(*piece.run.rows(piece.owners), strict=True)
    columns: dict[str, Any] = {
        "row": range(piece.first, piece.first + len(rows)),
        "stack": [piece.run.stack] * len(rows),
        "layer": [piece.run.layer] * len(rows),
        "head": heads,
        "kv_head": kv_heads,
        "expert": experts,
        "idx": indexes,
        "norm": found.norm.float().cpu().numpy(),
        "mean": found.mean.float().cpu().numpy(),
        "std": found.std.float().cpu().numpy(),
        "projected_norm": projected.float().cpu().numpy(),
    }
    for side, strongest in tokens.items():
        columns[f"{side}_tokens"] = _lists(strongest.ids.int())
        columns[f"{side}_scores"] = _lists(strongest.scores)
    table = pa.table([pa.array(columns[field.name], field.type) for field in PARAMETERS], schema=PARAMETERS)
    return table, found.coordinates.cpu().numpy()


def parameters_held(some: Sequence[Piece], d: int, n_terms: int) -> int:
    """About how many bytes one of ``some`` pieces takes at the most: weights, coordinates and what is made of them in
    float32; or the weights of two models and their difference in float64.
    """
    return 12 * n_terms * d * max((piece.n_rows for piece in some), default=0)


def _tokens(rows: torch.Tensor, space: Space, k: int) -> dict[str, Tokens]:
    """As ``strongest_tokens``; rows of zeros, such as what training did not move, have the first tokens, with 0."""
    moved = rows.any(dim=1)
    if moved.all():
        return strongest_tokens(rows, space, k)
    k = min(k, space.size)
    found = strongest_tokens(rows[moved], space, k) if moved.any() else {}
    sides = {}
    for side in ("top", "bottom"):
        ids = torch.arange(k, device=rows.device).repeat(len(rows), 1)
        scores = torch.zeros(ids.shape, device=rows.device)
        if side in found:
            ids[moved], scores[moved] = found[side].ids, found[side].scores
        sides[side] = Tokens(ids, scores)
    return sides


def _lists(values: torch.Tensor) -> pa.ListArray:
    """A matrix (n x k) as n lists of k."""
    n, k = values.shape
    return pa.ListArray.from_arrays(np.arange(0, n * k + 1, k, dtype=np.int32), values.cpu().numpy().ravel())
