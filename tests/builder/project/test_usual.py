"""What is usual for a token, and the lists by two rankings, against plain float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpu_engines import ENGINES
from paramdex_builder.project.arithmetic import dot
from paramdex_builder.project.block import Tokens, rank
from paramdex_builder.project.lists import Lists, Unusual, lists
from paramdex_builder.project.readable import Readable, by_chance, coherence
from paramdex_builder.project.space import make_space, scaled
from paramdex_builder.project.tokens import strongest_tokens, token_scores
from paramdex_builder.project.usual import Usual, merged, moments

CPU = torch.device("cpu")
SEEDS = st.integers(0, 2**32 - 1)


def drawn(seed: int, *shape: int, offset: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape) + offset).float()


def usual_of(E: torch.Tensor, rows: torch.Tensor) -> Usual:
    return Usual.of(make_space(E, CPU), moments(rows))


@given(st.integers(1, 300), st.integers(1, 12), st.sampled_from([1, 5, 50]), SEEDS)
def test_scores_with_factors_are_settled_ones(V: int, d: int, k: int, seed: int) -> None:
    """Every engine finds the same bytes as the one order of summing, times the factor; factors of 0 included."""
    E, rows = drawn(seed, V, d), drawn(seed + 1, 4, d)
    factors = torch.from_numpy(np.random.default_rng(seed).choice([0.0, 1e-3, 0.7, 1.0, 41.3], V))
    every = torch.stack([(dot(E.double(), w.double().expand(V, -1)) * factors).float() for w in rows]) + 0.0
    ids = torch.arange(V).expand_as(every)
    for engine in ENGINES:
        space = scaled(make_space(E, CPU), factors)
        found = strongest_tokens(rows, space, k, engine)
        for side, sign in (("top", 1), ("bottom", -1)):
            expected = rank(sign * every, ids, min(k, V))
            assert torch.equal(found[side].ids, expected.ids)
            assert torch.equal(found[side].scores, sign * expected.scores + 0.0)
        assert torch.equal(token_scores(rows, space, ids, engine), every)


def test_near_ties_with_factors_are_settled() -> None:
    """Many scores that float32 cannot tell apart: rows are scored as a whole, and each is settled."""
    E = torch.ones(400, 3) + torch.arange(400)[:, None] * 2.0**-20
    factors = (1 / (1 + torch.arange(400) * 2.0**-20)).double()
    rows = torch.tensor([[1.0, 2.0, -0.5]])
    every = (dot(E.double(), rows.double().expand(400, -1)) * factors).float()[None]
    for engine in ENGINES:
        found = strongest_tokens(rows, scaled(make_space(E, CPU), factors), 20, engine)["top"]
        expected = rank(every, torch.arange(400)[None], 20)
        assert torch.equal(found.ids, expected.ids)
        assert torch.equal(found.scores, expected.scores)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 8), st.floats(0, 100), SEEDS)
def test_moments_of_parts(sizes: list[int], d: int, offset: float, seed: int) -> None:
    """Whatever the parts are, they are those of all vectors together."""
    every = drawn(seed, sum(sizes), d, offset=offset)
    n, mean, scatter = merged(moments(part) for part in torch.split(every, sizes))
    wide = every.double().numpy()
    assert n == len(wide)
    np.testing.assert_allclose(mean, wide.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(scatter, np.cov(wide.T, bias=True).reshape(d, d) * n, rtol=1e-9, atol=1e-7)


@given(st.integers(1, 200), st.integers(1, 12), st.integers(2, 80), st.floats(0, 10), SEEDS)
def test_deviations_are_those_of_the_scores(V: int, d: int, n: int, offset: float, seed: int) -> None:
    E, rows = drawn(seed, V, d, offset=offset), drawn(seed + 1, n, d, offset=offset)
    scores = E.double().numpy() @ rows.double().numpy().T
    found = usual_of(E, rows)
    np.testing.assert_allclose(found.deviations, scores.std(1), rtol=2e-7, atol=1e-9)
    z = scaled_scores(found, E, rows)
    np.testing.assert_allclose(z, (scores - scores.mean(1, keepdims=True)) / scores.std(1, keepdims=True), atol=1e-4)


def scaled_scores(found: Usual, E: torch.Tensor, rows: torch.Tensor) -> np.ndarray:
    """token_z of every token (V x n), as a list would have it."""
    ids = torch.arange(len(E)).expand(len(rows), -1)
    return token_scores(found.unusual(rows), found.rows(make_space(E, CPU)), ids).numpy().T


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e6])
def test_what_does_not_vary(offset: float) -> None:
    """Vectors that are all equal, and a token whose row is orthogonal to all differences: deviation 0, token_z 0."""
    E = drawn(3, 20, 4)
    same = (drawn(4, 1, 4) + offset).expand(60, 4)
    assert not usual_of(E, same).deviations.any()
    assert not scaled_scores(usual_of(E, same), E, same).any()
    E[7] = torch.tensor([0.0, 0, 0, 2])
    rows = drawn(5, 60, 4) + offset
    rows[:, 3] = 0.1 * (1 + offset)
    found = usual_of(E, rows)
    assert (found.deviations == 0).nonzero().flatten().tolist() == [7]
    assert not scaled_scores(found, E, rows)[7].any()


def test_saved_and_loaded(tmp_path: Path) -> None:
    found = usual_of(drawn(0, 9, 3), drawn(1, 60, 3))
    found.save(tmp_path / "u.safetensors")
    again = Usual.load(tmp_path / "u.safetensors", CPU)
    assert torch.equal(found.mean, again.mean)
    assert torch.equal(found.deviations, again.deviations)


def cut(side: Lists, n: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """ids, scores, token_z and ranks of every parameter."""
    assert side.token_z is not None
    assert side.ranks_token_z is not None
    ends = side.counts.cumsum(0)[:-1].tolist()
    columns = [np.split(each.numpy(), ends) for each in (side.ids, side.scores, side.token_z, side.ranks_token_z)]
    assert len(columns[0]) == n
    return list(zip(*columns, strict=True))


@given(st.integers(1, 120), st.integers(1, 6), st.integers(1, 150), st.booleans(), SEEDS)
def test_lists_are_those_of_both_rankings(V: int, d: int, k: int, coarse: bool, seed: int) -> None:
    """Every token of either list once; the order of each ranking is that of (what is stored, id), ties included."""
    E, rows = drawn(seed, V, d), drawn(seed + 1, 60, d)
    if coarse:  # many ties
        E, rows = (E * 2).round(), rows.round()
    rows[5] = 0
    space = make_space(E, CPU)
    usual = Usual.of(space, moments(rows))
    every = torch.arange(V).expand(60, -1)
    scores = token_scores(rows, space, every).numpy()
    z = token_scores(usual.unusual(rows), usual.rows(space), every).numpy()
    found = lists(rows, space, Unusual(usual, usual.rows(space), Readable(space, 0.0, 1.0)), k)
    k = min(k, V)
    for side, sign in (("top", 1), ("bottom", -1)):
        assert found[side].readable is not None
        for i, (ids, own, own_z, ranks) in enumerate(cut(found[side], 60)):
            by_score = np.lexsort((np.arange(V), -sign * scores[i]))[:k]
            by_z = np.lexsort((np.arange(V), -sign * z[i]))[:k]
            assert ids[:k].tolist() == by_score.tolist()
            assert set(ids.tolist()) == {*by_score.tolist(), *by_z.tolist()}
            assert len(set(ids.tolist())) == len(ids)
            assert np.array_equal(own, scores[i][ids])
            assert np.array_equal(own_z, z[i][ids])
            assert ids[k:].tolist() == ids[k:][np.lexsort((ids[k:], -sign * own[k:]))].tolist()
            assert ids[np.lexsort((ids, -sign * own_z))][:k].tolist() == by_z.tolist()
            expected = {token: place for place, token in enumerate(by_z.tolist(), 1)}
            assert ranks.tolist() == [expected.get(token, 0) for token in ids.tolist()]


def test_lists_where_nothing_is_usual() -> None:
    E, rows = drawn(0, 30, 3), drawn(1, 4, 3)
    space = make_space(E, CPU)
    found = lists(rows, space, None, 5)
    plain = strongest_tokens(rows, space, 5)
    for side, one in found.items():
        assert one.token_z is None
        assert one.ranks_token_z is None
        assert one.counts.tolist() == [5] * 4
        assert torch.equal(Tokens(one.ids.view(4, 5), one.scores.view(4, 5)).ids, plain[side].ids)


def mean_cosine(rows: np.ndarray, ids: np.ndarray) -> float:
    u = rows - rows.mean(0)
    u = u / np.linalg.norm(u, axis=1, keepdims=True)
    G = u[ids] @ u[ids].T
    return float(G[~np.eye(len(ids), dtype=bool)].mean())


@given(st.integers(3, 60), st.integers(2, 8), st.integers(2, 30), SEEDS)
def test_coherence_is_the_mean_cosine(V: int, d: int, k: int, seed: int) -> None:
    E = drawn(seed, V, d)
    ids = torch.from_numpy(np.random.default_rng(seed).permuted(np.tile(np.arange(V), (150, 1)), axis=1)[:, :k])
    found = coherence(ids, make_space(E, CPU))
    np.testing.assert_allclose(found, [mean_cosine(E.double().numpy(), each) for each in ids.numpy()], atol=1e-12)


def test_readable_is_in_deviations_of_lists_by_chance() -> None:
    """Vectors that are random themselves are as readable as chance; one that lists a cluster of rows is more so."""
    E = drawn(0, 400, 16)
    E[:25] = drawn(1, 1, 16) * 3 + 0.05 * E[:25]
    rows = drawn(2, 600, 16)
    rows[0] = E[:25].mean(0)
    space, found = make_space(E, CPU), moments(rows)
    usual = Usual.of(space, found)
    chance = by_chance(found, usual.rows(space), space, 50)
    side = lists(rows, space, Unusual(usual, usual.rows(space), Readable(space, *chance)), 50)["top"]
    assert side.readable is not None
    assert side.readable[0] > 4
    assert abs(float(side.readable[1:].mean())) < 0.2
    assert abs(float(side.readable[1:].std()) - 1) < 0.4  # what is near the cluster is far out
    i = 3
    ids = cut(side, 600)[i]
    strongest = ids[0][np.argsort(-ids[2], kind="stable")][:20]
    expected = (mean_cosine(E.double().numpy(), strongest) - chance[0]) / chance[1]
    assert float(side.readable[i]) == pytest.approx(expected, rel=1e-6)


def test_nothing_is_readable_in_lists_of_one_token() -> None:
    E, rows = drawn(0, 30, 3), drawn(1, 60, 3)
    space, found = make_space(E, CPU), moments(rows)
    usual = Usual.of(space, found)
    chance = by_chance(found, usual.rows(space), space, 1)
    side = lists(rows, space, Unusual(usual, usual.rows(space), Readable(space, *chance)), 1)["top"]
    assert side.readable is not None
    assert side.readable.isnan().all()
