"""Compiled kernels for processors without instructions for bfloat16: products of int16 matrices, which of their entries
reach a limit, and single entries of a product in float64.

In one instruction, AVX2 multiplies 16 pairs of int16 and adds them up by twos: twice as many as of float32. Sums of
integers are exact in any order and by any identity, so the kernel saves half of the products by one of Winograd's
(1968). An operand (n x d) is one tensor of int16 whose rows can be taken and cut like those of any other. Row x is
x' = scale q: q is its d integers (and 0 up to a multiple of 4), scale is a power of two. The float32 bits of the scale
are the last two numbers of the row.

**Rounded.** With 2^(e-1) <= ||x|| < 2^e the scale is 2^(e-14), so the numbers of q are below 2^14 in size; one that
would round up to 2^14 becomes 2^14 - 1. Then a number is off by half of the scale. Only that one is off by all of it,
and in that case no other is over 2^8. So

    ||x - x'|| <= scale sqrt(d + 3) / 2 <= 2^-14 sqrt(d + 3) ||x||                      (``operand_error``)

Rows with a norm below ``LEAST`` = 2^-100 have the scale of that norm, and are off by no more than 2^-114 sqrt(d + 3).

**Exact.** A sum of two numbers is within int16. A score is, by Cauchy-Schwarz, at most ||q|| ||r||, and any part of the
sums that the identity takes at most (||q|| + ||r||)^2 / 2, where ||q|| <= 2^14 + sqrt(d + 3) / 2: all are within int32
for every d below 2^28. The score becomes float32 once, and scales do not round.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch

from paramdex_builder.project.kernels.library import loaded

Done = TypeVar("Done")
LEAST = 2.0**-100
PANEL = 16
"""The size of a group of columns is a multiple of this."""
_LARGEST = 2**14 - 1
_CHUNK = 2048
"""Rows that are rounded at a time."""
_SOURCE = Path(__file__).with_name("avx2.c")


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions of this source; None where the installation has none, or the processor has no AVX2."""
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return None
    found = loaded(_SOURCE)
    if found is None:
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    found.paramdex_reaching.argtypes = [pointer, pointer, pointer, size, size, ctypes.c_int32, pointer, pointer]
    found.paramdex_reaching.restype = size
    found.paramdex_dots.argtypes = [pointer, pointer, pointer, pointer, size, size, pointer]
    found.paramdex_dots.restype = None
    found.paramdex_int16_pack.argtypes = [pointer, size, size, pointer]
    found.paramdex_int16_pack.restype = None
    found.paramdex_int16_scores.argtypes = [
        pointer, pointer, size, size, size, pointer, size, size, pointer, pointer, size, ctypes.c_int,
    ]  # fmt: skip
    found.paramdex_int16_scores.restype = ctypes.c_int
    return found


def operand_error(d: int) -> float:
    """How far a row of d numbers can be off once it is rounded, as a share of its norm."""
    return 2.0**-14 * math.sqrt(d + 3)


def operand(x: torch.Tensor) -> torch.Tensor:
    """The operand of x (n x d, float64; norms below 2^100)."""
    n, d = x.shape
    rows = torch.zeros(n, d + -d % 4 + 2, dtype=torch.int16)
    for some, low in zip(torch.split(x, _CHUNK), torch.split(rows, _CHUNK), strict=True):
        exponents = torch.frexp(some.norm(dim=1).clamp_min(LEAST)).exponent - 14
        scales = torch.ldexp(torch.ones(len(some), dtype=torch.float64), exponents)[:, None]
        low[:, :d] = (some / scales).round_().clamp_(-_LARGEST, _LARGEST)
        low[:, -2:] = scales.float().view(torch.int16)
    return rows


def values(rows: torch.Tensor, d: int) -> torch.Tensor:
    """What an operand stands for (n x d, float64)."""
    return rows[:, :d].double() * rows[:, -2:].contiguous().view(torch.float32)


