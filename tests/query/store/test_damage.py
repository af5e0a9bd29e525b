"""Damaged atlases: whatever byte is wrong, a verb gives the right answer or AtlasError, and ``check`` finds it.

Every file beside the database is covered by a recorded SHA-256; the database by DuckDB's own block checksums.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

import paramdex
import paramdex.store.connection as of_connection
from damage_worker import QUESTIONS
from opened import list_anew
from paramdex import AtlasError
from paramdex.cli import main
from paramdex_schemas import FORMAT_VERSION
from paramdex_schemas.contents import read_contents, sealed, unsealed
from query_helpers import random_source

HELPERS = Path(__file__).parents[2] / "helpers"

HEADERS, BLOCK = 3 * 4096, 262_144
"""A DuckDB file: three headers, then its blocks."""


@pytest.fixture
def atlas(small_atlas: Path, tmp_path: Path) -> Path:
    """A copy of the shared atlas, to be broken."""
    return Path(shutil.copytree(small_atlas, tmp_path / "copy.atlas"))


TABLES = "models/gpt2-b/tables.duckdb"


def files(atlas: Path) -> list[str]:
    """All files but the index, and the script that attaches them."""
    return sorted(path.relative_to(atlas).as_posix() for path in atlas.rglob("*.*") if path.parent != atlas)


def flip(path: Path, offset: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))


def flipped(atlas: Path, flips: list[tuple[str, int, int]]) -> list[dict]:
    """What every question says after each flip, asked in processes of their own."""
    done = subprocess.run(
        [sys.executable, str(HELPERS / "damage_worker.py")],
        input=json.dumps({"atlas": str(atlas), "flips": flips}),
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    report = json.loads(done.stdout)
    assert set(report["answers"]) == set(QUESTIONS)
    assert not [answer for answer in report["answers"].values() if answer.startswith(("AtlasError", "CRASH"))]
    return report["outcomes"]


def assert_safe(outcome: dict) -> None:
    """Every question was answered as without the damage, or with AtlasError, and the process ended well."""
    assert outcome["exit"] == 0, outcome
    assert set(outcome) == {*QUESTIONS, "exit"}
    for question in QUESTIONS:
        assert outcome[question] == "same" or outcome[question].startswith("AtlasError: "), (
            question,
            outcome[question],
        )


def used_blocks(database: Path) -> set[int]:
    """The blocks of a DuckDB file that hold data or metadata; the others are free."""
    with duckdb.connect(str(database), read_only=True) as connection:
        blocks = {row[0] for row in connection.execute("SELECT block_id FROM pragma_metadata_info()").fetchall()}
        tables = connection.execute("SELECT table_name FROM duckdb_tables() WHERE schema_name = 'store'").fetchall()
        for (table,) in tables:
            for block, more in connection.execute(
                f"SELECT block_id, additional_block_ids FROM pragma_storage_info('store.{table}')"
            ).fetchall():
                blocks |= {block, *(more or [])}
    return {block for block in blocks if block is not None and block >= 0}


def test_any_bit_of_the_tables(atlas: Path) -> None:
    """In each of the three headers, in used blocks and in a free one."""
    draw, database = random_source(), atlas / TABLES
    used, size = used_blocks(database), database.stat().st_size
    free = set(range((size - HEADERS) // BLOCK)) - used
    assert len(used) > 5
    blocks = [*draw.sample(sorted(used), 6), *draw.sample(sorted(free), min(1, len(free)))]
    offsets = [4096 * header + draw.randrange(4096) for header in range(3)]
    offsets += [HEADERS + BLOCK * block + draw.randrange(BLOCK) for block in blocks]
    flips = [(TABLES, offset, draw.randrange(8)) for offset in offsets]
    for (_, offset, _), outcome in zip(flips, flipped(atlas, flips), strict=True):
        assert_safe(outcome)
        assert outcome["check"].startswith(f"AtlasError: {atlas} is damaged: {TABLES} is not what was written"), offset


@pytest.mark.parametrize("verified", [True, False])
def test_a_block_in_the_place_of_another(atlas: Path, monkeypatch: pytest.MonkeyPatch, verified: bool) -> None:
    """DuckDB takes it, as its checksum is right: a small file is read whole before, and ``check`` reads any."""
    draw, database = random_source(), atlas / TABLES
    data = bytearray(database.read_bytes())
    a, b = draw.sample(sorted(used_blocks(database)), 2)
    first, second = (slice(HEADERS + BLOCK * n, HEADERS + BLOCK * (n + 1)) for n in (a, b))
    data[first], data[second] = data[second], data[first]
    database.write_bytes(data)
    if not verified:
        monkeypatch.setattr(of_connection, "VERIFIED", 0)
    asks = [lambda one: one.check()]
    if verified:
        asks += [lambda one: one.show("gpt2-b/L1/ff_value/5"), lambda one: one.sql("SELECT count(*) FROM heads")]
    for ask in asks:
        with paramdex.open(atlas) as opened, pytest.raises(AtlasError, match=f"{TABLES} is not what was written"):
            ask(opened)


def test_any_bit_of_other_files(atlas: Path) -> None:
    """All questions, for bits of files that they read."""
    draw = random_source()
    contents = read_contents(atlas)
    between = contents.relation("gpt2-a", "gpt2-wide")
    assert between is not None
    names = ["models/gpt2-b/ff_value.faiss", "models/gpt2-b/space.safetensors", f"{between}/transfer.safetensors"]
    flips = [(name, draw.randrange((atlas / name).stat().st_size), draw.randrange(8)) for name in names]
    concerned = {name: set() for name in names}
    for (name, _, _), outcome in zip(flips, flipped(atlas, flips), strict=True):
        assert_safe(outcome)
        concerned[name] = {question for question in QUESTIONS if outcome[question] != "same"}
        message = f"AtlasError: {atlas} is damaged: {name} is not what was written; copy the atlas again or rebuild it"
        assert {outcome[question] for question in concerned[name]} == {message}
    assert concerned[names[0]] == {"search", "similar", "check"}
    assert concerned[names[1]] == {"search", "check"}  # within a model, similar needs no space
    assert concerned[names[2]] == {"similar in all", "check"}


def test_check_finds_every_file(atlas: Path) -> None:
    """A bit at the start, at the end and at a place drawn anew of each file."""
    draw = random_source()
    whole = paramdex.open(atlas).check()
    for name in [*files(atlas), "atlas.json"]:
        size = (atlas / name).stat().st_size
        for offset in (0, size - 1, draw.randrange(size)):
            bit = draw.randrange(8)
            flip(atlas / name, offset, bit)
            with pytest.raises(AtlasError) as caught:
                paramdex.open(atlas).check()
            assert f"{name} is not what was written" in str(caught.value), offset
            flip(atlas / name, offset, bit)
    assert paramdex.open(atlas).check().to_rows() == whole.to_rows()
    # six kinds of weights and a gate; five biases and positions, and token types; five spaces, manifests and tables
    of_models = (6 * 4 + 7) + (6 * 4 + 1) + 3 * 5
    # of each relation the transfers, a manifest and tables
    assert len(files(atlas)) == of_models + 3 * len(read_contents(atlas).related)


@pytest.mark.parametrize("name", ["models/bert/ff_key.faiss", "models/gpt2-a/space.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "longer", "shorter", "empty"])
def test_file_that_is_gone_or_of_another_length(atlas: Path, name: str, damage: str) -> None:
    path, data = atlas / name, (atlas / name).read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"longer": data + b"\0", "shorter": data[:-1], "empty": b""}[damage])
    reason = "is missing" if damage == "missing" else "is not what was written"
    message = f"{atlas} is damaged: {name} {reason}; copy the atlas again or rebuild it"
    model = name.split("/")[1]
    with paramdex.open(atlas) as opened:
        for ask in (opened.check, lambda: opened.search("canada", model=model)):
            with pytest.raises(AtlasError) as caught:
                ask()
            assert str(caught.value) == message
        assert opened.find("canada", k=3).to_rows()[0]["words"] == 1  # what needs no vectors still answers
        assert len(opened.search("canada", model="llama-gqa", k=3)) == 3


@pytest.mark.parametrize("keep", [0, 1, 4096, HEADERS, HEADERS + BLOCK // 2])
def test_truncated_database(atlas: Path, keep: int) -> None:
    database = atlas / TABLES
    os.truncate(database, keep)
    with pytest.raises(AtlasError) as caught:
        paramdex.open(atlas).check()
    assert "\n" not in str(caught.value)
    assert re.match(rf"{re.escape(str(atlas))} is (damaged: |not an atlas: )", str(caught.value))
    assert database.stat().st_size == keep


def test_database_that_lacks_its_end(atlas: Path) -> None:
    """Cut in the middle of its blocks: never a wrong answer."""
    database = atlas / TABLES
    os.truncate(database, database.stat().st_size - BLOCK)
    with pytest.raises(AtlasError, match="is damaged: "):
        paramdex.open(atlas).check()


@pytest.mark.parametrize(
    "text", [b"not a database at all, but long enough to be read as one" * 500, b"SQLite format 3\0" * 1000]
)
def test_some_other_file_in_the_databases_place(atlas: Path, text: bytes) -> None:
    (atlas / TABLES).write_bytes(text)
    with pytest.raises(AtlasError, match=r"is damaged: .*; copy the atlas again or rebuild it"):
        paramdex.open(atlas).show("gpt2-b/L1/ff_value/5")


def test_an_atlas_of_one_database(tmp_path: Path) -> None:
    """As formats before 8 had it."""
    duckdb.connect(str(tmp_path / "atlas.duckdb")).close()
    with pytest.raises(AtlasError) as caught:
        paramdex.open(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} has an older format, this paramdex reads format {FORMAT_VERSION}; build it again"
    )


def write_format(atlas: Path, version: object) -> None:
    found = unsealed(atlas / "atlas.json", "atlas.json")
    (atlas / "atlas.json").write_text(sealed(found | {"format_version": version}), "utf-8")


def test_newer_format(atlas: Path) -> None:
    newer = FORMAT_VERSION + 1
    write_format(atlas, newer)
    with pytest.raises(AtlasError) as caught:
        paramdex.open(atlas)
    assert str(caught.value) == (
        f"{atlas} has format {newer}, this paramdex reads format {FORMAT_VERSION}; "
        "install a newer one with: pip install -U paramdex"
    )


def test_older_format(atlas: Path) -> None:
    write_format(atlas, 1)
    with pytest.raises(AtlasError, match=f"has format 1, this paramdex reads format {FORMAT_VERSION}; build it again"):
        paramdex.open(atlas)


@pytest.mark.waits
def test_open_for_writing_elsewhere_is_no_damage(atlas: Path) -> None:
    database = str(atlas / TABLES)
    program = f"import duckdb; held = duckdb.connect({database!r}); print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        try:
            other.stdout.readline()
            with pytest.raises(AtlasError) as caught:
                paramdex.open(atlas).show("gpt2-b/L1/ff_value/5")
        finally:
            other.communicate(b"\n")
    assert str(caught.value) == (
        f"{atlas} is in use: another program has {TABLES} open for writing; close that and try again"
    )
    with paramdex.open(atlas) as opened:
        assert len(opened.info()) == 5


def test_file_that_the_manifest_does_not_list(atlas: Path) -> None:
    (atlas / "models" / "bert" / "ff_key.faiss").unlink()
    list_anew(atlas, "bert")
    with (
        paramdex.open(atlas) as opened,
        pytest.raises(AtlasError, match=r"is damaged: it does not list models/bert/ff_key\.faiss"),
    ):
        opened.similar("bert/L0/ff_key/0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "A"], "is damaged: "),
        (["check", "A"], "is damaged: "),
        (["sql", "A", "SELECT 1"], "is damaged: "),
        (["find", "A", "canada"], "is damaged: "),
    ],
)
def test_command_line_says_so_in_one_line(
    atlas: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    flip(atlas / ("atlas.json" if arguments[0] == "info" else TABLES), 100, 3)
    monkeypatch.setattr(sys, "argv", ["paramdex", *(str(atlas) if each == "A" else each for each in arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert (ended.value.code, out) == (2, "")
    assert line.startswith(f"error: {atlas} {message}")
    assert line.endswith("; copy the atlas again or rebuild it")
