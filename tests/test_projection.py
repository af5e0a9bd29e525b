"""strongest_tokens and moments against float64 over the whole vocabulary.

Most examples have weights on a coarse grid, where float64 sums are exact: there ids and scores must be *equal* to the
brute force, ties and all. The others are compared to float32 rounding.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from paramdex_builder import project
from paramdex_builder.project import moments, strongest_tokens
from paramdex_builder.space import make_space

CPU = torch.device("cpu")


def brute_force(E: np.ndarray, w: np.ndarray, k: int, side: str) -> tuple[list[int], list[float]]:
    """ids and float32(float64 scores) of the k strongest of one vector, ties by id."""
    with np.errstate(over="ignore"):
        scores = (E.astype(np.float64) @ w.astype(np.float64)).astype(np.float32)
    order = sorted(range(len(E)), key=lambda i: (-scores[i] if side == "top" else scores[i], i))[:k]
    return order, [float(scores[i]) for i in order]


def assert_exact(E: np.ndarray, rows: np.ndarray, k: int) -> None:
    """Both sides of every row, ids and scores, equal the brute force."""
    E, rows = E.astype(np.float32), rows.astype(np.float32)
    found = strongest_tokens(torch.from_numpy(rows), make_space(torch.from_numpy(E), CPU), k)
    for side in ("top", "bottom"):
        for i, w in enumerate(rows):
            ids, scores = brute_force(E, w, k, side)
            assert found[side].ids[i].tolist() == ids, (side, i)
            assert found[side].scores[i].tolist() == scores, (side, i)


def grid(bits: int = 6) -> st.SearchStrategy[float]:
    """Multiples of 1/8 with a few bits: sums of their products are exact in float64."""
    return st.integers(-(2**bits), 2**bits).map(lambda n: n / 8)


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    V, d, n = draw(st.integers(1, 60)), draw(st.integers(1, 8)), draw(st.integers(1, 4))
    E, rows = draw(arrays(np.float64, (V, d), elements=grid())), draw(arrays(np.float64, (n, d), elements=grid()))
    return E, rows, draw(st.integers(1, 70))


@given(problems())
def test_exact_on_a_grid(problem: tuple[np.ndarray, np.ndarray, int]) -> None:
    assert_exact(*problem)


@given(st.integers(-150, 130), st.integers(2, 5), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_exact_at_every_scale(scale: int, d: int, k: int, seed: int) -> None:
    """From scores that float32 rounds to 0 to those that it cannot hold: powers of two keep the sums exact."""
    draw = np.random.default_rng(seed)
    E, rows = draw.integers(-64, 65, (200, d)) / 8, draw.integers(-64, 65, (3, d)) / 8
    assert_exact(E * 2.0 ** (scale // 2), rows * 2.0 ** (scale - scale // 2), k)


@pytest.mark.parametrize("scale", range(-150, -130))
def test_exact_where_float32_runs_out_of_small_numbers(scale: int) -> None:
    """Subnormal scores: what float32 loses there is not relative to their size."""
    draw = np.random.default_rng(abs(scale))
    E, rows = draw.integers(-64, 65, (200, 8)) / 8, draw.integers(-64, 65, (10, 8)) / 8
    assert_exact(E * 2.0 ** (scale // 2), rows * 2.0 ** (scale - scale // 2), 20)


def test_overflow_of_one_score_among_large_ones() -> None:
    """inf - inf in float32 is no number, but the score is: far below all others."""
    E = np.random.default_rng(12).integers(-64, 65, (200, 2)) * 2.0**50
    E[7] = [2.0**63, -(2.0**64)]
    assert_exact(E, np.array([[2.0**66, 2.0**66], [-(2.0**66), 2.0**66]]), 20)


@given(st.integers(1, 400), st.integers(1, 32), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_random_to_float32_rounding(V: int, d: int, k: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    E, rows = draw.normal(size=(V, d)).astype(np.float32), draw.normal(size=(3, d)).astype(np.float32)
    found = strongest_tokens(torch.from_numpy(rows), make_space(torch.from_numpy(E), CPU), k)
    full = rows.astype(np.float64) @ E.T.astype(np.float64)
    for side, sign in (("top", 1), ("bottom", -1)):
        ids, scores = found[side].ids.numpy(), found[side].scores.numpy()
        assert scores.shape == (3, min(k, V))
        np.testing.assert_allclose(scores, np.take_along_axis(full, ids, 1), rtol=6e-8, atol=1e-14)
        np.testing.assert_allclose(scores, sign * np.sort(sign * full, 1)[:, ::-1][:, :k], rtol=6e-8, atol=1e-14)


def test_duplicated_rows_are_ordered_by_id() -> None:
    """Ten distinct embeddings, each thirty times: every place is a tie."""
    draw = np.random.default_rng(0)
    base = draw.integers(-20, 20, (10, 6)) / 4
    assert_exact(base[draw.integers(0, 10, 300)], draw.integers(-20, 20, (20, 6)) / 4, 50)


def test_all_rows_equal() -> None:
    assert_exact(np.ones((200, 4)), np.array([[1.0, 2.0, 3.0, 4.0], [-1.0, 0.0, 0.0, 0.0]]), 50)


def test_zero_rows_and_zero_vectors() -> None:
    """A zero vector scores 0 everywhere, and the first ids are its strongest on both sides."""
    E = np.random.default_rng(1).integers(-9, 9, (150, 5)) / 2
    E[20:90] = 0
    assert_exact(E, np.array([[0.0] * 5, [1.0, -1.0, 0.5, 0.0, 2.0]]), 60)
    assert_exact(np.zeros((100, 5)), np.ones((2, 5)), 10)


@pytest.mark.parametrize("k", [1, 5, 49, 50, 51, 63, 64, 65, 200])
def test_vocabulary_about_as_small_as_the_list(k: int) -> None:
    """All V tokens come back where V < k, and nothing is lost where k plus its padding is about V."""
    draw = np.random.default_rng(k)
    assert_exact(draw.integers(-99, 99, (50, 7)) / 16, draw.integers(-99, 99, (5, 7)) / 16, k)


@pytest.mark.parametrize(
    ("largest", "smallest"),
    [
        pytest.param(65504.0, 2.0**-24, id="float16"),
        pytest.param(float(torch.finfo(torch.bfloat16).max), 2.0**-133, id="bfloat16"),
    ],
)
def test_largest_and_smallest_weights_of_a_dtype(largest: float, smallest: float) -> None:
    """One huge row, one huge coordinate and subnormals side by side; products overflow float32 in bfloat16."""
    draw = np.random.default_rng(2)
    E = draw.integers(-8, 9, (120, 4)) * smallest
    E[7], E[8], E[9] = largest, -largest, [largest, -largest, largest, -largest]
    rows = np.array([[1.0, 2.0, 4.0, 8.0], [largest, 0.0, 0.0, 0.0], [largest, largest, -largest, 0.0], [smallest] * 4])
    # Powers of two apart and at most four terms: still exact in float64 but where two huge terms cancel to 0.
    assert_exact(E, rows, 20)


def near_ties(n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Scores that differ by less than float32 resolves: E w = 4096 + i / 65536, from rows that are exact in float32."""
    E = np.zeros((n, 2))
    E[:, 0], E[:, 1] = 4096.0, np.random.default_rng(3).permutation(n) / 65536
    return E, np.array([[1.0, 1.0], [-1.0, -1.0]])


