"""The page of the check of a real decoder says which floors are missed, and where nothing can be read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def smollm2_page(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "benchmarks")])
    import smollm2_page

    return smollm2_page


def row(measure: str, kind: str, layer: int | None, value: float, **more: Any) -> dict[str, Any]:
    same = {"reading": None, "ranking": None, "baseline": 0.0, "p_value": 0.02, "n": 270}
    return {"measure": measure, "kind": kind, "layer": layer, "value": value} | same | more


def measured(gate: float) -> list[dict[str, Any]]:
    """Two texts' worth of rows, where gates of layer 20 have this correlation."""
    rows = []
    for number, reading in enumerate(("embedding", "effective", "expected")):
        for layer, value in ((0, 0.9), (1, 0.8), (10, 0.6), (20, gate), (29, 0.6)):
            rows.append(row("reads", "ff_gate", layer, value - 0.1 * (2 - number), reading=reading))
            rows.append(row("hits", "ff_gate", layer, 0.3, reading=reading, ranking="score"))
            rows.append(row("hits", "ff_gate", layer, 0.4, reading=reading, ranking="token_z"))
            rows.append(row("writes", "VO", layer, 0.5, reading=reading))
        rows += [row("hubs", kind, None, 0.2, reading=reading, ranking="score") for kind in ("ff_gate", "QK")]
        rows.append(row("hubs", "QK", None, 0.1, reading=reading, ranking="token_z"))
    for layer, p_value in ((0, 0.4), (1, 0.02)):
        rows += [row("coherence", "ff_value", layer, 0.05, ranking=by, p_value=p_value) for by in ("score", "token_z")]
    return rows


def test_a_missed_floor_is_said(smollm2_page: Any) -> None:
    rows = {"plays": measured(0.61), "films": measured(0.63)}
    found = smollm2_page.Found("model", rows, (160.0, 300.0, {"writing text": 90.0, "pairing tokens": 0.2}), 60.0)
    floors = smollm2_page.floors(found)
    missed = [floor.what for floor in floors if not floor.is_met]
    assert missed == ["gates of layer 20 on plays, correlation", "seconds for the spaces of a build"]
    page = smollm2_page.page(found, floors)
    assert f"2 of {len(floors)} are missed." in page
    assert "| gates of layer 20 on plays, correlation | at least 0.62 | 0.610 | **missed** |" in page
    assert "| gates of layer 20 on films, correlation | at least 0.62 | 0.630 | met |" in page
    assert (
        "QK pairs of 270 heads, by token_z, that the 100 commonest tokens take | at most 0.15 | 0.100 | met |" in page
    )


def test_the_words_are_made_of_the_numbers(smollm2_page: Any) -> None:
    found = smollm2_page.Found("model", {"plays": measured(0.63)}, None, 60.0)
    floors = smollm2_page.floors(found)
    assert all(floor.is_met for floor in floors)
    page = smollm2_page.page(found, floors)
    assert "All are met." in page
    assert (
        "**ff_gate**, correlation of activation and table from layer 1 on: .46 / .56 / .66. The expected reading"
        in page
    )
    assert "**ff_value**, by token_z: lists are .050 more coherent than chance; in layer 0 they are not." in page
    assert "**QK**, places that the 100 commonest tokens take: 20.0% by score and the embedding reading, 10.0%" in page
    assert "| 20 | .43 / .53 / .63 |" in page
    assert "A build by default" not in page
