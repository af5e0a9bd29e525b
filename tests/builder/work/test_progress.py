"""The steps of a build are told of all their work: no bar stands still through a pass, or ends before its end; and
where there is no bar, lines say how far it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL_OPTIONS

import models
from paramdex_builder import Progress, build
from paramdex_schemas import progress
from paramdex_schemas.progress import Advance, TerminalProgress


class Counted(Progress):
    """What each step said it would do, and what it reported."""

    def __init__(self) -> None:
        self.total: dict[str, int] = {}
        self.reports: dict[str, list[int]] = {}

    @contextmanager
    def step(self, what: str, total: int) -> Iterator[Advance]:
        self.total[what] = total
        yield self.reports.setdefault(what, []).append


class Told(Progress):
    """The lines that were said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def test_every_step_reports_all_it_does(model_folders: dict[str, Path], tmp_path: Path) -> None:
    counted = Counted()
    sources = [str(model_folders[name]) for name in ("gpt2-a", "gpt2-b", "gpt2-wide")]
    build(sources, tmp_path / "x.atlas", SMALL_OPTIONS, counted)
    assert {what: sum(reports) for what, reports in counted.reports.items()} == counted.total
    same, other = "gpt2-b with gpt2-a: neighbors and alignment", "gpt2-wide with gpt2-a: neighbors and alignment"
    assert counted.total[same] == counted.total[other]
    parameters = counted.total["gpt2-a: projecting parameters"]
    assert parameters < counted.total[same] < 2 * parameters  # kinds that are aligned are gone through twice


@pytest.mark.parametrize(
    ("maker", "line"),
    [
        (
            partial(models.gpt2, add_cross_attention=True),
            "x: left out what the family gpt2 does not know: transformer.h.*.crossattention.* (6 tensors)",
        ),
        (
            partial(models.encoder, cls="BertLMHeadModel", is_decoder=True, add_cross_attention=True),
            "x: left out what the family bert does not know: bert.encoder.layer.*.crossattention.* (8 tensors)",
        ),
    ],
)
def test_matrices_that_a_family_does_not_know_are_said_to_be_left_out(maker: Any, line: str, tmp_path: Path) -> None:
    folder = models.save_word_model(tmp_path / "x", maker=maker)
    told = Told()
    build([str(folder)], tmp_path / "x.atlas", SMALL_OPTIONS, told)
    assert [each for each in told.lines if "left out" in each] == [line]


def test_a_log_gets_a_line_a_minute(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0, 30, 61, 90, 200, 200])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    with TerminalProgress().step("pairing", 1000) as advance:
        for _ in range(4):
            advance(250)
    assert capsys.readouterr().err.splitlines() == [
        "  pairing: 500 of 1,000, 0:01:01 left",
        "  pairing: 1,000 in 200 s (5/s)",
    ]
