"""Sides of a head's matrix: their rows, sums and moments against plain float64."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from paramdex_builder.project import pair_sides
from paramdex_builder.project.pair_sides import Side

SEEDS = st.integers(0, 2**32 - 1)


def drawn(V: int, m: int, offset: float, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A table, a mean and factors; some are 0."""
    draw = np.random.default_rng(seed)
    table = torch.from_numpy(draw.normal(size=(V, 2 * m)) + offset)[:, m:]  # a part of a wider product
    return table, torch.from_numpy(draw.normal(size=m)), torch.from_numpy(draw.choice([0.0, 0.3, 7.0], V))


@given(st.integers(1, 3000), st.integers(1, 8), st.booleans(), st.booleans(), SEEDS)
def test_rows_and_their_gram_matrix(V: int, m: int, has_mean: bool, has_factors: bool, seed: int) -> None:
    """The same to the bit however they are taken; the Gram matrix within what it promises."""
    table, mean, factors = drawn(V, m, 3.0, seed)
    side = Side(table, mean=mean if has_mean else None, factors=factors if has_factors else None)
    expected = table.numpy() - (mean.numpy() if has_mean else 0)
    expected = expected * (factors.numpy()[:, None] if has_factors else 1)
    ids = torch.from_numpy(np.random.default_rng(seed).integers(0, V, 20))
    assert np.array_equal(side[:].numpy(), expected)
    assert np.array_equal(side.take(ids).numpy(), expected[ids.numpy()])
    assert np.array_equal(torch.cat([rows for _, rows in side.chunks()]).numpy(), expected)
    gram = expected.T @ expected
    assert np.linalg.norm(side.gram.numpy() - gram) <= 1e-15 * V * np.trace(gram)


@given(st.integers(1, 3000), st.integers(1, 8), st.floats(0, 100), SEEDS)
def test_moments_and_multiples(V: int, m: int, offset: float, seed: int) -> None:
    table, _, factors = drawn(V, m, offset, seed)
    mean, covariance = Side(table).moments
    np.testing.assert_allclose(mean, table.mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(table.numpy().T, bias=True).reshape(m, m), rtol=1e-9, atol=1e-9)
    once, twice = Side(table, factors=factors), Side(table, factors=factors).times(2.0)
    assert torch.equal(twice[:], 2 * once[:])
    assert torch.equal(twice.gram, 4 * once.gram)


def test_a_tensor_is_a_side_of_its_rows() -> None:
    rows = torch.rand(pair_sides.CHUNK + 1, 2, dtype=torch.float64)
    side = Side.of(rows)
    assert Side.of(side) is side
    assert torch.equal(side[:], rows)
