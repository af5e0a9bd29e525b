"""strongest_pairs, pair_moments and frobenius against the whole V x V matrix in float64.

Factors on a coarse grid make float64 exact, so there the found pairs must equal the brute force, ties and all.
Elsewhere the brute force is of the scores as ``arithmetic.dot`` sums them, and the found pairs must equal that. Tiles
are made a few rows small, so that several of them, their order, and the early end of the scan are all at work.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import oracle
from cpu_engines import ENGINES_OF_PAIRS as ENGINES
from cpu_engines import FASTEST
from paramdex.tour import demo_sources
from paramdex_builder.project import pair_scan
from paramdex_builder.project.arithmetic import dot
from paramdex_builder.project.balance import balance
from paramdex_builder.project.engines import BFLOAT16, FLOAT32
from paramdex_builder.project.pair_scan import Factor, Scan, TokenPairs, above
from paramdex_builder.project.pair_sides import Side
from paramdex_builder.project.pairs import (
    HeadPairs,
    balanced,
    factors,
    frobenius,
    pair_moments,
    same_words,
    strongest_pairs,
)

CPU = torch.device("cpu")
KS = [1, 5, 50, 200, 100_000]
MODELS = dict(source.split("=", 1) for source in demo_sources(Path(__file__).parents[3] / "data" / "models"))
REAL = {name: getattr(pair_scan, name) for name in ("TILE_ROWS", "TILE_COLUMNS", "STEP", "CROWD", "_BATCH")}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that a tile soon is a crowd, too."""
    for name, value in zip(REAL, (5, 7, 2, 3, 4), strict=True):
        monkeypatch.setattr(pair_scan, name, value)


@pytest.fixture
def real_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in REAL.items():
        monkeypatch.setattr(pair_scan, name, value)


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
    different = words[:, None] != words[None, :]
    for engine in ENGINES:
        found = strongest_pairs(torch.from_numpy(A), torch.from_numpy(B), same_words(words, CPU), k, engine)
        for side, sign in (("top", 1), ("bottom", -1)):
            for got, mask in ((found[side].distinct, different), (found[side].all, np.ones_like(different))):
                triples = list(zip(got.source.tolist(), got.target.tolist(), got.score.tolist(), strict=True))
                assert triples == brute_force(A, B, k, sign, mask), (side, engine)


def settled(A: torch.Tensor, B: torch.Tensor, words: np.ndarray, k: int) -> dict[str, HeadPairs]:
    """The brute force by ``arithmetic.dot``: of V^2 scores the best in the one order of summing that is settled.

    A library's float64 product, some rows at a time, only says which cannot be among them.
    """
    numbers = torch.from_numpy(words)
    found = {(side, name): TokenPairs.empty(CPU) for side in (1, -1) for name in ("distinct", "all")}
    room = 1e-6 * float(A.norm(dim=1).max() * B.norm(dim=1).max())
    for start in range(0, len(A), 64):
        source = torch.arange(len(A))[start : start + 64]
        scores = A[source] @ B.T
        same = numbers[source][:, None] == numbers
        for side in (1, -1):
            known = found[side, "distinct"]
            reached = -np.inf
            if len(known) == k:
                reached = float(known.score[-1])
            elif int((~same).sum()) >= k:
                reached = float((side * scores)[~same].topk(k).values[-1])
            places = torch.from_numpy(np.flatnonzero((side * scores).numpy() >= reached - room))
            r, c = places // len(A), places % len(A)
            new = TokenPairs(source[r], c, dot(A[source[r]], B[c]).float()).signed(side)
            found[side, "all"] = TokenPairs.cat(found[side, "all"], new).best(k)
            found[side, "distinct"] = TokenPairs.cat(known, new.take((~same[r, c]).nonzero().flatten())).best(k)
    return {
        name: HeadPairs(found[side, "distinct"].signed(side), found[side, "all"].signed(side))
        for name, side in (("top", 1), ("bottom", -1))
    }


def assert_same_bytes(found: dict[str, HeadPairs], expected: dict[str, HeadPairs], k: int | None = None) -> None:
    for side, heads in expected.items():
        for got, want in ((found[side].distinct, heads.distinct), (found[side].all, heads.all)):
            for name in ("source", "target", "score"):
                mine, theirs = getattr(got, name), getattr(want, name)[:k]
                if name == "score":
                    mine, theirs = mine.view(torch.int32), theirs.contiguous().view(torch.int32)
                assert torch.equal(mine, theirs), (side, name)


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
            on_grid(17, 40, 4) * np.where(np.arange(40)[:, None] == 38, 2.0**20, 2.0**-20),
            id="huge beside tiny",
        ),
        pytest.param(np.eye(40), np.eye(40), id="identity"),
    ],
)
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


