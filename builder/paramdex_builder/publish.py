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
from safetensors import safe_open

from paramdex_builder.index_file import open_rows, rotation, write_codes, write_flat_index
from paramdex_builder.progress import Advance, Progress
from paramdex_builder.relations import Nearest, feature_blocks, relate
from paramdex_builder.space import Space, centred_gram
from paramdex_builder.space_file import Blocks, write_space, write_tensors
from paramdex_builder.undertrained import token_embeddings
from paramdex_builder.units import Units, pieces
from paramdex_builder.vocabulary import Vocabulary
from paramdex_schemas import FORMAT_VERSION, KINDS, Layout, Run, atlas_files, isometry, vector_files
from paramdex_schemas.layout import Place

_RUN = ("stack", "layer", "owner", "n_owners", "size", "group")
_ROOT_ROWS = 1024
"""Rows of another model's R that are read at a time."""
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


@dataclass
class _Neighbor:
    """A model whose vectors are written: one in the atlas of the same vocabulary, or the new one in its folder."""

    name: str
    model_id: int
    first_param_id: int
    layout: Layout
    folder: Path

    def rows(self, kind: str) -> np.ndarray:
        """The normalized coordinates of a kind (n x r), mapped from the disk."""
        return open_rows(self.folder / vector_files.index_name(kind))

    @property
    def root_shape(self) -> tuple[int, int]:
        with safe_open(self.folder / atlas_files.SPACE, framework="np") as file:
            rank, d = file.get_slice("root").get_shape()
        return rank, d

    def root(self) -> isometry.Root:
        with safe_open(self.folder / atlas_files.SPACE, framework="np") as file:
            return isometry.Root(file.get_tensor("root"))


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
        others = _others(connection, atlas, model)
        _write_spaces(model, others, folder)
        _insert_model(connection, model)
        _insert_parameters(connection, model, progress)
        _insert_heads(connection, model)
        _insert_relations(connection, model, folder, others, device, progress)
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


def _others(connection: duckdb.DuckDBPyConnection, atlas: Path, model: FinishedModel) -> list[_Neighbor]:
    """The models in the atlas that share the model's vocabulary."""
    models = connection.execute(
        "SELECT model, model_id, first_param_id FROM store.models WHERE vocabulary = ? ORDER BY model_id",
        [model.vocabulary.name],
    ).fetchall()
    found = []
    for name, number, first in models:
        rows = connection.execute(
            "SELECT kind, stack, layer, owner, n_owners, size, group_size, first_param_id - ? FROM store.layout "
            "WHERE model_id = ? ORDER BY first_param_id",
            [first, number],
        ).fetchall()
        layout = Layout(tuple(Run(*row) for row in rows))
        found.append(_Neighbor(name, number, first, layout, atlas_files.model_folder(atlas, name)))
    return found


def _write_spaces(model: FinishedModel, others: list[_Neighbor], folder: Path) -> None:
    """Write the embedding space, and the transfer from that of each other model into it."""
    write_space(folder / atlas_files.SPACE, model.space)
    if others:
        transfers = {
            other.name: Blocks((model.space.root.rank, other.root_shape[0]), "float64", _transfer(other, model.space))
            for other in others
        }
        write_tensors(folder / atlas_files.TRANSFER, transfers)


