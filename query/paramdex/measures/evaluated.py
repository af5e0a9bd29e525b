"""What ``evaluate`` measured, as a result that prints a summary: one line for each kind, reading and ranking."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from paramdex.measures.panels import evaluation_figure
from paramdex.result import Drawn

RARE = 0.05
"""A value is above its baseline if at most this share of the baseline's draws reach it."""
_FEWEST = math.ceil(1 / RARE)
"""The fewest draws, counting the value itself, with which one draw is at most that share."""
_SHUFFLED = ("shuffled", "active elsewhere")
"""The baselines that put the n things that are looked at into another order."""
_SHOWN_LAYERS = 8
"""Of a deeper model so many layers are printed, spread evenly."""
_TITLES = {
    "states": "share of a state's strongest tokens that its most active parameters have among theirs",
    "pairs": "overlap (Jaccard) of the strongest tokens of two vectors that belong together",
    "reads": "correlation of a parameter's activation with its table's score of the current token",
    "hits": "share of the tokens where a parameter is most active that are in the top 1 % of its table",
    "coherence": "mean cosine of the words among a list's 20 strongest tokens, in another model's embedding",
    "hubs": "share of the first 10 places of all lists, for QK and VO of the places in 50 pairs of each head, that the "
    "100 commonest tokens take",
    "writes": "correlation over the vocabulary of what a head writes with what VO says of the tokens that it reads",
    "keep_k": "cosine to the true inner products with only the k largest scores kept, E^T against the pseudo-inverse",
}


@dataclass(frozen=True, repr=False)
class Evaluation(Drawn):
    """A row per measure, kind, layer, k, ``reading`` and ``ranking``: ``value``, and the mean ``baseline`` of draws
    with their ``deviation``. A row of no layer is of all together. ``p_value`` is the share of draws that reach the
    value, itself counted as one: at least 1 / (``draws`` + 1).
    """

    def figure(self) -> Any:
        """Every measure by kind and layer."""
        return evaluation_figure(self.to_rows())


def evaluation(table: pa.Table) -> Evaluation:
    """From the table of ``paramdex_builder.evaluate``."""
    rows = table.to_pylist()
    lines = []
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["measure"], _kind(row), row["against"]), []).append(row)
    for (measure, kind, other), own in sorted(groups.items(), key=lambda group: [*_TITLES].index(group[0][0])):
        for group in _lines_of_k(own) if measure == "keep_k" else [own]:
            of_layers = [row for row in group if row["layer"] is not None]
            whole = [row for row in group if row["layer"] is None] or of_layers
            value, baseline = (float(np.mean([row[name] for row in whole])) for name in ("value", "baseline"))
            lines.append(
                {
                    "measure": measure,
                    "kind": kind,
                    "k": group[0]["k"],
                    "value": value,
                    "baseline": baseline,
                    "against": other,
                    "above": _above(of_layers or whole),
                    "value - baseline, by layer": _by_layer(of_layers),
                }
            )
    first = rows[0]
    title = f"{first['model']}: {first['space']} embedding, norms {'' if first['fold_norm'] else 'not '}folded"
    counts = {row["measure"]: row["n"] for row in rows}
    notes = [f"{name}: {_TITLES[name]} (n = {n:,})" for name, n in counts.items()]
    notes.append(f"above: how many layers have a value that at most {RARE:.0%} of the baseline's draws reach")
    layers = sorted({row["layer"] for row in rows if row["layer"] is not None})
    if len(layers) > _SHOWN_LAYERS:
        notes.append(f"layers shown: {', '.join(str(layers[i]) for i in _spread_evenly(len(layers)))}")
    notes += dict.fromkeys(why for row in rows for why in _too_few(row))
    return Evaluation(table, title, notes, pa.Table.from_pylist(lines))


def _lines_of_k(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """One line per k, in steps of ten, and for all scores."""
    return [[row] for row in rows if row["k"] in (10, 100, 1000, 10_000) or row is rows[-1]]


def _kind(row: dict[str, Any]) -> str:
    """The kind of a row, with how its table was read and ranked where that is said."""
    return ", ".join(part for part in (row["kind"], row["reading"], row["ranking"]) if part)


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
    """What layers have above their baseline, of a deep model some of them; None where there are none."""
    if not rows:
        return None
    shown = [rows[i] for i in _spread_evenly(len(rows))]
    return " ".join(f"{row['value'] - row['baseline']:+.3f}" for row in shown)


def _spread_evenly(n: int) -> list[int]:
    """At most _SHOWN_LAYERS places of n, the first and the last among them.

    >>> _spread_evenly(3), _spread_evenly(30)
    ([0, 1, 2], [0, 4, 8, 12, 17, 21, 25, 29])
    """
    shown = min(n, _SHOWN_LAYERS)
    return [round(i * (n - 1) / max(shown - 1, 1)) for i in range(shown)]
