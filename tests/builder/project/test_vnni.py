"""Operands of int8 within their bound, and which pairs the compiled kernel finds, against sums of integers.

That searches by it are exact, test_pairs.py says.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paramdex_builder.project.kernels import vnni
from paramdex_builder.project.kernels.vnni import LEAST, library, operand, operand_error, pairs_reaching, values

needs_kernel = pytest.mark.skipif(library() is None, reason="no compiler for the kernel, or another processor")
SEEDS = st.integers(0, 2**32 - 1)


@given(st.integers(1, 12), st.integers(1, 70), st.integers(-120, 99), SEEDS)
def test_operands_keep_their_bound(n: int, d: int, exponent: int, seed: int) -> None:
    """Rows of Gaussian entries, of one large entry and hardly any others, and of zeros."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, d)) * 2.0 ** (exponent - draw.integers(0, 20, (n, 1)))
    x[::3] *= 2.0 ** -draw.integers(0, 30, (len(x[::3]), d))
    x[1::4] = 0
    x = torch.from_numpy(x)
    rows = operand(x)
    error, norms = (x - values(rows, d)).norm(dim=1), x.norm(dim=1)
    assert (error <= 1.0001 * operand_error(d) * norms.clamp_min(LEAST)).all()
    assert (values(rows, d)[1::4] == 0).all()
    assert int(rows[:, :d].int().abs().max()) <= 127


def scores(a: torch.Tensor, b: torch.Tensor, d: int) -> np.ndarray:
    """What the kernel compares: exact sums as float32, times one scale and the other."""
    sums = a[:, :d].long() @ b[:, :d].long().T
    scales = [rows[:, -4:].contiguous().view(torch.float32) for rows in (a, b)]
    found: np.ndarray = (sums.float() * scales[0] * scales[1].T).numpy()
    return found


@needs_kernel
@given(st.integers(1, 150), st.integers(1, 70), st.sampled_from([(16, 16), (40, 70), (200, 200)]), SEEDS)
def test_pairs_that_reach(V: int, d: int, shape: tuple[int, int], seed: int) -> None:
    """All tiles but one, each with limits of its own; rests of rows, columns and numbers."""
    draw = np.random.default_rng(seed)
    x = [torch.from_numpy(draw.normal(size=(V, d)) * draw.exponential(size=(V, 1))) for _ in range(2)]
    x = [rows[rows.norm(dim=1).argsort(descending=True)] for rows in x]
    a, b = (operand(rows) for rows in x)
    norms = [values(rows, d).norm(dim=1).float() for rows in (a, b)]
    norms = [each.flip(0).cummax(0).values.flip(0).contiguous() for each in norms]
    words = [torch.from_numpy(draw.integers(0, 20, V).astype(np.int32)) for _ in range(2)]
    tiles = [(i, j) for i in range(0, V, shape[0]) for j in range(0, V, shape[1])][1:]
    s = scores(a, b, d)
    limits = draw.choice(np.abs(s).ravel(), (len(tiles), 2)).astype(np.float32)
    limits[::5, 0] = np.inf
    expected = []
    for (i, j), (top, bottom) in zip(tiles, limits, strict=True):
        part = s[i : i + shape[0], j : j + shape[1]]
        for row, column in np.argwhere((part >= top) | (-part >= bottom)).tolist():
            if words[0][i + row] != words[1][j + column]:
                expected.append(((i + row) << 32) + j + column)
    arguments = ((a, b), norms, words, torch.tensor(tiles, dtype=torch.int32).view(-1, 2), shape)
    most = 1 + 1e-5, 1e-30
    count, pairs = pairs_reaching(*arguments, torch.from_numpy(limits), V * V, most)  # type: ignore[arg-type]
    assert sorted(pairs[: int(count)].tolist()) == sorted(expected)
    if expected:
        count, _ = pairs_reaching(*arguments, torch.from_numpy(limits), len(expected) - 1, most)  # type: ignore[arg-type]
        assert int(count) >= len(expected)


@needs_kernel
def test_sums_of_the_largest_numbers() -> None:
    """All of one sign, and of both: within int32, and exact."""
    d = vnni.WIDEST
    x = torch.ones(2, d, dtype=torch.float64)
    x[1] = -1
    a = operand(x)
    norms, words = (torch.full((2,), 256.0),) * 2, (torch.tensor([0, 1], dtype=torch.int32),) * 2
    tiles = torch.zeros(1, 2, dtype=torch.int32)
    exact = scores(a, a, d)
    for limit, number in ((np.abs(exact).max(), 2), (np.nextafter(np.abs(exact).max(), np.float32(np.inf)), 0)):
        limits = torch.tensor([[float(limit)] * 2])
        assert int(pairs_reaching((a, a), norms, words, tiles, (2, 2), limits, 4, (2.0, 1.0))[0]) == number


@needs_kernel
def test_other_layouts_are_refused() -> None:
    a = operand(torch.eye(4, dtype=torch.float64))
    norms, words = (torch.ones(4),) * 2, (torch.zeros(4, dtype=torch.int32),) * 2
    tiles, limits = torch.zeros(1, 2, dtype=torch.int32), torch.ones(1, 2)
    for left, right in ((a, a[:3]), (a.T.contiguous().T, a), (a.int(), a)):
        with pytest.raises(ValueError, match="operands must be alike"):
            pairs_reaching((left, right), norms, words, tiles, (4, 4), limits, 9, (1.0, 0.0))


def test_no_kernel_where_the_processor_or_the_file_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True}, raising=False)
        assert library.__wrapped__() is None
    monkeypatch.setattr(vnni, "loaded", lambda _: None)
    assert library.__wrapped__() is None
