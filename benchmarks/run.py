"""Time the main job: building the demo atlas and all-MiniLM-L6-v2, opening, and the verbs in-process.

    python benchmarks/run.py

Prints one table: what was measured, its median, and the bound it is held to. Run it on an idle machine; times of a
shared one say little, so a baseline measured in the same run stands beside what depends on the machine most.
"""

from __future__ import annotations

import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

import paramdex
from paramdex.result import Result
from paramdex.tour import demo_sources

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


def main() -> None:
    rows: list[dict[str, str]] = []

    def add(what: str, measured: str, bound: str) -> None:
        rows.append({"what": what, "measured": measured, "bound": bound})
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
            add("add all-MiniLM-L6-v2", f"{seconds:.1f} s, peak {peak:.2f} GiB", "360 s, 3 GiB")
        bare = [run([sys.executable, "-c", "import duckdb, pyarrow, rich, click"])[0] for _ in range(7)]
        atlas = paramdex.open(atlas_path)
        model = atlas.models[("minilm" if published else "tiny-a")]
        address = f"{model.name}/L1/ff_value/7"
        shell = [run([*PARAMDEX, "show", str(atlas_path), address])[0] for _ in range(7)]
        ratio = statistics.median(shell) / statistics.median(bare)
        add("show from the shell", f"{statistics.median(shell):.2f} s ({ratio:.1f} x the bare imports)", "1 s")
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
        size = (atlas_path / "atlas.duckdb").stat().st_size
        each = size / postings["n"]
        add("database", f"{postings['n']:,} postings, {size / 2**20:.0f} MiB, {each:.1f} bytes each", "")
    print(Result(pa.Table.from_pylist(rows), f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"))


if __name__ == "__main__":
    main()
