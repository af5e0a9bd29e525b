"""What is printed: for programs byte by byte what there is, for people nothing that acts on their terminal."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import paramdex
from paramdex.cli import cli
from paramdex_builder import TerminalProgress
from paramdex_schemas.errors import escaped

RED, CLEAR = "\x1b[31m", "\x1b[2J"
SQL = f"SELECT '{RED}' AS a, 'x' || chr(27) || ']0;title' || chr(7) || chr(8594) || chr(233) AS b, ['{CLEAR}'] AS c"
VALUES = {"a": RED, "b": "x\x1b]0;title\x07→é", "c": [CLEAR]}


def program(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "paramdex", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, env={**os.environ, **environment}, timeout=300)


def on_a_terminal(*arguments: str | Path) -> str:
    """What the program writes to a terminal, standard output and error alike."""
    pty = pytest.importorskip("pty")
    screen, keyboard = pty.openpty()
    command = [sys.executable, "-m", "paramdex", *map(str, arguments)]
    with subprocess.Popen(command, stdout=keyboard, stderr=keyboard, env={**os.environ, "FORCE_COLOR": "1"}) as process:
        os.close(keyboard)
        found = b""
        with contextlib.suppress(OSError):  # what reading a terminal gives that nobody has open any more
            while part := os.read(screen, 1 << 16):
                found += part
        os.close(screen)
        process.wait(300)
    return found.decode().replace("\r\n", "\n")


@pytest.fixture(scope="module")
def hostile(strange_atlas: Path) -> Iterator[paramdex.Atlas]:
    """An atlas with the token RED, which one of its vocabularies has, and others that act on a terminal or a page."""
    with paramdex.open(strange_atlas) as atlas:
        yield atlas


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "utf-16"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
    ids=str,
)
def test_programs_get_what_there_is_in_utf8_whatever_the_locale(small_atlas: Path, environment: dict) -> None:
    done = program("sql", small_atlas, SQL, "--format", "csv", **environment)
    assert (done.returncode, done.stderr) == (0, b"")
    (row,) = csv.DictReader(io.StringIO(done.stdout.decode(), newline=""))
    assert row == {"a": VALUES["a"], "b": VALUES["b"], "c": json.dumps(VALUES["c"])}
    assert done.stdout.decode() == paramdex.open(small_atlas).sql(SQL).to_csv() + "\n"
    done = program("sql", small_atlas, SQL, "--format", "json", **environment)
    assert json.loads(done.stdout.decode()) == [VALUES]


def test_tokens_that_are_sequences_are_in_csv_and_json(hostile: paramdex.Atlas) -> None:
    address = "hostile/L0/ff_value/0"
    tokens = [row["text"] for row in hostile.show(address, 6)]
    arguments = ("sql", hostile.path, "SELECT token FROM tokens ORDER BY vocabulary, token_id")
    for output in ("csv", "json"):
        done = program(*arguments, "--format", output)
        assert done.stdout.decode() == hostile.sql(arguments[2]).render(output) + "\n"
        assert (RED if output == "csv" else json.dumps(RED)) in done.stdout.decode()
        shown = program("show", hostile.path, address, "-k", "6", "--format", output).stdout.decode()
        rows = json.loads(shown) if output == "json" else list(csv.DictReader(io.StringIO(shown, newline="")))
        assert [row["text"] for row in rows] == tokens


def test_a_stream_that_takes_text_alone_gets_text(small_atlas: Path) -> None:
    for output in ("csv", "json", "table"):
        with contextlib.redirect_stdout(io.StringIO()) as stream:
            cli.main(["sql", str(small_atlas), SQL, "--format", output], standalone_mode=False)
        assert stream.getvalue() == paramdex.open(small_atlas).sql(SQL).render(output) + "\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["sql", "A", SQL], ["sql", "A", f'SELECT 1 AS "{CLEAR}"'], ["find", "A", RED], ["search", "A", RED, "word1"],
        ["sql", "A", f"SELECT '{CLEAR}'::INT"], ["find", "A", f"{CLEAR}zz"], ["info", f"no{CLEAR}where.atlas"],
        ["info", "A", "--format", RED], ["info", "A", f"{CLEAR}more"], ["build", f"x={CLEAR}", "-o", "x.atlas"],
        ["heads", "A", "--pairs", f"{CLEAR}.tsv"],
    ],
    ids=repr,
)  # fmt: skip
def test_nothing_acts_on_a_terminal(
    hostile: paramdex.Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    seen = on_a_terminal(*(str(hostile.path) if argument == "A" else argument for argument in arguments))
    assert seen.strip()
    assert escaped(seen, but="\n") == seen


def test_notes_name_words_that_would_act_on_a_terminal(hostile: paramdex.Atlas) -> None:
    result = hostile.search([RED, "word1"])
    assert any(escaped(RED) in note for note in result.notes)
    printed = str(result)
    assert f"has no {escaped(RED)}" in printed
    assert escaped(printed, but="\n") == printed


def test_names_are_no_markup_in_what_a_build_says(capsys: pytest.CaptureFixture[str]) -> None:
    """A path or a tensor's name may hold brackets, colons and worse."""
    name = f"[red]x[/y] :warning: {RED}[/]"
    TerminalProgress().say(f"{name}: 3 parameters")
    with TerminalProgress().step(name, 2) as advance:
        advance(2)
    assert capsys.readouterr().err == f"[red]x[/y] :warning: {escaped(RED)}[/]: 3 parameters\n"


def test_csv_by_http_is_what_there_is(client: TestClient, small_atlas: Path) -> None:
    answer = client.get("/sql.csv", params={"q": SQL})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.content.decode().rstrip("\n") == paramdex.open(small_atlas).sql(SQL).to_csv()