def test_scan_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """A strong corner makes most tiles unreachable: they are not looked at, and the answer is right all the same."""
    V = 100
    scale = np.where(np.arange(V) < 10, 1.0, 2.0**-10)[:, None]
    A, B = (np.abs(on_grid(23, V, 3)) + 1) * scale, on_grid(24, V, 3) * scale
    seen = []
    visit = Scan._visit
    monkeypatch.setattr(Scan, "_visit", lambda *args: seen.append(args[1:3]) or visit(*args))
    assert_exact(A, B, 5)
    assert 0 < len(seen) < 20 * len(ENGINES)  # of 20 x 15 tiles each


def test_tiles_are_cut_to_what_can_be_reached(monkeypatch: pytest.MonkeyPatch, real_tiles: None) -> None:
    """Norms of half the rows are a thousandth of the others': of the first tile a quarter is looked at."""
    draw = np.random.default_rng(30)
    scale = np.where(np.arange(512) % 2, 1.0, 2.0**-10)[:, None]
    A, B = draw.normal(size=(512, 8)) * scale, draw.normal(size=(512, 8)) * scale
    shapes = []
    product = type(BFLOAT16).product
    monkeypatch.setattr(
        type(BFLOAT16), "product", lambda self, a, b, out: shapes.append((len(a), len(b))) or product(self, a, b, out)
    )
    strongest_pairs(torch.from_numpy(A), torch.from_numpy(B), same_words(np.arange(512), CPU), 50, BFLOAT16)
    assert shapes[0] == (512, 512)  # for first thresholds
    assert len(shapes) == 2
    assert max(shapes[1]) <= 256


@given(st.integers(2, 200), st.integers(1, 24), st.sampled_from([1, 5, 50, 200]), st.integers(0, 2**32 - 1))
def test_same_bytes_as_settled_scores(V: int, d: int, k: int, seed: int) -> None:
    """Real weights, norms of rows and of directions very different among them, and duplicated rows."""
    draw = np.random.default_rng(seed)
    A, B = (
        draw.normal(size=(V, d)) * np.exp(draw.normal(size=(V, 1)) * draw.choice([0.0, 0.5, 3.0])) for _ in range(2)
    )
    skew = np.exp(draw.normal(size=d) * draw.choice([0.0, 4.0]))
    A, B = A * skew, B / skew
    if draw.random() < 0.3:
        A, B = A[draw.integers(0, V, V)], B[draw.integers(0, V, V)]
    words = draw.integers(0, draw.choice([3, V, 5 * V]), V)
    A, B = torch.from_numpy(A), torch.from_numpy(B)
    expected = settled(A, B, words, k)
    for engine in ENGINES:
        assert_same_bytes(strongest_pairs(A, B, same_words(words, CPU), k, engine), expected)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_rank_deficient_factors(rank: int) -> None:
    """Factors of less than full rank, and of full rank with a product of less, for which no gauge is exact."""
    draw = np.random.default_rng(rank)
    deficient = (draw.normal(size=(150, rank)) @ draw.normal(size=(rank, 9)) for _ in range(2))
    Q = np.linalg.qr(draw.normal(size=(9, 9)))[0]
    left, right = Q.copy(), Q.copy()
    left[:, rank:] *= 1e-9
    right[:, :rank] *= 1e-9
    opposed = (draw.normal(size=(150, 9)) @ factor.T for factor in (left, right))
    for both in (deficient, opposed):
        A, B = (torch.from_numpy(factor) for factor in both)
        for engine in ENGINES:
            found = strongest_pairs(A, B, same_words(np.arange(150), CPU), 50, engine)
            assert_same_bytes(found, settled(A, B, np.arange(150), 50))


