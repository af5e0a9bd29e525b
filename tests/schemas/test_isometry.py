"""Isometric coordinates: inner products are Pearson correlations of the V-long score vectors, within and across models.

Everything is compared with np.corrcoef-like brute force on the full vectors, in float64 and as stored in float32.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import oracle
from paramdex_schemas.isometry import (
    gram_root,
    layer_scores,
    match_layers,
    mean_absolute,
    normalize,
    transfer,
)


def space(E: np.ndarray):
    """The centred embedding and the root of its Gram matrix."""
    Ec = E - E.mean(0)
    return Ec, gram_root(Ec.T @ Ec, len(E))


def coordinates(E: np.ndarray, W: np.ndarray) -> np.ndarray:
    return normalize(W @ space(E)[1].root.T)


@given(st.integers(1, 24), st.integers(2, 80), st.integers(0, 2**32 - 1))
def test_pearson_of_full_vectors(d: int, extra: int, seed: int) -> None:
    """To 1e-10 in float64 and 1e-5 as stored in float32; off-centre embeddings too."""
    draw = np.random.default_rng(seed)
    E = draw.normal(size=(d + extra, d)) * draw.uniform(0.1, 3, d) + draw.normal(size=d)
    W = draw.normal(size=(12, d))
    truth = oracle.pearson(W @ E.T, W @ E.T)
    C = coordinates(E, W)
    assert np.abs(C @ C.T - truth).max() < 1e-10
    C = C.astype(np.float32)
    assert np.abs(C @ C.T - truth).max() < 1e-5


@given(st.integers(1, 20), st.integers(1, 20), st.integers(2, 60), st.integers(0, 2**32 - 1))
def test_pearson_across_models_of_any_width(d_a: int, d_b: int, extra: int, seed: int) -> None:
    """T takes A's coordinates to B's terms, and its transpose B's to A's."""
    draw = np.random.default_rng(seed)
    V = max(d_a, d_b) + extra
    E_a, E_b = draw.normal(size=(V, d_a)) + 1, draw.normal(size=(V, d_b)) - 2
    A, B = draw.normal(size=(9, d_a)), draw.normal(size=(7, d_b))
    (Ec_a, root_a), (Ec_b, root_b) = space(E_a), space(E_b)
    T = transfer(Ec_b.T @ Ec_a, root_a, root_b)
    assert T.shape == (d_b, d_a)
    truth = oracle.pearson(A @ E_a.T, B @ E_b.T)
    a, b = coordinates(E_a, A), coordinates(E_b, B)
    assert np.abs((a @ T.T) @ b.T - truth).max() < 1e-10
    assert np.abs(a @ (b @ T).T - truth).max() < 1e-10
    a, b, T = a.astype(np.float32), b.astype(np.float32), T.astype(np.float32)
    assert np.abs((a @ T.T) @ b.T - truth).max() < 1e-5


def test_transfer_between_turned_spaces_is_orthogonal() -> None:
    """The same embedding turned by Q: T is orthogonal and every vector meets its turned self with correlation 1."""
    draw = np.random.default_rng(0)
    E, Q = draw.normal(size=(90, 12)), np.linalg.qr(draw.normal(size=(12, 12)))[0]
    (Ec_a, root_a), (Ec_b, root_b) = space(E), space(E @ Q)
    T = transfer(Ec_b.T @ Ec_a, root_a, root_b)
    np.testing.assert_allclose(T @ T.T, np.eye(12), atol=1e-12)
    W = draw.normal(size=(30, 12))
    cosines = np.einsum("ij,ij->i", coordinates(E, W) @ T.T, coordinates(E @ Q, W @ Q))
    np.testing.assert_allclose(cosines, 1, atol=1e-12)


@pytest.mark.parametrize(
    ("E", "rank"),
    [
        pytest.param(np.random.default_rng(1).normal(size=(5, 12)), 4, id="fewer tokens than dimensions"),
        pytest.param(np.random.default_rng(2).normal(size=(13, 12)), 12, id="just enough tokens"),
        pytest.param(np.random.default_rng(3).normal(size=(12, 12)), 11, id="one token too few"),
        pytest.param(np.repeat(np.random.default_rng(4).normal(size=(60, 6)), 2, axis=1), 6, id="duplicated columns"),
        pytest.param(
            np.random.default_rng(5).normal(size=(60, 4)) @ np.random.default_rng(6).normal(size=(4, 12)),
            4,
            id="low rank",
        ),
        pytest.param(
            np.random.default_rng(7).normal(size=(60, 12)) * (np.arange(12) != 5) + 3, 11, id="a constant column"
        ),
        pytest.param(np.zeros((60, 12)), 0, id="zero"),
    ],
)
def test_null_space_is_dropped(E: np.ndarray, rank: int) -> None:
    """The rank is known, and correlations are right all the same."""
    Ec, root = space(E)
    assert root.rank == rank
    assert root.root.shape == (rank, 12)
    np.testing.assert_allclose(root.root.T @ root.root, Ec.T @ Ec, atol=1e-10)
    np.testing.assert_allclose(root.root @ root.inverse, np.eye(rank), atol=1e-10)
    if rank > 1:
        W = np.random.default_rng(8).normal(size=(10, 12))
        C = coordinates(E, W)
        assert np.abs(C @ C.T - oracle.pearson(W @ E.T, W @ E.T)).max() < 1e-10


def test_across_models_without_full_rank() -> None:
    """Duplicated columns on one side, fewer tokens than dimensions on the other."""
    draw = np.random.default_rng(9)
    E_a, E_b = np.repeat(draw.normal(size=(11, 3)), 2, axis=1), draw.normal(size=(11, 16))
    A, B = draw.normal(size=(8, 6)), draw.normal(size=(8, 16))
    (Ec_a, root_a), (Ec_b, root_b) = space(E_a), space(E_b)
    T = transfer(Ec_b.T @ Ec_a, root_a, root_b)
    assert T.shape == (10, 3)
    found = (coordinates(E_a, A) @ T.T) @ coordinates(E_b, B).T
    assert np.abs(found - oracle.pearson(A @ E_a.T, B @ E_b.T)).max() < 1e-10


@given(st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_condition_is_the_gram_matrixs(d: int, seed: int) -> None:
    Ec, root = space(np.random.default_rng(seed).normal(size=(4 * d, d)))
    assert root.condition == pytest.approx(np.linalg.cond(Ec.T @ Ec), rel=1e-6)


def test_zero_vector_has_no_correlation() -> None:
    E = np.random.default_rng(10).normal(size=(40, 5))
    C = coordinates(E, np.array([[0.0] * 5, [1.0, 0, 0, 0, 0]]))
    assert (C[0] == 0).all()
    np.testing.assert_allclose(C @ C.T, [[0, 0], [0, 1]], atol=1e-15)


@given(arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(0, 100).map(float)))
def test_matching_is_the_best_of_all(scores: np.ndarray) -> None:
    """Against every assignment there is."""
    mask = match_layers(scores)
    small = scores if scores.shape[0] <= scores.shape[1] else scores.T
    best = max(
        sum(small[i, j] for i, j in enumerate(columns)) for columns in permutations(range(small.shape[1]), len(small))
    )
    assert scores[mask].sum() == best
    assert mask.sum() == min(scores.shape)
    assert mask.sum(0).max() == mask.sum(1).max() == 1


def test_matching_small_example() -> None:
    assert match_layers(np.array([[0.1, 0.9], [0.8, 0.7]])).tolist() == [[False, True], [True, False]]


@given(st.integers(0, 2**32 - 1))
def test_layer_scores_are_mean_absolute_correlations(seed: int) -> None:
    draw = np.random.default_rng(seed)
    a, b = [draw.normal(size=(n, 6)) for n in (3, 5)], [draw.normal(size=(n, 6)) for n in (4, 2, 7)]
    found = layer_scores(a, b)
    assert found.shape == (2, 3)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            expected = sum(abs(float(p @ q)) for p in x for q in y) / (len(x) * len(y))
            assert found[i, j] == pytest.approx(expected, rel=1e-12)


def test_mean_absolute_small_example() -> None:
    """(|1| + |-1| + |0| + |2|) / 4."""
    assert mean_absolute(np.array([[1.0, 0], [0, 1]]), np.array([[1.0, 0], [-1, 2]])) == 1.0


@given(st.integers(0, 2**32 - 1), st.integers(3, 20))
def test_feature_rows_are_pearson_over_features(seed: int, d: int) -> None:
    draw = np.random.default_rng(seed)
    a, b = draw.normal(size=(5, d)) + 2, draw.normal(size=(4, d))
    np.testing.assert_allclose(oracle.feature_rows(a) @ oracle.feature_rows(b).T, oracle.pearson(a, b), atol=1e-12)
