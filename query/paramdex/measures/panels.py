"""The picture of what ``evaluate`` measured: a line of panels per measure, a column per kind, layers left to right.

Colours say how readers were read, thick lines that tokens are ranked by token_z; baselines are dashed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from paramdex.measures.common import by, last_part
from paramdex.picture import figure_class
from paramdex_schemas import KINDS

Row = dict[str, Any]
_GRID = {
    "states": "states and their most\nactive parameters",
    "pairs": "tokens that related\nvectors share",
    "reads": "activation and table,\ncorrelation",
    "hits": "most active tokens in\nthe table's top 1 %",
    "coherence": "coherence of a list's\nwords, cosine",
    "hubs": "places that the 100\ncommonest tokens take",
}
"""Measures that have a panel for each kind, from the top -> what stands beside them."""
_COLORS = {"embedding": "C7", "effective": "C1", "expected": "C0", None: "C2"}
"""Readings -> the colors of their lines."""
_BASELINES = {"random": "0.7", "active elsewhere": "0.4"}
"""Baselines that stand beside one another -> their colors."""
_WIDTH, _HEIGHT = 2.5, 1.9


def evaluation_figure(rows: list[Row]) -> Any:
    """The figure of the rows of an evaluation's table."""
    grid = [measure for measure in _GRID if any(_in_grid(row, measure) for row in rows)]
    named = {_column(row) for row in rows if any(_in_grid(row, measure) for measure in grid)}
    columns = [kind for kind in KINDS if kind in named]
    last = [draw for draw, own in _last_line(rows) if own]
    lines, width = len(grid) + bool(last), max(len(columns), len(last), 2)
    figure = figure_class()(figsize=(_WIDTH * width + 1, _HEIGHT * lines + 1.3), layout="constrained")
    axes = figure.subplots(lines, width, squeeze=False)
    for line, measure in zip(axes, grid, strict=False):
        own = [row for row in rows if _in_grid(row, measure)]
        for axis, kind in zip(line, columns, strict=False):
            here = [row for row in own if _column(row) == kind]
            if here:
                _panel(axis, here)
                axis.set_title(_beside(here), fontsize=8)
        drawn = [axis for axis in line if axis.has_data()]
        _share_height(drawn)
        drawn[0].set_ylabel(_GRID[measure], fontsize=9)
    for axis, kind in zip(axes[0], columns, strict=False):
        axis.annotate(kind, (0.5, 1.12), xycoords="axes fraction", ha="center", fontsize=11, annotation_clip=False)
    if last:
        _draw_last(figure, axes[-1], last)
    for axis in figure.axes:
        if not axis.has_data():
            axis.axis("off")
        axis.tick_params(labelsize=7)
    figure.legend(handles=_legend(rows), loc="outside lower center", ncols=5, fontsize=9)
    folded = "" if rows[0]["fold_norm"] else "not "
    figure.suptitle(f"{last_part(rows[0]['model'])}: {rows[0]['space']} embedding, norms {folded}folded")
    return figure


def _in_grid(row: Row, measure: str) -> bool:
    return bool(row["measure"] == measure and row["layer"] is not None)


def _column(row: Row) -> str:
    """The column of a row: its kind, of two kinds the first."""
    return str(row["kind"].partition(",")[0])


def _beside(rows: list[Row]) -> str:
    """What a panel's title adds to its column: the other kind of a pair."""
    other = rows[0]["kind"].partition(", ")[2]
    return f"with {other}" if other else ""


def _last_line(rows: list[Row]) -> Iterable[tuple[Callable[[Any], None], list[Row]]]:
    """What is drawn below the grid, and the rows of each."""
    writes = [row for row in rows if row["measure"] == "writes"]
    hubs = [row for row in rows if row["measure"] == "hubs" and row["layer"] is None]
    kept = [row for row in rows if row["measure"] == "keep_k"]
    yield lambda axis: _writes(axis, writes), writes
    yield lambda axis: _all_layers(axis, hubs), hubs
    yield lambda axis: _inverses(axis, kept), kept


def _draw_last(figure: Any, line: Any, last: list[Callable[[Any], None]]) -> None:
    """Draw what is below the grid into its last ``line``, one or two columns each."""
    spec, columns = line[0].get_gridspec(), len(line)
    for axis in line:
        axis.remove()
    wide, start = columns >= 2 * len(last), 0
    for draw in last:
        size = 1 + wide
        draw(figure.add_subplot(spec[-1, start : start + size]))
        start += size


