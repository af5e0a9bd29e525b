"""Where an atlas is built. The place is found and checked before any work is done; the work is done in a folder beside
it.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from paramdex_schemas import atlas_files
from paramdex_schemas.errors import BuildError

_LOG = 4 << 20
"""Bytes of the database's log that do not grow with the model: larger tables bypass it."""


def find_place(output: Path) -> Path:
    """Where ``output`` really is, or will be. Links are followed, so that every way to an atlas leads to the same
    staging folder, on the atlas's own disk.

    Raises BuildError where nothing can be there: links lead in a circle, or there is no folder to put it in.
    """
    place = Path(os.path.realpath(output))
    if place.is_symlink():
        raise BuildError(f"{output} is a link that leads nowhere; give another path with -o")
    if not place.parent.is_dir():
        raise BuildError(f"there is no folder {place.parent} to put {place.name} in; make it first")
    return place


def check_writable(place: Path) -> None:
    """Raises BuildError where publishing would fail: a folder that finished work is renamed into cannot be written, or
    is on another disk than the staging folder.
    """
    parent = place.parent
    for folder in (parent, place, atlas_files.models_folder(place), atlas_files.relations_folder(place)):
        if not folder.exists():
            continue
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            raise BuildError(f"no permission to write at {folder}; give another path with -o")
        if folder.stat().st_dev != parent.stat().st_dev:
            raise BuildError(f"{folder} and {parent} are on different disks; give a path with -o that is on one")


def check_space(place: Path, needed: Sequence[int]) -> None:
    """Raises BuildError where the disk clearly has too little room for models that take ``needed`` bytes each, and for
    DuckDB's log.
    """
    if not needed:
        return
    wanted, free = sum(needed) + _LOG, shutil.disk_usage(place.parent).free
    if wanted > free:
        raise BuildError(f"the build needs about {_size(wanted)} at {place.parent}, only {_size(free)} are free")


def _size(n_bytes: int) -> str:
    power = min(3, int(math.log(max(n_bytes, 1), 1024)))
    return f"{n_bytes / 1024**power:.0f} {('bytes', 'KiB', 'MiB', 'GiB')[power]}"


@contextmanager
def staging_folder(place: Path, output: Path) -> Iterator[Path]:
    """The staging folder beside the atlas at ``place`` (``output`` in messages), which this build alone holds.

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
