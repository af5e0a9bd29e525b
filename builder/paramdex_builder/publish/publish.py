"""Publishing: the finished units of one model become rows of a copy of the database, which then replaces it.

Readers never see half a model: the model's own folder is moved into place first, where nothing refers to it yet, and
one atomic rename of the database makes it part of the atlas.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import torch

from paramdex_builder.files.tensors import write_space
from paramdex_builder.files.units import Units
from paramdex_builder.files.vectors import open_rows, rotation, write_codes, write_flat_index
from paramdex_builder.project.pieces import pieces
from paramdex_builder.project.space import Space
from paramdex_builder.project.undertrained import token_embeddings
from paramdex_builder.read.vocabulary import Vocabulary
from paramdex_builder.relate.models import Related, passes, related, relation_rows, write_transfers
from paramdex_builder.work.progress import Progress
from paramdex_schemas import FORMAT_VERSION, Layout, atlas_files, vector_files

_RUN = ("stack", "layer", "owner", "n_owners", "size", "group")
_MEMORY = 1 << 30
"""Bytes that DuckDB may hold; what it sorts beyond that goes to files beside the database."""


@dataclass
class FinishedModel:
    """All that is known of a model whose units are done. ``row`` holds the columns of ``models`` but the ids."""

    name: str
    row: dict[str, Any]
    layout: Layout
    space: Space
    vocabulary: Vocabulary
    units: Units


@contextmanager
def database(
    path: Path, *, create: bool = False, read_only: bool = False, memory: int = _MEMORY
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection whose current database is the file ``path``, in a storage version that older clients can read."""
    with _interruptible(), closing(duckdb.connect(config={} if read_only else _config(path, memory))) as connection:
        with suppress(duckdb.InvalidInputException):  # of a notebook without ipywidgets, which has none
            connection.execute("SET enable_progress_bar = false")  # by `python -m` it would write to standard output
        created = f" (STORAGE_VERSION '{atlas_files.STORAGE_VERSION}')" if create else ""
        options = " (READ_ONLY)" if read_only else created
        quoted = str(path).replace("'", "''")
        connection.execute(f"ATTACH '{quoted}' AS atlas{options}")
        connection.execute("USE atlas")
        yield connection
        connection.execute("USE memory")
        connection.execute("DETACH atlas")  # checkpoints


@contextmanager
def _interruptible() -> Iterator[None]:
    """DuckDB hears Ctrl-C too, and says so by errors of its own: raises KeyboardInterrupt in their place."""
    try:
        yield
    except (RuntimeError, duckdb.Error) as error:
        if re.search("Query interrupted|KeyboardInterrupt|INTERRUPT Error", str(error)):
            raise KeyboardInterrupt from error
        raise


def _config(path: Path, memory: int) -> dict[str, str | bool | int | float | list[str]]:
    return {"temp_directory": str(path.parent / "duckdb-temp"), "memory_limit": f"{memory >> 20}MiB"}


def publish(
    model: FinishedModel, atlas: Path, staging: Path, device: torch.device, progress: Progress, memory: int = _MEMORY
) -> None:
    """Add a finished model to ``atlas`` (made if it is not there), through the folder ``staging`` beside it; DuckDB may
    hold ``memory`` bytes.
    """
    work = staging / ".publish"  # no name of a model
    shutil.rmtree(work, ignore_errors=True)
    folder = atlas_files.model_folder(work, model.name)
    folder.mkdir(parents=True)
    new = not atlas.exists()
    file = atlas_files.database(work)
    if not new:
        shutil.copyfile(atlas_files.database(atlas), file)
    with database(file, create=new, memory=memory) as connection:
        if new:
            for statements in atlas_files.ddl():
                connection.execute(statements)
            connection.execute(
                "INSERT INTO store.atlas VALUES (?, ?)", [FORMAT_VERSION, f"paramdex {model.row['builder_version']}"]
            )
        connection.execute("BEGIN")
        _write_vectors(model, folder)
        write_space(folder / atlas_files.SPACE, model.space)
        _insert_model(connection, model)
        mine, others = related(connection, atlas, model.name, folder, progress)
        write_transfers(others, model.space, folder, progress)
        _insert_parameters(connection, model, progress)
        _insert_heads(connection, model)
        _insert_relations(connection, mine, others, model.row["neighbor_k"], device, progress)
        _insert_files(connection, model, work, folder)
        connection.execute("COMMIT")
    shutil.rmtree(work / "duckdb-temp", ignore_errors=True)
    _fsync_tree(work)
    if new:
        work.rename(atlas)
    else:
        place = atlas_files.model_folder(atlas, model.name)
        shutil.rmtree(place, ignore_errors=True)  # left by a build killed between these two steps
        place.parent.mkdir(exist_ok=True)
        folder.rename(place)
        file.replace(atlas_files.database(atlas))
        shutil.rmtree(work)
    _fsync(atlas)
    _fsync(atlas.parent)


