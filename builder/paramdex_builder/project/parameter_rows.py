"""The rows of parameters: their lengths, the moments of their scores, and their strongest tokens.

A piece of a kind becomes one table, and the coordinates of its vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from paramdex_builder.project.lists import SIDES, Lists, Unusual, lists
from paramdex_builder.project.pieces import Piece
from paramdex_builder.project.scoring import Scoring
from paramdex_schemas import vector_files
from paramdex_schemas.layout import OF_STATES

PARAMETERS = pa.schema(
    [
        ("row", pa.int64()), ("stack", pa.string()), ("layer", pa.int16()), ("head", pa.int16()),
        ("kv_head", pa.int16()), ("expert", pa.int16()), ("idx", pa.int32()), ("space", pa.string()),
        ("norm", pa.float32()), ("mean", pa.float32()), ("std", pa.float32()), ("projected_norm", pa.float32()),
        ("embedding_std", pa.float32()), ("reads", pa.float32()),
        *((f"{side}_readable", pa.float32()) for side in SIDES),
        *((f"{side}_{name}", pa.list_(kind)) for side in SIDES for name, kind in
          (("tokens", pa.int32()), ("scores", pa.float32()), ("token_z", pa.float32()),
           ("ranks_token_z", pa.int16()))),
    ]
)  # fmt: skip


Coordinates = dict[str, np.ndarray]
"""Stem of a file -> normalized coordinates (n x r, float32): by the model's embedding, and where rows are scored."""


def parameter_rows(
    rows: torch.Tensor, piece: Piece, scoring: Scoring, unusual: Unusual | None, top_k: int
) -> tuple[pa.Table, Coordinates]:
    """The table rows and the coordinates of the vectors ``rows`` (n x d) of a piece; ``unusual`` is of its kind."""
    run, main, space = piece.run, scoring.main, scoring.space(piece.run)
    here = main.embedding.device
    scored = scoring.rows(run, rows, piece.owners).to(here)
    rows = rows.to(here)
    own = main.describe(rows)
    kept = {vector_files.stem(run.kind): own.coordinates.cpu().numpy()}
    strongest = lists(scored, space, unusual, top_k)
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
        "reads": _known(reads, len(rows)),
    }
    for side, own_lists in strongest.items():
        columns[f"{side}_readable"] = _known(own_lists.readable, len(rows))
        columns[f"{side}_tokens"] = _ragged(own_lists, own_lists.ids.int())
        columns[f"{side}_scores"] = _ragged(own_lists, own_lists.scores)
        columns[f"{side}_token_z"] = _ragged(own_lists, own_lists.token_z)
        columns[f"{side}_ranks_token_z"] = _ragged(own_lists, own_lists.ranks_token_z)
    arrays = [_array(columns[field.name], field.type) for field in PARAMETERS]
    table = pa.table(arrays, schema=PARAMETERS)
    return table, kept


def parameters_held(some: Sequence[Piece], d: int, n_terms: int) -> int:
    """The most bytes, roughly, that one of ``some`` pieces takes: its weights, its coordinates and what is made of them
    in float32; or the weights of two models and their difference in float64. What is unusual of it comes on top, in
    float64, and where it is pulled back, that and its coordinates.
    """
    pulled = [8 + 12 * (piece.run.space in OF_STATES) for piece in some]
    return max(((12 * n_terms + more) * d * piece.n_rows for piece, more in zip(some, pulled, strict=True)), default=0)


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    return values.cast(kind) if isinstance(values, pa.Array) else pa.array(values, kind)


def _known(values: torch.Tensor | None, n: int) -> pa.Array:
    """n numbers; NULL for NaN, and where there are none."""
    return pa.nulls(n) if values is None else pa.array(values.cpu().numpy(), from_pandas=True)


def _ragged(side: Lists, values: torch.Tensor | None) -> pa.Array:
    """Values of the tokens of one side as a list for each parameter; NULL where there are none."""
    if values is None:
        return pa.nulls(len(side.counts))
    ends = np.concatenate([[0], side.counts.cpu().numpy().cumsum()]).astype(np.int32)
    found = values.cpu().numpy()
    # rank 0 says that the token is in no list by token_z
    return pa.ListArray.from_arrays(ends, pa.array(found, mask=found == 0 if found.dtype == np.int16 else None))
