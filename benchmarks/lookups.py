"""Time the look-ups on an atlas of the size of GPT-2 medium's: 10 M postings, and 300,000 vectors of width 1024.

    python benchmarks/lookups.py [SCALE]

Writes random numbers as the units of finished models and publishes them as a build does, so that no model is
projected; then prints each measure beside its bound and, where a machine's speed decides, beside a baseline of the same
run: the ratios of the times and of the processor times. Random vectors are harder to search exactly than real ones,
whose nearest stand out more. Takes about four minutes and 5 GB of disk; SCALE (1 by default) shrinks the numbers of
rows for a try.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import torch

import paramdex
from paramdex.result import Result
from paramdex_builder.files.units import Units
from paramdex_builder.project.parameter_rows import PARAMETERS
from paramdex_builder.project.pieces import Piece, pieces
from paramdex_builder.project.space import Space
from paramdex_builder.publish.publish import publish
from paramdex_builder.publish.rows import FinishedModel
from paramdex_builder.read.vocabulary import Vocabulary
from paramdex_schemas import Layout, Run, atlas_files
from paramdex_schemas.isometry import Root, normalize
from paramdex_schemas.progress import TerminalProgress

V = 50_257
ROUNDS, MANY = 40, 400
"""Calls timed of most things, and of look-ups, whose first ones read parts of the database that later ones find."""


def vocabulary(name: str) -> Vocabulary:
    """V made-up words; the last is the model's own, so that no two vocabularies are the same."""
    words = [f"word{i}" for i in range(V - 1)] + [name]
    none = [False] * V
    return Vocabulary([f"Ġ{w}" for w in words], [f" {w}" for w in words], words, none, [True] * V, none, none, "0" * 64)


def rows_of(piece: Piece, top_k: int, draw: np.random.Generator) -> pa.Table:
    """The rows of a unit: tokens as unevenly spread as in trained models, scores in order, k a side; ranked by score
    alone.
    """
    n = piece.n_rows
    columns = {
        "row": range(piece.first, piece.first + n),
        "layer": [piece.run.layer] * n,
        "idx": range(n),
        "space": [piece.run.space] * n,
        **{name: draw.random(n, np.float32) for name in ("norm", "mean", "std", "projected_norm", "embedding_std")},
    }
    for side, sign in (("top", 1), ("bottom", -1)):
        ids = (V * draw.random((n, top_k)) ** 2).astype(np.int32)
        scores = sign * np.sort(draw.normal(4, 0.5, (n, top_k)).astype(np.float32), axis=1)[:, ::-1]
        for name, values in (("tokens", ids), ("scores", scores)):
            offsets = np.arange(0, n * top_k + 1, top_k, dtype=np.int32)
            columns[f"{side}_{name}"] = pa.ListArray.from_arrays(offsets, values.ravel())
    return pa.table([pa.array(columns.get(each.name, [None] * n), each.type) for each in PARAMETERS], schema=PARAMETERS)


