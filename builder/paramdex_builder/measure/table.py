"""The table that ``evaluate`` gives: a row for each value and each baseline beside it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from paramdex_builder.measure.measures import Measured

SCHEMA = pa.schema(
    [
        ("model", pa.string()), ("fold_norm", pa.bool_()), ("space", pa.string()), ("measure", pa.string()),
        ("kind", pa.string()), ("reading", pa.string()), ("ranking", pa.string()), ("layer", pa.int16()),
        ("k", pa.int32()), ("value", pa.float32()),
        ("against", pa.string()), ("baseline", pa.float32()), ("deviation", pa.float32()), ("p_value", pa.float64()),
        ("draws", pa.int32()), ("n", pa.int32()),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class About:
    """What a value says: the measure, the kind or the pair of kinds, and where those matter the layer (None: over all
    layers), how many tokens of a list count (``k``), how readers were read, and what ranked the tokens (``ranking``).
    """

    measure: str
    kind: str
    layer: int | None = None
    k: int | None = None
    reading: str | None = None
    ranking: str | None = None


@dataclass
class Rows:
    """The rows found so far; ``same`` holds the columns equal in all rows."""

    same: dict[str, Any]
    draws: int
    found: list[dict[str, Any]] = field(default_factory=list)

    def add(self, about: About, against: str, measured: Measured, n: int) -> None:
        """Add what was found of ``n`` tokens, pairs, lists or vectors, beside the baseline ``against``."""
        drawn = {"against": against, "draws": None if measured.p_value is None else self.draws, "n": n}
        self.found.append(self.same | asdict(about) | asdict(measured) | drawn)

    def table(self) -> pa.Table:
        """The rows with the columns of SCHEMA."""
        return pa.Table.from_pylist(self.found, schema=SCHEMA)
