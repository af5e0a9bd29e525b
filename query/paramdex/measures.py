"""What ``evaluate`` and ``stitch`` measured, as results that print a summary, and the pictures of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from paramdex.picture import figure_class
from paramdex.result import Drawn

PAPER = "The paper's remark: 3 of its 11 tuned models went above 70 %, stitched onto GPT-2 medium."
GOOD = 0.7
"""The paper counts the runs that are more accurate than this."""
RARE = 0.05
"""A value is above its baseline if at most this share of the baseline's draws reach it."""
_FEWEST = math.ceil(1 / RARE)
"""The fewest draws, counting the value itself, with which one draw is at most that share."""
_SHUFFLED = ("shuffled", "active elsewhere")
"""The baselines that put the n things that are looked at into another order."""
_TITLES = {
    "states": "share of a state's strongest tokens that its most active parameters have among theirs",
    "pairs": "overlap (Jaccard) of the strongest tokens of two vectors that belong together",
    "reads": "correlation of a parameter's activation with its table's score of the current token",
    "hits": "share of the tokens where a parameter is most active that are in the top 1 % of its table",
    "keep_k": "cosine to the true inner products with only the k largest scores kept, E^T against the pseudo-inverse",
}
_MEASURES = {
    "states": "states and their most active parameters",
    "pairs": "related pairs",
    "reads": "activation and table",
    "hits": "most active tokens in the table",
}
_GREYS = {"random": "0.75", "active elsewhere": "0.45", "shuffled": "0.6"}
"""The colors of baselines."""


@dataclass(frozen=True, repr=False)
class Evaluation(Drawn):
    """A row per measure, kind, layer and k: ``value``, and the mean ``baseline`` of draws with their ``deviation``.
    ``p_value`` is the share of draws that reach the value, itself counted as one: at least 1 / (``draws`` + 1).
    """

    def figure(self) -> Any:
        """Bars of every measure, by kind and layer."""
        return _evaluation_figure(self)


@dataclass(frozen=True, repr=False)
class Stitching(Drawn):
    """A row per tuned model, part, first and last: the accuracy of the ``first`` layers of one model under the ``last``
    layers of another (part ``stitched``), and that of the tuned models and their base by themselves.
    """

    def figure(self) -> Any:
        """Accuracy by layer, with its ends."""
        return _stitching_figure(self)


def evaluation(table: pa.Table) -> Evaluation:
    """From the table of ``paramdex_builder.measure.evaluate``."""
    rows = table.to_pylist()
    lines = []
    keys = dict.fromkeys((row["measure"], _kind(row), row["against"]) for row in rows)
    for key in sorted(keys, key=lambda key: [*_TITLES].index(key[0])):
        measure, kind, other = key
        own = [row for row in rows if (row["measure"], _kind(row), row["against"]) == key]
        if measure == "keep_k":  # one line per k, in steps of ten
            own = [row for row in own if row["k"] in (10, 100, 1000, 10_000) or row is own[-1]]
        for group in [[row] for row in own] if measure == "keep_k" else [own]:
            value, baseline = (float(np.mean([row[name] for row in group])) for name in ("value", "baseline"))
            lines.append(
                {
                    "measure": measure,
                    "kind": kind,
                    "k": group[0]["k"],
                    "value": value,
                    "baseline": baseline,
                    "against": other,
                    "above": _above(group),
                    "value - baseline, by layer": _by_layer(group),
                }
            )
    first = rows[0]
    title = f"{first['model']}: {first['space']} embedding, norms {'' if first['fold_norm'] else 'not '}folded"
    counts = {row["measure"]: row["n"] for row in rows}
    notes = [f"{name}: {_TITLES[name]} (n = {n:,})" for name, n in counts.items()]
    notes.append(f"above: how many layers have a value that at most {RARE:.0%} of the baseline's draws reach")
    notes += dict.fromkeys(why for row in rows for why in _too_few(row))
    return Evaluation(table, title, notes, pa.Table.from_pylist(lines))


def _kind(row: dict[str, Any]) -> str:
    """The kind of a row, with how its table was read where that is said."""
    return f"{row['kind']}, {row['reading']}" if row["reading"] else str(row["kind"])


def _above(rows: list[dict[str, Any]]) -> str | None:
    """How many layers are above their baseline; None where nothing was drawn, or too few draws for any to be above."""
    if rows[0]["p_value"] is None or any(_too_few(row) for row in rows):
        return None
    return f"{sum(row['p_value'] <= RARE for row in rows)} of {len(rows)}"


