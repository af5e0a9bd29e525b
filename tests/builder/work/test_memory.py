"""``--memory``: what is refused, what follows from it, what is said in the end, and that no row depends on it."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import pytest
import torch
from click.testing import CliRunner
from conftest import SMALL_OPTIONS
from safetensors.torch import load_file

import paramdex_builder
from cpu_engines import ENGINES
from paramdex.cli import cli
from paramdex_builder import Options, Progress, build, estimates
from paramdex_builder.files import tables
from paramdex_builder.project.engines import Engine
from paramdex_builder.project.head_rows import ATTENTION
from paramdex_builder.project.pieces import pieces
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.work import memory
from paramdex_schemas import BuildError, Layout, Run, atlas_files
from paramdex_schemas.contents import read_contents

GIB = 1 << 30


class Said(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def options(setting: str) -> Options:
    return Options(**vars(SMALL_OPTIONS) | {"memory": setting})


@pytest.mark.parametrize(
    ("text", "size"),
    [("8G", 8 * GIB), ("1.5g", 3 * GIB // 2), ("800M", 800 << 20), ("2 GiB", 2 * GIB), ("9K", 9216), ("1T", GIB << 10)],
)
def test_sizes(text: str, size: int) -> None:
    assert memory.size_of(text) == size


@pytest.mark.parametrize("text", ["", "8", "G", "-8G", "8X", "8,5G", "8G RAM"])
def test_what_is_no_size_is_refused(text: str, word_model: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"^memory must be a size such as 8G or 800M, not "):
        build([str(word_model)], tmp_path / "x.atlas", options(text))


def test_too_little_is_refused_with_what_is_needed(word_model: Path, tmp_path: Path) -> None:
    message = r"^memory 900M is too little for small, which needs about 1\.1 GiB; give --memory 1\.1G "
    with pytest.raises(BuildError, match=message):
        build([f"small={word_model}"], tmp_path / "x.atlas", options("900M"))
    assert {path.name for path in tmp_path.iterdir()} == {word_model.name}
    build([f"small={word_model}"], tmp_path / "x.atlas", options("1.1G"))  # what it was told to give


CPU, GPU = torch.device("cpu"), torch.device("cuda")
MILLION = 10**6


def model(d: int, d_ff: int, d_head: int, n_terms: int = 1) -> Any:
    """All that ``needed`` asks of a model: one layer with one head and ``d_ff`` neurons."""
    kinds = {"ff_key": (None, d_ff), "ff_value": (None, d_ff)} | dict.fromkeys(ATTENTION, ("head", d_head))
    runs = [Run(kind, None, 0, owner, 1, size, 1) for kind, (owner, size) in kinds.items()]  # type: ignore[arg-type]
    return SimpleNamespace(layout=Layout.number(runs), d_model=d, n_terms=n_terms)


def needed(of: Any, V: int, stored: torch.dtype = torch.float32, device: torch.device = CPU) -> int:
    return estimates.memory_needed(of, of.layout, V, stored, device)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_the_embedding_counts_as_it_is_held_and_as_it_is_screened(
    engine: Engine, stored: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates, "engine_of", lambda _: engine)
    d = 4096
    grown = needed(model(d, 100, 8), 3 * MILLION, stored) - needed(model(d, 100, 8), 2 * MILLION, stored)
    beside = max(2 * engine.operand_dtype.itemsize, stored.itemsize)  # for either ranking, or as it is read
    assert 0 <= grown - MILLION * d * (stored.itemsize + beside) < MILLION * 4096  # a row of scores, in several copies
    assert needed(model(d, 100, 8), 2 * MILLION, stored, GPU) < 4 * MILLION * d * stored.itemsize + 2 * GIB


def test_of_the_steps_the_largest_counts() -> None:
    small = needed(model(64, 100, 8), 60)
    assert small == pytest.approx(GIB + (64 << 20), rel=1e-3)  # the libraries, and what DuckDB has at the least
    assert needed(model(64, 101, 8), 60) == small
    assert needed(model(64, 10 * MILLION, 8), 60) - needed(model(64, 9 * MILLION, 8), 60) == 20 * 64 * MILLION
    assert needed(model(64, 10 * MILLION, 8, 2), 60) - needed(model(64, 9 * MILLION, 8, 2), 60) == 32 * 64 * MILLION
    wide_head = needed(model(64, 100, 4096), 256_000) - 4 * 64 * 256_000
    assert 32 * 256_000 * 4096 < wide_head < 32 * 256_000 * 4096 + GIB
    assert 40 * 8192**2 < needed(model(8192, 100, 8), 60) < 40 * 8192**2 + GIB


def test_without_a_setting_it_is_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (memory.free() or GIB) > 1 << 20
    monkeypatch.setattr(memory, "free", lambda: 20 * GIB)
    assert memory.allowed(None, 2 * GIB, "m") == 10 * GIB
    monkeypatch.setattr(memory, "free", lambda: 3 * GIB)
    assert memory.allowed(None, 2 * GIB, "m") == 2 * GIB  # tried all the same
    assert memory.allowed("4G", 2 * GIB, "m") == 4 * GIB


def test_duckdb_gets_what_the_others_leave() -> None:
    assert memory.for_duckdb(2 * GIB, 2 * GIB) == GIB // 2
    assert memory.for_duckdb(2 * GIB + GIB // 4, 2 * GIB) == 3 * GIB // 4
    assert memory.for_duckdb(8 * GIB, 2 * GIB) == GIB


def contents(atlas: Path) -> dict[str, Any]:
    """The rows of every table, in the order they are stored, and the digests of all other files."""
    found: dict[str, Any] = {}
    for path in sorted(atlas.glob("*/*/*")):
        at = path.relative_to(atlas).parts
        name = "/".join([at[0], "" if at[0] == "relations" else at[1], path.name])  # uids are drawn anew
        if path.name == atlas_files.TABLES:
            with duckdb.connect(str(path), read_only=True) as connection:
                for (table,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall():
                    columns = "* EXCLUDE (built_at)" if table == "models" else "*"
                    found[f"{name}/{table}"] = connection.execute(f"SELECT {columns} FROM store.{table}").fetchall()
        elif path.name != atlas_files.MANIFEST:
            found[name] = atlas_files.sha256(path)
    assert len(found) > 40
    return found


def test_rows_do_not_depend_on_it(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[int] = []

    def new_tables(path: Path, memory: int) -> Any:
        limits.append(memory)
        return tables.new_tables(path, memory)

    for each in ("publish", "relating"):
        monkeypatch.setattr(import_module(f"paramdex_builder.publish.{each}"), "new_tables", new_tables)
    found = []
    for setting in ("1.1G", "9G"):
        sources = [str(model_folders[name]) for name in ("gpt2-a", "gpt2-wide")]
        said = Said()
        found.append(contents(build(sources, tmp_path / f"{setting}.atlas", options(setting), said)))
        assert said.lines[-1].startswith("peak memory ")
        assert said.lines[-1].endswith(f" GiB of {setting[:-1]} GiB allowed")
    assert found[0] == found[1]
    assert len(limits) == 2 * 3  # two models, and what relates them
    assert max(limits[:3]) < min(limits[3:]) == GIB


def test_a_transfer_does_not_depend_on_how_much_of_a_root_is_read_at_a_time(
    model_folders: dict[str, Path], small_atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("paramdex_builder.relate.transfers"), "_ROOT_ROWS", 5)
    atlas = build([str(model_folders[name]) for name in ("gpt2-a", "gpt2-wide")], tmp_path / "x.atlas", SMALL_OPTIONS)
    found, expected = (
        load_file(each / read_contents(each).relation("gpt2-a", "gpt2-wide") / atlas_files.TRANSFER)["output/output"]
        for each in (atlas, small_atlas)
    )
    assert found.shape[1] > 5
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_what_a_piece_took_is_given_back_after_it(
    word_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[int] = []
    monkeypatch.setattr(memory, "_malloc_trim", lambda: given_back.append)
    build([str(word_model)], tmp_path / "x.atlas", SMALL_OPTIONS)
    layout = Checkpoint.open(str(word_model)).layout
    assert given_back == [0] * sum(len(pieces(layout, kind)) for kind in layout.kinds)
    monkeypatch.setattr(memory, "_malloc_trim", lambda: None)  # of another C library
    memory.release()


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_memory_goes_back_to_the_system() -> None:
    program = (
        "from pathlib import Path\n"
        "from paramdex_builder.work import memory\n"
        "def held(): return int(Path('/proc/self/statm').read_text().split()[1]) * 4096\n"
        "kept = [bytearray(100_000) for _ in range(4000)]\n"
        "last, before = bytearray(100_000), held()\n"
        "del kept\n"
        "memory.release()\n"
        "print(before - held())\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(said) > 300_000_000


def test_the_command_says_what_it_took(word_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "peak", lambda: 6 * GIB // 5)
    said = Said()
    monkeypatch.setattr(paramdex_builder, "TerminalProgress", lambda: said)
    command = ["build", str(word_model), "-o", str(tmp_path / "x.atlas"), "--memory", "8G", "--device", "cpu"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    assert said.lines[-1] == "peak memory 1.2 GiB of 8 GiB allowed"


def test_the_peak_is_of_this_process_alone(tmp_path: Path) -> None:
    """A program that held much and starts another leaves it nothing of that."""
    big = tmp_path / "big.py"
    big.write_text(
        "import subprocess, sys\n"
        "held = bytearray(2 << 30)\n"
        "held[::4096] = bytes([1]) * len(held[::4096])\n"
        "small = 'from paramdex_builder.work import memory; print(memory.peak())'\n"
        "print(subprocess.run([sys.executable, '-c', small], capture_output=True, text=True, check=True).stdout)\n"
    )
    said = subprocess.run([sys.executable, big], capture_output=True, text=True, check=True).stdout
    assert 0 < int(said) < GIB
