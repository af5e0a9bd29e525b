"""Engines: matrix products that are fast and rounded, and off by no more than a proven bound.

``arithmetic.dot`` says what a score is, in float64. An engine says which scores are worth that: it multiplies in low
precision. Results never depend on the engine; only the time does. ``Engine`` is what the searches ask of one. To write
another, derive from it. Builds take it once a function that returns it is in ``ENGINES``; ``strongest_tokens`` and
``strongest_pairs`` also take it as an argument.

**The bound.** Let u be the unit roundoff of the engine's type (2^-24 for float32, 2^-8 for bfloat16). Operands x are
rounded to x'. The products of two are summed in float32, in whatever order the hardware likes, and the sum is rounded
once more:

    ||x - x'|| <= u ||x||                                                               (``operand_error``)
    |sum - <x', y'>| <= gamma_d ||x'|| ||y'||,  gamma_d = d u_32 / (1 - d u_32),  u_32 = 2^-24     (``gamma``)
    |s~ - sum| <= u |sum|                                                               (``u``)

These are Higham's (2002, section 3.1); the second one follows by Cauchy-Schwarz on sum |x'_i y'_i|. Together

    |s~ - <x, y>| <= ((1 + u)^3 (1 + gamma_d) - 1) ||x|| ||y||                          (``error``)

with what was measured of the operands in place of (1 + u)^2, where that is known.

**int16** (``kernels.avx2``). The sum is exact, ||x - x'|| <= v ||x|| with another v, and the sum is rounded to float32:
((1 + v)^2 (1 + u_32) - 1) ||x|| ||y||.

**int8** (``kernels.vnni``). So it is, and the sum is rounded three times: u = 2^-22 is more than that. The numbers that
are left over, PyTorch multiplies in float32.

**Tensor cores** multiply bfloat16 exactly and add up blocks of K >= 4 products and the sum so far. They shift all of
them to the exponent of the largest and cut off what lies below its 24 bits, and cut the sum off once more (Fasi,
Higham, Mikaitis, Pranesh 2021, of V100 to A100; later ones keep more bits). A block is off by less than (K + 2) 2^-23
times its largest number, or (d + 2) 2^-23 times where d < K. There are no more than d / K + 1 blocks. In all the sum is
off by less than 4 (d + 8) u_32 sum |x'_i y'_i|, so gamma_4(d+8) stands for gamma_d.

**Underflow.** Where no norm is over 1, numbers that underflow on the way, or that hardware takes for 0 because they are
subnormal, add less than ``UNDERFLOW`` to that: there are at most 4 d of them, each below 2^-126. So do rows of int16
with a norm that is too small for their scale, 2^-112 sqrt(d + 3) at the most.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch

from paramdex_builder.project.arithmetic import Bits, by_token, gamma, library_dots
from paramdex_builder.project.kernels import avx2, vnni

_FEW = 8192
"""Rows of bfloat16 that are held in float32 beside themselves."""


class Engine(Protocol):
    """Products of two operands, and a bound on their error. Derived classes inherit the methods that have a body here.

    An operand is made of a matrix (n x d, float64, no norm over 2). It is one tensor of n rows: the rows can be taken
    and cut like those of any matrix, and a row of zeros stands for zeros. The number of its columns is the engine's.
    """

    operand_dtype: torch.dtype
    """The type of an operand's numbers."""
    score_dtype: torch.dtype
    """The type of the products: bfloat16, float32 or float64, whose range the bound of underflow needs."""
    u: float
    """The relative error of rounding a sum to ``score_dtype``."""

    def operand(self, x: torch.Tensor) -> torch.Tensor:
        """x (n x d, float64) rounded."""
        ...

    def values(self, rows: torch.Tensor, d: int) -> torch.Tensor:
        """What an operand of d columns stands for (n x d, float64)."""
        ...

    def operand_error(self, d: int) -> float:
        """How far a row of d numbers can be off once it is rounded, as a share of its norm."""
        ...

    def gamma(self, d: int) -> float:
        """How far a sum of d products can be off, as a share of the product of the norms of the rounded rows."""
        ...

    def product(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """a b^T (n x m) of two operands, in the first n m places of ``out``, a vector of ``score_dtype``."""
        ...

    def error(self, d: int, left: float | None = None, right: float | None = None) -> float:
        """How far a product of d terms can be off, as a share of the product of the norms; ``left`` and ``right`` are
        how far its operands are off, where that is known better than by ``operand_error``.
        """
        off = (1 + (self.operand_error(d) if each is None else each) for each in (left, right))
        return 1.001 * (math.prod(off) * (1 + self.u) * (1 + self.gamma(d)) - 1)

    def packed(self, rows: torch.Tensor) -> torch.Tensor:
        """An operand b for the products of ``screen`` with many a. Its rows may become a multiple of 16. It can be cut
        and joined at such multiples.
        """
        return rows

    # What a compiled kernel takes, one by one: both operands, where it writes to, and how b is laid out.
    def screen(
        self,
        a: torch.Tensor,
        b: torch.Tensor,
        out: torch.Tensor,
        peaks: torch.Tensor,
        group: int,
        *,
        is_packed: bool = False,
    ) -> torch.Tensor:
        """The bits of -1 times a b^T (n x m), in the first n m places of ``out``. ``peaks`` (2 x n x m / group) gets
        the largest bits of a b^T and of -1 times it in every ``group`` columns, which are right where they are above 0.
        """
        del is_packed
        return Bits(self.score_dtype).negated(self.product(a, b, out), peaks, group)

    def reaching(
        self, bits: torch.Tensor, rows: torch.Tensor, keys: torch.Tensor, side: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``Bits.reaching`` of the bits that ``screen`` gives."""
        return Bits(self.score_dtype).reaching(bits, rows, keys, side)

    def reads(self, stored: torch.dtype) -> bool:
        """Whether ``dots`` is as fast on an E of the dtype ``stored`` as on one that is held in float64."""
        del stored
        return False

    def dots(self, W: torch.Tensor, E: torch.Tensor, row: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """<w, e> (N, float64) of the rows ``row`` (N, int64) of W (n x d, float64) and ``token`` of E (V x d, any
        float): d products, in float64, added up in any order.
        """
        return library_dots(W, E, row, token)


@runtime_checkable
class PairSelecting(Engine, Protocol):
    """An engine that compares scores of pairs where it makes them, and writes down only those that reach a limit."""

    def pairs_reaching(
        self,
        factors: tuple[torch.Tensor, torch.Tensor],
        norms: tuple[torch.Tensor, torch.Tensor],
        words: tuple[torch.Tensor, torch.Tensor],
        tiles: torch.Tensor,
        shape: tuple[int, int],
        limits: torch.Tensor,
        room: int,
        most: tuple[float, float],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(count, pair), as ``kernels.triton.pairs_reaching`` explains."""
        ...


@runtime_checkable
class SelectingEngine(PairSelecting, Protocol):
    """An engine that does so with scores of tokens, too.

    Its operands are the rounded matrices themselves (n x d), so that PyTorch can multiply them as well.
    """

    def tokens_reaching(
        self, low: torch.Tensor, rows: torch.Tensor, V: int, theta: torch.Tensor, room: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(count, token, value), as ``kernels.triton.tokens_reaching`` explains."""
        ...


class Rounded(Engine):
    """PyTorch's products of operands in a floating type that has float32's range."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.operand_dtype = self.score_dtype = dtype
        self.u = float(torch.finfo(dtype).eps) / 2

    def operand(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.operand_dtype)

    def values(self, rows: torch.Tensor, d: int) -> torch.Tensor:
        del d
        return rows.double()

    def operand_error(self, d: int) -> float:
        del d
        return self.u

    def gamma(self, d: int) -> float:
        return gamma(d)

    def product(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return torch.mm(a, b.T, out=_shaped(out, a, b))


class Int16(Engine):
    """The compiled kernels of ``kernels.avx2``: operands of int16, products of float32."""

    operand_dtype = torch.int16
    score_dtype = torch.float32
    u = 2.0**-24

    def operand(self, x: torch.Tensor) -> torch.Tensor:
        return avx2.operand(x)

    def values(self, rows: torch.Tensor, d: int) -> torch.Tensor:
        return avx2.values(rows, d)

    def operand_error(self, d: int) -> float:
        return avx2.operand_error(d)

    def gamma(self, d: int) -> float:
        del d
        return 0.0

    def product(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        out = _shaped(out, a, b)
        avx2.scores(a, b, out, out.new_empty(2, *out.shape[:1], 1), len(b))
        return out.neg_()

    def packed(self, rows: torch.Tensor) -> torch.Tensor:
        return avx2.packed(rows)

    def screen(
        self,
        a: torch.Tensor,
        b: torch.Tensor,
        out: torch.Tensor,
        peaks: torch.Tensor,
        group: int,
        *,
        is_packed: bool = False,
    ) -> torch.Tensor:
        out = _shaped(out, a, b)
        avx2.scores(a, b, out, peaks.view(out.dtype), group, is_packed=is_packed)
        return out.view(torch.int32)

    def reaching(
        self, bits: torch.Tensor, rows: torch.Tensor, keys: torch.Tensor, side: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return avx2.reaching(bits, rows, keys, -(2**31) if side > 0 else 0)

    def reads(self, stored: torch.dtype) -> bool:
        return stored == torch.float32

    def dots(self, W: torch.Tensor, E: torch.Tensor, row: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        if not self.reads(E.dtype):
            return library_dots(W, E, row, token)
        order = by_token(token)
        found = avx2.dots(W, E, row[order], token[order])
        scores = torch.empty_like(found)
        scores[order] = found
        return scores


class Int8(Engine):
    """The compiled kernel of ``kernels.vnni``, for pairs: operands of int8, sums that are selected from."""

    operand_dtype = torch.int8
    score_dtype = torch.float32
    u = 2.0**-22  # of three roundings

    def operand(self, x: torch.Tensor) -> torch.Tensor:
        return vnni.operand(x)

    def values(self, rows: torch.Tensor, d: int) -> torch.Tensor:
        return vnni.values(rows, d)

    def operand_error(self, d: int) -> float:
        return vnni.operand_error(d)

    def gamma(self, d: int) -> float:
        return gamma(d)  # of ``product``; sums of integers are exact

    def product(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        d = a.shape[1] - 4  # what the kernel leaves over
        return torch.mm(self.values(a, d).float(), self.values(b, d).float().T, out=_shaped(out, a, b))

    def pairs_reaching(
        self,
        factors: tuple[torch.Tensor, torch.Tensor],
        norms: tuple[torch.Tensor, torch.Tensor],
        words: tuple[torch.Tensor, torch.Tensor],
        tiles: torch.Tensor,
        shape: tuple[int, int],
        limits: torch.Tensor,
        room: int,
        most: tuple[float, float],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return vnni.pairs_reaching(factors, norms, words, tiles, shape, limits, room, most)


class TensorCores(Rounded):
    """A GPU's tensor cores, in the kernels of ``kernels.triton``: bfloat16, with sums that are selected from as they
    are made. (The module is imported where it is used, so that nobody else needs Triton.)
    """

    def __init__(self) -> None:
        super().__init__(torch.bfloat16)

    def gamma(self, d: int) -> float:
        return gamma(4 * (d + 8))

    def product(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        out = _shaped(out, a, b)  # what the kernels leave over; PyTorch may add up in bfloat16
        for start in range(0, len(b), _FEW):
            part = slice(start, start + _FEW)
            out[:, part] = a.float() @ b[part].float().T
        return out

    def reads(self, stored: torch.dtype) -> bool:
        del stored
        return True

    def dots(self, W: torch.Tensor, E: torch.Tensor, row: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        from paramdex_builder.project.kernels import triton

        return triton.dots(W, E, row, token)

    def tokens_reaching(
        self, low: torch.Tensor, rows: torch.Tensor, V: int, theta: torch.Tensor, room: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        from paramdex_builder.project.kernels import triton

        return triton.tokens_reaching(low, rows, V, theta, room)

    def pairs_reaching(
        self,
        factors: tuple[torch.Tensor, torch.Tensor],
        norms: tuple[torch.Tensor, torch.Tensor],
        words: tuple[torch.Tensor, torch.Tensor],
        tiles: torch.Tensor,
        shape: tuple[int, int],
        limits: torch.Tensor,
        room: int,
        most: tuple[float, float],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        from paramdex_builder.project.kernels import triton

        return triton.pairs_reaching(factors, norms, words, tiles, shape, limits, room, most)


def _shaped(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The first places of ``out`` as the matrix that a b^T goes to."""
    return out[: a.shape[0] * b.shape[0]].view(a.shape[0], b.shape[0])


FLOAT32, BFLOAT16, INT16, TENSOR_CORES = Rounded(torch.float32), Rounded(torch.bfloat16), Int16(), TensorCores()
INT8 = Int8()

ENGINES: list[Callable[[torch.device], Engine | None]] = []
"""Functions that ``engine_of`` asks before it chooses, the one added last first. Each returns an engine for a device,
or None to leave the device to the others. Add to the list before a build begins.

A function should return the same object whenever it is asked: with every new one E is rounded anew. Several threads use
an engine at once, so a product must leave nothing behind in it.
"""


def engine_of(device: torch.device) -> Engine:
    """The engine for a device: the first that a function in ``ENGINES`` has for it, else the fastest that is here.

    On a processor bfloat16 where it has instructions for that; int16 where the installation has a kernel for it and
    vectors have 256 bits; else float32. On a GPU its tensor cores where Triton can make kernels for them; else float32,
    because PyTorch lets a GPU add up products of bfloat16 in bfloat16.
    """
    for choose in reversed(ENGINES):
        engine = choose(device)
        if engine is not None:
            return engine
    if device.type != "cpu":
        return TENSOR_CORES if _has_tensor_cores(device) else FLOAT32
    features: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if features.get("amx_bf16") or features.get("avx512_bf16"):
        return BFLOAT16
    if features.get("avx2") and not features.get("avx512_f") and avx2.library() is not None:
        return INT16
    return FLOAT32


def pair_engine_of(device: torch.device) -> Engine:
    """The engine for pairs on a device: int8 in place of bfloat16 where the installation has the kernel for that."""
    found = engine_of(device)
    return INT8 if found is BFLOAT16 and vnni.library() is not None else found


def _has_tensor_cores(device: torch.device) -> bool:
    """Whether a device is NVIDIA's, is there, multiplies bfloat16 (from compute capability 8.0 on), and Triton is
    installed.
    """
    if device.type != "cuda" or torch.version.cuda is None or not torch.cuda.is_available():
        return False
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


class _FullFloat32:
    """PyTorch's setting for products of float32: how many threads want full precision, and what was set before."""

    lock, wanted, before = threading.Lock(), 0, "highest"


@contextmanager
def full_float32() -> Iterator[None]:
    """Inside, PyTorch multiplies float32 in full precision, even where the program allows it less."""
    state = _FullFloat32
    with state.lock:
        if not state.wanted:
            try:
                state.before = torch.get_float32_matmul_precision()
            except RuntimeError:  # it was set for some libraries and not for others
                state.before = "highest"
            torch.set_float32_matmul_precision("highest")
        state.wanted += 1
    try:
        yield
    finally:
        with state.lock:
            state.wanted -= 1
            if not state.wanted:
                torch.set_float32_matmul_precision(state.before)
