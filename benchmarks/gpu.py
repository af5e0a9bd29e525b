"""Time the two searches of a build on a GPU: the strongest tokens of rows, and the strongest pairs of heads.

    python benchmarks/gpu.py           on a machine with an NVIDIA GPU and Triton
    python benchmarks/gpu.py --check   here, in seconds: tiny shapes, Triton's interpreter, no times

on random weights of GPT-2-medium's and Llama 3 8B's shapes, with norms like theirs. A part of each model is timed, the
best of three after a warm one, and multiplied up to the whole. The baselines are timed on the same numbers right after:
bfloat16 products as fast as PyTorch makes them, in memory whole or in parts, and torch.topk of each side. (They are not
exact; the other ways are, and --check compares them.)
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from paramdex.result import Result
from paramdex_builder.project.engines import FLOAT32, TENSOR_CORES, Engine, SelectingEngine, engine_of
from paramdex_builder.project.pairs import same_words, strongest_pairs
from paramdex_builder.project.space import make_space
from paramdex_builder.project.tokens import strongest_tokens

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--check", action="store_true", help="tiny shapes on the CPU: whether all this works")
CHECK = parser.parse_args().check
if CHECK:  # read as the kernels are imported, where they are used
    os.environ["TRITON_INTERPRET"] = "1"
DEVICE = torch.device("cpu" if CHECK else "cuda")


@dataclass(frozen=True)
class Shape:
    """A model, and how much of it is timed."""

    name: str
    V: int
    d: int
    d_head: int
    n_vectors: int
    n_matrices: int
    norm: float
    """About that of a row of E; vectors have a third of it."""
    rows: int = 16_384
    heads: int = 4


SHAPES = [
    Shape("GPT-2-medium", 50_257, 1024, 64, 294_912, 768, 3.0),
    Shape("Llama 3 8B", 128_256, 4096, 128, 1_703_936, 2048, 1.0),
]
TOP_K, PAIR_K = 50, 200
if CHECK:
    SHAPES = [replace(s, V=400, d=48, d_head=8 * n, rows=60, heads=2) for n, s in enumerate(SHAPES, start=1)]
    TOP_K, PAIR_K = 10, 20


def seconds(call: Callable[[], object]) -> float:
    """Wall seconds of a call that is warm, the best of three."""
    times = []
    for _ in range(2 if CHECK else 4):
        if not CHECK:
            torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        if not CHECK:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def random_rows(n: int, d: int, norm: float, draw: torch.Generator) -> torch.Tensor:
    """Rows (n x d, float32) of norms spread by an eighth about ``norm``."""
    rows = torch.randn(n, d, generator=draw, device=DEVICE)
    return rows * (torch.randn(n, 1, generator=draw, device=DEVICE) / 8).exp_() * (norm / d**0.5)


def table_rows(shape: Shape, ways: dict[str, float], baseline: str, part: int, whole: int) -> list[dict[str, object]]:
    """One row per way, from its seconds for ``part`` of ``whole``."""
    return [
        {
            "model": shape.name,
            "way": way,
            "timed": f"{part:,} of {whole:,}",
            "seconds per model": "-" if CHECK else f"{taken * whole / part:.3f}",
            "ratio": "-" if CHECK else f"{ways[baseline] / taken:.1f}",
        }
        for way, taken in ways.items()
    ]


def engines() -> dict[str, Engine]:
    found: dict[str, Engine] = {"paramdex, plain torch, float32": FLOAT32}
    fastest = TENSOR_CORES if CHECK else engine_of(DEVICE)
    if isinstance(fastest, SelectingEngine):
        found["paramdex, Triton"] = fastest
    return found


def time_tokens(shape: Shape, draw: torch.Generator) -> list[dict[str, object]]:
    E = random_rows(shape.V, shape.d, shape.norm, draw)
    rows = random_rows(shape.rows, shape.d, shape.norm / 3, draw)
    space, low, low_E = make_space(E, DEVICE), rows.bfloat16(), E.bfloat16()

    def plain() -> None:
        for some in low.split(2048):
            scores = some @ low_E.T
            scores.topk(TOP_K)
            scores.topk(TOP_K, largest=False)

    baseline = "torch.mm, torch.topk twice"
    ways, found = {baseline: seconds(plain)}, []
    for way, engine in engines().items():
        ways[way] = seconds(lambda p=engine: strongest_tokens(rows, space, TOP_K, p))
        found.append(strongest_tokens(rows[:512], space, TOP_K, engine))
    for side in ("top", "bottom"):
        for other in found[1:]:
            assert torch.equal(other[side].ids, found[0][side].ids)
            assert torch.equal(other[side].scores, found[0][side].scores)
    return table_rows(shape, ways, baseline, shape.rows, shape.n_vectors)


def time_pairs(shape: Shape, draw: torch.Generator) -> list[dict[str, object]]:
    E = random_rows(shape.V, shape.d, shape.norm, draw)
    words = same_words(np.arange(shape.V), DEVICE)
    heads = [
        tuple((E @ random_rows(shape.d_head, shape.d, shape.norm / 3, draw).T).double() for _ in "AB")
        for _ in range(shape.heads)
    ]
    n_parts, step = (1, shape.V) if CHECK else (8, 4096)

    def materialised() -> None:
        """One in ``n_parts`` of the parts of each matrix."""
        for A, B in heads:
            low_A, low_B = A.bfloat16(), B.bfloat16()
            for some in low_A.split(step)[::n_parts]:
                scores = (some @ low_B.T).flatten()
                scores.topk(PAIR_K)
                scores.topk(PAIR_K, largest=False)

    baseline = "materialise in parts, torch.topk"
    timed = sum(min(step, shape.V - start) for start in range(0, shape.V, step * n_parts))
    ways, found = {baseline: seconds(materialised) * shape.V / timed}, []
    for way, engine in engines().items():
        ways[way] = seconds(lambda p=engine: [strongest_pairs(*head, words, PAIR_K, p) for head in heads])
        found.append(strongest_pairs(*heads[0], words, PAIR_K, engine))
    for side in ("top", "bottom"):
        for other in found[1:]:
            for name in ("source", "target", "score"):
                assert torch.equal(getattr(other[side].all, name), getattr(found[0][side].all, name))
    return table_rows(shape, ways, baseline, shape.heads, shape.n_matrices)


def main() -> None:
    if not CHECK and not torch.cuda.is_available():
        raise SystemExit(
            "error: this needs an NVIDIA GPU, and PyTorch sees none here; whether it would run, --check shows on a CPU"
        )
    if len(engines()) == 1:
        print("no Triton, or a GPU without bfloat16: install it with pip install 'paramdex[build,gpu]'\n")
    machine = "the CPU, tiny shapes: it runs, and all ways agree" if CHECK else torch.cuda.get_device_name()
    print(f"{dt.datetime.now(dt.UTC).date()}, {machine}, torch {torch.__version__}\n")
    draw = torch.Generator(DEVICE).manual_seed(0)
    tokens = [row for shape in SHAPES for row in time_tokens(shape, draw)]
    print(Result(pa.Table.from_pylist(tokens), f"Tokens: top and bottom {TOP_K} of each vector"))
    pairs = [row for shape in SHAPES for row in time_pairs(shape, draw)]
    print(Result(pa.Table.from_pylist(pairs), f"Pairs: top and bottom {PAIR_K} of each head matrix"))


if __name__ == "__main__":
    main()
