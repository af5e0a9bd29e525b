"""Time what relates two models: the nearest vectors both ways and the similarities of layers, on the CPU.

    python benchmarks/neighbors.py [ROWS]

ROWS (12,288 by default) unit vectors of width 1024 a side, in 12 layers, beside a plain script: torch.mm, torch.topk
along rows and columns, and the mean of |similarity| for every pair of layers. The time of two models of GPT-2 medium's
shape, 294,912 vectors of six kinds each, is worked out from the rate.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch

from paramdex.result import Result
from paramdex_builder.relate.relations import Segment, relate
from paramdex_schemas.isometry import normalize

WIDTH, N_LAYERS, K = 1024, 12, 5
MEDIUM = 2 * 98_304**2 + 4 * 24_576**2
"""Pairs of vectors of one kind in two models of GPT-2 medium's shape."""


def seconds(call: Callable[[], object]) -> float:
    """Median of three calls."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 12_288
    draw = np.random.default_rng(0)
    a, b = (normalize(draw.standard_normal((n, WIDTH), np.float32)) for _ in "ab")
    size = n // N_LAYERS
    layers = [(start, start + size) for start in range(0, size * N_LAYERS, size)]
    cpu = torch.device("cpu")

    def plain() -> None:
        A, B = torch.from_numpy(a), torch.from_numpy(b)
        best = torch.full((K, len(B)), -torch.inf)
        for some in A.split(size):
            scores = some @ B.T
            scores.topk(K, dim=1)
            best = torch.cat([best, scores.topk(K, dim=0).values]).topk(K, dim=0).values
            for part in scores.split(size, dim=1):
                part.abs().mean(dtype=torch.float64)

    rows_a, rows_b = [Segment(a, 0, "output")], [Segment(b, 0, "output")]
    relate([Segment(a[:size], 0, "output")], rows_b, None, K, layers[:1], layers, cpu)
    ways = {
        "torch.mm, torch.topk twice": seconds(plain),
        "relate": seconds(lambda: relate(rows_a, rows_b, None, K, layers, layers, cpu)),
        "torch.mm alone": seconds(lambda: [torch.from_numpy(some) @ torch.from_numpy(b).T for some in np.split(a, 12)]),
    }
    rows = [
        {
            "way": way,
            "seconds": f"{took:.2f}",
            "ratio": f"{ways['torch.mm, torch.topk twice'] / took:.1f}",
            "two of GPT-2 medium's shape": f"{took * MEDIUM / n**2 / 60:.0f} min",
        }
        for way, took in ways.items()
    ]
    print(Result(pa.Table.from_pylist(rows), f"{n:,} vectors of width {WIDTH:,} with as many"))


if __name__ == "__main__":
    main()