def add_model(atlas: Path, name: str, n_layers: int, size: int, width: int, top_k: int) -> None:
    """Publish a model of one kind, ff_value: ``n_layers`` of ``size`` random vectors."""
    draw = np.random.default_rng(len(name) + size)
    layout = Layout.number([Run("ff_value", None, layer, None, 1, size, 1) for layer in range(n_layers)])
    staging = atlas.with_suffix(".building")
    units = Units(staging / name, {})
    scale = 1 / np.arange(1, width + 1) ** 0.25  # coordinates lie in order of the embedding's singular values
    for piece in pieces(layout, "ff_value"):
        rows = draw.standard_normal((piece.n_rows, width), np.float32) * scale
        units.write_coordinates("ff_value", piece.number, normalize(rows).astype(np.float32))
        units.write("ff_value", piece.number, rows_of(piece, top_k, draw), ["ff_value"])
    E = torch.randn(V, width, generator=torch.Generator().manual_seed(size)).half().float()
    space = Space(E, E.double().mean(0), 1.0, Root(np.eye(width)))
    words = vocabulary(name)
    row: dict[str, Any] = {"model": name} | dict.fromkeys(("source", "family", "model_type", "dtype"), "made-up")
    row |= dict.fromkeys(("revision", "base", "n_experts", "d_expert", "stacks", "base_sha256"))
    row |= dict.fromkeys(("reading_text", "reading_tokens"))
    row |= {"embedding": "output", "reading": "embedding"}
    row |= dict.fromkeys(("weights_sha256", "tokenizer_sha256", "plan_sha256", "builder_version"), "0")
    row |= dict.fromkeys(("family_inferred", "gated", "tied", "fold_norm", "rotary_left_out"), False)
    row |= dict.fromkeys(("n_heads", "n_kv_heads", "d_head", "pair_k", "neighbor_k", "directions_k"), 1)
    row |= {"n_layers": n_layers, "d_model": width, "d_ff": size, "top_k": top_k, "n_parameters": layout.n_parameters}
    row |= {"vocabulary": words.name, "vocabulary_size": V, "embedding_rank": width, "embedding_condition": 1.0}
    finished = FinishedModel(row, layout, {"output": space}, {}, words, units)
    publish(finished, atlas, staging, torch.device("cpu"), TerminalProgress(), relate="none")
    shutil.rmtree(staging)


def cpu() -> float:
    """Seconds of processor time so far, of this process's threads and of finished processes."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def in_turn(*calls: Callable[[], object], rounds: int = ROUNDS) -> list[tuple[float, float]]:
    """Median milliseconds of each of some calls, made in turn, after three rounds to warm up: as a clock has it, and of
    processor time, of which other programs take less.
    """
    took: list[list[tuple[float, float]]] = [[] for _ in calls]
    for n in range(rounds + 3):
        for call, own in zip(calls, took, strict=True):
            started = time.perf_counter(), cpu()
            call()
            if n >= 3:
                own.append((1000 * (time.perf_counter() - started[0]), 1000 * (cpu() - started[1])))
    return [
        (statistics.median(wall), statistics.median(busy)) for wall, busy in (zip(*own, strict=True) for own in took)
    ]


def times(call: Callable[[], object], rounds: int = ROUNDS) -> tuple[float, float]:
    """``in_turn`` of one call."""
    return in_turn(call, rounds=rounds)[0]


def python(*arguments: str) -> None:
    """Run a Python process to its end."""
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def tables(atlas: Path) -> list[Path]:
    """The DuckDB files of an atlas."""
    return sorted(atlas.rglob(atlas_files.TABLES))


@contextmanager
def scattered(database: Path, out: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database of the same rows in other orders: what look-ups cost that go through a whole table."""
    with duckdb.connect(str(out)) as connection:
        connection.execute(f"ATTACH '{database}' AS atlas (READ_ONLY)")
        connection.execute("CREATE TABLE postings AS FROM atlas.store.postings ORDER BY param_id, is_top, rank")
        connection.execute("CREATE TABLE parameters AS FROM atlas.store.parameters ORDER BY hash(param_id)")
        connection.execute("DETACH atlas")
        yield connection


