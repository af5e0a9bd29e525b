"""Hubs: the share of places that the commonest tokens take, and its baseline, against counting."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paramdex_builder.measure.hubs import HUBS, PAIRS, Baseline, pair_places, share, uniform
from paramdex_builder.project.pair_sides import Side
from paramdex_builder.project.pairs import same_words


@given(st.lists(st.integers(0, 299), min_size=1, max_size=600))
def test_the_share_is_counted(ids: list[int]) -> None:
    counted = sum(n for _, n in Counter(ids).most_common(HUBS)) / len(ids)
    assert share(torch.tensor(ids), 300) == pytest.approx(counted)


@given(st.integers(1, 20), st.integers(1, 12), st.integers(0, 30), st.integers(0, 999))
def test_uniform_lists_have_different_tokens(n: int, k: int, more: int, seed: int) -> None:
    lists = uniform(n, k, k + more, torch.Generator().manual_seed(seed))
    assert lists.shape == (n, k)
    for ids in lists.tolist():
        assert len(set(ids)) == k
        assert set(ids) <= set(range(k + more))


def test_every_set_is_drawn_equally_often() -> None:
    n = 20_000
    found = Counter(tuple(sorted(ids)) for ids in uniform(n, 2, 5, torch.Generator().manual_seed(0)).tolist())
    assert set(found) == set(combinations(range(5), 2))
    expected = n / 10
    assert max(abs(count - expected) for count in found.values()) < 5 * expected**0.5


def test_the_baseline_is_drawn_once() -> None:
    baseline = Baseline(500, 30, torch.Generator().manual_seed(0))
    shares = baseline.shares(40, 10)
    assert len(shares) == 30
    assert baseline.shares(40, 10) is shares
    assert 0.5 < float(shares.mean()) < 0.6  # 400 places, 500 tokens: the commonest 100 have one to three each
    assert float(baseline.shares(4000, 10).mean()) < float(shares.mean())


def test_places_of_pairs_are_those_of_the_whole_matrix() -> None:
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(60, 4)), rng.normal(size=(60, 4))
    numbers = np.arange(60) // 2
    words = same_words(numbers, torch.device("cpu"))
    for scale in (np.ones(60), rng.uniform(0.1, 3, size=60)):
        found = pair_places(
            torch.tensor(A), torch.tensor(B), words, lambda _, b, s=scale: (Side.of(torch.tensor(A / s[:, None])), b)
        )
        scores = (A / scale[:, None]) @ B.T
        scores[numbers[:, None] == numbers] = -np.inf
        order = np.argsort(-scores, axis=None)[:PAIRS]
        source, target = np.unravel_index(order, scores.shape)
        assert found.tolist() == [source.tolist(), target.tolist()]
