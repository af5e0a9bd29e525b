"""What engines promise: products within their bound, limits as integers, scores that do not depend on anything else.

The exact searches built on it have their own brute force, in test_strongest_tokens.py and test_pairs.py.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpu_engines import ENGINES_OF_PAIRS as ENGINES
from paramdex_builder.project import engines
from paramdex_builder.project.arithmetic import (
    UNDERFLOW,
    Bits,
    as_stored,
    ascending,
    at_least,
    dot,
    gamma64,
    kth_largest,
)
from paramdex_builder.project.engines import (
    BFLOAT16,
    FLOAT32,
    INT8,
    INT16,
    TENSOR_CORES,
    Engine,
    engine_of,
    full_float32,
    pair_engine_of,
)
from paramdex_builder.project.kernels import avx2, vnni

CPU = torch.device("cpu")


def screened(a: torch.Tensor, b: torch.Tensor, engine: Engine) -> torch.Tensor:
    out = torch.empty(len(a) * len(b) + 3, dtype=engine.score_dtype)
    return engine.product(engine.operand(a), engine.operand(b), out).double()


@pytest.mark.parametrize("engine", ENGINES)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 600), st.integers(0, 2**32 - 1))
def test_products_keep_their_bound(engine: Engine, n: int, m: int, d: int, seed: int) -> None:
    """Gaussian entries, and entries of one sign whose rounding errors all point the same way."""
    draw = np.random.default_rng(seed)
    for shift in (0, 3):
        a, b = (torch.from_numpy(draw.normal(size=(rows, d)) + shift) for rows in (n, m))
        a, b = (x / x.norm(dim=1, keepdim=True) for x in (a, b))
        bound = engine.error(d) * torch.outer(a.norm(dim=1), b.norm(dim=1)) + UNDERFLOW
        assert ((screened(a, b, engine) - a @ b.T).abs() <= bound).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_products_of_large_shapes_keep_their_bound(engine: Engine) -> None:
    """Tiles as the scans use them, and sums long enough to be cut into blocks."""
    draw = torch.Generator().manual_seed(0)
    for n, m, d in ((512, 1024, 384), (512, 1024, 32), (128, 896, 64), (64, 200, 5000)):
        a, b = (torch.rand(rows, d, generator=draw, dtype=torch.float64) for rows in (n, m))
        a, b = (x / x.norm(dim=1, keepdim=True) for x in (a, b))
        assert ((screened(a, b, engine) - a @ b.T).abs().max()) <= engine.error(d) * 1.0001


@pytest.mark.parametrize("engine", ENGINES)
def test_products_of_subnormal_numbers_keep_their_bound(engine: Engine) -> None:
    """Some hardware takes them for 0."""
    for scale in (2.0**-40, 2.0**-70, 2.0**-127, 2.0**-140):
        a = scale * torch.rand(40, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        assert ((screened(a, a, engine) - a @ a.T).abs() <= engine.error(30) * a.norm() ** 2 + UNDERFLOW).all()


@pytest.mark.parametrize("floats", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@given(limit=st.floats(2.0**-149, 4.0), value=st.floats(-4.0, 4.0))
def test_keys_of_limits(floats: torch.dtype, limit: float, value: float) -> None:
    """A number that is at least the limit has at least the key; 0 and negative numbers never have."""
    of = Bits(floats)
    key = of.key(limit)
    assert [key] == of.keys(torch.tensor([limit], dtype=torch.float64)).tolist()
    number = torch.tensor([value], dtype=torch.float64).to(floats)
    bits = int(number.view(of.integers))
    if float(number) >= limit:
        assert bits >= key
    if float(number) <= 0:
        assert bits < key
    reached = torch.tensor([key], dtype=of.integers).view(floats)
    assert float(reached) <= limit or key == 1  # no more is let through than rounding makes necessary


@given(st.integers(0, 40), st.integers(0, 20), st.integers(0, 2**32 - 1))
def test_dot_is_the_sum(n: int, d: int, seed: int) -> None:
    """Within its bound of the true sum of the products, in rational numbers."""
    draw = np.random.default_rng(seed)
    a, b = draw.normal(size=(n, d)), draw.normal(size=(n, d))
    found = dot(torch.from_numpy(a), torch.from_numpy(b)).tolist()
    for x, y, value in zip(a.tolist(), b.tolist(), found, strict=True):
        true = sum((Fraction(p) * Fraction(q) for p, q in zip(x, y, strict=True)), Fraction(0))
        assert abs(value - true) <= gamma64(max(d, 1)) * math.hypot(*x) * math.hypot(*y)


@given(st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_dot_does_not_depend_on_the_other_pairs(d: int, seed: int) -> None:
    a, b = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 50, d)))
    together = dot(a, b)
    for cut in (slice(0, 1), slice(7, 20), slice(3, None, 5)):
        assert torch.equal(dot(a[cut], b[cut]), together[cut])
    assert torch.equal(dot(torch.cat([a, a])[:, :], torch.cat([b, b])), torch.cat([together, together]))


def test_what_rounds_two_ways_is_named() -> None:
    """1 + 2^-24 is halfway between two float32 numbers."""
    scores = torch.tensor([1.0, 1 + 2.0**-24, -1 - 2.0**-24, 0.0, 3.5e38, 1 + 2.0**-23], dtype=torch.float64)
    stored, unsure = as_stored(scores, torch.tensor([1e-12] * 3 + [0.0, 1e20, 1e-12], dtype=torch.float64))
    assert unsure.tolist() == [1, 2]
    assert stored[[0, 3, 4, 5]].tolist() == [1.0, 0.0, math.inf, 1 + 2.0**-23]


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=60), st.integers(-10, 10), st.integers(1, 60))
def test_selection(values: list[int], limit: int, k: int) -> None:
    for dtype in (torch.int16, torch.int32, torch.float32, torch.float64):
        tensor = torch.tensor(values, dtype=dtype)
        rows = torch.stack([tensor, tensor.flip(0)])
        assert at_least(tensor, limit).tolist() == [i for i, value in enumerate(values) if value >= limit]
        assert at_least(rows, limit).tolist() == [i for i, v in enumerate([*values, *values[::-1]]) if v >= limit]
        assert ascending(rows).tolist() == [sorted(values)] * 2
        if k <= len(values):
            assert float(kth_largest(tensor, k)) == sorted(values)[-k]
            assert kth_largest(rows, k).tolist() == [sorted(values)[-k]] * 2


@pytest.mark.parametrize("allowed", ["medium", "high", "highest"])
def test_full_float32_where_less_is_allowed(allowed: str) -> None:
    """1 + 2^-20 times 1 is 1 in bfloat16."""
    a, b = torch.full((512, 64), 1 + 2.0**-20), torch.eye(64).repeat(8, 1)
    torch.set_float32_matmul_precision(allowed)
    try:
        with full_float32():
            found = a @ b.T
        assert torch.get_float32_matmul_precision() == allowed
    finally:
        torch.set_float32_matmul_precision("highest")
    assert (found == 1 + 2.0**-20).all()


@pytest.mark.parametrize("engine", ENGINES)
@given(
    st.integers(1, 40), st.integers(1, 12), st.sampled_from([1, 3, 16]), st.integers(1, 40), st.integers(0, 2**32 - 1)
)
def test_screen(engine: Engine, n: int, groups: int, group: int, d: int, seed: int) -> None:
    """-1 times the product, and of every group the largest of both signs where they are above 0."""
    draw = np.random.default_rng(seed)
    a, b = (torch.from_numpy(draw.normal(size=(rows, d))) for rows in (n, groups * group))
    a, b = (engine.operand(x / x.norm(dim=1, keepdim=True)) for x in (a, b))
    out = torch.empty(n * len(b) + 3, dtype=engine.score_dtype)
    peaks = torch.empty(2, n, groups + 2, dtype=Bits(engine.score_dtype).integers)  # a part of a larger table
    bits = engine.screen(a, b, out, peaks[:, :, 1:-1], group).clone()
    scores = engine.product(a, b, out).clone()
    assert torch.equal(-bits.view(scores.dtype), scores)
    if len(b) % 16 == 0:
        again = torch.empty_like(peaks)
        found = engine.screen(a, engine.packed(b), out, again[:, :, 1:-1], group, is_packed=True)
        assert torch.equal(found, bits)
        assert torch.equal(again[:, :, 1:-1], peaks[:, :, 1:-1])
    for sign, found in zip((1, -1), peaks.view(scores.dtype)[:, :, 1:-1], strict=True):
        expected = (sign * scores).view(n, groups, group).amax(2)
        assert torch.equal(found.clamp_min(0), expected.clamp_min(0))


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"avx2": True, "avx512_f": True, "amx_bf16": True, "avx512_bf16": True}, BFLOAT16),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": True}, BFLOAT16),
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, FLOAT32),
        ({"avx2": True, "avx512_f": False}, INT16),
        ({"avx2": False}, FLOAT32),
        ({"architecture": "aarch64"}, FLOAT32),
    ],
)
def test_engine_of_processors(monkeypatch: pytest.MonkeyPatch, features: dict[str, object], expected: Engine) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    monkeypatch.setattr(avx2, "library", lambda: "some kernels")
    assert engine_of(CPU) == expected
    monkeypatch.setattr(avx2, "library", lambda: None)  # the installation could not compile it
    assert engine_of(CPU) == (FLOAT32 if expected == INT16 else expected)
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # which older PyTorch has not
    assert engine_of(CPU) == FLOAT32


def test_engine_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """int8 in place of bfloat16, and of nothing else, where there is a kernel for it."""
    for engine in (BFLOAT16, FLOAT32):
        monkeypatch.setattr(engines, "engine_of", lambda _, engine=engine: engine)
        monkeypatch.setattr(vnni, "library", lambda: "a kernel")
        assert pair_engine_of(CPU) == (INT8 if engine is BFLOAT16 else engine)
        monkeypatch.setattr(vnni, "library", lambda: None)
        assert pair_engine_of(CPU) == engine


@pytest.mark.parametrize(
    ("cuda", "there", "capability", "expected"),
    [
        (None, False, (0, 0), FLOAT32),  # PyTorch without CUDA, or with another maker's
        (None, True, (9, 0), FLOAT32),
        ("13.0", False, (0, 0), FLOAT32),  # with CUDA, where there is no GPU
        ("13.0", True, (7, 5), FLOAT32),
        ("13.0", True, (8, 0), TENSOR_CORES),
        ("13.0", True, (9, 0), TENSOR_CORES),
    ],
)
def test_engine_of_gpus(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, there: bool, capability: tuple[int, int], expected: Engine
) -> None:
    def asked(device: torch.device) -> tuple[int, int]:
        assert there, "PyTorch raises where there is no GPU"
        return capability

    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "get_device_capability", asked)
    assert engine_of(torch.device("cuda")) == expected
