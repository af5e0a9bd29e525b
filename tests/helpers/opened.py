"""An atlas in DuckDB alone, as ``attach.sql`` opens it, and the files of its models."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from paramdex_schemas import atlas_files
from paramdex_schemas.contents import read_contents
from paramdex_schemas.everything import catalog


def tables_file(atlas: Path, model: str) -> Path:
    """The DuckDB file of a model."""
    return atlas / read_contents(atlas).folder(model) / atlas_files.TABLES


def names(atlas: Path) -> list[str]:
    """The models of an atlas, in their order; none where there is no atlas."""
    return list(read_contents(atlas).models) if (atlas / atlas_files.INDEX).exists() else []


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
