"""Time the main job: building the demo atlas and all-MiniLM-L6-v2, opening, and the verbs in-process.

    python benchmarks/run.py

Prints one table: what was measured, its median, the bound it is held to and, of a build, how it compares with a plain
script that materialises all scores and takes torch.topk of them (timed on a part of them, in the same run). What the
verbs compare with, ``lookups.py`` says. Run it on an idle machine.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from kernels import Weights, materialised

import paramdex
from paramdex.result import Result
from paramdex.tour import demo_sources
from paramdex_schemas.atlas_files import TABLES

ROOT = Path(__file__).parents[1]
PARAMDEX = [sys.executable, "-m", "paramdex"]


def run(command: list[str]) -> tuple[float, float]:
    """(seconds, peak GiB) of a command run to its end."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"error: {' '.join(command)} failed")
    return time.perf_counter() - started, usage.ru_maxrss / 2**20


def median_ms(call: Callable[[], object], times: int) -> float:
    """Median milliseconds of a call, after three warm-up calls."""
    took = []
    for n in range(times + 3):
        started = time.perf_counter()
        call()
        if n >= 3:
            took.append(1000 * (time.perf_counter() - started))
    return statistics.median(took)


def wall(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def plain_script() -> float:
    """Seconds in which a script with PyTorch alone, on all cores, would do the same for all-MiniLM-L6-v2 and keep no
    more than its numbers: torch.mm and torch.topk twice for 28,390 vectors, in blocks of 256, and for its 144 head
    matrices, in blocks of 512 rows. Timed on 1,536 vectors, and on a fifteenth of two matrices.
    """
    weights = Weights()
    E = weights["embeddings.word_embeddings.weight"]
    vectors = weights["encoder.layer.0.intermediate.dense.weight"]

    def project() -> None:
        for part in vectors.split(256):
            scores = part @ E.T
            for largest in (True, False):
                scores.topk(50, largest=largest)

    project()
    rows = wall(project) / len(vectors)
    heads = [materialised(A, B, 200, clock=wall) for A, B in list(weights.heads(3))[::2]]
    return 28_390 * rows + 144 * statistics.mean(heads)


def main() -> None:
    rows: list[dict[str, str]] = []

    def add(what: str, measured: str, bound: str, baseline: str = "") -> None:
        rows.append({"what": what, "measured": measured, "bound": bound, "baseline": baseline})
        print(f"{what}: {measured}", file=sys.stderr)

    sources = demo_sources(ROOT / "data" / "models")
    published = [source for source in sources if source.startswith("minilm=")]
    small = [source for source in sources if source not in published]
    with tempfile.TemporaryDirectory() as folder:
        atlas_path = Path(folder) / "bench.atlas"
        seconds, peak = run([*PARAMDEX, "build", *small, "-o", str(atlas_path)])
        add(f"build {len(small)} demo models", f"{seconds:.1f} s, peak {peak:.2f} GiB", "60 s")
        if published:
            seconds, peak = run([*PARAMDEX, "build", *published, "-o", str(atlas_path)])
            add("add all-MiniLM-L6-v2", f"{seconds:.1f} s, peak {peak:.2f} GiB", "")
            seconds, peak = run([*PARAMDEX, "build", *published, "-o", str(Path(folder) / "alone.atlas")])
            plain = plain_script()
            times = f"{plain / seconds:.0f} x a plain script's {plain:,.0f} s"
            add("build all-MiniLM-L6-v2 alone", f"{seconds:.1f} s, peak {peak:.2f} GiB", "40 s, 3 GiB", times)
        bare = [run([sys.executable, "-c", "import duckdb, pyarrow, rich, click"])[0] for _ in range(7)]
        atlas = paramdex.open(atlas_path)
        model = atlas.models[("minilm" if published else "tiny-a")]
        address = f"{model.name}/L1/ff_value/7"
        shell = [run([*PARAMDEX, "show", str(atlas_path), address])[0] for _ in range(7)]
        ratio = statistics.median(shell) / statistics.median(bare)
        add("show from the shell", f"{statistics.median(shell):.2f} s", "0.6 s", f"{ratio:.1f} x the bare imports")
        add("open in-process", f"{median_ms(lambda: paramdex.open(atlas_path).close(), 20):.1f} ms", "")
        words = [
            row["text"]
            for row in atlas.sql(
                "SELECT text FROM tokens WHERE vocabulary = ? AND is_alnum AND is_word_start AND NOT is_special "
                "AND length(text) > 3",
                [model.vocabulary],
            )
        ]
        pick = random.Random(0)

        def some() -> str:
            neurons = pick.choice(model.layout.of("ff_value"))
            return f"{model.name}/L{neurons.layer}/ff_value/{pick.randrange(neurons.size)}"

        for verb, call in {
            "show": lambda: atlas.show(some()),
            "find, one word": lambda: atlas.find(pick.choice(words), model=model.name),
            "find, three words, all models": lambda: atlas.find(pick.sample(words, 3)),
            "similar": lambda: atlas.similar(some()),
            "search, three words": lambda: atlas.search(pick.sample(words, 3), model=model.name),
            "search, three words, all models": lambda: atlas.search(pick.sample(words, 3)),
        }.items():
            add(f"{verb}, in-process", f"{median_ms(call, 100):.1f} ms", "50 ms")
        (postings,) = atlas.sql("SELECT count(*) AS n FROM parameter_tokens").to_rows()
        size = sum(file.stat().st_size for file in atlas_path.rglob(TABLES))
        each = size / postings["n"]
        add("tables", f"{postings['n']:,} postings, {size / 2**20:.0f} MiB, {each:.1f} bytes each", "")
    print(Result(pa.Table.from_pylist(rows), "Medians"))


if __name__ == "__main__":
    main()
