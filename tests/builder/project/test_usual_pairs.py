"""What is usual for the tokens of pairs, and the rows of pairs by two rankings, against plain float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paramdex_builder.project.pair_rows import Ranked, pair_rows
from paramdex_builder.project.pair_sides import Side
from paramdex_builder.project.pairs import same_words, strongest_pairs
from paramdex_builder.project.space import make_space
from paramdex_builder.project.usual_pairs import (
    LEAST,
    Squares,
    UsualPairs,
    load_usual,
    save_usual,
    squares_of,
    summed,
)

CPU = torch.device("cpu")
SEEDS = st.integers(0, 2**32 - 1)


def brute_force(heads: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """alpha and beta of heads (X, P, Q, Y) from all their scores."""
    every = [X @ P.T @ Q @ (Y - Y.mean(0)).T for X, P, Q, Y in heads]
    squares = np.mean([S**2 / (S**2).mean() for S in every if S.any()], axis=0)
    return np.sqrt(squares.mean(1)), np.sqrt(squares.mean(0))


@given(st.integers(4, 60), st.integers(2, 8), st.integers(1, 4), st.floats(0, 3), SEEDS)
def test_usual_is_that_of_all_scores(V: int, d: int, m: int, offset: float, seed: int) -> None:
    """Heads of several spaces, some scores of which lean to one side, and a head that does nothing."""
    draw = np.random.default_rng(seed)
    rows = [draw.normal(size=(V, d)).astype(np.float32) + np.float32(offset) for _ in range(2)]
    spaces = [make_space(torch.from_numpy(each), CPU) for each in rows]
    heads, parts = [], []
    for h in range(LEAST + 1):
        left, right = h % 2, int(h > 4)
        P, Q = draw.normal(size=(m, d)) * 10.0**h, draw.normal(size=(m, d)) * (h != 3)
        heads.append((rows[left].astype(float), P, Q, rows[right].astype(float)))
        parts.append(squares_of(torch.from_numpy(P), torch.from_numpy(Q), spaces[left], spaces[right]))
    found = UsualPairs.of(summed(parts))
    assert found is not None
    for own, expected in zip((found.alpha, found.beta), brute_force(heads), strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-6)
        assert float(own.square().mean()) == pytest.approx(1)


def test_too_few_heads_and_tokens_without_scores() -> None:
    draw = np.random.default_rng(0)
    E = torch.from_numpy(draw.normal(size=(20, 4))).float()
    E[7] = 0
    space = make_space(E, CPU)
    P, Q = (torch.from_numpy(draw.normal(size=(2, 4))) for _ in range(2))
    one = squares_of(P, Q, space, space)
    assert UsualPairs.of(summed([one] * (LEAST - 1))) is None
    assert UsualPairs.of(summed([])) is None
    found = UsualPairs.of(summed([one] * LEAST))
    assert found is not None
    assert (found.alpha == 0).nonzero().tolist() == [[7]]
    A, B = (each[:] for each in found.sides(Side(E.double() @ P.T), Side(E.double() @ Q.T), Q @ space.means))
    assert not A[7].any()
    assert float((A @ B.T).square().mean()) > 0.1


def test_gram_matrices() -> None:
    E = torch.from_numpy(np.random.default_rng(1).normal(size=(50, 6)) + 2).float()
    whole, centred = make_space(E, CPU).grams
    np.testing.assert_allclose(whole, E.double().T @ E.double() / 50, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(centred, np.cov(E.double().numpy().T, bias=True), rtol=1e-10, atol=1e-12)


def test_saved_and_loaded(tmp_path: Path) -> None:
    usual = UsualPairs(torch.rand(5, dtype=torch.float64), torch.rand(5, dtype=torch.float64))
    save_usual(tmp_path / "u.safetensors", {"QK": None, "VO": usual})
    found = load_usual(tmp_path / "u.safetensors", CPU)
    assert list(found) == ["VO"]
    assert torch.equal(found["VO"].alpha, usual.alpha)
    assert torch.equal(found["VO"].beta, usual.beta)


def test_token_z_of_a_head() -> None:
    """S less the mean of each row, over its root mean square, alpha and beta."""
    draw = np.random.default_rng(7)
    A, B = draw.normal(size=(2, 30, 3)) + 2
    usual = UsualPairs(*(torch.from_numpy(draw.uniform(0.2, 3, 30)) for _ in range(2)))
    sides = (Side(torch.from_numpy(each)) for each in (A, B))
    found = [each[:] for each in usual.sides(*sides, torch.from_numpy(B.mean(0)))]
    S = A @ B.T
    S -= S.mean(1, keepdims=True)
    expected = S / np.sqrt((S**2).mean()) / np.outer(usual.alpha, usual.beta)
    np.testing.assert_allclose(found[0] @ found[1].T, expected, rtol=1e-9, atol=1e-12)


@given(st.integers(2, 40), st.integers(1, 60), st.booleans(), SEEDS)
def test_rows_are_those_of_both_rankings(V: int, k: int, coarse: bool, seed: int) -> None:
    """Every pair of either list once; both numbers are what their own scores round to; ranks count from 1."""
    draw = np.random.default_rng(seed)
    A, B = (torch.from_numpy(draw.normal(size=(V, 2))) for _ in range(2))
    if coarse:
        A, B = (2 * A).round() / 2, (2 * B).round() / 2
    words = same_words(draw.integers(0, max(1, V - 2), V), CPU)
    usual = UsualPairs(*(torch.from_numpy(draw.uniform(0.2, 3, V)) for _ in range(2)))
    plain = Side(A), Side(B)
    scaled = usual.sides(*plain, B.mean(0))
    rankings = [Ranked(*each, strongest_pairs(*each, words, k)) for each in (plain, scaled)]
    S, Z = ((a[:][:, None] * b[:][None]).sum(2).float().numpy() + 0.0 for a, b in (plain, scaled))
    different = words.number.numpy()[:, None] != words.number.numpy()[None]
    for side, sign in (("top", 1), ("bottom", -1)):
        rows = pair_rows(*rankings, words, 3, "QK", side).to_pylist()
        assert len({(row["source_id"], row["target_id"]) for row in rows}) == len(rows)
        for row in rows:
            at = row["source_id"], row["target_id"]
            assert (row["score"], row["token_z"], row["same_word"]) == (S[at], Z[at], not different[at])
            assert any(row[name] for name in row if name.startswith("rank"))
        for values, name in ((S, "rank"), (Z, "rank_token_z")):
            for kind, allowed in ((name, np.ones_like(different)), (name.replace("rank", "rank_distinct"), different)):
                order = [p for p in np.lexsort((np.arange(V * V), -sign * values.ravel())) if allowed.ravel()[p]][:k]
                listed = sorted((row[kind], row["source_id"] * V + row["target_id"]) for row in rows if row[kind])
                assert listed == list(enumerate(order, 1))


def test_rows_where_nothing_is_usual() -> None:
    A = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 2)))
    words = same_words(np.arange(6), CPU)
    lists = Ranked(Side(A), Side(A), strongest_pairs(A, A, words, 4))
    rows = pair_rows(lists, None, words, 0, "QK", "top").to_pylist()
    assert {row["token_z"] for row in rows} == {None} == {row["rank_token_z"] for row in rows}


def test_no_heads_at_all() -> None:
    assert summed([]) == Squares(0, {}, {})