def main() -> None:
    scale = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    size, wide = int(4167 * scale), int(12_500 * scale)
    pick = random.Random(0)
    rows: list[dict[str, str]] = []

    def add(
        what: str, took: tuple[float, float], bound: str, baseline: tuple[float, float] | None = None, of: str = ""
    ) -> tuple[float, float]:
        ratio = f"{took[0] / baseline[0]:.2f}, {took[1] / baseline[1]:.2f} of {of}" if baseline else ""
        median, busy = (f"{each:.1f}" for each in took)
        rows.append({"what": what, "ms": median, "CPU ms": busy, "bound": bound, "ratios": ratio})
        print(rows[-1], file=sys.stderr)
        return took

    def place(n: int) -> str:
        return f"L{pick.randrange(24)}/ff_value/{pick.randrange(n)}"

    def address(of: str, n: int) -> str:
        return f"{of}/{place(n)}"

    def word() -> str:
        return f"word{pick.randrange(V - 1)}"

    def attach(atlas: Path) -> None:
        with duckdb.connect() as connection:
            for number, file in enumerate(tables(atlas)):
                connection.execute(f"ATTACH '{file}' AS model_{number} (READ_ONLY)")

    with tempfile.TemporaryDirectory() as folder:
        path, alone = Path(folder) / "bench.atlas", Path(folder) / "alone.atlas"
        add_model(path, "main", 24, size, 64, 50)
        n = 24 * size * 100
        each = sum(file.stat().st_size for file in tables(path)) / n
        shutil.copytree(path, alone)
        add_model(path, "vectors", 24, wide, 1024, 5)
        for name in ("third", "fourth"):
            add_model(path, name, 24, size, 64, 50)
        opened = in_turn(
            lambda: paramdex.open(alone).close(),
            lambda: attach(alone),
            lambda: paramdex.open(path).close(),
            lambda: attach(path),
        )
        for what, took, baseline in (("1 model", *opened[:2]), ("4 models", *opened[2:])):
            add(f"open, {what}", took, "50", baseline, "connect, ATTACH")
        bare, took = in_turn(
            lambda: python("-c", "import duckdb, pyarrow, rich, click"),
            lambda: python("-m", "paramdex", "show", str(path), "main/L1/ff_value/7"),
            rounds=9,
        )
        add("show from the shell", took, "600", bare, "bare imports")
        with (
            paramdex.open(alone) as one,
            paramdex.open(path) as atlas,
            scattered(*tables(alone), Path(folder) / "scattered.duckdb") as naive,
        ):
            sql = "SELECT * FROM parameters WHERE path = ?"
            by_address = times(lambda: naive.execute(sql, [place(size)]).fetchall(), 10)
            add("parameter to tokens, the first 40", times(lambda: one.show(address("main", size))), "")
            shown = in_turn(*(lambda of=of: of.show(address("main", size)) for of in (one, atlas)), rounds=MANY)
            add("parameter to tokens, 1 model", shown[0], "2", by_address, "SQL in any order")
            add("parameter to tokens, 4 models", shown[1], "2", shown[0], "1 model")
            sql_2 = "SELECT * FROM postings WHERE token_id = ?"
            by_token = times(lambda: naive.execute(sql_2, [pick.randrange(V)]).fetchnumpy(), 10)
            add("token to parameters, the first 40", times(lambda: one.find(word(), model="main")), "")
            found = in_turn(*(lambda of=of: of.find(word(), model="main") for of in (one, atlas)), rounds=MANY)
            add("token to parameters, 1 model", found[0], "3", by_token, "SQL in any order")
            add("token to parameters, in 1 of 4 models", found[1], "3", found[0], "1 model")
            started = time.perf_counter(), cpu()
            atlas.similar("vectors/L0/ff_value/0")
            first = 1000 * (time.perf_counter() - started[0]), 1000 * (cpu() - started[1])
            add("similar for the first time", first, "")
            similar = times(lambda: atlas.similar(address("vectors", wide)))
            layer = times(lambda: atlas.similar(address("vectors", wide), layer=3))
            search = times(lambda: atlas.search(word(), model="vectors"))
            held = atlas.vectors.rows("vectors", "ff_value")
            scan = times(lambda: np.argpartition(held @ held[pick.randrange(len(held))], -11), 10)
            add(f"similar, {24 * wide:,} x 1024", similar, "60", scan, "NumPy, rows in memory")
            add("similar, in 1 of 24 layers", layer, "", similar, "all layers")
            add("search, in that model", search, "", scan, "NumPy")
    title = f"{os.cpu_count()} cores; {n:,} postings take {each:.1f} bytes each (bound 14)"
    print(Result(pa.Table.from_pylist(rows), title))


if __name__ == "__main__":
    main()
