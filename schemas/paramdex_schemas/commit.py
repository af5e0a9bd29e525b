"""Changing what an atlas holds, in one step: readers see it as it was or as it is to be, and so does what comes back
after a power cut.

New folders are written in staging and flushed to the disk; then they are moved into place, where nothing names them
yet; then atlas.json, in one rename. What an interrupted command left is named by nothing, and the next one sweeps it.
"""

from __future__ import annotations

import errno
import os
import shutil
from importlib.metadata import version
from pathlib import Path

from paramdex_schemas import atlas_files
from paramdex_schemas.contents import Contents, read_contents
from paramdex_schemas.everything import script


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
        for name in (atlas_files.ATTACH, atlas_files.INDEX):  # the index last: it names what is there
            (work / name).replace(atlas / name)
        shutil.rmtree(work)
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
    """Remove the folders that the index of an atlas does not name. Raises OSError."""
    named = {atlas_files.model_folder(contents.atlas, folder) for folder in contents.index.models.values()}
    named |= {atlas_files.relation_folder(contents.atlas, a, b) for a, b in contents.related}
    for group in (atlas_files.models_folder(contents.atlas), atlas_files.relations_folder(contents.atlas)):
        for folder in [] if not group.is_dir() else sorted(group.iterdir()):
            if folder not in named:
                shutil.rmtree(folder)


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