def _transfer(other: _Neighbor, space: Space) -> Iterator[np.ndarray]:
    """The one transfer matrix, when it is asked for. The other's root, which may be the larger, is read in parts."""
    with safe_open(other.folder / atlas_files.SPACE, framework="pt") as file:
        other_E, other_means, rows = file.get_slice("embedding"), file.get_tensor("means"), file.get_slice("root")
        cross = centred_gram(space.embedding, space.means, other_E, other_means.to(space.means.device))
        half = isometry.half_transfer(cross, space.root)
        del cross
        T = np.empty((len(half), other.root_shape[0]))
        for start in range(0, T.shape[1], _ROOT_ROWS):
            part = slice(start, min(start + _ROOT_ROWS, T.shape[1]))
            T[:, part] = half @ isometry.Root(rows[part].numpy()).inverse
    yield T


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
    connection: duckdb.DuckDBPyConnection, model: FinishedModel, folder: Path, others: list[_Neighbor],
    device: torch.device, progress: Progress,
) -> None:  # fmt: skip
    """Neighbors both ways and layer alignments with every other model of the vocabulary."""
    ((model_id, first_param),) = connection.execute(
        "SELECT model_id, first_param_id FROM store.models WHERE model = ?", [model.name]
    ).fetchall()
    mine = _Neighbor(model.name, model_id, first_param, model.layout, folder)
    for other in others:
        kinds = [kind for kind in mine.layout.kinds if kind in other.layout.kinds]
        rows = {kind: other.layout.blocks[kind].n_rows for kind in kinds}
        passes = sum(n * (2 if KINDS[kind].form == "weight" else 1) for kind, n in rows.items())
        with safe_open(folder / atlas_files.TRANSFER, framework="np") as file:
            transfer = file.get_tensor(other.name)
        with progress.step(f"{model.name} with {other.name}: neighbors and alignment", passes) as advance:
            for kind in kinds:
                places = [list(side.layout.places(kind).values()) for side in (other, mine)]
                aligned = KINDS[kind].form == "weight"
                layers_other, layers_mine = places if aligned else ([], [])
                found = relate(
                    other.rows(kind), mine.rows(kind), transfer, model.row["neighbor_k"], layers_other,
                    layers_mine, device, advance,
                )  # fmt: skip
                for nearest, of, among in ((found.of_a, other, mine), (found.of_b, mine, other)):
                    table = _neighbor_rows(nearest, kind, of, among)
                    _insert(connection, "INSERT INTO store.neighbors BY NAME SELECT * FROM unit", table)
                if found.layers is not None:
                    features = _feature_layers(other, mine, kind, places, device, advance)
                    table = _alignment(other, mine, kind, found.layers, features)
                    _insert(connection, "INSERT INTO store.layer_alignments BY NAME SELECT * FROM unit", table)


def _neighbor_rows(nearest: Nearest, kind: str, of: _Neighbor, among: _Neighbor) -> pa.Table:
    """The rows of ``neighbors`` for all parameters of a kind of one model and their nearest in another."""
    n, k = nearest.ids.shape
    return pa.table(
        {
            "param_id": np.repeat(np.arange(n) + of.first_param_id + of.layout.blocks[kind].first, k),
            "neighbor_id": nearest.ids.ravel() + among.first_param_id + among.layout.blocks[kind].first,
            "neighbor_model_id": pa.array(np.full(n * k, among.model_id), pa.int32()),
            "rank": pa.array(np.tile(np.arange(1, k + 1), n), pa.int16()),
            "similarity": nearest.scores.ravel(),
        }
    )


def _feature_layers(
    a: _Neighbor, b: _Neighbor, kind: str, places: list[list[tuple[int, int]]], device: torch.device, advance: Advance
) -> np.ndarray | None:
    """The layer scores of raw weights, or None where widths differ; ``advance`` is told of every row of ``a``.

    Weights are had back from coordinates, as far as features are compared by them (``isometry.feature_rows``).
    """
    d = a.root_shape[1]
    if b.root_shape[1] != d or not all(side.root().keeps_features for side in (a, b)):
        advance(a.layout.blocks[kind].n_rows)
        return None
    scratch = [b.folder.parent / f"features-{side}.faiss" for side in "ab"]
    for file, side in zip(scratch, (a, b), strict=True):
        write_flat_index(file, d, feature_blocks(side.rows(kind), side.root().inverse, device))
    rows_a, rows_b = (open_rows(file) for file in scratch)
    found = relate(rows_a, rows_b, None, 0, places[0], places[1], device, advance)
    for file in scratch:
        file.unlink()
    return found.layers


def _alignment(
    a: _Neighbor, b: _Neighbor, kind: str, scores: np.ndarray, feature_scores: np.ndarray | None
) -> pa.Table:
    """The rows of ``layer_alignments`` of one kind."""
    places_a, places_b = (list(side.layout.places(kind)) for side in (a, b))
    in_a, in_b = (index.ravel() for index in np.indices(scores.shape))
    columns = {
        "model_a": [a.name] * scores.size,
        "model_b": [b.name] * scores.size,
        "kind": [kind] * scores.size,
        **_place_columns("a", places_a, in_a),
        **_place_columns("b", places_b, in_b),
        "score": pa.array(scores.ravel(), pa.float32()),
        "matched": isometry.match_layers(scores).ravel(),
    }
    if feature_scores is not None:
        columns["feature_score"] = pa.array(feature_scores.ravel(), pa.float32())
        columns["feature_matched"] = isometry.match_layers(feature_scores).ravel()
    return pa.table(columns)


def _place_columns(side: str, places: list[Place], which: np.ndarray) -> dict[str, pa.Array]:
    stacks, layers = zip(*(places[i] for i in which), strict=True)
    return {f"stack_{side}": pa.array(stacks, pa.string()), f"layer_{side}": pa.array(layers, pa.int16())}


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
