"""strongest_pairs, pair_moments and frobenius against the whole V x V matrix in float64.

Factors on a coarse grid make float64 exact, so there the found pairs must equal the brute force, ties and all. Tiles
are made a few rows small, so that several of them, their order, and the early end of the scan are all at work.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from paramdex_builder import pairs
from paramdex_builder.pairs import frobenius, pair_moments, same_words, strongest_pairs

CPU = torch.device("cpu")
KS = [1, 5, 50, 200, 100_000]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "TILE_ROWS", 5)
    monkeypatch.setattr(pairs, "TILE_COLUMNS", 7)


def brute_force(A: np.ndarray, B: np.ndarray, k: int, sign: int, mask: np.ndarray) -> list[tuple[int, int, float]]:
    """The k strongest pairs inside ``mask``, by (stored score, source, target)."""
    with np.errstate(over="ignore"):
        S = (A @ B.T).astype(np.float32)
    source, target = mask.nonzero()
    order = np.lexsort((target, source, -sign * S[mask]))[:k]
    return [(int(source[i]), int(target[i]), float(S[source[i], target[i]])) for i in order]


def assert_exact(A: np.ndarray, B: np.ndarray, k: int, words: np.ndarray | None = None) -> None:
    """Both sides, overall (``rank``) and of different words (``rank_distinct``), equal the brute force."""
    words = np.arange(len(A)) if words is None else words
    found = strongest_pairs(torch.from_numpy(A), torch.from_numpy(B), same_words(words, CPU), k)
    different = words[:, None] != words[None, :]
    for side, sign in (("top", 1), ("bottom", -1)):
        for got, mask in ((found[side].distinct, different), (found[side].all, np.ones_like(different))):
            triples = list(zip(got.source.tolist(), got.target.tolist(), got.score.tolist(), strict=True))
            assert triples == brute_force(A, B, k, sign, mask), side


def on_grid(seed: int, V: int, d: int, step: float = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(-32, 33, (V, d)) / step


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    V, d = draw(st.integers(1, 24)), draw(st.integers(1, 5))
    entries = st.integers(-20, 20).map(lambda n: n / 4)
    A, B = (draw(arrays(np.float64, (V, d), elements=entries)) for _ in range(2))
    return A, B, draw(arrays(np.int64, V, elements=st.integers(0, V)))


@given(problems(), st.sampled_from(KS))
def test_exact_on_a_grid(problem: tuple[np.ndarray, np.ndarray, np.ndarray], k: int) -> None:
    A, B, words = problem
    assert_exact(A, B, k, words)


@given(st.integers(2, 90), st.integers(1, 6), st.sampled_from(KS), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_exact_on_a_larger_grid(V: int, d: int, k: int, n_words: int, seed: int) -> None:
    """Rows of very different norm, so that the scan ends early; words from all one to mostly different."""
    draw = np.random.default_rng(seed)
    A, B = on_grid(seed, V, d), on_grid(seed + 1, V, d)
    A *= 2.0 ** draw.integers(-8, 4, (V, 1))
    B *= 2.0 ** draw.integers(-8, 4, (V, 1))
    assert_exact(A, B, k, draw.integers(0, n_words, V))


@given(st.sampled_from([1, 5, 50]), st.integers(0, 2**32 - 1))
def test_random_to_float32_rounding(k: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    A, B, words = draw.normal(size=(70, 4)), draw.normal(size=(70, 4)), draw.integers(0, 60, 70)
    S, different = A @ B.T, words[:, None] != words[None, :]
    found = strongest_pairs(torch.from_numpy(A), torch.from_numpy(B), same_words(words, CPU), k)
    for side, sign in (("top", 1), ("bottom", -1)):
        for got, values in ((found[side].distinct, S[different]), (found[side].all, S)):
            at = S[got.source.numpy(), got.target.numpy()]
            np.testing.assert_allclose(got.score.numpy(), at, rtol=6e-8)
            np.testing.assert_allclose(got.score.numpy(), sign * np.sort(sign * values.ravel())[::-1][:k], rtol=6e-8)


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize(
    ("A", "B"),
    [
        pytest.param(np.ones((30, 3)), np.ones((30, 3)), id="all rows equal"),
        pytest.param(np.zeros((30, 3)), np.zeros((30, 3)), id="zero matrix"),
        pytest.param(np.zeros((30, 3)), on_grid(1, 30, 3), id="one factor zero"),
        pytest.param(on_grid(2, 3, 2), on_grid(3, 3, 2), id="three tokens"),
        pytest.param(on_grid(2, 1, 2), on_grid(3, 1, 2), id="one token"),
        pytest.param(np.abs(on_grid(4, 30, 3)) + 1, -np.abs(on_grid(5, 30, 3)) - 1, id="negative scores only"),
        pytest.param(np.repeat(on_grid(6, 6, 3), 6, axis=0), np.tile(on_grid(7, 6, 3), (6, 1)), id="duplicated rows"),
        pytest.param(on_grid(8, 40, 1) @ on_grid(9, 1, 4), on_grid(10, 40, 1) @ on_grid(11, 1, 4), id="rank one"),
        pytest.param(on_grid(12, 40, 4) * (np.arange(40)[:, None] > 19), on_grid(13, 40, 4), id="half the rows zero"),
        pytest.param(
            on_grid(14, 40, 4) * np.where(np.arange(40)[:, None] == 23, 2.0**20, 1), on_grid(15, 40, 4), id="huge row"
        ),
        pytest.param(
            on_grid(16, 40, 4) * np.where(np.arange(40)[:, None] == 3, 2.0**20, 1),
            on_grid(17, 40, 4) * np.where(np.arange(40)[:, None] == 38, 2.0**20, 2.0**-20), id="huge beside tiny",
        ),
        pytest.param(np.eye(40), np.eye(40), id="identity"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("n_words", [1, 4, 1000])
def test_adversarial(A: np.ndarray, B: np.ndarray, k: int, n_words: int) -> None:
    """With all tokens one word (no distinct pairs at all), a few words, and every token its own."""
    V = len(A)
    words = np.arange(V) if n_words > V else np.random.default_rng(V).integers(0, n_words, V)
    assert_exact(A, B, k, words)


@pytest.mark.parametrize("k", [1, 50])
@pytest.mark.parametrize("scale", [-160, -140, -120, -60, 100, 130])
def test_at_the_ends_of_float32(scale: int, k: int) -> None:
    """Scores that float32 rounds to 0 or cannot hold: still the rounded float64 values, still in order."""
    assert_exact(on_grid(18, 60, 4) * 2.0 ** (scale // 2), on_grid(19, 60, 4) * 2.0 ** (scale - scale // 2), k)


def test_overflow_of_one_score_among_large_ones() -> None:
    """inf - inf in float32 is no number, but the score is: far below all others."""
    A, B = on_grid(20, 40, 2) * 2.0**55, np.full((40, 2), 2.0**60)
    A[7], B[9] = [2.0**63, -(2.0**64)], [2.0**66, 2.0**66]
    assert_exact(A, B, 20)


def test_near_ties_are_settled_in_float64() -> None:
    """1600 scores within a few float32 steps of each other, and their order by the sixth digit after them."""
    draw = np.random.default_rng(21)
    A, B = np.ones((40, 2)), np.ones((40, 2))
    A[:, 0], B[:, 0] = 64.0, 64.0
    A[:, 1] = draw.integers(0, 2**10, 40) / 2**11
    B[:, 1] = draw.integers(0, 2**10, 40) / 2**11
    assert_exact(A, B, 50)


def test_cancelling_scores() -> None:
    """The large parts cancel and the small ones decide."""
    draw = np.random.default_rng(22)
    A, B = np.zeros((60, 3)), np.zeros((60, 3))
    A[:, 0] = A[:, 1] = draw.integers(2**18, 2**19, 60)
    B[:, 0] = draw.integers(2**18, 2**19, 60)
    B[:, 1] = -B[:, 0]
    A[:, 2], B[:, 2] = draw.integers(-99, 99, 60) / 8, draw.integers(-99, 99, 60) / 8
    assert_exact(A, B, 50)


def test_scan_ends_early() -> None:
    """A strong corner makes most tiles unreachable: they are not looked at, and the answer is right all the same."""
    V = 100
    scale = np.where(np.arange(V) < 10, 1.0, 2.0**-10)[:, None]
    A, B = (np.abs(on_grid(23, V, 3)) + 1) * scale, on_grid(24, V, 3) * scale
    seen = []
    tile = pairs._tile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "_tile", lambda *args: seen.append(args[2:4]) or tile(*args))
        assert_exact(A, B, 5)
    assert 0 < len(seen) < 20  # of 20 x 15 tiles


def test_default_tiles() -> None:
    """The real tile sizes, with more tokens than one tile holds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "TILE_ROWS", 512)
        patch.setattr(pairs, "TILE_COLUMNS", 1024)
        assert_exact(on_grid(25, 1100, 3), on_grid(26, 1100, 3), 50, np.random.default_rng(27).integers(0, 700, 1100))


