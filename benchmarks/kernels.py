"""Time the two searches of a build on one core: the strongest pairs of a head, and the strongest tokens of a row.

    OMP_NUM_THREADS=1 python benchmarks/kernels.py [HEADS]

on HEADS matrices of all-MiniLM-L6-v2 (default 6 of its 144) and on random ones of other shapes. Each way is timed on
the same matrix right after the other, in processor seconds, so that ratios mean something on a shared machine too.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors import safe_open

from paramdex.result import Result
from paramdex.tour import PUBLISHED
from paramdex_builder.project import pair_scan
from paramdex_builder.project.block import Block
from paramdex_builder.project.engines import FLOAT32, Engine, Rounded, engine_of, pair_engine_of
from paramdex_builder.project.kernels import avx2
from paramdex_builder.project.pairs import Words, same_words, strongest_pairs
from paramdex_builder.project.space import Space, make_space
from paramdex_builder.project.tokens import strongest_tokens

CPU = torch.device("cpu")
KS = (50, 500, 5000)
NATIVE = engine_of(CPU)
ENGINES = [NATIVE] if NATIVE == FLOAT32 else [NATIVE, FLOAT32]
OF_PAIRS = {engine: engine for engine in ENGINES} | {NATIVE: pair_engine_of(CPU)}
"""The engine that searches pairs in place of each."""
Head = tuple[torch.Tensor, torch.Tensor]


def seconds(call: Callable[[], object]) -> float:
    """Processor seconds of a call."""
    started = time.process_time()
    call()
    return time.process_time() - started


def named(engine: Engine) -> str:
    return str(engine.operand_dtype).removeprefix("torch.")


class Weights:
    """The weights of all-MiniLM-L6-v2."""

    def __init__(self) -> None:
        spec = find_spec(PUBLISHED[1])
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit("error: this needs all-MiniLM-L6-v2; install it with: make .venv/ready")
        self.file = Path(spec.submodule_search_locations[0]) / "model" / "model.safetensors"

    def __getitem__(self, name: str) -> torch.Tensor:
        with safe_open(self.file, "pt") as tensors:
            return tensors.get_tensor(name).float()

    def heads(self, count: int) -> Iterator[Head]:
        """The factors of ``count`` of the 144 matrices, of all layers, half of them QK."""
        E = self["embeddings.word_embeddings.weight"].double()
        for n in range(count):
            block, rows = f"encoder.layer.{n % 6}.attention.", slice(32 * (n % 12), 32 * (n % 12 + 1))
            if n // 2 % 2:
                P, Q = self[block + "self.value.weight"], self[block + "output.dense.weight"].T
            else:
                P, Q = self[block + "self.query.weight"], self[block + "self.key.weight"]
            yield E @ P[rows].double().T, E @ Q[rows].double().T


class Everything(pair_scan.Factor):
    """A factor all of whose rows reach everything."""

    def reaching(self, start: int, size: int, *_: float) -> slice:
        return slice(start, min(start + size, len(self.ids)))


class Unpruned(pair_scan.Scan):
    """The scan without its pruning: every tile, whole, in order, against the running threshold."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.left, self.right = (Everything(**vars(factor)) for factor in (self.left, self.right))

    @classmethod
    def way(cls, *arguments: object) -> None:
        cls(*arguments).run()

    def _tiles(self) -> list[tuple[int, int, float, int, int]]:
        V = len(self.A)
        return [
            (row, column, np.inf, 0, 0)
            for row in range(0, V, pair_scan.TILE_ROWS)
            for column in range(0, V, pair_scan.TILE_COLUMNS)
        ]


def materialised(
    A: torch.Tensor, B: torch.Tensor, k: int, rows: int = 512, clock: Callable[[Callable[[], None]], float] = seconds
) -> float:
    """Seconds to form A B^T in float32, ``rows`` rows at a time, and to take torch.topk of each part and side; from one
    part in fifteen.
    """
    A, B = A.float(), B.float()
    parts = A.split(rows)[::15]

    def run() -> None:
        for part in parts:
            scores = (part @ B.T).flatten()
            for largest in (True, False):
                scores.topk(k, largest=largest)

    return clock(run) * len(A) / sum(len(part) for part in parts)