def packed(rows: torch.Tensor) -> torch.Tensor:
    """An operand b in the order in which the kernel goes through it, for many products. It has as many rows, and rows
    of 0 up to a multiple of PANEL. They mean something by panels only, and can be cut and joined at such multiples.
    """
    n, d = len(rows), rows.shape[1] - 2
    rows, panels = rows.contiguous(), torch.empty(-(-n // PANEL) * PANEL, _packed_width(d), dtype=torch.int16)
    _loaded().paramdex_int16_pack(rows.data_ptr(), n, d, panels.data_ptr())
    return panels


def _packed_width(d: int) -> int:
    return -(-d // PANEL) * PANEL + 4


def scores(
    a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, peaks: torch.Tensor, group: int, *, is_packed: bool = False
) -> None:
    """-1 times a b^T (n x m, float32) of two operands into ``out``, and into ``peaks`` (2 x n x m / group, rounded up,
    float32) the largest of a b^T, and of -1 times it, of every ``group`` columns, where they are above 0. A ``group``
    is a multiple of PANEL, or m is one of it.

    Works on as many threads as PyTorch does. Raises MemoryError, and ValueError for tensors in another layout.
    """
    n, m = out.shape
    if group % PANEL and group != m:
        scores(a, b, out, peaks.new_empty(2, n, -(-m // PANEL)), PANEL, is_packed=is_packed)
        for of_side, values_of_side in zip(peaks, (-out, out), strict=True):
            torch.amax(values_of_side.view(n, -1, group), 2, out=of_side)
        return
    if not (a.is_contiguous() and b.is_contiguous()) or out.stride(1) != 1 or peaks.stride(2) != 1:
        raise ValueError("operands must be contiguous, and so must the rows of what is made")
    d = a.shape[1] - 2
    if not a.dtype == b.dtype == torch.int16 or b.shape[1] != (_packed_width(d) if is_packed else d + 2):
        raise ValueError("operands must have as many columns")
    step = group * max(1, -(-m // group // torch.get_num_threads()))

    def part(start: int) -> int:
        some = slice(start, min(start + step, m))
        columns, first = out[:, some], start // group
        top, bottom = peaks[:, :, first:]
        done: int = _loaded().paramdex_int16_scores(
            a.data_ptr(), b[some].data_ptr(), n, columns.shape[1], d, columns.data_ptr(), out.stride(0),
            group, top.data_ptr(), bottom.data_ptr(), peaks.stride(1), is_packed,
        )  # fmt: skip
        return done

    if not all(_each(part, range(0, m, step))):
        raise MemoryError


def reaching(
    bits: torch.Tensor, rows: torch.Tensor, keys: torch.Tensor, flip: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What is at least the row's key (N, int32, above the least integer) in some ``rows`` (N, int64) of ``bits`` (n x
    width, int32) after an exclusive or with ``flip``: places in N x width, ascending, and the bits there.
    """
    width, room = bits.shape[1], len(rows) * bits.shape[1]
    places, found = torch.empty(room, dtype=torch.int64), torch.empty(room, dtype=torch.int32)
    bits, rows, keys = bits.contiguous(), rows.contiguous(), keys.contiguous()
    n = _loaded().paramdex_reaching(
        bits.data_ptr(), rows.data_ptr(), keys.data_ptr(), len(rows), width, flip, places.data_ptr(), found.data_ptr()
    )
    return places[:n], found[:n]


def dots(a: torch.Tensor, b: torch.Tensor, of_a: torch.Tensor, of_b: torch.Tensor) -> torch.Tensor:
    """Some entries of a b^T (N, float64): those of rows ``of_a`` (N, int64) of a (n x d, float64) and ``of_b`` of b
    (m x d, float32). Each is summed in one order, whatever the others are. Works on as many threads as PyTorch does.
    """
    a, b, of_a, of_b = a.contiguous(), b.contiguous(), of_a.contiguous(), of_b.contiguous()
    out = torch.empty(len(of_a), dtype=torch.float64)
    step = max(1, -(-len(out) // torch.get_num_threads()))

    def part(start: int) -> None:
        some = slice(start, start + step)
        _loaded().paramdex_dots(
            a.data_ptr(),
            b.data_ptr(),
            of_a[some].data_ptr(),
            of_b[some].data_ptr(),
            len(out[some]),
            a.shape[1],
            out[some].data_ptr(),
        )

    _each(part, range(0, len(out), step))
    return out


def _loaded() -> ctypes.CDLL:
    found = library()
    assert found is not None, "engine_of takes int16 only where the kernels are"
    return found


def _each(part: Callable[[int], Done], starts: range) -> list[Done]:
    """What every part gives, with one thread per part."""
    return list(map(part, starts) if len(starts) < 2 else _threads().map(part, starts))


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "paramdex-avx2")


if hasattr(os, "register_at_fork"):  # a forked process has none of these threads
    os.register_at_fork(after_in_child=_threads.cache_clear)
