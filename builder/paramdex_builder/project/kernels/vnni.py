"""A compiled kernel for processors with AVX-512 VNNI: which pairs of rows of two int8 matrices reach a limit.

In one instruction such a processor multiplies 64 pairs of int8 and adds them up by fours: twice as many as of bfloat16.
Sums of integers are exact in any order. What is compared where it is made need not be written down. An operand (n x d)
is one tensor of int8 whose rows can be taken and cut like those of any other. Row x is x' = scale q: q is its d
integers (and 0 up to a multiple of 4). The float32 bits of the scale are the last four numbers of the row.

**Rounded.** The scale is the largest |x_i| / 127, a little more, so that q has no number over 127. A number is off by
half of the scale, and by what float32 rounds off before (127 * 2^-22 of it). ||x|| is at least the largest. So

    ||x - x'|| <= sqrt(d) scale / 2 <= sqrt(d) / 253 ||x||                              (``operand_error``)

That is for a row with one large number. Rows of many numbers of like size are off by a third of it and less, and the
search measures how far its own are off. Rows with nothing over ``LEAST`` = 2^-100 have the scale of that, and are off
by no more than 2^-108 sqrt(d).

**Exact.** With 128 added to one side, parts of the sums are at most 255 * 127 d, within int32 for every d up to
``WIDEST``. A sum becomes float32, and is multiplied with two scales: three roundings.
"""

from __future__ import annotations

import ctypes
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch

from paramdex_builder.project.kernels.library import loaded

LEAST = 2.0**-100
WIDEST = 2**16
_SOURCE = Path(__file__).with_name("vnni.c")


@cache
def library() -> ctypes.CDLL | None:
    """The compiled function of this source; None where the installation has none, or the processor no VNNI."""
    features: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if not all(features.get(f"avx512_{name}") for name in ("f", "bw", "vl", "vnni")):
        return None
    found = loaded(_SOURCE)
    if found is not None:
        pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
        found.paramdex_int8_pairs.argtypes = [
            *([pointer] * 6), size, size, pointer, size, size, size, pointer, number, number, size, pointer,
        ]  # fmt: skip
        found.paramdex_int8_pairs.restype = size
    return found


def operand_error(d: int) -> float:
    """How far a row of d numbers can be off once it is rounded, as a share of its norm."""
    return math.sqrt(d) / 253


def operand(x: torch.Tensor) -> torch.Tensor:
    """The operand of x (n x d, float64; norms below 2^100)."""
    n, d = x.shape
    near = x.float()
    scales = near.abs().amax(1).clamp_min_(LEAST) * ((1 + 2.0**-20) / 127)
    rows = torch.zeros(n, d + -d % 4 + 4, dtype=torch.int8)
    rows[:, :d] = near.div_(scales[:, None]).round_()
    rows[:, -4:] = scales[:, None].view(torch.int8)
    return rows


def values(rows: torch.Tensor, d: int) -> torch.Tensor:
    """What an operand stands for (n x d, float64)."""
    return rows[:, :d].double() * rows[:, -4:].contiguous().view(torch.float32)


def pairs_reaching(
    factors: tuple[torch.Tensor, torch.Tensor],
    norms: tuple[torch.Tensor, torch.Tensor],
    words: tuple[torch.Tensor, torch.Tensor],
    tiles: torch.Tensor,
    shape: tuple[int, int],
    limits: torch.Tensor,
    room: int,
    most: tuple[float, float],
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``triton.pairs_reaching``, of two operands of V rows each. Works on one thread. Raises MemoryError, and
    ValueError for tensors in another layout.
    """
    (a, b), d = factors, factors[0].shape[1] - 4
    every = [a, b, *norms, *words, tiles, limits]
    if not all(each.is_contiguous() for each in every) or not a.dtype == b.dtype == torch.int8 or a.shape != b.shape:
        raise ValueError("operands must be alike, and all tensors contiguous")
    if d > WIDEST:
        raise ValueError(f"rows must have at most {WIDEST:,} numbers")
    pairs = torch.empty(room, dtype=torch.int64)
    count = _loaded().paramdex_int8_pairs(
        *(each.data_ptr() for each in every[:6]), len(a), d, tiles.data_ptr(), len(tiles), *shape,
        limits.data_ptr(), most[0] * (1 + 2.0**-20), most[1], room, pairs.data_ptr(),
    )  # fmt: skip
    if count < 0:
        raise MemoryError
    return torch.tensor([count]), pairs


def _loaded() -> ctypes.CDLL:
    found = library()
    assert found is not None, "pair_engine_of takes int8 only where the kernel is"
    return found