def time_pairs(what: str, heads: list[Head], words: Words) -> list[dict[str, object]]:
    """Mean seconds a matrix of every way and size of list, both sides."""
    took: dict[tuple[str, int], list[float]] = defaultdict(list)
    for A, B in heads:
        for k in KS:
            took["materialise, torch.topk", k].append(materialised(A, B, k))
            for engine in ENGINES:
                every_tile = partial(Unpruned.way, A, B, words, k, engine)
                took[f"every tile, {named(engine)}", k].append(seconds(every_tile))
                search = partial(strongest_pairs, A, B, words, k, OF_PAIRS[engine])
                took[f"strongest_pairs, {named(OF_PAIRS[engine])}", k].append(seconds(search))
    mean = {key: statistics.mean(times) for key, times in took.items()}
    tiles_of = {named(own): named(engine) for engine, own in OF_PAIRS.items()}
    rows: list[dict[str, object]] = []
    for way in dict.fromkeys(way for way, _ in took):
        row: dict[str, object] = {"matrix": what, "way": way} | {f"k={k}": f"{mean[way, k]:.3f}" for k in KS}
        name, _, engine_name = way.partition(", ")
        for column, other in (
            ("every tile", f"every tile, {tiles_of.get(engine_name)}"),
            ("all", "materialise, torch.topk"),
        ):
            ratios = " / ".join(f"{mean[other, k] / mean[way, k]:.1f}" for k in KS) if name == "strongest_pairs" else ""
            row[f"times {column}"] = ratios
        rows.append(row)
    return rows


@contextmanager
def stages() -> Iterator[dict[str, float]]:
    """Processor seconds of ``strongest_tokens`` in all but its selection."""
    spent: dict[str, float] = defaultdict(float)

    def timed(owner: object, name: str, stage: str) -> Callable[[], None]:
        original = getattr(owner, name)

        def wrapped(*arguments: object, **named: object) -> object:
            started = time.process_time()
            try:
                return original(*arguments, **named)
            finally:
                spent[stage] += time.process_time() - started

        setattr(owner, name, wrapped)
        return lambda: setattr(owner, name, original)

    undo = [
        timed(Rounded, "product", "product"),
        timed(avx2, "scores", "product"),  # and the largest of every group with it
        timed(Block, "scores", "scores"),
        timed(Block, "whole", "scores"),
        timed(vars(Block)["rounded"], "func", "rounding"),
    ]
    try:
        yield spent
    finally:
        for step in undo:
            step()


def time_rows(what: str, space: Space, rows: torch.Tensor, k: int = 50) -> list[dict[str, object]]:
    """Rows per second of every way, and the share of the time that is neither the product nor scoring in float64."""
    E = space.embedding
    took: dict[str, list[float]] = defaultdict(list)
    shares: dict[str, list[float]] = defaultdict(list)
    scores = torch.empty(256, len(E))
    for engine in ENGINES:
        strongest_tokens(rows[:2], space, k, engine)  # makes the screen, once per model

    def plain() -> None:
        for part in rows.split(256):
            torch.mm(part, E.T, out=scores[: len(part)])
            scores[: len(part)].topk(k)
            scores[: len(part)].topk(k, largest=False)

    for _ in range(3):
        took["torch.mm, torch.topk twice"].append(seconds(plain))
        for engine in ENGINES:
            strongest_tokens(rows[:2], space, k, engine)
            way = f"strongest_tokens, {named(engine)}"
            with stages() as spent:
                total = seconds(lambda p=engine: strongest_tokens(rows, space, k, p))  # type: ignore[misc]
            took[way].append(total)
            shares[way].append(1 - sum(spent.values()) / total)
    best = {way: min(times) for way, times in took.items()}
    baseline = best["torch.mm, torch.topk twice"]
    return [
        {
            "rows": what,
            "way": way,
            "rows per second": f"{len(rows) / time_taken:,.0f}",
            "ratio": f"{baseline / time_taken:.2f}",
            "selecting": f"{min(shares[way]):.0%}" if way in shares else "",
        }
        for way, time_taken in best.items()
    ]


def main() -> None:
    torch.set_num_threads(1)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    weights, draw = Weights(), torch.Generator().manual_seed(0)
    E = weights["embeddings.word_embeddings.weight"]
    words = same_words(np.arange(len(E)), CPU)
    wide = torch.randn(2, len(E), 128, generator=draw, dtype=torch.float64)
    pairs = [
        *time_pairs("MiniLM's, d_head 32", list(weights.heads(count)), words),
        *time_pairs("random, d_head 128", [(wide[0], wide[1])], words),
    ]
    rows = torch.cat([weights[f"encoder.layer.{n}.intermediate.dense.weight"][:256] for n in range(6)])
    large = make_space(torch.randn(50_257, 1024, generator=draw), CPU)
    tokens = [
        *time_rows("MiniLM's, d 384, V 30,522", make_space(E, CPU), rows),
        *time_rows("random, d 1,024, V 50,257", large, torch.randn(1024, 1024, generator=draw)),
    ]
    print(Result(pa.Table.from_pylist(pairs), "Pairs: seconds per head matrix; how many times faster, at each k"))
    print(Result(pa.Table.from_pylist(tokens), "Tokens: top and bottom 50 of each row"))


if __name__ == "__main__":
    main()
