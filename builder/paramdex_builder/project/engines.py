"""Screening: matrix products that are fast and rounded, and off by no more than a proven bound.

What a score is, ``dot`` says, in float64. Which scores are worth that, a product in low precision says. With u the unit
roundoff of its type (2^-24 for float32, 2^-8 for bfloat16), operands x are rounded to x', the products of two are
summed in float32 in whatever order the hardware likes, and the sum is rounded once more:

    ||x - x'|| <= u ||x||
    |sum - <x', y'>| <= gamma_d ||x'|| ||y'||,  gamma_d = d u_32 / (1 - d u_32),  u_32 = 2^-24
    |s~ - sum| <= u |sum|                                                               (Higham 2002, section 3.1)

(the second by Cauchy-Schwarz on sum |x'_i y'_i|). Together

    |s~ - <x, y>| <= ((1 + u)^3 (1 + gamma_d) - 1) ||x|| ||y||                          (``Precision.error``)

With operands of int16 (``avx2``) the sum is exact, ||x - x'|| <= v ||x|| with another v, and what is rounded
to float32 is the sum: ((1 + v)^2 (1 + u_32) - 1) ||x|| ||y||.

A GPU's tensor cores multiply bfloat16 exactly and add up blocks of K >= 4 products and the sum so far. They shift all
of them to the exponent of the largest and cut off what lies below its 24 bits, and cut the sum off once more (Fasi,
Higham, Mikaitis, Pranesh 2021, of V100 to A100; later ones keep more bits). A block is off by less than (K + 2) 2^-23
times its largest number, or (d + 2) 2^-23 times where d < K, and there are no more than d / K + 1 of them: by less
than 4 (d + 8) u_32 sum |x'_i y'_i| in all, so gamma_4(d+8) stands for gamma_d.

Where no norm is over 1, numbers that underflow on the way, or that hardware takes for 0 because they are subnormal,
add less than ``UNDERFLOW`` to that: there are at most 4 d of them, each below 2^-126. So do rows of int16 with a norm
that is too small for their scale, 2^-112 sqrt(d + 3) at the most.

Products are looked at as integers: of two floats that are not negative, the larger one has the larger bits. The bits of
a negative one are a negative integer, below all of those. So what is at least a limit above 0 can be found among
integers, which are compared and reduced several times as fast as floats, which may be NaN.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from paramdex_builder.project.kernels import avx2

with warnings.catch_warnings():  # PyTorch says once that these are in beta
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 0], [], [], (1, 1))

UNDERFLOW = 2.0**-100
_FEW = 8192
"""Rows of bfloat16 that are held in float32 beside themselves."""
LARGEST = 2.0**126
"""Scores and sums below this cannot overflow float32."""


def gamma(n: int, u: float = 2.0**-24) -> float:
    """gamma_n = n u / (1 - n u), u the unit roundoff: float32's, unless another is given."""
    return n * u / (1 - n * u)


def gamma64(n: int) -> float:
    """gamma_n for float64, with a little room for the rounding of what it is multiplied with."""
    return 1.001 * gamma(n, 2.0**-53)


