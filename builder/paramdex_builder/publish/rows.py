"""The rows of the tables that a finished model becomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import torch

from paramdex_builder.files.tables import insert
from paramdex_builder.files.units import Units
from paramdex_builder.project.pieces import pieces
from paramdex_builder.project.space import Space
from paramdex_builder.project.undertrained import token_embeddings
from paramdex_builder.read.vocabulary import Vocabulary
from paramdex_schemas import Layout
from paramdex_schemas.contents import RUN_COLUMNS
from paramdex_schemas.progress import Progress


@dataclass
class FinishedModel:
    """A model whose units are done. ``row`` holds its columns of ``models``."""

    row: dict[str, Any]
    layout: Layout
    spaces: dict[str, Space]
    """by name, the model's own embedding first"""
    maps: dict[str, torch.Tensor]
    """what takes readers to the reading space, by name (``stream.reading``)"""
    vocabulary: Vocabulary
    units: Units

    @property
    def name(self) -> str:
        return str(self.row["model"])

    @property
    def space(self) -> Space:
        """That of the model's own embedding."""
        return next(iter(self.spaces.values()))


def insert_model(connection: duckdb.DuckDBPyConnection, model: FinishedModel) -> None:
    """Insert the rows of ``models``, ``layout``, ``tokens`` and ``token_embeddings``."""
    connection.execute(
        f"INSERT INTO store.models ({', '.join(model.row)}) VALUES ({', '.join('?' * len(model.row))})",
        list(model.row.values()),
    )
    runs = [[getattr(run, name) for name in RUN_COLUMNS] for run in model.layout.runs]
    connection.executemany(f"INSERT INTO store.layout VALUES ({', '.join('?' * len(RUN_COLUMNS))})", runs)
    insert(connection, "INSERT INTO store.tokens BY NAME SELECT * FROM given", model.vocabulary.table())
    space = model.space
    found = token_embeddings(space.embedding, space.means.cpu().numpy(), space.root)
    table = pa.table(
        {
            "token_id": pa.array(range(space.size), pa.int32()),
            "norm": found.norm,
            "undertrained": pa.nulls(space.size, pa.float32()) if found.score is None else found.score,
            "is_undertrained": found.undertrained,
        }
    )
    insert(connection, "INSERT INTO store.token_embeddings BY NAME SELECT * FROM given", table)


def insert_parameters(connection: duckdb.DuckDBPyConnection, model: FinishedModel, progress: Progress) -> None:
    """Insert the rows of ``parameters``, in order of param_id, and their ``postings``, in order of token. Ranks by
    token_z are in the units alone: the lists of ``parameters`` need none to be put in order.
    """
    sql = """
        INSERT INTO store.parameters BY NAME
        SELECT
            row AS param_id,
            coalesce(stack || '/', '') || coalesce('L' || layer || '/', '') || coalesce('H' || head || '/', '')
                || coalesce('E' || expert || '/', '') || $kind || '/' || idx AS path,
            $kind AS kind, g.* EXCLUDE (row, top_ranks_token_z, bottom_ranks_token_z)
        FROM given AS g
    """
    layout = model.layout
    with progress.step(f"{model.name}: storing parameters", layout.n_parameters) as advance:
        for kind in layout.kinds:
            for piece in pieces(layout, kind):
                insert(connection, sql, model.units.read(kind, piece.number), {"kind": kind})
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
        SELECT token_id, is_top, score, token_z, CASE WHEN place <= $top_k THEN place END AS rank, rank_token_z,
               row AS param_id
        FROM entries
        ORDER BY token_id, is_top, abs(score) DESC, param_id
        """,
        {"files": files, "top_k": model.row["top_k"]},
    )
    _count_hubs(connection)


def _count_hubs(connection: duckdb.DuckDBPyConnection) -> None:
    """Set in how many lists every token is among the ten strongest."""
    connection.execute(
        """
        UPDATE store.token_embeddings AS e SET in_top_10 = n.by_score, in_top_10_token_z = n.by_token_z
        FROM (
            SELECT token_id, count(*) FILTER (rank <= 10) AS by_score,
                   count(*) FILTER (rank_token_z <= 10) AS by_token_z
            FROM store.postings
            WHERE rank <= 10 OR rank_token_z <= 10
            GROUP BY ALL
        ) AS n
        WHERE e.token_id = n.token_id
        """
    )


def insert_heads(connection: duckdb.DuckDBPyConnection, model: FinishedModel) -> None:
    """Insert the rows of ``heads``, ``pairs``, ``directions`` and ``direction_tokens``."""
    heads = """
        INSERT INTO store.heads BY NAME
        SELECT row AS head_id, coalesce(stack || '/', '') || 'L' || layer || '/H' || head AS path, g.* EXCLUDE (row)
        FROM given AS g
    """
    pairs = "INSERT INTO store.pairs BY NAME SELECT row AS head_id, g.* EXCLUDE (row) FROM given AS g"
    directions = """
        INSERT INTO store.directions
        SELECT DISTINCT row AS head_id, matrix, direction, singular_value, share FROM given
        ORDER BY ALL
    """
    tokens = """
        INSERT INTO store.direction_tokens BY NAME
        SELECT row AS head_id, g.* EXCLUDE (row, singular_value, share) FROM given AS g
    """
    for number in range(len(model.layout.attention_places)):
        insert(connection, heads, model.units.read("heads", number))
        insert(connection, pairs, model.units.read("pairs", number))
        of_directions = model.units.read("directions", number)
        for sql in (directions, tokens):
            insert(connection, sql, of_directions)
