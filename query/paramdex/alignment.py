"""The alignment of two models' layers, as a result that prints a line a kind and draws a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from paramdex.result import Result
from paramdex_schemas import QueryError
from paramdex_schemas.layout import place_name

_SCHEMA = pa.schema(
    [
        ("model_a", pa.string()), ("model_b", pa.string()), ("kind", pa.string()),
        ("stack_a", pa.string()), ("layer_a", pa.int16()), ("stack_b", pa.string()), ("layer_b", pa.int16()),
        ("score", pa.float32()), ("matched", pa.bool_()), ("feature_score", pa.float32()),
        ("feature_matched", pa.bool_()),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Alignment(Result):
    """Rows of kind, layer_a, layer_b: ``score`` is the mean |Pearson| of the two layers' vectors, ``matched`` the
    Hungarian matching; ``feature_score`` and ``feature_matched`` are the same on the raw weights.
    """

    def scores(self, kind: str, *, feature: bool = False) -> np.ndarray:
        """The scores of one kind as a matrix, places of the first model x places of the second."""
        name = "feature_score" if feature else "score"
        rows = [row for row in self.table.to_pylist() if row["kind"] == kind]
        values = [np.nan if row[name] is None else row[name] for row in rows]
        return np.array(values).reshape(len(self.places(kind, "a")), -1)

    def places(self, kind: str, side: str) -> list[str]:
        """The names of one kind's layers in the model of ``side`` a or b: L0, or encoder/L0 where there are stacks."""
        rows = [row for row in self.table.to_pylist() if row["kind"] == kind]
        return list(dict.fromkeys(place_name((row[f"stack_{side}"], row[f"layer_{side}"])) for row in rows))

    @property
    def kinds(self) -> list[str]:
        return list(dict.fromkeys(self.table["kind"].to_pylist()))

    def plot(self, path: str | Path) -> Path:
        """Draw the heat maps of all kinds, matched pairs marked, into a picture file. Raises QueryError."""
        from paramdex.plot import alignment_figure, save

        return save(alignment_figure(self), Path(path))


def alignment_from_rows(a: str, b: str, rows: list[tuple[Any, ...]], notes: Sequence[str] = ()) -> Alignment:
    """From rows of (kind, place a, place b, score, matched, feature_score, feature_matched), ordered."""
    if not rows:
        raise QueryError(f"{a} and {b} have no kind of parameter in common")
    flat = [(a, b, kind, *place_a, *place_b, *rest) for kind, place_a, place_b, *rest in rows]
    table = pa.Table.from_pylist([dict(zip(_SCHEMA.names, row, strict=True)) for row in flat], schema=_SCHEMA)
    lines = []
    for kind in dict.fromkeys(row[0] for row in rows):
        ours = [row for row in rows if row[0] == kind]
        lines.append({"kind": kind, **_summary(ours, 3, 4, "")})
        if ours[0][5] is not None:
            lines[-1] |= _summary(ours, 5, 6, "raw ")
    title = f"{a} and {b}: mean |correlation| of matched layers and of all others, in embedding space"
    if any("raw matched" in line for line in lines):
        title += ", and of raw weights"
    return Alignment(table, title, list(notes), pa.Table.from_pylist(lines))


def _summary(rows: list[tuple[Any, ...]], score: int, matched: int, prefix: str) -> dict[str, Any]:
    """How one kind's layers match: the pairs, and the mean score of matched pairs and of the others."""
    chosen = [row for row in rows if row[matched]]
    others = [row[score] for row in rows if not row[matched]]
    return {
        f"{prefix}layers": " ".join(
            f"{short_name(place_name(row[1]))}-{short_name(place_name(row[2]))}" for row in chosen
        ),
        f"{prefix}matched": float(np.mean([row[score] for row in chosen])),
        f"{prefix}others": float(np.mean(others)) if others else None,
    }


def short_name(place: str) -> str:
    """A layer where there is little room: its number, and before it the first letter of its stack, where it has one.

    >>> short_name("L3"), short_name("encoder/L0")
    ('3', 'e0')
    """
    stack, _, layer = place.rpartition("/")
    return f"{stack[:1]}{layer.removeprefix('L')}"
