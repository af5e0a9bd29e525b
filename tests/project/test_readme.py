"""The README says what the program does: its commands run and print what stands there, and nothing is left out."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import paramdex
import readme
from paramdex.cli import cli
from paramdex.tour import tour

TEXT = readme.README.read_text("utf-8")
STEPS = readme.console_steps(TEXT)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, demo_atlas: Path) -> Path:
    return readme.workplace(tmp_path_factory.mktemp("readme"), demo_atlas)


def without_sizes(text: str) -> list[str]:
    """Lines, with sizes on disk taken out: they depend on the version of DuckDB."""
    return re.sub(r"\d+ MiB", "N MiB", text).splitlines()


@pytest.mark.parametrize("step", STEPS, ids=[f"{i:02d}" for i in range(len(STEPS))])
def test_commands_print_what_the_readme_shows(step: readme.Step, place: Path) -> None:
    assert without_sizes(step.run(place)) == without_sizes(step.output), step.command


def test_python_runs(place: Path) -> None:
    for code in readme.python_blocks(TEXT):
        done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_first_commands_are_those_of_the_makefile() -> None:
    shell = re.search(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    assert shell is not None
    wanted = [line.split("#")[0].split() for line in shell.group(1).splitlines()]
    assert wanted == [["make", "demo"], ["make", "test"]]
    makefile = (readme.ROOT / "Makefile").read_text()
    assert {"demo", "test"} <= set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    assert "make test" in (readme.ROOT / ".ci" / "run").read_text()


def test_every_command_and_table_is_documented(demo_atlas: Path) -> None:
    for name in set(cli.commands) - {"demo"}:
        assert f"paramdex {name}" in TEXT, name
    views = paramdex.open(demo_atlas).sql("SELECT view_name FROM duckdb_views() WHERE NOT internal").to_rows()
    for view in views:
        assert f"| `{view['view_name']}` |" in TEXT


def test_the_table_of_families_is_that_of_their_files() -> None:
    assert readme.family_table() in TEXT


def test_the_example_of_a_family_file_is_a_real_one() -> None:
    block = re.search(r"```json\n(.*?)```", TEXT, re.DOTALL)
    assert block is not None
    real = (readme.ROOT / "builder" / "paramdex_builder" / "families" / "phi3.json").read_text()
    assert " ".join(block.group(1).split()) in " ".join(real.split())


def test_the_tour_is_the_readmes() -> None:
    shown = [step.command for step in STEPS]
    for command in tour(Path("demo.atlas"), ["minilm"]):
        assert command.text in shown
