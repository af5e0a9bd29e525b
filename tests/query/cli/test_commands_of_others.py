"""Commands that other packages bring: real packages, installed into a folder on the path of a Python of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

OVERLAP = '''
import sys

import click

from paramdex.cli.options import ATLAS, FORMAT, open_atlas, print_result

print("loaded", file=sys.stderr)


@click.command()
@ATLAS
@FORMAT
def overlap(atlas, output):
    """How many models there are.

    paramdex overlap demo.atlas
    """
    print_result(open_atlas(atlas).sql("SELECT count(*) AS models FROM models"), output)


number = 7
'''


def install(folder: Path, package: str, code: str, entries: str) -> None:
    """A package of one module, with the metadata that pip writes for it."""
    (folder / f"{package}.py").write_text(code)
    metadata = folder / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[paramdex.commands]\n{entries}\n")


def program(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    command = [sys.executable, "-m", "paramdex", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path}, timeout=300
    )


def test_it_is_named_loaded_when_asked_for_and_run(small_atlas: Path, tmp_path: Path) -> None:
    install(tmp_path, "their_overlap", OVERLAP, "overlap = their_overlap:overlap")
    named = program(tmp_path, "--help")
    assert (named.returncode, named.stderr) == (0, "")
    before, _, after = named.stdout.partition("Commands of other packages:\n")
    assert "overlap" not in before
    assert after.split() == ["overlap", "their_overlap"]
    helped = program(tmp_path, "overlap", "--help")
    assert helped.stdout.startswith("Usage: paramdex overlap [OPTIONS] ATLAS\n")
    ran = program(tmp_path, "overlap", small_atlas, "--format", "json")
    assert (ran.returncode, ran.stderr, ran.stdout) == (0, "loaded\n", '[{"models": 5}]\n')
    refused = program(tmp_path, "overlap", "nowhere.atlas")
    assert refused.returncode == 2
    assert refused.stderr.startswith("loaded\nerror: nowhere.atlas is not an atlas")


@pytest.mark.parametrize("arguments", [["--version"], ["info", "nowhere.atlas"], ["nonsense"]])
def test_it_is_not_loaded_by_others(tmp_path: Path, arguments: list[str]) -> None:
    install(tmp_path, "their_overlap", OVERLAP, "overlap = their_overlap:overlap")
    assert "loaded" not in program(tmp_path, *arguments).stderr


BROKEN = {
    "imports what is missing": (
        "import no_such_module",
        "their_thing:thing",
        "cannot be loaded from their_thing:thing: ModuleNotFoundError: No module named 'no_such_module'; mend or ",
    ),
    "is no Python": ("def thing(:", "their_thing:thing", "cannot be loaded from their_thing:thing: SyntaxError: "),
    "has no such name": ("", "their_thing:thing", "cannot be loaded from their_thing:thing: AttributeError: "),
    "leaves": ("raise SystemExit(0)", "their_thing:thing", "cannot be loaded from their_thing:thing: SystemExit: 0; "),
    "says several lines": (
        "raise RuntimeError('one\\ntwo\\x1b[31m')",
        "their_thing:thing",
        "cannot be loaded from their_thing:thing: RuntimeError: one; ",
    ),
    "is something else": (
        OVERLAP,
        "their_thing:number",
        "cannot be used: their_thing:number is of the type int, not a ",
    ),
    "names no module": ("", "", "cannot be loaded from : "),
}
"""Code of the package, what its entry point names, what is said of the command."""


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_one_is_one_line(tmp_path: Path, case: str) -> None:
    code, value, message = BROKEN[case]
    install(tmp_path, "their_thing", code, f"thing = {value}")
    ran = program(tmp_path, "thing", "x")
    line = ran.stderr.removeprefix("loaded\n")
    assert line.startswith(f"error: the command thing {message}")
    assert (ran.returncode, ran.stdout, line.count("\n"), "\x1b" in line) == (2, "", 1, False)
    assert program(tmp_path, "--help").returncode == 0


def test_two_of_one_name(tmp_path: Path) -> None:
    for package in ("their_overlap", "our_overlap"):
        install(tmp_path, package, OVERLAP, f"overlap = {package}:overlap")
    ran = program(tmp_path, "overlap", "x")
    assert ran.stderr.startswith("error: several packages have a command overlap: ")
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)


def test_metadata_that_cannot_be_read(tmp_path: Path) -> None:
    install(tmp_path, "their_overlap", OVERLAP, "overlap")
    ran = program(tmp_path, "overlap", "x")
    assert ran.stderr.startswith("error: commands of other packages cannot be listed, as the metadata of one is ")
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)
    helped = program(tmp_path, "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "cannot be listed" in helped.stdout


def test_none_takes_the_place_of_a_command(small_atlas: Path, tmp_path: Path) -> None:
    install(tmp_path, "their_overlap", OVERLAP, "info = their_overlap:overlap")
    ran = program(tmp_path, "info", small_atlas)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "gpt2-a" in ran.stdout
    assert "other packages" not in program(tmp_path, "--help").stdout
