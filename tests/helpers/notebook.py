"""Run the notebook of docs/; as a script, write its outputs into it (``make notebook``)."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from readme import ROOT, workplace

NOTEBOOK = ROOT / "docs" / "tour.ipynb"


def executed(folder: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of today, run in ``folder``, a ``readme.workplace``. Raises for a failing cell."""
    (folder / "README.md").symlink_to(ROOT / "README.md")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    env = {**os.environ, "PYDEVD_DISABLE_FILE_VALIDATION": "1", "COLUMNS": "100"}
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=1200, kernel_name="python3", resources=where).execute(env=env)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times
        if cell.cell_type == "code":  # what libraries say of this machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        nbformat.write(executed(workplace(Path(name), ROOT / "demo.atlas")), NOTEBOOK)
    sys.exit()
