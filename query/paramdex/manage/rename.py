"""``rename``: give a model of an atlas another name."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import duckdb

from paramdex.manage.remove import known
from paramdex_schemas import AtlasError, QueryError, atlas_files
from paramdex_schemas.addresses import MODEL_NAME
from paramdex_schemas.arguments import given_path
from paramdex_schemas.commit import changing, commit, sweep
from paramdex_schemas.contents import Contents, Index, Manifest, listed
from paramdex_schemas.errors import quoted


def rename(atlas: str | Path, old: str, new: str) -> None:
    """Give a model another name. Its tables are copied, because the name stands in them; its other files are not.

    Raises AtlasError where there is no atlas, BuildError where it cannot be written, AddressError for a model that it
    lacks, QueryError for a name that is taken or is none.
    """
    path = given_path(atlas, "an atlas", AtlasError)
    with changing(path) as (contents, work):
        known(contents, old)
        if not MODEL_NAME.fullmatch(new):
            raise QueryError(f"{quoted(new)} is no name of a model; write letters, digits and . _ + -")
        if new in contents.manifests:
            raise QueryError(f"{path} has a model {new} already")
        folder = contents.free_folder(new)
        manifest = _renamed(contents, old, new, atlas_files.model_folder(work, folder))
        names = {name: new if name == old else name for name in contents.manifests}
        folders, manifests = {**contents.index.models, old: folder}, {**contents.manifests, old: manifest}
        found = replace(
            contents,
            index=Index({names[name]: each for name, each in folders.items()}),
            manifests={names[name]: each for name, each in manifests.items()},
        )
        commit(found, work)
        sweep(found)


def _renamed(contents: Contents, old: str, new: str, target: Path) -> Manifest:
    """Make the folder of a model under another name."""
    source, manifest = contents.atlas / contents.folder(old), contents.manifests[old]
    target.mkdir(parents=True)
    for name in manifest.files:
        if name == atlas_files.TABLES:
            shutil.copyfile(source / name, target / name)
        else:
            _linked(source / name, target / name)
    with closing(duckdb.connect(str(target / atlas_files.TABLES))) as connection:
        connection.execute("UPDATE store.models SET model = ?", [new])
    files = {**manifest.files, **listed(target, [atlas_files.TABLES])}
    found = replace(manifest, row={**manifest.row, "model": new}, files=files)
    (target / atlas_files.MANIFEST).write_text(found.text(), "utf-8")
    return found


def _linked(source: Path, target: Path) -> None:
    """The same file under a second name, or a copy where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
