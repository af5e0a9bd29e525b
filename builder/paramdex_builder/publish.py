"""Publishing: the finished units of one model become rows of a copy of the database, which then replaces it.

Readers never see half a model: the model's own folder is moved into place first, where nothing refers to it yet, and
one atomic rename of the database makes it part of the atlas.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import duckdb
import faiss
import numpy as np
import pyarrow as pa
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from paramdex_builder.progress import Progress
from paramdex_builder.project import rank
from paramdex_builder.space import Space, centred_gram
from paramdex_builder.units import Units
from paramdex_builder.vocabulary import Vocabulary
from paramdex_schemas import FORMAT_VERSION, ModelShape, atlas_files, isometry

_ALIGNMENT_BLOCK = 64 << 20
"""Bytes of a block of similarities."""


@dataclass
class FinishedModel:
    """All that is known of a model whose units are done. ``row`` holds the columns of ``models`` but the ids."""

    name: str
    row: dict[str, Any]
    shape: ModelShape
    space: Space
    vocabulary: Vocabulary
    units: Units


@dataclass
class _Neighbor:
    """A model already in the atlas, of the same vocabulary."""

    name: str
    model_id: int
    first_param_id: int
    shape: ModelShape
    folder: Path

    def coordinates(self, kind: str) -> np.ndarray:
        index = faiss.read_index(str(self.folder / atlas_files.index_name(kind)))
        return index.reconstruct_n(0, index.ntotal)

    def tensor(self, name: str) -> torch.Tensor:
        with safe_open(self.folder / atlas_files.SPACE, framework="pt") as file:
            return file.get_tensor(name)


@contextmanager
def database(path: Path, *, create: bool = False, read_only: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection whose current database is the file ``path``, in a storage version that older clients can read."""
    connection = duckdb.connect(config={} if read_only else {"temp_directory": str(path.parent / "duckdb-temp")})
    try:
        created = f" (STORAGE_VERSION '{atlas_files.STORAGE_VERSION}')" if create else ""
        options = " (READ_ONLY)" if read_only else created
        quoted = str(path).replace("'", "''")
        connection.execute(f"ATTACH '{quoted}' AS atlas{options}")
        connection.execute("USE atlas")
        yield connection
        connection.execute("USE memory")
        connection.execute("DETACH atlas")  # checkpoints
    finally:
        connection.close()


def publish(model: FinishedModel, atlas: Path, staging: Path, device: torch.device, progress: Progress) -> None:
    """Add a finished model to ``atlas`` (made if it is not there), through the folder ``staging`` beside it."""
    work = staging / ".publish"  # no name of a model
    shutil.rmtree(work, ignore_errors=True)
    folder = atlas_files.model_folder(work, model.name)
    folder.mkdir(parents=True)
    new = not atlas.exists()
    file = atlas_files.database(work)
    if not new:
        shutil.copyfile(atlas_files.database(atlas), file)
    with database(file, create=new) as connection:
        if new:
            for statements in atlas_files.ddl():
                connection.execute(statements)
            connection.execute(
                "INSERT INTO store.atlas VALUES (?, ?)", [FORMAT_VERSION, f"paramdex {model.row['builder_version']}"]
            )
        connection.execute("BEGIN")
        coordinates = _write_vectors(model, folder)
        others = _others(connection, atlas, model)
        transfers = _write_space(model, others, folder)
        _insert_model(connection, model)
        _insert_parameters(connection, model, progress)
        _insert_heads(connection, model)
        _insert_relations(connection, model, coordinates, others, transfers, device, progress)
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


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file with the usual permissions; save_file itself gives them to the owner alone."""
    save_file(tensors, path)
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def _write_vectors(model: FinishedModel, folder: Path) -> dict[str, np.ndarray]:
    """Write the vector index of every kind; give its rows (n x r, float32)."""
    coordinates = {}
    for kind in model.shape.kinds:
        rows = np.concatenate([model.units.coordinates(kind, layer) for layer in range(model.shape.n_layers)])
        index = faiss.IndexFlatIP(rows.shape[1])
        index.add(rows)
        try:
            faiss.write_index(index, str(folder / atlas_files.index_name(kind)))
        except RuntimeError as error:  # faiss has no other
            raise OSError(str(error)) from error
        coordinates[kind] = rows
    return coordinates


def _others(connection: duckdb.DuckDBPyConnection, atlas: Path, model: FinishedModel) -> list[_Neighbor]:
    """The models in the atlas that share the model's vocabulary."""
    rows = connection.execute(
        "SELECT model, model_id, first_param_id, n_layers, d_model, n_heads, n_kv_heads, d_head, d_ff, gated "
        "FROM store.models WHERE vocabulary = ? ORDER BY model_id",
        [model.vocabulary.name],
    ).fetchall()
    return [
        _Neighbor(name, number, first, ModelShape(*shape), atlas_files.model_folder(atlas, name))
        for name, number, first, *shape in rows
    ]


