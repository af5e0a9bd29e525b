"""The steps of a build are told of all their work: no bar stands still through a pass, or ends before its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import SMALL_OPTIONS
from paramdex_builder import Progress, build
from paramdex_builder.progress import Advance


class Counted(Progress):
    """What each step said it would do, and what it reported."""

    def __init__(self) -> None:
        self.total: dict[str, int] = {}
        self.reports: dict[str, list[int]] = {}

    @contextmanager
    def step(self, what: str, total: int) -> Iterator[Advance]:
        self.total[what] = total
        yield self.reports.setdefault(what, []).append


def test_every_step_reports_all_it_does(model_folders: dict[str, Path], tmp_path: Path) -> None:
    counted = Counted()
    sources = [str(model_folders[name]) for name in ("gpt2-a", "gpt2-b", "gpt2-wide")]
    build(sources, tmp_path / "x.atlas", SMALL_OPTIONS, counted)
    assert {what: sum(reports) for what, reports in counted.reports.items()} == counted.total
    same, other = "gpt2-b with gpt2-a: neighbors and alignment", "gpt2-wide with gpt2-a: neighbors and alignment"
    assert counted.total[same] == counted.total[other]
    parameters = counted.total["gpt2-a: projecting parameters"]
    assert parameters < counted.total[same] < 2 * parameters  # kinds that are aligned are gone through twice
