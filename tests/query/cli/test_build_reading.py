"""``build --reading`` and ``--text``: what is typed reaches the builder, and the atlas says how it was read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import paramdex_builder
from paramdex.cli import cli
from paramdex_builder import Options

FEW = ["--top-k", "3", "--pair-k", "3", "--neighbor-k", "1", "--device", "cpu"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ([], {}),
        (["--reading", "auto"], {"reading": "auto"}),
        (["--reading", "effective"], {"reading": "effective"}),
        (["--reading", "expected", "--text", "x.txt"], {"reading": "expected", "text": "x.txt"}),
    ],
)
def test_options_reach_the_builder(monkeypatch: pytest.MonkeyPatch, typed: list[str], meant: dict[str, Any]) -> None:
    given: list[Options] = []
    monkeypatch.setattr(paramdex_builder, "build", lambda _, __, options, ___: given.append(options))
    assert run("build", "model", "-o", "x.atlas", *typed).exit_code == 0
    assert given == [Options(**meant)]


@pytest.mark.parametrize("reading", ["expected", "effective", "embedding"])
def test_the_atlas_says_how_it_was_read(word_model: Path, tmp_path: Path, reading: str) -> None:
    atlas = tmp_path / "x.atlas"
    assert run("build", word_model, "-o", atlas, *FEW, "--reading", reading).exit_code == 0
    (row,) = json.loads(run("info", atlas, "--format", "json").output)
    assert row["reading"] == reading
    assert row["reading_text"] == ("its own" if reading == "expected" else None)
    spaces = json.loads(run("sql", atlas, "SELECT DISTINCT space FROM parameters", "--format", "json").output)
    of_states = set() if reading == "embedding" else {"entering", "reading"}
    assert {each["space"] for each in spaces} == {"output"} | of_states


def test_another_reading_is_refused_and_help_says_what_each_is() -> None:
    refused = run("build", "model", "-o", "x.atlas", "--reading", "paper")
    assert refused.exit_code == 2
    assert "'paper' is not one of 'auto', 'expected', 'effective', 'embedding'" in refused.output
    shown = " ".join(run("build", "--help").output.split())
    assert (
        "what they see of a token (expected, fitted on text), the state that enters layer 0 or leaves it for" in shown
    )


def test_a_text_that_is_too_short_leaves_nothing_behind(word_model: Path, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("a few words")
    before = sorted(tmp_path.iterdir())
    found = run("build", word_model, "-o", tmp_path / "x.atlas", *FEW, "--reading", "expected", "--text", text)
    assert "is too short" in str(found.exception)
    assert sorted(tmp_path.iterdir()) == before
