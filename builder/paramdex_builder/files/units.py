"""Units: finished pieces of a build, kept in the staging folder so that a killed build resumes where it was.

A unit is a Parquet file of rows and, for parameters, the coordinates of their vectors. It is written under another name
and renamed when it is whole, so what has its final name is finished.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from paramdex_schemas.atlas_files import sha256


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that it stands under its name only when it is whole and on the disk."""
    part = path.with_name(path.name + ".part")
    write(part)
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)


_DIGEST = b"coordinates_sha256"


class Units:
    """The finished units of one model in ``folder``, made by one ``plan``. Units of another plan are deleted."""

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
        """Write the rows of a unit. The coordinates of a kind are written before, and its rows carry their digest."""
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
        rows: np.ndarray = np.load(self._path(kind, number, "npy"), mmap_mode="r", allow_pickle=False)
        return rows
