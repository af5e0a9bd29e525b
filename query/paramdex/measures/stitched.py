"""What ``stitch`` measured: accuracies of stitched models, as a result that prints a summary, and its picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from paramdex.measures.common import by, last_part
from paramdex.picture import figure_class
from paramdex.result import Drawn

PAPER = "The paper's remark: 3 of its 11 tuned models went above 70 %, stitched onto GPT-2 medium."
GOOD = 0.7
"""The paper counts the runs that are more accurate than this."""


@dataclass(frozen=True, repr=False)
class Stitching(Drawn):
    """A row per tuned model, part, first and last: the accuracy of the ``first`` layers of one model under the ``last``
    layers of another (part ``stitched``), and that of the tuned models and their base by themselves.
    """

    def figure(self) -> Any:
        """Accuracy by layer, with its ends."""
        return _stitching_figure(self)


def stitching(table: pa.Table) -> Stitching:
    """From the table of ``paramdex_builder.stitch``. What is printed has a line per number of first layers and a column
    per number of last layers, with accuracies averaged over the tuned models.
    """
    rows = table.to_pylist()
    points = [row for row in rows if row["part"] == "stitched"]
    tuned = list(dict.fromkeys(row["tuned"] for row in points))
    lasts = sorted({row["last"] for row in points})
    lines: list[dict[str, Any]] = []
    for first in sorted({row["first"] for row in points}):
        line: dict[str, Any] = {"first layers": first}
        for last in lasts:
            found = [row["accuracy"] for row in points if (row["first"], row["last"]) == (first, last)]
            line[f"last {last}"] = float(np.mean(found)) if found else None
        lines.append(line)
    n, chance = rows[0]["n"], rows[0]["largest_class"]
    of = last_part(tuned[0]) if len(tuned) == 1 else f"{len(tuned)} tuned models (means)"
    first_of = last_part(rows[0]["pretrained"])
    title = (
        f"accuracy of the first layers of {first_of} under the last layers and classifier of {of}\n"
        f"{n:,} texts, states {points[0]['state']}"
    )
    notes = [_end(rows, "fine-tuned", "tuned"), _end(rows, "pre-trained", "its base under its classifier")]
    best = [max(row["accuracy"] for row in points if row["tuned"] == each) for each in tuned]
    good = sum(row["accuracy"] > GOOD for row in points)
    notes.append(f"always the most frequent class: {chance:.3f}; one standard error at 0.5: {(0.25 / n) ** 0.5:.3f}")
    notes.append(
        f"above {GOOD:.0%}: {sum(each > GOOD for each in best)} of {len(best)} tuned models at their best point "
        f"({_spread(best)}), {good} of {len(points)} points. {PAPER}"
    )
    return Stitching(table, title, [note for note in notes if note], pa.Table.from_pylist(lines))


def _end(rows: list[dict[str, Any]], part: str, name: str) -> str:
    found = [row["accuracy"] for row in rows if row["part"] == part]
    return f"{name}, not stitched: {_spread(found)}" if found else ""


def _spread(values: list[float]) -> str:
    """One value; of several, the mean with the least and the largest."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f}, from {min(values):.3f} to {max(values):.3f}"


def _stitching_figure(stitching: Stitching) -> Any:
    """Accuracy over the number of first layers, one line per number of last layers: the mean over the tuned models, in
    a band from the least to the largest. The ends are dashed, the most frequent class is dotted.
    """
    rows = stitching.to_rows()
    points = [row for row in rows if row["part"] == "stitched"]
    figure = figure_class()(figsize=(8.5, 4.2), layout="constrained")
    axis = figure.subplots()
    for i, last in enumerate(sorted({row["last"] for row in points})):
        found = by([row for row in points if row["last"] == last], "accuracy", lambda row: row["first"])
        firsts = list(found)
        axis.plot(firsts, [np.mean(values) for values in found.values()], "o-", color=f"C{i}", label=f"last {last}")
        if any(len(values) > 1 for values in found.values()):
            low, high = ([pick(values) for values in found.values()] for pick in (min, max))
            axis.fill_between(firsts, low, high, color=f"C{i}", alpha=0.12, linewidth=0)
    for part, color, name in (("fine-tuned", "black", "tuned model"), ("pre-trained", "0.5", "its base")):
        ends = [row["accuracy"] for row in rows if row["part"] == part]
        if ends:
            axis.axhline(float(np.mean(ends)), color=color, linestyle="--", label=f"{name}, not stitched")
    axis.axhline(rows[0]["largest_class"], color="0.5", linestyle=":", label="most frequent class")
    axis.set_xticks(sorted({row["first"] for row in points}))
    axis.set_xlabel(f"first layers, of {last_part(rows[0]['pretrained'])}")
    axis.set_ylabel(f"accuracy, {rows[0]['n']:,} texts")
    axis.set_title(f"stitched through the vocabulary (states {points[0]['state']})")
    figure.legend(loc="outside right center", fontsize=8)
    return figure