def test_near_ties_are_settled_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fallback over the whole vocabulary is used here, and its answer is right."""
    used = []
    whole = project._whole
    monkeypatch.setattr(project, "_whole", lambda *args: used.append(1) or whole(*args))
    assert_exact(*near_ties(), 50)
    assert len(used) == 4  # both rows, both sides


def test_cancelling_scores() -> None:
    """Large terms of both signs that leave little: float32 screening alone gets these wrong."""
    draw = np.random.default_rng(4)
    n = 300
    E = np.zeros((n, 3))
    E[:, 0] = E[:, 1] = draw.integers(-(2**20), 2**20, n)
    E[:, 2] = draw.permutation(n) / 2**10
    rows = np.array([[3.0, -3.0, 1.0]])
    float32 = (E.astype(np.float32)[:, :1] * np.float32(3.0)).ravel()
    assert np.abs(float32).max() > 1e6
    assert_exact(E, rows, 25)


def test_far_outlier_does_not_hide_the_rest() -> None:
    """One row of huge norm makes the error bound of all others useless; the answer stays exact."""
    draw = np.random.default_rng(5)
    E = draw.integers(-64, 65, (500, 4)) / 64
    E[123] = 2.0**30
    assert_exact(E, draw.integers(-64, 65, (6, 4)) / 64, 30)


def test_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answer when rows go through in blocks of one or two and survivors in small steps."""
    monkeypatch.setattr(project, "_BLOCK_BYTES", 4 * 90 * 2)
    draw = np.random.default_rng(6)
    assert_exact(draw.integers(-99, 99, (90, 5)) / 8, draw.integers(-99, 99, (7, 5)) / 8, 11)


