"""Products of int16 matrices by a compiled kernel, for processors without instructions for bfloat16.

AVX2 multiplies 16 pairs of int16 and adds them up by twos in one instruction, twice as many as of float32, and int32
sums are exact in any order. An operand (n x d) is one tensor of int16 whose rows can be taken and cut like those of
any other. Row x is x' = scale q, q its d integers (one 0 more where d is odd) and scale a power of two, whose float32
bits are the last two numbers of the row.

**Rounded.** With 2^(e-1) <= ||x|| < 2^e the scale is 2^(e-15), so q has numbers below 2^15 in size; what would round up
to that is 2^15 - 1. Then a number is off by half of the scale, or where it is that one, all of it, in which case no
other is over 2^8. So

    ||x - x'|| <= scale sqrt(d + 3) / 2 <= 2^-15 sqrt(d + 3) ||x||                      (``unit``)

Rows of a norm below ``LEAST`` = 2^-100 have the scale of that norm and are off by no more than 2^-115 sqrt(d + 3) / 2.

**Exact.** Any part of a sum of products is, by Cauchy-Schwarz, at most ||q|| ||r|| <= (2^15 + sqrt(d + 3) / 2)^2, below
2^31 for every d below 2^28: none overflows. The sum becomes float32 once, and scales do not round.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch

LEAST = 2.0**-100
PANEL = 16
"""Groups of columns have a multiple of so many."""
_LARGEST = 2**15 - 1
_SOURCE = Path(__file__).with_name("int16_product.c")


@cache
def kernel() -> Any:
    """The compiled kernel of this source, or None: the installation has none, or the processor no AVX2."""
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return None
    try:
        number = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]
        function = ctypes.CDLL(str(_SOURCE.with_name(f"int16_product-{number}.so"))).paramdex_int16_scores
    except (OSError, AttributeError):
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [pointer, pointer, size, size, size, pointer, size, size, pointer, pointer, size]
    function.restype = ctypes.c_int
    return function


def unit(d: int) -> float:
    """How far a row of d numbers can be off, of its norm."""
    return 2.0**-15 * (d + 3) ** 0.5


def operand(x: torch.Tensor) -> torch.Tensor:
    """The operand of x (n x d, float64; norms below 2^100)."""
    n, d = x.shape
    scales = torch.ldexp(torch.ones(n, dtype=torch.float64), torch.frexp(x.norm(dim=1).clamp_min(LEAST)).exponent - 15)
    rows = torch.zeros(n, d + d % 2 + 2, dtype=torch.int16)
    rows[:, :d] = (x / scales[:, None]).round_().clamp_(-_LARGEST, _LARGEST)
    rows[:, -2:] = scales.float()[:, None].view(torch.int16)
    return rows


def values(rows: torch.Tensor, d: int) -> torch.Tensor:
    """What an operand stands for (n x d, float64)."""
    return rows[:, :d].double() * rows[:, -2:].contiguous().view(torch.float32)


def scores(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, peaks: torch.Tensor, group: int) -> None:
    """-1 times a b^T (n x m, float32) of two operands into ``out``, and into ``peaks`` (2 x n x m / group, rounded up,
    float32) the largest of a b^T, and of -1 times it, of every ``group`` columns, where they are above 0.

    Works on as many threads as PyTorch does. Raises MemoryError.
    """
    n, m = out.shape
    if group % PANEL and group != m:
        scores(a, b, out, peaks.new_empty(2, n, 1), m)
        for of_side, values_of_side in zip(peaks, (-out, out), strict=True):
            torch.amax(values_of_side.view(n, -1, group), 2, out=of_side)
        return
    if a.stride() != (a.shape[1], 1) or b.stride() != (a.shape[1], 1) or out.stride(1) != 1 or peaks.stride(2) != 1:
        raise ValueError("operands must be contiguous, and rows of what is made as well")
    groups, threads = -(-m // group), torch.get_num_threads()
    step = group * max(1, -(-groups // threads))
    function = kernel()

    def part(start: int) -> int:
        some = slice(start, min(start + step, m))
        columns, first = out[:, some], start // group
        top, bottom = peaks[:, :, first:]
        return function(
            a.data_ptr(), b[some].data_ptr(), n, columns.shape[1], a.shape[1] - 2, columns.data_ptr(), out.stride(0),
            group, top.data_ptr(), bottom.data_ptr(), peaks.stride(1),
        )  # fmt: skip

    starts = range(0, m, step)
    if not all(map(part, starts) if len(starts) < 2 else _threads().map(part, starts)):
        raise MemoryError


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "paramdex-int16")