def _write_vectors(model: FinishedModel, folder: Path) -> None:
    """Write the vector index of every kind, and the codes of large ones."""
    paths = {kind: folder / vector_files.index_name(kind) for kind in model.layout.kinds}
    for kind, path in paths.items():
        units = (model.units.coordinates(kind, piece.number) for piece in pieces(model.layout, kind))
        write_flat_index(path, model.space.root.rank, units)
    large = [kind for kind, path in paths.items() if path.stat().st_size >= vector_files.CODED_BYTES]
    if large:
        turn = rotation(model.space.root.rank)
        for kind in large:
            write_codes(folder, kind, open_rows(paths[kind]), turn)


def _insert_model(connection: duckdb.DuckDBPyConnection, model: FinishedModel) -> None:
    ((model_id, first_param, first_head),) = connection.execute(
        "SELECT coalesce(max(model_id) + 1, 0), coalesce(max(first_param_id + n_parameters), 0), "
        "(SELECT coalesce(max(head_id) + 1, 0) FROM store.heads) FROM store.models"
    ).fetchall()
    row = model.row | {
        "model_id": model_id,
        "model": model.name,
        "first_param_id": first_param,
        "first_head_id": first_head,
        "built_at": datetime.now(UTC).replace(tzinfo=None, microsecond=0),
    }
    connection.execute(
        f"INSERT INTO store.models ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", list(row.values())
    )
    runs = [
        (model_id, *(getattr(run, name) for name in ("kind", *_RUN)), first_param + run.first)
        for run in model.layout.runs
    ]
    connection.executemany(f"INSERT INTO store.layout VALUES ({', '.join('?' * 9)})", runs)
    _insert_tokens(connection, model, model_id)


def _insert_tokens(connection: duckdb.DuckDBPyConnection, model: FinishedModel, model_id: int) -> None:
    """The rows of ``tokens``, where no earlier model has the vocabulary, and of ``token_embeddings``."""
    space = model.space
    found = token_embeddings(space.embedding, space.means.cpu().numpy(), space.root)
    table = pa.table(
        {
            "model_id": pa.array(np.full(space.size, model_id), pa.int32()),
            "token_id": pa.array(range(space.size), pa.int32()),
            "norm": found.norm,
            "undertrained": pa.nulls(space.size, pa.float32()) if found.score is None else found.score,
            "is_undertrained": found.undertrained,
        }
    )
    known = connection.execute(
        "SELECT count(*) FROM store.tokens WHERE vocabulary = ?", [model.vocabulary.name]
    ).fetchall()
    if known == [(0,)]:
        items = model.vocabulary.table().append_column("is_undertrained", table["is_undertrained"])
        _insert(connection, "INSERT INTO store.tokens BY NAME SELECT * FROM unit", items)
    else:
        sql = """
            UPDATE store.tokens AS t SET is_undertrained = false
            FROM unit AS u
            WHERE t.vocabulary = ? AND t.token_id = u.token_id AND t.is_undertrained AND NOT u.is_undertrained
        """
        _insert(connection, sql, table, [model.vocabulary.name])
    _insert(connection, "INSERT INTO store.token_embeddings BY NAME SELECT * FROM unit", table)


def _insert(connection: duckdb.DuckDBPyConnection, sql: str, unit: pa.Table, values: Any = None) -> None:
    """Run ``sql`` with the Arrow table ``unit`` visible under that name."""
    connection.register("unit", unit)
    connection.execute(sql, values or [])
    connection.unregister("unit")