@given(st.integers(1, 40), st.integers(1, 6), st.floats(-1e3, 1e3), st.integers(0, 2**32 - 1))
def test_pair_moments(V: int, d: int, shift: float, seed: int) -> None:
    """Mean and deviation of all V^2 scores, also where the mean is far larger than the deviation."""
    draw = np.random.default_rng(seed)
    A, B = draw.normal(size=(V, d)) + shift, draw.normal(size=(V, d)) - shift
    S = A @ B.T
    mean, std = pair_moments(torch.from_numpy(A), torch.from_numpy(B))
    size = np.abs(S).max()
    assert mean == pytest.approx(S.mean(), abs=1e-13 * size)
    assert std == pytest.approx(S.std(), abs=1e-13 * size)


@pytest.mark.parametrize("V", [1, 2, 50])
def test_pair_moments_of_equal_rows(V: int) -> None:
    A, B = np.full((V, 3), 7.3), np.full((V, 3), -2.1)
    mean, std = pair_moments(torch.from_numpy(A), torch.from_numpy(B))
    assert mean == pytest.approx(-3 * 7.3 * 2.1, rel=1e-14)
    assert std == pytest.approx(0, abs=1e-13)


@given(st.integers(1, 8), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_frobenius(d_head: int, d: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    P, Q = draw.normal(size=(d_head, d)).astype(np.float32), draw.normal(size=(d_head, d)).astype(np.float32)
    expected = np.linalg.norm(P.T.astype(np.float64) @ Q.astype(np.float64))
    assert frobenius(torch.from_numpy(P), torch.from_numpy(Q)) == pytest.approx(expected, rel=1e-12)


def test_frobenius_of_orthogonal_and_zero_matrices() -> None:
    assert frobenius(torch.eye(3, 5), torch.zeros(3, 5)) == 0
    assert frobenius(torch.eye(3, 5), 2 * torch.eye(3, 5)) == pytest.approx(2 * 3**0.5, rel=1e-15)


def test_same_words_are_every_ordered_pair_of_each_group() -> None:
    words = same_words(np.array([5, 2, 5, 9, 2, 5]), CPU)
    found = sorted(zip(words.source.tolist(), words.target.tolist(), strict=True))
    expected = [(i, j) for group in ([0, 2, 5], [1, 4], [3]) for i in group for j in group]
    assert found == sorted(expected)