def _write_space(model: FinishedModel, others: list[_Neighbor], folder: Path) -> dict[str, np.ndarray]:
    """Write the embedding space and the transfer matrices; give the transfer from each other model into this one."""
    space = model.space
    E = space.embedding.cpu()
    half = E.half()
    tensors = {
        # float16 where it holds every value exactly, as it does for models stored so
        "embedding": half if torch.equal(half.float(), E) else E,
        "means": space.means.cpu(),
        "root": torch.from_numpy(space.root.root.copy()),
        "inverse": torch.from_numpy(space.root.inverse.copy()),
    }
    _save(tensors, folder / atlas_files.SPACE)
    transfers = {}
    for other in others:
        other_E, other_means = other.tensor("embedding").float(), other.tensor("means")
        device = space.embedding.device
        cross = centred_gram(space.embedding, space.means, other_E.to(device), other_means.to(device))
        root = isometry.Root(other.tensor("root").numpy(), other.tensor("inverse").numpy(), 0.0)
        transfers[other.name] = isometry.transfer(cross, root, space.root)
    if transfers:
        _save({name: torch.from_numpy(T.copy()) for name, T in transfers.items()}, folder / atlas_files.TRANSFER)
    return transfers


def _insert_model(connection: duckdb.DuckDBPyConnection, model: FinishedModel) -> None:
    ((model_id, first_param, first_head),) = connection.execute(
        "SELECT coalesce(max(model_id) + 1, 0), coalesce(max(first_param_id + n_parameters), 0), "
        "coalesce(max(first_head_id + n_layers * n_heads), 0) FROM store.models"
    ).fetchall()
    row = model.row | {
        "model_id": model_id,
        "model": model.name,
        "first_param_id": first_param,
        "first_head_id": first_head,
        "built_at": datetime.now(timezone.utc).replace(tzinfo=None, microsecond=0),
    }
    connection.execute(
        f"INSERT INTO store.models ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", list(row.values())
    )
    known = connection.execute(
        "SELECT count(*) FROM store.tokens WHERE vocabulary = ?", [model.vocabulary.name]
    ).fetchall()
    if known == [(0,)]:
        _insert(connection, "INSERT INTO store.tokens BY NAME SELECT * FROM unit", model.vocabulary.table())


def _insert(connection: duckdb.DuckDBPyConnection, sql: str, unit: pa.Table, values: list[Any] | None = None) -> None:
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
            m.model || '/L' || $layer || coalesce('/H' || u.head, '') || '/' || $kind || '/' || u.idx AS address,
            m.model_id, $layer AS layer, $kind AS kind, u.* EXCLUDE (row)
        FROM unit AS u, store.models AS m
        WHERE m.model = $model
    """
    n_layers = model.shape.n_layers
    with progress.step(f"{model.name}: storing parameters", len(model.shape.kinds) * n_layers) as advance:
        for kind in model.shape.kinds:
            for layer in range(n_layers):
                values = {"kind": kind, "layer": layer, "model": model.name}
                connection.register("unit", model.units.read(kind, layer))
                connection.execute(sql, values)
                connection.unregister("unit")
                advance(1)
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
        SELECT m.first_head_id + u.row AS head_id, m.model || '/L' || $layer || '/H' || u.head AS address,
               m.model_id, $layer AS layer, u.* EXCLUDE (row)
        FROM unit AS u, store.models AS m
        WHERE m.model = $model
    """
    pairs = """
        INSERT INTO store.pairs BY NAME
        SELECT m.first_head_id + u.row AS head_id, u.* EXCLUDE (row)
        FROM unit AS u, store.models AS m
        WHERE m.model = $model
    """
    for layer in range(model.shape.n_layers):
        connection.register("unit", model.units.read("heads", layer))
        connection.execute(heads, {"layer": layer, "model": model.name})
        connection.register("unit", model.units.read("pairs", layer))
        connection.execute(pairs, {"model": model.name})
        connection.unregister("unit")


