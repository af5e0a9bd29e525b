"""Units: finished pieces of a build, kept in the staging folder so that a killed build resumes where it was.

A unit is a Parquet file of rows and, for parameters, the coordinates of their vectors. It is written under another name
and renamed when it is whole, so what has its final name is finished.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
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


_DIGEST = b"sha256 "
"""What the metadata of a unit's rows call the digests of its other files, by their stems."""


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
            found = table.schema.metadata or {}
            recorded = {key.removeprefix(_DIGEST): own for key, own in found.items() if key.startswith(_DIGEST)}
            return bool(recorded) and all(
                own == sha256(self._path(stem.decode(), number, "npy")).encode() for stem, own in recorded.items()
            )
        except (OSError, pa.ArrowException):
            return False

    def write(self, name: str, number: int, table: pa.Table, stems: Iterable[str] = ()) -> None:
        """Write the rows of a unit. The coordinates with some ``stems`` are written before; its rows carry their
        digests.
        """
        path = self._path(name, number, "parquet")
        digests = {_DIGEST + stem.encode(): sha256(self._path(stem, number, "npy")) for stem in stems}
        if digests:
            table = table.replace_schema_metadata(digests)
        write_whole(path, lambda part: pq.write_table(table, part, write_page_checksum=True))

    def rows(self, name: str, number: int) -> Path:
        """The Parquet file of a unit's rows."""
        return self._path(name, number, "parquet")

    def read(self, name: str, number: int) -> pa.Table:
        return pq.read_table(self.rows(name, number), page_checksum_verification=True)

    def file(self, name: str, write: Callable[[Path], object]) -> Path:
        """The path of a finished file of the model's own, written where it is missing or damaged."""
        path, digest = self.folder / name, self.folder / f"{name}.sha256"
        if not (path.is_file() and digest.is_file() and digest.read_text("utf-8") == sha256(path)):
            write_whole(path, write)
            write_whole(digest, lambda part: part.write_text(sha256(path), "utf-8"))
        return path

    def finished(self, name: str) -> Path:
        """The path of a file that ``file`` has written."""
        return self.folder / name

    def write_coordinates(self, stem: str, number: int, rows: np.ndarray) -> None:
        def save(part: Path) -> None:
            with part.open("wb") as file:
                np.save(file, rows)  # without a copy

        write_whole(self._path(stem, number, "npy"), save)

    def coordinates(self, stem: str, number: int) -> np.ndarray:
        """Normalized coordinates of one unit (n x r, float32), mapped from the disk."""
        rows: np.ndarray = np.load(self._path(stem, number, "npy"), mmap_mode="r", allow_pickle=False)
        return rows
