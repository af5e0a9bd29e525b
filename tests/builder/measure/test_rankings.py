"""Both rankings of a parameter's tokens, against their definitions over all scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paramdex_builder.measure.rankings import RANKINGS, Moments, Usual


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 30), st.integers(0, 999), st.sampled_from([0.0, 1e4]))
def test_what_is_usual_for_a_token_is_taken_from_all_its_scores(n: int, d: int, V: int, seed: int, far: float) -> None:
    rng = np.random.default_rng(seed)
    rows, table = rng.normal(size=(n, d)) + far, rng.normal(size=(V, d))
    scores = table @ rows.T  # V x n
    moments = Moments.of([torch.tensor(part) for part in np.array_split(rows, min(3, n))])
    assert moments.spread(torch.tensor(table)).numpy() == pytest.approx(scores.std(axis=1), abs=1e-9 * max(far, 1))
    usual = Usual.of(torch.tensor(table), moments)
    assert usual.mean.numpy() == pytest.approx(scores.mean(axis=1), rel=1e-6, abs=1e-6)


@given(st.integers(2, 40), st.integers(0, 999))
def test_token_z_is_each_tokens_own(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, table = rng.normal(size=(n, 5)) + 1, rng.normal(size=(12, 5))
    scores = rows @ table.T  # n x V
    ranked = Usual.of(torch.tensor(table), Moments.of([torch.tensor(rows)])).ranked(torch.tensor(scores))
    assert tuple(ranked) == RANKINGS
    z = (scores - scores.mean(axis=0)) / scores.std(axis=0)
    assert ranked["token_z"].numpy() == pytest.approx(z, abs=1e-4)
    assert ranked["score"].numpy() == pytest.approx(scores)


def test_a_token_whose_scores_are_all_equal_is_never_unusual() -> None:
    rows, table = torch.tensor([[1.0, 2.0], [3.0, 2.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    ranked = Usual.of(table, Moments.of([rows])).ranked(rows @ table.T)["token_z"]
    assert ranked.tolist() == [[0.0, -1.0], [0.0, 1.0]]
