"""The notebook of docs/ runs from the first cell to the last, and shows what it says."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

import notebook
import readme


def shown(cell: nbformat.NotebookNode) -> dict[str, str]:
    """What a code cell's value is shown as, by type."""
    return {kind: value for output in cell.outputs for kind, value in output.get("data", {}).items()}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, demo_atlas: Path) -> nbformat.NotebookNode:
    return notebook.executed(readme.workplace(tmp_path_factory.mktemp("notebook"), demo_atlas))


def test_it_runs_and_every_cell_shows_something(ran: nbformat.NotebookNode) -> None:
    cells = [cell for cell in ran.cells if cell.cell_type == "code"]
    assert len(cells) > 15
    for cell in cells:
        assert shown(cell), cell.source
        pictured = "image/png" in shown(cell)
        assert pictured == cell.source.endswith(".plot()")


def test_what_stands_in_it_is_what_it_shows_today(ran: nbformat.NotebookNode) -> None:
    """Words and tables; not pictures, whose bytes depend on fonts."""
    kept = nbformat.read(notebook.NOTEBOOK, as_version=4)
    for cell, today in zip(kept.cells, ran.cells, strict=True):
        if cell.cell_type == "code" and not cell.source.endswith(".plot()") and "evaluation(" not in cell.source:
            old, new = (readme.re.sub(r"\d+ MiB", "N MiB", shown(each)["text/plain"]) for each in (cell, today))
            assert old == new, cell.source


def test_nothing_of_the_machine_stands_in_it() -> None:
    text = notebook.NOTEBOOK.read_text("utf-8")
    assert "site-packages" not in text
    assert "Traceback" not in text