@pytest.mark.parametrize("scale", [1.0, 1e-5])
def test_factors_of_low_rank_in_both_terms(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """[dP, P] against [Q, dQ] with dP and dQ of rank 2, as adapters make them: still few tiles are looked at."""
    draw = np.random.default_rng(37)
    E = draw.normal(size=(300, 24)) * np.exp(0.5 * draw.normal(size=(300, 1)))
    P, Q = draw.normal(size=(2, 24, 8))
    low = [scale * draw.normal(size=(24, 2)) @ draw.normal(size=(2, 8)) for _ in range(2)]
    A, B = (torch.from_numpy(E @ np.concatenate(terms, 1)) for terms in ((low[0], P), (Q, low[1])))
    seen = []
    visit = Scan._visit
    monkeypatch.setattr(Scan, "_visit", lambda *args: seen.append(args[1:3]) or visit(*args))
    for engine in ENGINES:
        found = strongest_pairs(A, B, same_words(np.arange(300), CPU), 20, engine)
        assert_same_bytes(found, settled(A, B, np.arange(300), 20))
    assert len(seen) < 0.3 * len(ENGINES) * 60 * 43  # of as many tiles


def test_terms_that_cancel() -> None:
    """A displacement's factors: small times large plus large times small."""
    draw = np.random.default_rng(31)
    small, large = (draw.normal(size=(4, 120, 6)) * size for size in (1e-6, 1e3))
    A, B = np.concatenate([small[0], large[0]], 1), np.concatenate([large[1], small[1]], 1)
    A, B = torch.from_numpy(A), torch.from_numpy(B)
    for engine in ENGINES:
        found = strongest_pairs(A, B, same_words(np.arange(120), CPU), 50, engine)
        assert_same_bytes(found, settled(A, B, np.arange(120), 50))


@given(st.integers(1, 60), st.integers(1, 12), st.sampled_from([0.0, 3.0, 9.0]), st.integers(0, 2**32 - 1))
def test_balanced_factors(V: int, d: int, skew: float, seed: int) -> None:
    """Their product is A B^T within the gap, their norms cover their rows, and their Grams are one diagonal matrix."""
    draw = np.random.default_rng(seed)
    stretch = np.exp(draw.normal(size=d) * skew)
    A, B = torch.from_numpy(draw.normal(size=(V, d)) * stretch), torch.from_numpy(draw.normal(size=(V, d)) * stretch)
    M, N, gap, longest = balance(Side(A), Side(B))
    if skew < 9 and d <= V:
        gram_a, gram_b = (A @ M).T @ (A @ M), (B @ N).T @ (B @ N)
        assert torch.allclose(gram_a, gram_b, rtol=0, atol=1e-6 * float(gram_a.abs().max()))
        assert torch.allclose(gram_a, gram_a.diag().diag(), rtol=0, atol=1e-6 * float(gram_a.abs().max()))
    assert float((A @ B.T - (A @ M) @ (B @ N).T).abs().max()) <= gap <= 1e-9 * float(A.norm() * B.norm())
    scan = Scan(A, B, same_words(np.arange(V), CPU), 1, FLOAT32)
    assert scan.gap == gap * 2.0**scan.exponent
    for factor, X, most in zip((scan.left, scan.right), (A @ M, B @ N), longest, strict=True):
        assert float(X.norm(dim=1).max()) <= most
        norms = 2.0**factor.exponent * X.norm(dim=1)[factor.ids].numpy()
        assert (factor.norms >= norms * (1 - 1e-12)).all()
        assert (np.diff(factor.norms) <= 0).all()
        assert factor.norms[0] <= 1
        assert (factor.norms_by_id()[factor.ids].numpy() == factor.norms).all()


def test_rows_of_a_factor_that_reach() -> None:
    norms = np.array([1.0, 0.5, 0.5, 0.25, 0.125, 0.0, 0.0])
    factor = Factor(torch.empty(7, 1), torch.arange(7), norms, 0)
    reached = [factor.reaching(0, 5, 1.0, least).stop for least in (2.0, 1.0, 0.6, 0.5, 0.25, 0.2, 0.1, 0.0, -1.0)]
    assert reached == [0, 2, 2, 4, 4, 4, 5, 5, 5]  # up to the next STEP of 2
    assert factor.reaching(5, 5, 1.0, 0.1) == slice(5, 5)
    assert factor.reaching(5, 5, 0.0, -1.0) == slice(5, 7)
    assert factor.reaching(0, 5, 0.0, 0.1) == slice(0, 0)


def test_above_is_no_less_than_stored() -> None:
    bounds = np.array([0.0, 1e-320, 1e-46, 1.0, 1 + 2.0**-24, 3.4028235e38, 1e39])
    with np.errstate(over="ignore", under="ignore"):
        stored = bounds.astype(np.float32)
    found = above(bounds)
    assert found[0] == 0
    assert (found[1:-1] > stored[1:-1]).all()
    assert found[-1] == np.inf


def test_default_tiles(real_tiles: None) -> None:
    """The real tile sizes, with more tokens than one tile holds."""
    words = np.random.default_rng(27).integers(0, 700, 1100)
    assert_exact(on_grid(25, 1100, 3), on_grid(26, 1100, 3), 50, words)


@cache
def head(model: str, matrix: str, layer: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    truth = oracle.read(Path(MODELS[model]))
    left, right = truth.head(matrix, layer, number)
    return torch.from_numpy(truth.E @ left), torch.from_numpy(truth.E @ right)


def words_of(V: int) -> np.ndarray:
    """Some tokens are one word: two thirds of them, by threes."""
    return np.random.default_rng(V).integers(0, V // 3, V)


@pytest.mark.parametrize("matrix", ["QK", "VO"])
@pytest.mark.parametrize(("layer", "model"), list(enumerate(MODELS)))
def test_real_heads(layer: int, model: str, matrix: str, real_tiles: None) -> None:
    """A head of each demo model and of all-MiniLM-L6-v2, at every size of list."""
    A, B = head(model, matrix, layer % 4, 1)
    words = words_of(len(A))
    expected = settled(A, B, words, 5000)
    for k in (1, 50, 200, 5000):
        for engine in ENGINES:
            assert_same_bytes(strongest_pairs(A, B, same_words(words, CPU), k, engine), expected, k)


def test_same_bytes_from_any_threads_tiles_and_engine(monkeypatch: pytest.MonkeyPatch, real_tiles: None) -> None:
    A, B = head("tiny-wide", "VO", 0, 0)
    words = same_words(words_of(len(A)), CPU)
    expected = strongest_pairs(A, B, words, 200, FLOAT32)
    threads = torch.get_num_threads()
    try:
        for n_threads, rows, columns, engine in (
            (1, 512, 1024, BFLOAT16), (2, 512, 1024, BFLOAT16), (2, 512, 1024, FLOAT32), (2, 100, 333, BFLOAT16),
            (1, 7000, 7000, FLOAT32), (1, 512, 1024, FASTEST), (2, 512, 1024, FASTEST), (2, 100, 333, FASTEST),
            (2, 512, 1024, ENGINES[-1]),
        ):  # fmt: skip
            torch.set_num_threads(n_threads)
            monkeypatch.setattr(pair_scan, "TILE_ROWS", rows)
            monkeypatch.setattr(pair_scan, "TILE_COLUMNS", columns)
            assert_same_bytes(strongest_pairs(A, B, words, 200, engine), expected)
    finally:
        torch.set_num_threads(threads)


@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_balanced_terms(m: int, d: int, seed: int) -> None:
    """Every product of two entries stays as it is, and rows beside zeros go."""
    draw = np.random.default_rng(seed)
    P, Q = (
        draw.normal(size=(m, d)) * np.exp(9 * draw.normal(size=(m, 1))) * draw.choice([0, 1], (m, 1), p=[0.2, 0.8])
        for _ in range(2)
    )
    left, right = (factor.numpy() for factor in balanced(torch.from_numpy(P), torch.from_numpy(Q)))
    assert (left[:, :, None] * right[:, None, :] == P[:, :, None] * Q[:, None, :]).all()
    p, q = np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1)
    assert ((p == 0) == (q == 0)).all()
    assert (p <= 2.01 * q).all()
    assert (q <= 2.01 * p).all()


def test_what_did_not_move_is_quickly_known_to_be_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """[0, W] against [W, 0]: no tile but the first is looked at for k pairs of score 0."""
    draw = np.random.default_rng(32)
    nothing = np.zeros((90, 4))
    A, B = np.concatenate([nothing, on_grid(33, 90, 4)], 1), np.concatenate([on_grid(34, 90, 4), nothing], 1)
    seen = []
    visit = Scan._visit
    monkeypatch.setattr(Scan, "_visit", lambda *args: seen.append(args[1:3]) or visit(*args))
    assert_exact(A, B, 5, draw.integers(0, 60, 90))
    assert len(seen) <= 2 * len(ENGINES)  # of 18 x 13 tiles each


@pytest.mark.parametrize("V", [1, 7, 5000])
def test_factors_of_several_weights(V: int) -> None:
    E = torch.from_numpy(on_grid(35, V, 12)).float()
    weights = [torch.from_numpy(on_grid(36 + m, m, 12)).float() for m in (1, 4, 3)]
    for A, P in zip(factors(E, weights), weights, strict=True):
        assert torch.equal(A, E.double() @ P.double().T)  # exact on this grid


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