@dataclass(frozen=True)
class Precision:
    """How products are screened: the type of their operands, and of themselves.

    ``tensor_cores``: by those of a GPU, in the kernels of ``kernels.triton``.
    """

    dtype: torch.dtype
    tensor_cores: bool = False

    def scores_as_stored(self, dtype: torch.dtype) -> bool:
        """Whether kernels of its own score rows of an E of this dtype in float64 from E as it is."""
        del dtype
        return self.tensor_cores

    @property
    def of_scores(self) -> torch.dtype:
        """The type of the products."""
        return self.dtype

    @property
    def u(self) -> float:
        """The unit roundoff of the products."""
        return float(torch.finfo(self.of_scores).eps) / 2

    @property
    def bits(self) -> torch.dtype:
        """The integers of the same width."""
        return torch.int16 if self.of_scores.itemsize == 2 else torch.int32

    @property
    def sign(self) -> int:
        """The integer of which only the bit is set that makes a float negative."""
        return int(torch.iinfo(self.bits).min)

    def operand(self, x: torch.Tensor) -> torch.Tensor:
        """x (n x d, float64, no norm over 2) rounded: its rows can be taken and cut like those of any matrix."""
        return x.to(self.dtype)

    def values(self, rows: torch.Tensor, d: int) -> torch.Tensor:
        """What an operand of d columns stands for (n x d, float64)."""
        del d
        return rows.double()

    def packed(self, rows: torch.Tensor) -> torch.Tensor:
        """An operand b for the products of ``screen`` with many a. Its rows may become a multiple of 16; it can be cut
        and joined at such multiples.
        """
        return rows

    def unit(self, d: int) -> float:
        """How far a row of d numbers can be off once rounded, of its norm."""
        del d
        return self.u

    def error(self, d: int) -> float:
        """How far a product of d terms can be off, of the product of the norms."""
        return 1.001 * ((1 + self.unit(d)) ** 2 * (1 + self.u) * (1 + self.gamma(d)) - 1)

    def gamma(self, d: int) -> float:
        """How far a sum of d products can be off, of the product of the norms of what was rounded already."""
        return gamma(4 * (d + 8) if self.tensor_cores else d)

    def keys(self, limits: torch.Tensor) -> torch.Tensor:
        """Least bits that a number at least as large as a limit (float64, above 0) has."""
        near = limits.float()
        bits = near.view(torch.int32) - (near.double() > limits).int()
        return (bits >> (32 - 8 * self.of_scores.itemsize)).clamp_min(1).to(self.bits)

    def key(self, limit: float) -> int:
        """``keys`` of one limit."""
        near = np.float32(limit)
        bits = int(near.view(np.int32)) - (float(near) > limit)
        return max(bits >> (32 - 8 * self.of_scores.itemsize), 1)

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
        """The bits of -1 times a b^T (n x m) of two operands, in the first n m places of ``out``; into ``peaks`` (2 x n
        x m / group) the largest bits of a b^T and of -1 times it in every ``group`` columns, where they are above 0.
        """
        del is_packed
        bits = self.product(a, b, out).view(self.bits)
        torch.amax(bits.view(len(a), -1, group), 2, out=peaks[0])
        torch.amax(bits.bitwise_xor_(self.sign).view(len(a), -1, group), 2, out=peaks[1])
        return bits

    def reaching(
        self, bits: torch.Tensor, rows: torch.Tensor, keys: torch.Tensor, sign: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is at least the row's key (N) on the side ``sign``, in some ``rows`` (N) of ``bits`` (n x width) as
        ``screen`` gives them: places in N x width, ascending, and the bits there.
        """
        found = bits.index_select(0, rows)
        if sign > 0:
            found.bitwise_xor_(self.sign)
        places = at_least(found, keys[:, None])
        return places, found.view(-1)[places]

    def product(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """a b^T (n x m) of two operands, in the first n m places of ``out``."""
        out = out[: a.shape[0] * b.shape[0]].view(a.shape[0], b.shape[0])
        if self.tensor_cores:  # what those kernels leave over; PyTorch may add up in bfloat16
            for start in range(0, len(b), _FEW):
                part = slice(start, start + _FEW)
                out[:, part] = a.float() @ b[part].float().T
            return out
        return torch.mm(a, b.T, out=out)


class _Int16(Precision):
    """By the compiled kernels of ``avx2``; the products are float32."""

    def scores_as_stored(self, dtype: torch.dtype) -> bool:
        return dtype == torch.float32

    @property
    def of_scores(self) -> torch.dtype:
        return torch.float32

    def operand(self, x: torch.Tensor) -> torch.Tensor:
        return avx2.operand(x)

    def values(self, rows: torch.Tensor, d: int) -> torch.Tensor:
        return avx2.values(rows, d)

    def packed(self, rows: torch.Tensor) -> torch.Tensor:
        return avx2.packed(rows)

    def unit(self, d: int) -> float:
        return avx2.unit(d)

    def gamma(self, d: int) -> float:
        del d
        return 0.0

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
        out = out[: a.shape[0] * b.shape[0]].view(a.shape[0], b.shape[0])
        avx2.scores(a, b, out, peaks.view(out.dtype), group, is_packed=is_packed)
        return out.view(self.bits)

    def reaching(
        self, bits: torch.Tensor, rows: torch.Tensor, keys: torch.Tensor, sign: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return avx2.reaching(bits, rows, keys, self.sign if sign > 0 else 0)

    def product(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        out = out[: a.shape[0] * b.shape[0]].view(a.shape[0], b.shape[0])
        avx2.scores(a, b, out, out.new_empty(2, *out.shape[:1], 1), len(b))
        return out.neg_()


FLOAT32, BFLOAT16, INT16 = Precision(torch.float32), Precision(torch.bfloat16), _Int16(torch.int16)
TENSOR_CORES = Precision(torch.bfloat16, tensor_cores=True)


def precision_of(device: torch.device) -> Precision:
    """The precision that is fastest on a device: bfloat16 on a processor with instructions for it; int16 where the
    installation has a kernel for that and vectors have 256 bits; else float32.

    On a GPU bfloat16 where Triton can make kernels for its tensor cores, else float32, as PyTorch lets a GPU add up
    products of bfloat16 in bfloat16.
    """
    if device.type != "cpu":
        return TENSOR_CORES if _has_tensor_cores(device) else FLOAT32
    features: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if features.get("amx_bf16") or features.get("avx512_bf16"):
        return BFLOAT16
    if features.get("avx2") and not features.get("avx512_f") and avx2.kernel() is not None:
        return INT16
    return FLOAT32


def _has_tensor_cores(device: torch.device) -> bool:
    """Whether a device is NVIDIA's, is there, multiplies bfloat16 (from compute capability 8.0 on), and Triton too."""
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
    """PyTorch's precision of products of float32 while some thread wants all of it, and what it was before."""

    lock, wanted, before = threading.Lock(), 0, "highest"


@contextmanager
def full_float32() -> Iterator[None]:
    """In here products of float32 are what they say, also in a program that has allowed PyTorch less."""
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


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """<a_i, b_i> (n, float64) of n pairs of rows (n x d each, float64): products, added up by halves.

    Every step rounds every number by itself, so that a result is the same to the last bit whatever the other pairs,
    the threads and the device are.
    """
    terms = (a * b).T.contiguous()
    while terms.shape[0] > 1:
        half, odd = divmod(terms.shape[0], 2)
        last = terms[-1]
        terms = terms[:half] + terms[half : 2 * half]
        if odd:
            terms[0] += last
    return terms.sum(0)


def chosen_products(a: torch.Tensor, b: torch.Tensor, ends: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Some entries of a b^T (N, float64), for a (n x d) and b (m x d): those of row i are in the ``columns`` (N) from
    ``ends[i]`` to ``ends[i + 1]``. Their sums are a library's.
    """
    zeros = torch.zeros(len(columns), dtype=a.dtype, device=a.device)
    pattern = torch.sparse_csr_tensor(ends, columns, zeros, (len(a), len(b)), check_invariants=False)
    return torch.sparse.sampled_addmm(pattern, a, b.T, beta=0.0).values()


def as_stored(scores: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (float64) that may be off by ``noise`` as float32, and the flat positions of those that have two ways to
    be rounded.
    """
    low = (scores - noise).float()
    return low, (low != (scores + noise).float()).flatten().nonzero().flatten()


def at_least(values: torch.Tensor, limit: float | torch.Tensor) -> torch.Tensor:
    """Flat positions, ascending, of the values that are at least ``limit`` (a number, or a tensor that broadcasts)."""
    if values.device.type == "cpu":  # several times as fast in NumPy
        return torch.from_numpy(np.flatnonzero(values.numpy() >= np.asarray(limit)))
    return (values >= limit).flatten().nonzero().flatten()


def kth_largest(values: torch.Tensor, k: int) -> torch.Tensor:
    """The k-th largest along the last dimension."""
    if values.device.type == "cpu":  # several times as fast in NumPy
        place, array = values.shape[-1] - k, values.numpy()
        # Short rows are sorted as fast as they are searched, and much faster where many values are equal.
        ordered = np.partition(array, place) if array.ndim == 1 else np.sort(array, axis=-1)
        return torch.from_numpy(ordered[..., place : place + 1].copy())[..., 0]
    return values.topk(k, dim=-1).values[..., -1]


def ascending(values: torch.Tensor) -> torch.Tensor:
    """The values in order along the last dimension."""
    if values.device.type == "cpu":  # several times as fast in NumPy
        return torch.from_numpy(np.sort(values.numpy(), axis=-1))
    return values.sort(dim=-1).values