def _writes(axis: Any, rows: list[Row]) -> None:
    _panel(axis, rows)
    axis.set_title("VO", fontsize=10)
    axis.set_ylabel("what heads write and\nVO says, correlation", fontsize=9)


def _panel(axis: Any, rows: list[Row]) -> None:
    """A line over layers for each reading and ranking, and its baselines."""
    drawn: dict[tuple[Any, Any], list[Row]] = {}
    for row in rows:
        drawn.setdefault((row["reading"], row["ranking"]), []).append(row)
    for (reading, ranking), own in drawn.items():
        color, thick = _COLORS.get(reading, "C3"), 2.2 if ranking == "token_z" else 1.0
        for i, (other, several) in enumerate(_by_baseline(own).items()):
            layers = [row["layer"] for row in several]
            if i == 0:
                axis.plot(
                    layers, [row["value"] for row in several], "-", color=color, linewidth=thick, **_marks(layers)
                )
            below = [row["baseline"] for row in several]
            shade = _BASELINES.get(other, color)
            axis.plot(layers, below, "--", color=shade, linewidth=0.7 * thick, alpha=0.7, **_marks(layers))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel("layer", fontsize=7, labelpad=1)


def _by_baseline(rows: list[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["layer"]):
        found.setdefault(row["against"], []).append(row)
    return found


def _marks(layers: list[int]) -> dict[str, Any]:
    """A single layer makes no line."""
    return {"marker": "o", "markersize": 3} if len(layers) < 3 else {}


def _share_height(axes: list[Any]) -> None:
    """Give panels of one measure one scale."""
    low, high = (
        pick(end) for pick, end in zip((min, max), zip(*(a.get_ylim() for a in axes), strict=True), strict=True)
    )
    for axis in axes:
        axis.set_ylim(min(low, 0), high)


def _all_layers(axis: Any, rows: list[Row]) -> None:
    """Bars of the share of hubs over all layers; a dash marks the baseline."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    for place, kind in enumerate(kinds):
        own = [row for row in rows if row["kind"] == kind]
        width = 0.8 / len(own)
        for i, row in enumerate(own):
            at = place - 0.4 + (i + 0.5) * width
            color = _COLORS.get(row["reading"], "C3")
            axis.bar(at, row["value"], width, color=color, alpha=1.0 if row["ranking"] == "token_z" else 0.5)
            axis.hlines(row["baseline"], at - width / 2, at + width / 2, color="black", linewidth=1)
    axis.set_xticks(range(len(kinds)), kinds, rotation=30, fontsize=7)
    axis.set_title("hubs over all layers; light: ranked by score", fontsize=9)


def _inverses(axis: Any, rows: list[Row]) -> None:
    for i, (kind, ks) in enumerate(by(rows, "k", lambda row: row["kind"]).items()):
        own = [row for row in rows if row["kind"] == kind]
        axis.plot(ks, [row["value"] for row in own], "o-", color=f"C{i}", markersize=3, label=kind)
        axis.plot(ks, [row["baseline"] for row in own], "o--", color=f"C{i}", markersize=3)
    axis.set_xscale("log")
    axis.set_xlabel("k, scores kept", fontsize=8)
    axis.set_title("cosine to true products: E^T,\ndashed the pseudo-inverse", fontsize=9)
    axis.legend(fontsize=7)


def _legend(rows: list[Row]) -> list[Any]:
    """What lines mean."""
    from matplotlib.lines import Line2D

    found = []
    readings = dict.fromkeys(row["reading"] for row in rows)
    for reading, color in _COLORS.items():
        if reading in readings:
            name = f"readers by the {reading} reading" if reading else "writers, and what has no reading"
            found.append(Line2D([], [], color=color, label=name))
    if any(row["ranking"] == "token_z" for row in rows):
        found.append(Line2D([], [], color="black", linewidth=2.2, label="ranked by token_z"))
        found.append(Line2D([], [], color="black", linewidth=1.0, label="ranked by score"))
    others = {row["against"] for row in rows}
    found += [
        Line2D([], [], color=color, linestyle="--", label=name) for name, color in _BASELINES.items() if name in others
    ]
    found.append(Line2D([], [], color="black", linestyle="--", alpha=0.7, label="baseline"))
    return found
