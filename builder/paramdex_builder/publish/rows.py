"""The rows of the tables that a finished model becomes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import torch

from paramdex_builder.files.units import Units
from paramdex_builder.project.pieces import pieces
from paramdex_builder.project.space import Space
from paramdex_builder.project.undertrained import token_embeddings
from paramdex_builder.read.vocabulary import Vocabulary
from paramdex_builder.work.progress import Progress
from paramdex_schemas import Layout, atlas_files

_RUN = ("stack", "layer", "owner", "n_owners", "size", "group")
"""What ``store.layout`` has of a run, beside its kind, its first parameter and its space."""


@dataclass
class FinishedModel:
    """A model whose units are done. ``row`` holds its columns of ``models``, without the ids and the name."""

    name: str
    row: dict[str, Any]
    layout: Layout
    spaces: dict[str, Space]
    """by name, the model's own embedding first"""
    maps: dict[str, torch.Tensor]
    """what takes readers to the reading space, by name (``stream.reading``)"""
    vocabulary: Vocabulary
    units: Units

    @property
    def space(self) -> Space:
        """That of the model's own embedding."""
        return next(iter(self.spaces.values()))


def insert_model(connection: duckdb.DuckDBPyConnection, model: FinishedModel) -> None:
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
        (model_id, *(getattr(run, name) for name in ("kind", *_RUN)), first_param + run.first, run.space)
        for run in model.layout.runs
    ]
    connection.executemany(f"INSERT INTO store.layout VALUES ({', '.join('?' * 10)})", runs)
    _insert_tokens(connection, model, model_id)


def _insert_tokens(connection: duckdb.DuckDBPyConnection, model: FinishedModel, model_id: int) -> None:
    """Insert the rows of ``token_embeddings``, and those of ``tokens`` if no earlier model has the vocabulary."""
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
        insert(connection, "INSERT INTO store.tokens BY NAME SELECT * FROM given", items)
    else:
        sql = """
            UPDATE store.tokens AS t SET is_undertrained = false
            FROM given AS g
            WHERE t.vocabulary = ? AND t.token_id = g.token_id AND t.is_undertrained AND NOT g.is_undertrained
        """
        insert(connection, sql, table, [model.vocabulary.name])
    insert(connection, "INSERT INTO store.token_embeddings BY NAME SELECT * FROM given", table)


def insert(connection: duckdb.DuckDBPyConnection, sql: str, given: pa.Table, values: Any = None) -> None:
    """Run ``sql`` with the Arrow table ``given`` visible under that name."""
    connection.register("given", given)
    connection.execute(sql, values or [])
    connection.unregister("given")


def insert_parameters(connection: duckdb.DuckDBPyConnection, model: FinishedModel, progress: Progress) -> None:
    """Insert the rows of ``parameters``, in order of param_id, and their ``postings``, in order of token. Ranks by
    token_z are in the units alone: the lists of ``parameters`` need none to be put in order.
    """
    sql = """
        INSERT INTO store.parameters BY NAME
        SELECT
            m.first_param_id + g.row AS param_id,
            m.model || coalesce('/' || g.stack, '') || coalesce('/L' || g.layer, '') || coalesce('/H' || g.head, '')
                || coalesce('/E' || g.expert, '') || '/' || $kind || '/' || g.idx AS address,
            m.model_id, $kind AS kind, g.* EXCLUDE (row, top_ranks_token_z, bottom_ranks_token_z)
        FROM given AS g, store.models AS m
        WHERE m.model = $model
    """
    layout = model.layout
    with progress.step(f"{model.name}: storing parameters", layout.n_parameters) as advance:
        for kind in layout.kinds:
            for piece in pieces(layout, kind):
                insert(connection, sql, model.units.read(kind, piece.number), {"kind": kind, "model": model.name})
                advance(piece.n_rows)
    files = [str(model.units.rows(kind, piece.number)) for kind in layout.kinds for piece in pieces(layout, kind)]
    connection.execute(
        """
        INSERT INTO store.postings
        WITH lists AS (
            SELECT row, unnest([true, false]) AS is_top, unnest([top_tokens, bottom_tokens]) AS tokens,
                   unnest([top_scores, bottom_scores]) AS scores, unnest([top_token_z, bottom_token_z]) AS token_z,
                   unnest([top_ranks_token_z, bottom_ranks_token_z]) AS ranks_token_z
            FROM read_parquet($files)
        ), entries AS (
            SELECT row, is_top, unnest(tokens) AS token_id, unnest(scores) AS score, unnest(token_z) AS token_z,
                   unnest(range(1, len(tokens) + 1)) AS place, unnest(ranks_token_z) AS rank_token_z
            FROM lists
        )
        SELECT e.token_id, e.is_top, e.score, e.token_z, CASE WHEN e.place <= m.top_k THEN e.place END AS rank,
               e.rank_token_z, m.first_param_id + e.row AS param_id
        FROM entries AS e, store.models AS m
        WHERE m.model = $model
        ORDER BY token_id, is_top, abs(score) DESC, param_id
        """,
        {"files": files, "model": model.name},
    )
    _count_hubs(connection, model.name)