def _too_few(row: dict[str, Any]) -> list[str]:
    """Why no value could be above its baseline: too few draws, or too few orders to draw from."""
    found = []
    if row["p_value"] is not None and row["draws"] + 1 < _FEWEST:
        found.append(
            f"above is left out: with {row['draws']} draws no p-value is below 1/{row['draws'] + 1}; "
            f"{RARE} needs at least {_FEWEST - 1} draws (--draws)"
        )
    if row["against"] in _SHUFFLED and math.factorial(row["n"]) < _FEWEST:
        found.append(
            f"above is left out for {row['measure']} ({row['against']}): "
            f"{row['n']} items have only {math.factorial(row['n'])} orders, too few for a p-value of {RARE}"
        )
    return found


def _by_layer(rows: list[dict[str, Any]]) -> str | None:
    if rows[0]["layer"] is None:
        return None
    return " ".join(f"{row['value'] - row['baseline']:+.3f}" for row in rows)


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


def last_part(source: str) -> str:
    """The last part of a source, for places with little room.

    >>> last_part("data/models/tiny-a")
    'tiny-a'
    """
    return Path(source).name or source


def by(rows: list[dict[str, Any]], value: str, key: Callable[[dict[str, Any]], Any]) -> dict[Any, list[float]]:
    """A column's values in groups: key -> values, the keys in order."""
    found: dict[Any, list[float]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row[value])
    return dict(sorted(found.items()))


def _evaluation_figure(evaluation: Evaluation) -> Any:
    """For every kind bars per layer, the baselines in grey beside the value; for the inverses curves over k."""
    rows = evaluation.to_rows()
    panels = list(dict.fromkeys((row["measure"], _kind(row)) for row in rows if row["measure"] != "keep_k"))
    kept = [row for row in rows if row["measure"] == "keep_k"]
    n = len(panels) + bool(kept)
    columns = min(4, n)
    lines = -(-n // columns)
    figure = figure_class()(figsize=(3.4 * columns, 2.7 * lines + 0.5), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    explained: set[str] = set()
    for axis, (measure, kind) in zip(axes, panels, strict=False):
        _bars(axis, [row for row in rows if (row["measure"], _kind(row)) == (measure, kind)])
        axis.set_title(f"{_MEASURES[measure]}\n{kind}", fontsize=9)
        if measure not in explained:  # the same bars stand in every panel of a measure
            axis.margins(y=0.35)
            axis.legend(fontsize=7)
        explained.add(measure)
    if kept:
        _inverses(axes[len(panels)], kept)
    for axis in axes[n:]:
        axis.remove()
    folded = "" if rows[0]["fold_norm"] else "not "
    figure.suptitle(f"{last_part(rows[0]['model'])}: {rows[0]['space']} embedding, norms {folded}folded")
    return figure


def _bars(axis: Any, rows: list[dict[str, Any]]) -> None:
    """The value of every layer, and beside it the mean and deviation of each baseline."""
    others = list(dict.fromkeys(row["against"] for row in rows))
    layers = sorted({row["layer"] for row in rows})
    width = 0.8 / (len(others) + 1)
    place = np.arange(len(layers)) - 0.4 + width / 2
    own = [row for row in rows if row["against"] == others[0]]
    axis.bar(place, [row["value"] for row in own], width, color="C0", label="these")
    for i, other in enumerate(others, start=1):
        found = [row for row in rows if row["against"] == other]
        heights, errors = ([row[name] for row in found] for name in ("baseline", "deviation"))
        axis.bar(place + i * width, heights, width, yerr=errors, color=_GREYS.get(other, "0.6"), label=other)
    axis.set_xticks(np.arange(len(layers)), layers)
    axis.set_xlabel("layer")


def _inverses(axis: Any, rows: list[dict[str, Any]]) -> None:
    for i, (kind, ks) in enumerate(by(rows, "k", lambda row: row["kind"]).items()):
        own = [row for row in rows if row["kind"] == kind]
        axis.plot(ks, [row["value"] for row in own], "o-", color=f"C{i}", markersize=3, label=kind)
        axis.plot(ks, [row["baseline"] for row in own], "o--", color=f"C{i}", markersize=3)
    axis.set_xscale("log")
    axis.set_xlabel("k, scores kept")
    axis.set_title("cosine to the true inner products:\nE^T, and dashed the pseudo-inverse", fontsize=9)
    axis.legend(fontsize=7)


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
