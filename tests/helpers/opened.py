"""An atlas in DuckDB alone, as ``attach.sql`` opens it, and the files of its models."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import duckdb

from paramdex_schemas import atlas_files
from paramdex_schemas.contents import Contents, Index, Manifest, listed, read_contents
from paramdex_schemas.everything import catalog
from paramdex_schemas.model import Model


def tables_file(atlas: Path, model: str) -> Path:
    """The DuckDB file of a model."""
    return atlas / read_contents(atlas).folder(model) / atlas_files.TABLES


def names(atlas: Path) -> list[str]:
    """The models of an atlas, in their order; none where there is no atlas."""
    return list(read_contents(atlas).models) if (atlas / atlas_files.INDEX).exists() else []


def list_anew(atlas: Path, model: str) -> None:
    """Write the manifest of a model again, for the files that its folder has now."""
    contents = read_contents(atlas)
    folder, manifest = atlas / contents.folder(model), contents.manifests[model]
    files = [file.name for file in folder.iterdir() if file.name != atlas_files.MANIFEST]
    text = replace(manifest, files=listed(folder, files)).text()
    (folder / atlas_files.MANIFEST).write_text(text, "utf-8")


def change(atlas: Path, model: str, sql: str, values: object = None) -> None:
    """Change the tables of a model, as if they had been written so."""
    with duckdb.connect(str(tables_file(atlas, model))) as connection:
        connection.execute(sql, values)
    list_anew(atlas, model)


def contents_of(atlas: Path, models: Iterable[Model]) -> Contents:
    """What an atlas of made-up models holds, of the files that are there."""
    manifests = {}
    for model in models:
        folder = atlas_files.model_folder(atlas, model.name)
        row = {
            "model": model.name, "vocabulary": model.vocabulary, "vocabulary_size": model.vocabulary_size,
            "embedding": model.embedding, "reading": model.reading, "top_k": model.top_k,
        }  # fmt: skip
        files = listed(folder, [file.name for file in folder.iterdir()])
        manifests[model.name] = Manifest(model.name, row, model.layout, files, {})
    relations = atlas_files.relations_folder(atlas)
    related = [tuple(each.name.split("~")) for each in sorted(relations.iterdir())] if relations.exists() else []
    return Contents(atlas, Index({name: name for name in manifests}), manifests, tuple(related))


@contextmanager
def opened(atlas: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with the public views of ``attach.sql``; and in the schema ``store`` the physical tables of all
    models, one below the other, with the column ``of_model``.
    """
    connection = duckdb.connect()
    text, before = (atlas / atlas_files.ATTACH).read_text("utf-8"), Path.cwd()
    try:
        os.chdir(atlas)
        connection.execute(text)
        connection.execute("CREATE SCHEMA store")
        contents = read_contents(Path())
        for table in next(iter(contents.manifests.values())).tables:
            parts = [
                f"SELECT '{name}' AS of_model, * FROM {catalog(contents.folder(name).as_posix())}.store.{table}"
                for name in contents.models
            ]
            connection.execute(f"CREATE VIEW store.{table} AS {' UNION ALL '.join(parts)}")
    finally:
        os.chdir(before)
    try:
        yield connection
    finally:
        connection.close()