def _count_hubs(connection: duckdb.DuckDBPyConnection, model: str) -> None:
    """Set in how many lists every token of a model is among the ten strongest."""
    connection.execute(
        """
        UPDATE store.token_embeddings AS e SET in_top_10 = n.by_score, in_top_10_token_z = n.by_token_z
        FROM (
            SELECT m.model_id, p.token_id, count(*) FILTER (p.rank <= 10) AS by_score,
                   count(*) FILTER (p.rank_token_z <= 10) AS by_token_z
            FROM store.postings AS p
            JOIN store.models AS m
                ON p.param_id >= m.first_param_id AND p.param_id < m.first_param_id + m.n_parameters
            WHERE m.model = ? AND (p.rank <= 10 OR p.rank_token_z <= 10)
            GROUP BY ALL
        ) AS n
        WHERE e.model_id = n.model_id AND e.token_id = n.token_id
        """,
        [model],
    )


def insert_heads(connection: duckdb.DuckDBPyConnection, model: FinishedModel) -> None:
    heads = """
        INSERT INTO store.heads BY NAME
        SELECT m.first_head_id + g.row AS head_id,
               m.model || coalesce('/' || g.stack, '') || '/L' || g.layer || '/H' || g.head AS address,
               m.model_id, g.* EXCLUDE (row)
        FROM given AS g, store.models AS m
        WHERE m.model = $model
    """
    pairs = """
        INSERT INTO store.pairs BY NAME
        SELECT m.first_head_id + g.row AS head_id, g.* EXCLUDE (row)
        FROM given AS g, store.models AS m
        WHERE m.model = $model
    """
    directions = """
        INSERT INTO store.directions
        SELECT DISTINCT m.first_head_id + g.row AS head_id, g.matrix, g.direction, g.singular_value, g.share
        FROM given AS g, store.models AS m
        WHERE m.model = $model
        ORDER BY ALL
    """
    tokens = """
        INSERT INTO store.direction_tokens BY NAME
        SELECT m.first_head_id + g.row AS head_id, g.* EXCLUDE (row, singular_value, share)
        FROM given AS g, store.models AS m
        WHERE m.model = $model
    """
    for number in range(len(model.layout.attention_places)):
        insert(connection, heads, model.units.read("heads", number), {"model": model.name})
        insert(connection, pairs, model.units.read("pairs", number), {"model": model.name})
        of_directions = model.units.read("directions", number)
        for sql in (directions, tokens):
            insert(connection, sql, of_directions, {"model": model.name})


def insert_files(connection: duckdb.DuckDBPyConnection, model: FinishedModel, root: Path, folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        connection.execute(
            "INSERT INTO store.files VALUES (?, ?, ?, ?)",
            [model.name, file.relative_to(root).as_posix(), file.stat().st_size, atlas_files.sha256(file)],
        )
