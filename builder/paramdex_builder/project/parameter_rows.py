"""The rows of parameters: their lengths, the moments of their scores, and their strongest tokens.

A piece of a kind becomes one table, and the coordinates of its vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from paramdex_builder.project.block import Tokens
from paramdex_builder.project.pieces import Piece
from paramdex_builder.project.scoring import Scoring
from paramdex_builder.project.space import Space
from paramdex_builder.project.tokens import strongest_tokens
from paramdex_schemas import vector_files

PARAMETERS = pa.schema(
    [
        ("row", pa.int64()), ("stack", pa.string()), ("layer", pa.int16()), ("head", pa.int16()),
        ("kv_head", pa.int16()), ("expert", pa.int16()), ("idx", pa.int32()), ("space", pa.string()),
        ("norm", pa.float32()), ("mean", pa.float32()), ("std", pa.float32()), ("projected_norm", pa.float32()),
        ("embedding_std", pa.float32()), ("reads", pa.float32()),
        ("top_tokens", pa.list_(pa.int32())), ("top_scores", pa.list_(pa.float32())),
        ("bottom_tokens", pa.list_(pa.int32())), ("bottom_scores", pa.list_(pa.float32())),
    ]
)  # fmt: skip


Coordinates = dict[str, np.ndarray]
"""Stem of a file -> normalized coordinates (n x r, float32): by the model's embedding, and where rows are scored."""


def parameter_rows(rows: torch.Tensor, piece: Piece, scoring: Scoring, top_k: int) -> tuple[pa.Table, Coordinates]:
    """The table rows and the coordinates of the vectors ``rows`` (n x d) of a piece."""
    run, main, space = piece.run, scoring.main, scoring.space(piece.run)
    here = main.embedding.device
    scored = scoring.rows(run, rows, piece.owners).to(here)
    rows = rows.to(here)
    own = main.describe(rows)
    kept = {vector_files.stem(run.kind): own.coordinates.cpu().numpy()}
    tokens = _tokens(scored, space, top_k)
    found = own if space is main else space.describe(scored)
    if space is not main:
        kept[vector_files.stem(run.kind, run.space)] = found.coordinates.cpu().numpy()
    reads = scoring.reads(run, piece.owners)
    projected = (space.size * (found.mean**2 + found.std**2)).sqrt()
    heads, kv_heads, experts, indexes = zip(*piece.run.rows(piece.owners), strict=True)
    columns: dict[str, Any] = {
        "row": range(piece.first, piece.first + len(rows)),
        "stack": [piece.run.stack] * len(rows),
        "layer": [piece.run.layer] * len(rows),
        "head": heads,
        "kv_head": kv_heads,
        "expert": experts,
        "idx": indexes,
        "space": [run.space] * len(rows),
        "norm": own.norm.float().cpu().numpy(),
        "mean": found.mean.float().cpu().numpy(),
        "std": found.std.float().cpu().numpy(),
        "projected_norm": projected.float().cpu().numpy(),
        "embedding_std": own.std.float().cpu().numpy(),
        "reads": pa.nulls(len(rows)) if reads is None else pa.array(reads.numpy(), from_pandas=True),  # NaN is null
    }
    for side, strongest in tokens.items():
        columns[f"{side}_tokens"] = _lists(strongest.ids.int())
        columns[f"{side}_scores"] = _lists(strongest.scores)
    arrays = [_array(columns[field.name], field.type) for field in PARAMETERS]
    table = pa.table(arrays, schema=PARAMETERS)
    return table, kept


def parameters_held(some: Sequence[Piece], d: int, n_terms: int) -> int:
    """The most bytes, roughly, that one of ``some`` pieces takes: its weights, its coordinates and what is made of them
    in float32; or the weights of two models and their difference in float64. Where it is pulled back, that and its
    coordinates come on top.
    """
    pulled = [12 * (piece.run.space == "reading") for piece in some]
    return max(((12 * n_terms + more) * d * piece.n_rows for piece, more in zip(some, pulled, strict=True)), default=0)


def _tokens(rows: torch.Tensor, space: Space, k: int) -> dict[str, Tokens]:
    """As ``strongest_tokens``. Rows of zeros, as what training did not move, get the first tokens, with score 0."""
    moved = rows.any(dim=1)
    if moved.all():
        return strongest_tokens(rows, space, k)
    k = min(k, space.size)
    found = strongest_tokens(rows[moved], space, k) if moved.any() else {}
    sides = {}
    for side in ("top", "bottom"):
        ids = torch.arange(k, device=rows.device).repeat(len(rows), 1)
        scores = torch.zeros(ids.shape, device=rows.device)
        if side in found:
            ids[moved], scores[moved] = found[side].ids, found[side].scores
        sides[side] = Tokens(ids, scores)
    return sides


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    return values.cast(kind) if isinstance(values, pa.Array) else pa.array(values, kind)


def _lists(values: torch.Tensor) -> pa.ListArray:
    """A matrix (n x k) as n lists of k."""
    n, k = values.shape
    return pa.ListArray.from_arrays(np.arange(0, n * k + 1, k, dtype=np.int32), values.cpu().numpy().ravel())
