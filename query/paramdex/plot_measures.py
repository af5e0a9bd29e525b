"""Pictures of what ``evaluate`` and ``stitch`` measured."""

from __future__ import annotations

from typing import Any

import numpy as np

from paramdex.measures import Evaluation, Stitching, by, short
from paramdex.picture import figure_class

_MEASURES = {"states": "states and their most active parameters", "pairs": "related pairs"}
_GREYS = {
    "random": "0.75",
    "active elsewhere": "0.45",
    "shuffled": "0.6",
}


def evaluation_figure(evaluation: Evaluation) -> Any:
    """Bars a layer for every kind, the baselines in grey beside the value; and curves over k for the inverses."""
    rows = evaluation.to_rows()
    panels = list(dict.fromkeys((row["measure"], row["kind"]) for row in rows if row["measure"] != "keep_k"))
    kept = [row for row in rows if row["measure"] == "keep_k"]
    n = len(panels) + bool(kept)
    columns = min(4, n)
    lines = -(-n // columns)
    figure = figure_class()(figsize=(3.4 * columns, 2.7 * lines + 0.5), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    explained: set[str] = set()
    for axis, (measure, kind) in zip(axes, panels, strict=False):
        _bars(axis, [row for row in rows if (row["measure"], row["kind"]) == (measure, kind)])
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
    figure.suptitle(f"{short(rows[0]['model'])}: {rows[0]['space']} embedding, norms {folded}folded")
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


def stitching_figure(stitching: Stitching) -> Any:
    """Accuracy over the number of first layers, a line for each number of last layers: the mean over tuned models and
    the band from the least to the largest; dashed the ends, dotted the most frequent class.
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
    axis.set_xlabel(f"first layers, of {short(rows[0]['pretrained'])}")
    axis.set_ylabel(f"accuracy, {rows[0]['n']:,} texts")
    axis.set_title(f"stitched through the vocabulary (states {points[0]['state']})")
    figure.legend(loc="outside right center", fontsize=8)
    return figure
