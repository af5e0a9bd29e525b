"""Ridge regression from sums, against NumPy's least squares on the pairs themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paramdex_builder.stream.ridge import Given, Wanted, fit


def by_least_squares(X: np.ndarray, Y: np.ndarray, fraction: float, *, diagonal: bool) -> np.ndarray:
    """The same as least squares with a row more for each direction that is paid for."""
    Xc, Yc = X - X.mean(0), Y - Y.mean(0)
    paid = np.sqrt(fraction * (Xc**2).sum(0).mean())
    prior = np.diag((Xc * Yc).sum(0) / (Xc**2).sum(0)) if diagonal else np.zeros((X.shape[1], Y.shape[1]))
    rows, wanted = np.vstack([Xc, paid * np.eye(X.shape[1])]), np.vstack([Yc, paid * prior])
    return np.linalg.lstsq(rows, wanted, rcond=None)[0]


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(3, 40),
    d=st.integers(1, 7),
    cut=st.integers(1, 39),
    fraction=st.sampled_from([1e-3, 0.1, 1.0, 10.0]),
    diagonal=st.booleans(),
)
def test_sums_of_parts_give_the_regression(
    seed: int, n: int, d: int, cut: int, fraction: float, diagonal: bool
) -> None:
    draw = np.random.default_rng(seed)
    X, Y = draw.normal(size=(n, d)) * draw.exponential(size=d) + draw.normal(size=d), draw.normal(size=(n, d)) + 3
    parts = [(torch.from_numpy(X[some]), torch.from_numpy(Y[some])) for some in (slice(cut), slice(cut, None))]
    parts = [(x, y) for x, y in parts if len(x)]
    known, wanted = Given.of(parts[0][0]), Wanted.of(*parts[0])
    for x, y in parts[1:]:
        known.add(x)
        wanted.add(x, y)
    found = fit(known, wanted, fraction, diagonal=diagonal).numpy()
    expected = by_least_squares(X, Y, fraction, diagonal=diagonal)
    assert found == pytest.approx(expected, abs=1e-7 * max(1, np.abs(expected).max()))


def test_a_large_price_leaves_the_prior() -> None:
    draw = torch.Generator().manual_seed(0)
    X, scale = torch.randn(500, 4, generator=draw), torch.tensor([1.0, -2.0, 0.5, 3.0])
    Y = X * scale + X.roll(1, dims=1)
    loose, tight = (fit(Given.of(X), Wanted.of(X, Y), each, diagonal=True) for each in (1e-9, 1e9))
    assert torch.allclose(loose, torch.diag(scale).double() + torch.eye(4).roll(-1, dims=0).double(), atol=1e-6)
    assert torch.allclose(tight, torch.diag(tight.diagonal()), atol=1e-6)
    assert torch.allclose(tight.diagonal(), scale.double(), atol=0.2)


def test_what_never_varies_says_nothing() -> None:
    draw = torch.Generator().manual_seed(0)
    X = torch.randn(500, 4, generator=draw)
    X[:, 2] = 0.1
    Y = torch.randn(500, 4, generator=draw) + X
    found = fit(Given.of(X), Wanted.of(X, Y), 0.1, diagonal=True)
    assert float(found[2].abs().max()) < 1e-10
    assert not fit(Given.of(X * 0), Wanted.of(X * 0, Y), 0.1, diagonal=True).any()