def assert_moments(E: np.ndarray, rows: np.ndarray) -> None:
    """Mean and population deviation of all V scores; the deviation to 1e-7 of the scores' size."""
    E, rows = E.astype(np.float32), rows.astype(np.float32)
    mean, std = moments(torch.from_numpy(rows), make_space(torch.from_numpy(E), CPU))
    full = rows.astype(np.float64) @ E.T.astype(np.float64)
    # Scores are as large as the lengths allow at most; what the null space drops is 1e-8 of that.
    size = np.linalg.norm(rows.astype(np.float64), axis=1) * np.linalg.norm(E.astype(np.float64), axis=1).max()
    size = np.maximum(size, 1e-300)
    assert (np.abs(mean.numpy() - full.mean(1)) / size).max() < 1e-12
    assert (np.abs(std.numpy() - full.std(1)) / size).max() < 3e-7


@given(problems())
def test_moments_on_a_grid(problem: tuple[np.ndarray, np.ndarray, int]) -> None:
    E, rows, _ = problem
    assert_moments(E, rows)


@given(st.integers(40, 400), st.integers(1, 32), st.integers(0, 2**32 - 1))
def test_moments_of_random_weights(V: int, d: int, seed: int) -> None:
    """Full rank: mean and deviation to 1e-10 of themselves."""
    draw = np.random.default_rng(seed)
    E, rows = (draw.normal(size=(V, d)) + 3).astype(np.float32), draw.normal(size=(4, d)).astype(np.float32)
    mean, std = moments(torch.from_numpy(rows), make_space(torch.from_numpy(E), CPU))
    full = rows.astype(np.float64) @ E.T.astype(np.float64)
    np.testing.assert_allclose(mean.numpy(), full.mean(1), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(std.numpy(), full.std(1), rtol=1e-10)


@pytest.mark.parametrize(
    "E",
    [
        pytest.param(np.ones((50, 4)), id="all rows equal"),
        pytest.param(np.zeros((50, 4)), id="zero"),
        pytest.param(np.repeat(np.random.default_rng(7).normal(size=(50, 1)), 4, axis=1), id="rank one"),
        pytest.param(np.random.default_rng(8).normal(size=(3, 12)), id="fewer tokens than dimensions"),
        pytest.param(np.random.default_rng(9).normal(size=(1, 4)), id="one token"),
        pytest.param(np.random.default_rng(10).normal(size=(60, 4)) + 1000, id="far from zero"),
    ],
)
def test_moments_of_degenerate_embeddings(E: np.ndarray) -> None:
    assert_moments(E, np.random.default_rng(11).normal(size=(9, E.shape[1])))
