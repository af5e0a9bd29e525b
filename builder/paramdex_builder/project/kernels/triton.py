"""Kernels for a GPU: products whose results are looked at where they are made, and never written down.

Two of them multiply bfloat16 matrices a tile at a time on tensor cores, compare the tile with thresholds while it is in
registers, and write only what reaches one: the place, through a counter that says how many there are already. The
buffers they write to have an end; the counters go on counting, so that the caller can tell that something was left out.
The order of what is written changes from run to run, and nothing may depend on it. The third gives the few scores that
are left to check, in float64.

What a screened score is off by is in ``screening`` (``TENSOR_CORES``), and what that means for a threshold in
``fused_projection`` and ``fused_pairs``.

Under Triton's interpreter (TRITON_INTERPRET=1, before this module is imported) they run without a GPU, on tensors of
the CPU. It multiplies the bits of bfloat16 as if they were integers, so there operands are made float32 first
(``WIDE``); products of two bfloat16 are exact in float32, and the bounds hold for any order of adding them up.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl

TOKEN_TILE = {"BM": 128, "BN": 256, "BK": 64}
PAIR_TILE = {"BM": 128, "BN": 128, "BK": 64}
"""Rows, columns and terms of a tile of the two products."""
_GROUP = 8
"""Tiles of so many rows of tiles go by together, so that what they share stays in the L2 cache."""


# A kernel takes its pointers and sizes one by one.
@triton.jit
def _token_kernel(
    W, E, THETA, COUNT, FOUND, n, V, d, room,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    # Programs in bands of GROUP tiles of rows, down a band first.
    pid, n_rows, n_columns = tl.program_id(0), tl.cdiv(n, BM), tl.cdiv(V, BN)
    band = pid // (GROUP * n_columns)
    height = min(n_rows - band * GROUP, GROUP)
    inside = pid % (GROUP * n_columns)
    row = (band * GROUP + inside % height) * BM + tl.arange(0, BM)
    column = (inside // height) * BN + tl.arange(0, BN)
    w_row, e_row = W + row.to(tl.int64)[:, None] * d, E + column.to(tl.int64)[None, :] * d
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, d, BK):
        term = start + tl.arange(0, BK)
        w = tl.load(w_row + term[None, :], mask=(row < n)[:, None] & (term < d)[None, :], other=0.0)
        e = tl.load(e_row + term[:, None], mask=(column < V)[None, :] & (term < d)[:, None], other=0.0)
        if WIDE:
            w, e = w.to(tl.float32), e.to(tl.float32)
        total = tl.dot(w, e, total)
    theta = tl.load(THETA + row, mask=row < n, other=float("inf"))
    # Keys order by |t~|, of which the last bits give way to the sign and the column in the tile (BN <= 256).
    bits = total.to(tl.int32, bitcast=True)
    key = (bits & 0x7FFFFE00) | ((bits >> 31) & 256) | tl.arange(0, BN)[None, :]
    hot = (tl.abs(total) >= theta[:, None]) & (column < V)[None, :]
    key = tl.where(hot, key, -1)
    count = tl.sum(hot.to(tl.int32), axis=1)
    place = tl.atomic_add(COUNT + row, count, mask=count > 0)
    at = FOUND + row.to(tl.int64) * room + place
    for _ in range(tl.max(count, axis=0)):
        best = tl.max(key, axis=1)  # one of each row that has any left
        token = (inside // height) * BN + (best & 255)
        value = (best & 0x7FFFFE00) | ((best & 256) << 23)
        tl.store(at, (value.to(tl.int64) << 32) | token, mask=(best >= 0) & (place < room))
        key = tl.where(key == best[:, None], -1, key)
        place, at = place + 1, at + 1


# A kernel takes its pointers and sizes one by one.
@triton.jit
def _pair_kernel(
    A, B, NORM_A, NORM_B, WORD_A, WORD_B, TILES, LIMITS, COUNT, PAIR, V, r, height, width, room, grow, under,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    tile, part, across = tl.program_id(0), tl.program_id(1), tl.cdiv(width, BN)
    first_row = tl.load(TILES + tile * 2) + (part // across) * BM
    first_column = tl.load(TILES + tile * 2 + 1) + (part % across) * BN
    last_row, last_column = tl.load(TILES + tile * 2) + height, tl.load(TILES + tile * 2 + 1) + width
    top, bottom = tl.load(LIMITS + tile * 2), tl.load(LIMITS + tile * 2 + 1)
    inside = (first_row < V) & (first_column < V)
    reach = tl.load(NORM_A + first_row, mask=inside, other=0.0) * tl.load(NORM_B + first_column, mask=inside, other=0.0)
    full = tl.load(COUNT, volatile=True) > room  # all has to be done again, and the count must not grow past its type
    if inside & (reach * grow + under >= tl.minimum(top, bottom)) & (full == 0):
        row, column = first_row + tl.arange(0, BM), first_column + tl.arange(0, BN)
        in_a, in_b = (row < V) & (row < last_row), (column < V) & (column < last_column)
        total = tl.zeros((BM, BN), dtype=tl.float32)
        for start in range(0, r, BK):
            term = start + tl.arange(0, BK)
            a_at = A + row.to(tl.int64)[:, None] * r + term[None, :]
            b_at = B + column.to(tl.int64)[None, :] * r + term[:, None]
            a = tl.load(a_at, mask=in_a[:, None] & (term < r)[None, :], other=0.0)
            b = tl.load(b_at, mask=in_b[None, :] & (term < r)[:, None], other=0.0)
            if WIDE:
                a, b = a.to(tl.float32), b.to(tl.float32)
            total = tl.dot(a, b, total)
        if tl.max(tl.abs(total)) >= tl.minimum(top, bottom):
            word_a = tl.load(WORD_A + row, mask=in_a, other=-1)
            word_b = tl.load(WORD_B + column, mask=in_b, other=-2)
            hot = ((total >= top) | (-total >= bottom)) & in_a[:, None] & in_b[None, :]
            hot = hot & (word_a[:, None] != word_b[None, :])
            key = tl.where(hot, column[None, :], -1)
            count = tl.sum(hot.to(tl.int32), axis=1)
            place = tl.cumsum(count, axis=0) - count + tl.atomic_add(COUNT, tl.sum(count, axis=0))
            for _ in range(tl.max(count, axis=0)):
                best = tl.max(key, axis=1)  # one of each row that has any left
                pair = (row.to(tl.int64) << 32) | best.to(tl.int64)
                tl.store(PAIR + place, pair, mask=(best >= 0) & (place < room))
                key = tl.where(key == best[:, None], -1, key)
                place += 1


# A kernel takes its pointers and sizes one by one.
@triton.jit
def _dot_kernel(W, E, ROW, TOKEN, OUT, N, d, BM: tl.constexpr, BK: tl.constexpr):
    pair = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    here = pair < N
    row, token = tl.load(ROW + pair, mask=here, other=0), tl.load(TOKEN + pair, mask=here, other=0)
    total = tl.zeros((BM,), dtype=tl.float64)
    for start in range(0, d, BK):
        term = start + tl.arange(0, BK)
        mask = here[:, None] & (term < d)[None, :]
        w = tl.load(W + row[:, None] * d + term[None, :], mask=mask, other=0.0).to(tl.float64)
        e = tl.load(E + token[:, None] * d + term[None, :], mask=mask, other=0.0).to(tl.float64)
        total += tl.sum(w * e, axis=1)
    tl.store(OUT + pair, total, mask=here)


INTERPRETED = not isinstance(_dot_kernel, triton.JITFunction)
"""Whether these kernels run in the interpreter, on the CPU."""
_FEW_ROWS, _TERMS = (4096 if INTERPRETED else 32), 128
"""Pairs and terms that ``dots`` takes at a time; the interpreter takes about as long for many as for few."""


def tokens_reaching(
    low: torch.Tensor, rows: torch.Tensor, V: int, theta: torch.Tensor, room: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(count, token, value): which |t~| reach ``theta`` (n, float32), with t~ = ``low`` (n x d) times the first V of
    ``rows`` (at least V x d), both bfloat16.

    ``count`` (n, int32) says how many they are; the first ``room`` that come by are in ``token`` (n x room, int64) and
    ``value`` (float32, its size rounded down by a share of less than 2^-14). Behind them there is anything.
    """
    n, d = low.shape
    count = torch.zeros(n, dtype=torch.int32, device=low.device)
    found = torch.zeros(n, room, dtype=torch.int64, device=low.device)
    tile = TOKEN_TILE
    grid = (triton.cdiv(n, tile["BM"]) * triton.cdiv(V, tile["BN"]),)
    with _on(low.device):
        _token_kernel[grid](
            low.contiguous(), rows, theta.contiguous(), count, found, n, V, d, room, **tile, GROUP=_GROUP,
            WIDE=INTERPRETED, **_schedule(8),
        )  # fmt: skip
    return count, found & 0xFFFF_FFFF, (found >> 32).int().view(torch.float32)


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
    """(count, pair): which pairs of different words in ``tiles`` have a screened score s~ = a b^T that reaches the
    first of the tile's ``limits`` (n x 2, float32), or -s~ that reaches the second.

    ``factors`` (V x r, bfloat16), their ``norms`` (V, float32, not too small, descending) and ``words`` (V, int32, not
    negative) are of the left and of the right side. A tile is given by its first row and column (``tiles``, n x 2,
    int32) and has ``shape`` rows and columns. |s~| is at most ``most[0]`` times the product of
    the norms, plus ``most[1]``.
    ``count`` (1, int32) says how many they are, or where they are more than ``room``, some number over that; then
    nothing else is of use. They are in ``pair`` (room, int64), as row 2^32 + column.
    """
    (a, b), (V, r), block = factors, factors[0].shape, PAIR_TILE
    count = torch.zeros(1, dtype=torch.int32, device=a.device)
    pair = torch.empty(room, dtype=torch.int64, device=a.device)
    parts = triton.cdiv(shape[0], block["BM"]) * triton.cdiv(shape[1], block["BN"])
    with _on(a.device):
        _pair_kernel[len(tiles), parts](
            a, b, *norms, *words, tiles, limits, count, pair, V, r, *shape, room, most[0] * (1 + 2.0**-20),
            most[1], **block, WIDE=INTERPRETED, **_schedule(4),
        )  # fmt: skip
    return count, pair


def dots(W: torch.Tensor, E: torch.Tensor, row: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """<w, e> (N, float64) of the rows ``row`` (N, int64) of W (n x d) and ``token`` of E (V x d), both floats of any
    kind: d products, in float64, added up in any order.
    """
    out = torch.empty(len(row), dtype=torch.float64, device=W.device)
    if len(row):
        with _on(W.device):
            _dot_kernel[(triton.cdiv(len(row), _FEW_ROWS),)](
                W.contiguous(),
                E.contiguous(),
                row.contiguous(),
                token.contiguous(),
                out,
                len(row),
                W.shape[1],
                BM=_FEW_ROWS,
                BK=_TERMS,
            )
    return out


def _schedule(warps: int) -> dict[str, Any]:
    """How a GPU runs a product: groups of 32 threads a tile, and loads under way at a time."""
    return {"num_warps": warps, "num_stages": 3}


def _on(device: torch.device) -> AbstractContextManager[object]:
    """In here Triton takes that GPU; without it, the program's first."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
