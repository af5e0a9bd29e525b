"""The numbers that the atlas keeps of every parameter: its norms, and the mean and deviation of its V scores.

A column is read once for a whole model and kept, so all that asks for parts of it shares one array.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from paramdex.store.database import Database
from paramdex_schemas.model import Model, Span

Numbers = npt.NDArray[np.float32]


def numbers(database: Database, model: Model, column: str, ids: Span | None = None) -> Numbers:
    """One column of ``store.parameters`` for the parameters [first, end) of a model, or for all of them, by number."""
    return _columns(database, model, column, ids=ids)[0]


def moments(database: Database, model: Model, ids: Span | None = None) -> tuple[Numbers, Numbers]:
    """The mean and the standard deviation of the V scores of the same parameters, each in the space that scores it."""
    mean, std = _columns(database, model, "mean", "std", ids=ids)
    return mean, std


def _columns(database: Database, model: Model, *columns: str, ids: Span | None) -> list[Numbers]:
    first = model.first_param_id
    table = database.of(model).kept(f"SELECT {', '.join(columns)} FROM store.parameters ORDER BY param_id")
    start, stop = model.span if ids is None else ids
    return [column.chunk(0).to_numpy()[start - first : stop - first] for column in table.columns]
