"""The place that an atlas is built at: found, and held against what a build needs, before any work is done; and the
folder beside it in which the work is done.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from paramdex_schemas import BuildError, atlas_files

_LOG = 4 << 20
"""Bytes of the database's log that do not grow with the model: larger tables are written past it."""


def find_place(output: Path) -> Path:
    """Where ``output`` really lies, which may be nothing yet: through links, so that all ways to an atlas have one
    staging folder, on its own disk.

    Raises BuildError where nothing can lie there: links in a circle, or no folder to put it in.
    """
    place = Path(os.path.realpath(output))
    if place.is_symlink():
        raise BuildError(f"{output} is a link that leads nowhere; give another path with -o")
    if not place.parent.is_dir():
        raise BuildError(f"there is no folder {place.parent} to put {place.name} in; make it first")
    return place


def check_writable(place: Path) -> None:
    """Raises BuildError where what a build ends with would be refused: the folders that it renames finished work into
    may not be written, or lie on another disk than the folder beside the atlas that the work is done in.
    """
    parent = place.parent
    for folder in (parent, place, atlas_files.models_folder(place)):
        if not folder.exists():
            continue
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            raise BuildError(f"no permission to write at {folder}; give another path with -o")
        if folder.stat().st_dev != parent.stat().st_dev:
            raise BuildError(f"{folder} and {parent} are on different disks; give a path with -o that is on one")


def check_space(place: Path, needed: Sequence[int]) -> None:
    """Raises BuildError where the disk has clearly too little room for models that take ``needed`` bytes each, for the
    copy of the database that they are added to, and for DuckDB's log of what is added. (By the time that what is new
    of the database is copied, staging has shrunk as much.)
    """
    if not needed:
        return
    wanted, free = sum(needed) + _LOG, shutil.disk_usage(place.parent).free
    database = atlas_files.database(place)
    if database.is_file():
        wanted += database.stat().st_size
    if wanted > free:
        raise BuildError(f"the build needs about {_size(wanted)} at {place.parent}, only {_size(free)} are free")


def _size(n_bytes: int) -> str:
    unit = min(3, int(math.log(max(n_bytes, 1), 1024)))
    return f"{n_bytes / 1024**unit:.0f} {('bytes', 'KiB', 'MiB', 'GiB')[unit]}"


@contextmanager
def staging_folder(place: Path, output: Path) -> Iterator[Path]:
    """The staging folder beside the atlas at ``place``, which messages call ``output``, held by this build alone.

    It is removed in the end unless it holds finished units, of this build or of another that was interrupted.
    Raises BuildError where another build holds it.
    """
    staging = place.with_name(place.name + ".building")
    staging.mkdir(exist_ok=True)
    lock = FileLock(staging / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BuildError(f"another build is writing to {output}; wait for it to end, then run this again") from error
    try:
        yield staging
    finally:
        if not any(path.is_dir() and not path.name.startswith(".") for path in staging.iterdir()):
            shutil.rmtree(staging, ignore_errors=True)
        lock.release()