def _insert_parameters(connection: duckdb.DuckDBPyConnection, model: FinishedModel, progress: Progress) -> None:
    """The rows of ``parameters``, in order of param_id, and their ``postings``, in order of token."""
    sql = """
        INSERT INTO store.parameters BY NAME
        SELECT
            m.first_param_id + u.row AS param_id,
            m.model || coalesce('/' || u.stack, '') || coalesce('/L' || u.layer, '') || coalesce('/H' || u.head, '')
                || coalesce('/E' || u.expert, '') || '/' || $kind || '/' || u.idx AS address,
            m.model_id, $kind AS kind, u.* EXCLUDE (row)
        FROM unit AS u, store.models AS m
        WHERE m.model = $model
    """
    layout = model.layout
    with progress.step(f"{model.name}: storing parameters", layout.n_parameters) as advance:
        for kind in layout.kinds:
            for piece in pieces(layout, kind):
                _insert(connection, sql, model.units.read(kind, piece.number), {"kind": kind, "model": model.name})
                advance(piece.n_rows)
    connection.execute(
        """
        INSERT INTO store.postings
        WITH lists AS (
            SELECT param_id, unnest([true, false]) AS is_top,
                   unnest([top_tokens, bottom_tokens]) AS tokens, unnest([top_scores, bottom_scores]) AS scores
            FROM store.parameters JOIN store.models USING (model_id)
            WHERE model = ?
        )
        SELECT unnest(tokens) AS token_id, is_top, unnest(scores) AS score,
               unnest(range(1, len(tokens) + 1)) AS rank, param_id
        FROM lists
        ORDER BY token_id, is_top, abs(score) DESC, param_id
        """,
        [model.name],
    )


def _insert_heads(connection: duckdb.DuckDBPyConnection, model: FinishedModel) -> None:
    heads = """
        INSERT INTO store.heads BY NAME
        SELECT m.first_head_id + u.row AS head_id,
               m.model || coalesce('/' || u.stack, '') || '/L' || u.layer || '/H' || u.head AS address,
               m.model_id, u.* EXCLUDE (row)
        FROM unit AS u, store.models AS m
        WHERE m.model = $model
    """
    pairs = """
        INSERT INTO store.pairs BY NAME
        SELECT m.first_head_id + u.row AS head_id, u.* EXCLUDE (row)
        FROM unit AS u, store.models AS m
        WHERE m.model = $model
    """
    directions = """
        INSERT INTO store.directions
        SELECT DISTINCT m.first_head_id + u.row AS head_id, u.matrix, u.direction, u.singular_value, u.share
        FROM unit AS u, store.models AS m
        WHERE m.model = $model
        ORDER BY ALL
    """
    tokens = """
        INSERT INTO store.direction_tokens BY NAME
        SELECT m.first_head_id + u.row AS head_id, u.* EXCLUDE (row, singular_value, share)
        FROM unit AS u, store.models AS m
        WHERE m.model = $model
    """
    for number in range(len(model.layout.attention_places)):
        _insert(connection, heads, model.units.read("heads", number), {"model": model.name})
        _insert(connection, pairs, model.units.read("pairs", number), {"model": model.name})
        of_directions = model.units.read("directions", number)
        for sql in (directions, tokens):
            _insert(connection, sql, of_directions, {"model": model.name})


def _insert_relations(
    connection: duckdb.DuckDBPyConnection,
    mine: Related,
    others: list[Related],
    k: int,
    device: torch.device,
    progress: Progress,
) -> None:
    """Neighbors both ways and layer alignments with every model that the new one is related to."""
    for other in others:
        row = [other.model_id, mine.model_id, other.n_tokens]
        connection.execute("INSERT INTO store.relations VALUES (?, ?, ?)", row)
        with progress.step(f"{mine.name} with {other.name}: neighbors and alignment", passes(other, mine)) as advance:
            for table, rows in relation_rows(other, mine, k, device, advance):
                _insert(connection, f"INSERT INTO store.{table} BY NAME SELECT * FROM unit", rows)


def _insert_files(connection: duckdb.DuckDBPyConnection, model: FinishedModel, root: Path, folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        connection.execute(
            "INSERT INTO store.files VALUES (?, ?, ?, ?)",
            [model.name, file.relative_to(root).as_posix(), file.stat().st_size, atlas_files.sha256(file)],
        )


def _fsync(path: Path) -> None:
    """Flush a file or folder to the disk, where the system can."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def _fsync_tree(root: Path) -> None:
    for path in [*root.rglob("*"), root]:
        _fsync(path)
