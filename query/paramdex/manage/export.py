"""``export``: the public tables of an atlas as Parquet, as one DuckDB file, or one of them as CSV."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import duckdb

from paramdex.store.connection import Connection
from paramdex_schemas import AddressError, AtlasError, QueryError, atlas_files
from paramdex_schemas.arguments import given_path
from paramdex_schemas.checks import suggest
from paramdex_schemas.contents import Contents, read_contents
from paramdex_schemas.errors import quoted
from paramdex_schemas.everything import NUMBERED, attached, catalog, views
from paramdex_schemas.progress import Progress

Form = Literal["parquet", "duckdb", "csv"]
TABLES = (*NUMBERED, "tokens", "neighbors", "layer_alignments")
"""The public tables."""
_OF_ALL = ("tokens", "neighbors", "layer_alignments")
"""Those whose rows are not of one model each: in Parquet they are one file."""


def export(
    atlas: str | Path,
    output: str | Path,
    form: Form = "parquet",
    tables: Sequence[str] = (),
    models: Sequence[str] = (),
    progress: Progress | None = None,
) -> Path:
    """Write public tables of an atlas, all or some, of all models or some: a folder of Parquet files, TABLE/model=NAME/
    for each model; one DuckDB file; or one table as CSV. What is written stands under its name only when it is whole.

    Raises AtlasError for the atlas, AddressError for a model that it lacks, QueryError for a table that there is not,
    or an output that is there already or cannot be written.
    """
    progress = progress or Progress()
    contents = _of_models(read_contents(given_path(atlas, "an atlas", AtlasError)), models)
    chosen = _chosen(tables, form)
    target = given_path(output, "the output", QueryError)
    if target.exists():
        raise QueryError(f"{target} is there already; give another path with -o")
    if not target.parent.is_dir():
        raise QueryError(f"there is no folder {target.parent} to write {target.name} in; make it first")
    part = target.with_name(target.name + ".part")
    _clear(part)
    connection = Connection(contents.atlas)
    try:
        for name, path in attached(contents).items():
            connection.attach(catalog(name), path, contents.tables(name))
        for view in views(contents):
            connection.connection.execute(view)
        with progress.step(f"exporting {contents.atlas}", len(chosen)) as advance:
            _write(connection.connection, contents, chosen, form, part, advance)
        part.rename(target)
    except (OSError, duckdb.Error) as error:
        raise QueryError(f"{target} cannot be written: {str(error).splitlines()[0]}") from error
    finally:
        connection.close()
        _clear(part)
    return target


def _of_models(contents: Contents, names: Sequence[str]) -> Contents:
    """What an atlas holds of some models; all of it without names."""
    for name in names:
        if name not in contents.manifests:
            raise AddressError(f"{contents.atlas} has no model {quoted(name)}; {suggest(name, contents.manifests)}")
    if not names:
        return contents
    return contents.without(set(contents.manifests) - set(names))


def _chosen(tables: Sequence[str], form: Form) -> list[str]:
    """The tables that are asked for, in their order. Raises QueryError for one that there is not."""
    for table in tables:
        if table not in TABLES:
            raise QueryError(f"there is no table {quoted(table)}; {suggest(table, TABLES)}")
    if form == "csv" and len(tables) != 1:
        raise QueryError("CSV holds one table; name it with --table")
    return [table for table in TABLES if not tables or table in tables]


def _write(
    connection: duckdb.DuckDBPyConnection,
    contents: Contents,
    chosen: list[str],
    form: Form,
    part: Path,
    advance: Callable[[int], None],
) -> None:
    """Write the tables to ``part``."""
    quoted_part = str(part).replace("'", "''")
    if form == "duckdb":
        connection.execute(f"ATTACH '{quoted_part}' AS exported (STORAGE_VERSION '{atlas_files.STORAGE_VERSION}')")
    if form == "parquet":
        part.mkdir()
    for table in chosen:
        if form == "duckdb":
            connection.execute(f"CREATE TABLE exported.{table} AS FROM {table}")
        elif form == "csv":
            connection.execute(f"COPY {table} TO '{quoted_part}' (FORMAT csv)")
        elif table in _OF_ALL:
            connection.execute(f"COPY {table} TO '{quoted_part}/{table}.parquet' (FORMAT parquet, COMPRESSION zstd)")
        else:
            for name in contents.models:
                folder = part / table / f"model={name}"
                folder.mkdir(parents=True)
                path = str(folder / "data.parquet").replace("'", "''")
                rows = f"SELECT * EXCLUDE (model) FROM {table} WHERE model = '{name}'"
                connection.execute(f"COPY ({rows}) TO '{path}' (FORMAT parquet, COMPRESSION zstd)")
        advance(1)
    if form == "duckdb":
        connection.execute("DETACH exported")


def _clear(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
