"""Checks results as inputs are checked: every number stored in an atlas is a finite float32.

Finite weights may have scores, norms or singular values that are not finite: a score is a sum of products of two
weights, a pair's score of four. What is too small for float32 is stored as what float32 rounds it to, in the end 0.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from paramdex_schemas import CheckpointError

_ROWS = 2048
"""Rows that are held in float64 at a time."""


def check_table(table: pa.Table, what: str) -> None:
    """Raises CheckpointError, which begins with ``what``, unless all numbers of a table and its lists are finite."""
    for name, column in zip(table.column_names, table.columns, strict=True):
        listed = pa.types.is_list(column.type)
        if pa.types.is_floating(column.type.value_type if listed else column.type):
            flat = column.combine_chunks().flatten() if listed else column.drop_null()
            _refuse(int((~np.isfinite(flat.to_numpy())).sum()), f"{what}: {name}")


def check_lengths(rows: torch.Tensor, what: str) -> None:
    """Raises CheckpointError, which begins with ``what``, unless every row of a matrix has a norm that is finite in
    float32, and so has finite numbers.
    """
    norms = (torch.linalg.vector_norm(part.double(), dim=1).float() for part in torch.split(rows, _ROWS))
    _refuse(sum(int((~norm.isfinite()).sum()) for norm in norms), f"{what}: the norm of its rows")


def _refuse(count: int, what: str) -> None:
    if count:
        raise CheckpointError(
            f"{what} is too large for float32 in {count} places; the weights are damaged or of another scale: "
            "fetch the model again"
        )
