"""Changing what an atlas holds, in one step: readers see it as it was or as it is to be, and so does what comes back
after a power cut.

New folders are written in staging and flushed to the disk; then they are moved into place, where nothing names them
yet; then atlas.json, in one rename. What an interrupted command left is named by nothing, and the next one sweeps it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from paramdex_schemas import atlas_files
from paramdex_schemas.contents import Contents, read_contents
from paramdex_schemas.errors import AtlasError
from paramdex_schemas.everything import script
from paramdex_schemas.place import check_writable, find_place, staging_folder


def contents_of(atlas: Path) -> Contents:
    """What an atlas holds; nothing where there is none yet. Raises AtlasError where the path holds something else."""
    return read_contents(atlas) if atlas.exists() else Contents(atlas)


def commit(contents: Contents, work: Path) -> None:
    """Make ``contents`` what its atlas holds. ``work``, a folder on its disk, has the folders that are new, each as
    models/FOLDER or relations/A~B. Raises OSError; then the atlas holds what it held.
    """
    atlas = contents.atlas
    (work / atlas_files.ATTACH).write_text(script(contents), "utf-8")
    created_by = f"paramdex {version('paramdex')}"
    (work / atlas_files.INDEX).write_text(contents.index.text(created_by), "utf-8")
    flush_tree(work)
    if not atlas.exists():
        work.rename(atlas)
    else:
        for group in (atlas_files.relations_folder, atlas_files.models_folder):
            _move_all(group(work), group(atlas))
        flush(atlas)  # a group may be new
        for name in (atlas_files.ATTACH, atlas_files.INDEX):  # the index last: it names what is there
            (work / name).replace(atlas / name)
    flush(atlas)
    flush(atlas.parent)


def _move_all(source: Path, target: Path) -> None:
    """Move all folders of one folder into another, and flush that."""
    if not source.exists():
        return
    target.mkdir(exist_ok=True)
    for folder in source.iterdir():
        shutil.rmtree(target / folder.name, ignore_errors=True)  # left by a command killed before the index was there
        folder.rename(target / folder.name)
    flush(target)


def sweep(contents: Contents) -> None:
    """Remove the folders that the index of an atlas does not name. Before that, attach.sql is made to say what the
    index does: a command may have been killed between the two. Files and links are not of our making, and stay. Raises
    OSError.
    """
    if contents.manifests:
        _restore(contents.atlas / atlas_files.ATTACH, script(contents))
    named = {atlas_files.model_folder(contents.atlas, folder) for folder in contents.index.models.values()}
    named |= {atlas_files.relation_folder(contents.atlas, a, b) for a, b in contents.related}
    for group in (atlas_files.models_folder(contents.atlas), atlas_files.relations_folder(contents.atlas)):
        for folder in [] if not group.is_dir() else sorted(group.iterdir()):
            if folder not in named and folder.is_dir() and not folder.is_symlink():
                shutil.rmtree(folder)


def _restore(file: Path, text: str) -> None:
    """Make a file of an atlas hold a text again, in one step."""
    if file.is_file() and file.read_bytes() == text.encode():
        return
    new = file.with_name(file.name + ".new")
    new.write_text(text, "utf-8")
    flush(new)
    new.replace(file)
    flush(file.parent)


def flush(path: Path) -> None:
    """Flush a file or folder to the disk. Raises OSError, because what is not on the disk is not published; but not
    where the system or the file system has no such thing.
    """
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(handle)


def flush_tree(root: Path) -> None:
    """Flush a folder and all that is in it to the disk."""
    for path in [*root.rglob("*"), root]:
        flush(path)


@contextmanager
def changing(atlas: Path) -> Iterator[tuple[Contents, Path]]:
    """An atlas that is there, for a change by this command alone: what it holds, and an empty folder on its disk for
    what is new. What an interrupted command left is swept first.

    Raises AtlasError where there is none, BuildError where it cannot be written or another command is writing to it.
    """
    place = find_place(atlas)
    read_contents(place)  # before anything is written
    check_writable(place)
    with staging_folder(place, atlas) as staging:
        contents = read_contents(place)  # another command may have ended since
        sweep(contents)
        work = staging / ".change"  # no model can have this name
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            yield contents, work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def copied(atlas: Path, path: str, recorded: tuple[int, str], target: Path) -> None:
    """Copy a file of an atlas, and compare it with its record on the way. Raises AtlasError where it differs."""
    n_bytes, digest = recorded
    found, size = hashlib.sha256(), 0
    try:
        with (atlas / path).open("rb") as source, target.open("wb") as file:
            while block := source.read(1 << 20):
                found.update(block)
                size += len(block)
                file.write(block)
    except FileNotFoundError as error:
        raise AtlasError(atlas_files.lacks(atlas, path)) from error
    if (size, found.hexdigest()) != (n_bytes, digest):
        raise AtlasError(atlas_files.damaged(atlas, path))