def _insert_relations(
    connection: duckdb.DuckDBPyConnection, model: FinishedModel, coordinates: dict[str, np.ndarray],
    others: list[_Neighbor], transfers: dict[str, np.ndarray], device: torch.device, progress: Progress,
) -> None:  # fmt: skip
    """Neighbors both ways and layer alignments with every other model of the vocabulary."""
    ((model_id, first_param),) = connection.execute(
        "SELECT model_id, first_param_id FROM store.models WHERE model = ?", [model.name]
    ).fetchall()
    k = model.row["neighbor_k"]
    mine, own_inverse = model.shape, model.space.root.inverse
    for other in others:
        T = transfers[other.name]
        kinds = [kind for kind in mine.kinds if kind in other.shape.kinds]
        with progress.step(f"{model.name} with {other.name}: neighbors and alignment", len(kinds)) as advance:
            for kind in kinds:
                rows, theirs = coordinates[kind], other.coordinates(kind)
                there = (rows @ T).astype(np.float32)  # T^T a for every row a: this model's rows in the other's terms
                back = (theirs @ T.T).astype(np.float32)
                own_first = first_param + mine.blocks[kind].first
                other_first = other.first_param_id + other.shape.blocks[kind].first
                for queries, keys, query_first, key_first, key_model in (
                    (there, theirs, own_first, other_first, other.model_id),
                    (back, rows, other_first, own_first, model_id),
                ):
                    table = nearest_rows(queries, keys, k, device, query_first, key_first, key_model)
                    _insert(connection, "INSERT INTO store.neighbors BY NAME SELECT * FROM unit", table)
                features = None
                # Weights are had back from coordinates, which only a space without null space allows.
                if own_inverse.shape == other.tensor("inverse").shape == (mine.d_model, mine.d_model):
                    features = (
                        isometry.feature_rows(theirs @ other.tensor("inverse").numpy().T).astype(np.float32),
                        isometry.feature_rows(rows @ own_inverse.T).astype(np.float32),
                    )
                table = _alignment(other, model, kind, theirs, there, features)
                _insert(connection, "INSERT INTO store.layer_alignments BY NAME SELECT * FROM unit", table)
                advance(1)


def nearest_rows(
    queries: np.ndarray,
    keys: np.ndarray,
    k: int,
    device: torch.device,
    query_first: int,
    key_first: int,
    key_model: int,
) -> pa.Table:
    """The rows of ``neighbors``: for every query (n x r) its k keys (m x r) of largest inner product.

    Ordered by (similarity, id); ids count from ``query_first`` and ``key_first``.
    """
    k = min(k, len(keys))
    on_device = torch.from_numpy(keys).to(device)
    found = []
    for block in torch.from_numpy(queries).to(device).split(max(1, _ALIGNMENT_BLOCK // (4 * len(keys)))):
        best = (block @ on_device.T).topk(min(k + 1, len(keys)), dim=1)
        found.append(rank(best.values, best.indices, k))
    ids = torch.cat([part.ids for part in found]).cpu().numpy()
    scores = torch.cat([part.scores for part in found]).cpu().numpy()
    return pa.table(
        {
            "param_id": np.repeat(np.arange(len(queries)) + query_first, k),
            "neighbor_id": ids.ravel() + key_first,
            "neighbor_model_id": pa.array(np.full(ids.size, key_model), pa.int32()),
            "rank": pa.array(np.tile(np.arange(1, k + 1), len(queries)), pa.int16()),
            "similarity": scores.ravel(),
        }
    )


def _alignment(
    a: _Neighbor, b: FinishedModel, kind: str, rows_a: np.ndarray, rows_b: np.ndarray,
    features: tuple[np.ndarray, np.ndarray] | None,
) -> pa.Table:  # fmt: skip
    """The rows of ``layer_alignments`` of one kind; ``rows_b`` already in the coordinates of ``a``."""
    split_a = lambda rows: np.split(rows, a.shape.n_layers)  # noqa: E731
    split_b = lambda rows: np.split(rows, b.shape.n_layers)  # noqa: E731
    scores = isometry.layer_scores(split_a(rows_a), split_b(rows_b))
    layer_a, layer_b = np.indices(scores.shape)
    columns = {
        "model_a": [a.name] * scores.size,
        "model_b": [b.name] * scores.size,
        "kind": [kind] * scores.size,
        "layer_a": pa.array(layer_a.ravel(), pa.int16()),
        "layer_b": pa.array(layer_b.ravel(), pa.int16()),
        "score": pa.array(scores.ravel(), pa.float32()),
        "matched": isometry.match_layers(scores).ravel(),
    }
    if features is not None:
        feature_scores = isometry.layer_scores(split_a(features[0]), split_b(features[1]))
        columns["feature_score"] = pa.array(feature_scores.ravel(), pa.float32())
        columns["feature_matched"] = isometry.match_layers(feature_scores).ravel()
    return pa.table(columns)


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
