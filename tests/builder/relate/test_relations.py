"""Relations from one pass over blocks: against brute force over whole matrices, whatever the blocks.

Rows of small integers make every product exact in float32, so that ties are ties and results must agree to the bit.
"""

from __future__ import annotations

import sys
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import oracle
from paramdex_builder.files.vectors import open_rows, write_flat_index
from paramdex_builder.relate.relations import (
    Layers,
    Move,
    Nearest,
    Relations,
    Segment,
    feature_blocks,
    relate,
    restricted_blocks,
)
from paramdex_schemas import isometry

CPU = torch.device("cpu")
BLOCKS = [1, 4 * 32 * 32, 4 * 64 * 64, 4 * 160 * 160, None]
"""Bytes of a block: 32, 64 and 160 rows a side (the least is 32), and the default."""


def whole(rows: np.ndarray) -> list[Segment]:
    """Rows that all lie in one space."""
    return [Segment(rows, 0, "output")]


def by(move: np.ndarray) -> Move:
    """The way from the one space to the other."""
    return lambda *_: move


def nearest(S: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and scores of the k largest of each row of ``S``, ties by the smaller id, by full sorts."""
    ids = np.lexsort((np.broadcast_to(np.arange(S.shape[1]), S.shape), -S))[:, :k]
    return ids, np.take_along_axis(S, ids, axis=1)


def mean_absolute(S: np.ndarray, layers_a: Layers, layers_b: Layers) -> np.ndarray:
    cut = [[np.abs(S[slice(*x), slice(*y)]) for y in layers_b] for x in layers_a]
    return np.array([[block.mean(dtype=np.float64) if block.size else 0.0 for block in row] for row in cut])


def same(found: Nearest, ids: np.ndarray, scores: np.ndarray) -> None:
    assert (found.ids.dtype, found.scores.dtype) == (np.int64, np.float32)
    np.testing.assert_array_equal(found.scores, scores)
    np.testing.assert_array_equal(found.ids, ids)


def same_as_brute_force(found: Relations, S: np.ndarray, k: int, layers_a: Layers, layers_b: Layers) -> None:
    same(found.of_a, *nearest(S, k))
    same(found.of_b, *nearest(S.T, k))
    assert found.layers is not None
    assert found.layers.dtype == np.float64
    np.testing.assert_allclose(found.layers, mean_absolute(S, layers_a, layers_b), rtol=1e-12)


@st.composite
def integer_rows(draw: st.DrawFn, width: int) -> np.ndarray:
    """Rows of few kinds, in runs and repeated far apart, zero rows among them."""
    kinds = draw(st.integers(1, 5))
    values = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = values.integers(-2, 3, (kinds, width)) * values.integers(0, 2, (kinds, 1))
    return rows[values.integers(0, kinds, draw(st.integers(1, 170)))].astype(np.float32)


@st.composite
def some_layers(draw: st.DrawFn, n: int) -> list[tuple[int, int]]:
    """Layers that follow each other, empty ones among them; rows may lie in none."""
    cuts = sorted(draw(st.lists(st.integers(0, n), min_size=2, max_size=6)))
    return list(pairwise(cuts))


@given(st.data(), st.integers(0, 4), st.integers(0, 4), st.integers(1, 200), st.sampled_from(BLOCKS))
def test_exactly_as_by_brute_force(data: st.DataObject, r: int, s: int, k: int, block_bytes: int | None) -> None:
    a, b = data.draw(integer_rows(r)), data.draw(integer_rows(s))
    move = np.random.default_rng(r + s).integers(-2, 3, (s, r)).astype(np.float64)
    layers_a, layers_b = data.draw(some_layers(len(a))), data.draw(some_layers(len(b)))
    found = relate(whole(a), whole(b), by(move), k, layers_a, layers_b, CPU, block_bytes=block_bytes)
    same_as_brute_force(found, (a @ move.T) @ b.T, k, layers_a, layers_b)


@st.composite
def segments(draw: st.DrawFn, widths: dict[str, int]) -> list[Segment]:
    """Rows in some of the spaces, of such widths, in any order of their ids; none may be there."""
    found, first = [], 0
    for space in draw(st.lists(st.sampled_from(sorted(widths)), min_size=1, max_size=4)):
        rows = draw(integer_rows(widths[space]))[draw(st.integers(0, 2)) :]
        found.append(Segment(rows, first, space))
        first += len(rows)
    return draw(st.permutations(found))


@given(st.data(), st.integers(1, 200), st.sampled_from(BLOCKS))
def test_rows_of_several_spaces_exactly_as_by_brute_force(data: st.DataObject, k: int, block_bytes: int | None) -> None:
    """Whatever spaces there are on either side, as if all rows were in one: neighbors, ties, layers, progress."""
    widths_a, widths_b = {"output": 3, "reading": 4}, {"input": 2, "output": 0, "reading": 4}
    draw = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    ways = {
        (x, y): draw.integers(-2, 3, (s, r)).astype(np.float64)
        for x, r in widths_a.items()
        for y, s in widths_b.items()
    }
    a, b = data.draw(segments(widths_a)), data.draw(segments(widths_b))
    n, m = (max(segment.end for segment in side) for side in (a, b))
    layers_a, layers_b = data.draw(some_layers(n)), data.draw(some_layers(m))
    told: list[int] = []
    move = lambda x, y: ways[x, y]  # noqa: E731
    found = relate(a, b, move, k, layers_a, layers_b, CPU, told.append, block_bytes)
    S = np.zeros((n, m))
    for x, y in product(a, b):
        S[x.first : x.end, y.first : y.end] = x.rows @ ways[x.space, y.space].T @ y.rows.T
    same_as_brute_force(found, S, k, layers_a, layers_b)
    assert sum(told) == (n if m else 0)


@given(st.integers(1, 90), st.integers(0, 90), st.integers(1, 9), st.integers(0, 2**32 - 1), st.sampled_from(BLOCKS))
def test_one_space_cut_in_two_is_that_space(n: int, cut: int, k: int, seed: int, block_bytes: int | None) -> None:
    draw = np.random.default_rng(seed)
    a, b = (isometry.normalize(draw.normal(size=(90, 6))).astype(np.float32) for _ in "ab")
    T, layers = np.linalg.qr(draw.normal(size=(6, 6)))[0], [(0, 40), (40, 90)]
    parts = [[Segment(rows[:at], 0, "output"), Segment(rows[at:], at, "output")] for rows, at in ((a, n), (b, cut))]
    one = relate(whole(a), whole(b), by(T), k, layers, layers, CPU, block_bytes=block_bytes)
    two = relate(*parts, by(T), k, layers, layers, CPU, block_bytes=block_bytes)
    for x, y in ((one.of_a, two.of_a), (one.of_b, two.of_b)):
        np.testing.assert_allclose(x.scores, y.scores, atol=1e-6)
    np.testing.assert_allclose(one.layers, two.layers, atol=1e-7)


@given(st.integers(1, 120), st.integers(1, 120), st.integers(1, 9), st.integers(0, 2**32 - 1), st.sampled_from(BLOCKS))
def test_correlations_as_in_float64(n: int, m: int, k: int, seed: int, block_bytes: int | None) -> None:
    """Rank by rank the largest there are, each its pair's own, and a pair's the same from both sides."""
    draw = np.random.default_rng(seed)
    a = isometry.normalize(draw.normal(size=(n, 6))).astype(np.float32)
    b = isometry.normalize(draw.normal(size=(m, 5))).astype(np.float32)
    T = np.linalg.qr(draw.normal(size=(6, 6)))[0][:5]
    layers_a, layers_b = [(0, n // 3), (n // 3, n)], [(0, m)]
    found = relate(whole(a), whole(b), by(T), k, layers_a, layers_b, CPU, block_bytes=block_bytes)
    S = a.astype(np.float64) @ T.T @ b.T.astype(np.float64)
    for side, truth in ((found.of_a, S), (found.of_b, S.T)):
        np.testing.assert_allclose(side.scores, nearest(truth, k)[1], atol=1e-6)
        np.testing.assert_allclose(side.scores, np.take_along_axis(truth, side.ids, axis=1), atol=1e-6)
        assert all(len(set(ids)) == len(ids) for ids in side.ids.tolist())
    np.testing.assert_allclose(found.layers, mean_absolute(S, layers_a, layers_b), atol=1e-6)
    pairs = [
        {
            (i, j): score
            for i, (ids, scores) in enumerate(zip(side.ids, side.scores, strict=True))
            for j, score in zip(ids, scores, strict=True)
        }
        for side in (found.of_a, found.of_b)
    ]
    for (i, j), score in pairs[0].items():
        assert pairs[1].get((j, i), score) == score


@pytest.mark.parametrize("block_bytes", BLOCKS)
@pytest.mark.parametrize("k", [1, 7, 40, 300])
def test_where_all_tie_the_first_are_the_nearest(k: int, block_bytes: int | None) -> None:
    """Equal rows; zero rows, whose products with negative numbers are -0.0."""
    first = np.tile(np.arange(k), (90, 1))
    for value in (1.0, 0.0):
        a, b = np.full((90, 1), value, np.float32), -np.ones((300, 1), np.float32)
        b[100:, 0] *= 1 if value else -1
        found = relate(whole(a), whole(b), None, k, [], [], CPU, block_bytes=block_bytes)
        np.testing.assert_array_equal(found.of_a.ids, first)
        np.testing.assert_array_equal(found.of_b.ids, np.tile(np.arange(min(k, 90)), (300, 1)))
        assert (found.of_a.scores == -value).all()
    assert not np.signbit(found.of_a.scores).any()


@pytest.mark.parametrize("block_bytes", BLOCKS)
def test_a_tie_at_the_last_place_goes_to_the_smaller_id(block_bytes: int | None) -> None:
    """The runner-up lies in every block; only its first places count, even when the best comes last."""
    b = np.full((200, 1), 1.0, np.float32)
    b[::3], b[199] = 2.0, 5.0
    found = relate(whole(np.ones((1, 1), np.float32)), whole(b), None, 4, [], [], CPU, block_bytes=block_bytes)
    assert found.of_a.ids.tolist() == [[199, 0, 3, 6]]
    assert found.of_a.scores.tolist() == [[5.0, 2.0, 2.0, 2.0]]


def test_small_example() -> None:
    a, b = np.array([[1.0, 0], [0, -1]], np.float32), np.array([[0, 1.0], [1, 0], [1, 0]], np.float32)
    found = relate(whole(a), whole(b), None, 2, [(0, 2)], [(0, 1), (1, 3)], CPU)
    assert found.of_a.ids.tolist() == [[1, 2], [1, 2]]
    assert found.of_a.scores.tolist() == [[1, 1], [0, 0]]
    assert found.of_b.ids.tolist() == [[0, 1], [0, 1], [0, 1]]
    assert found.of_b.scores.tolist() == [[0, -1], [1, 0], [1, 0]]
    assert found.layers is not None
    assert found.layers.tolist() == [[0.5, 0.5]]


def test_extreme_similarities_keep_their_order() -> None:
    """Negative, tiny, subnormal and huge numbers."""
    b = np.array([[-3e38], [1e-45], [-1e-45], [0], [3e38], [-1e-30], [1e-30], [-1]], np.float32)
    found = relate(whole(np.ones((1, 1), np.float32)), whole(b), None, 8, [], [], CPU)
    assert found.of_a.ids.tolist() == [[4, 6, 1, 3, 2, 5, 7, 0]]
    np.testing.assert_array_equal(found.of_a.scores, b[found.of_a.ids, 0])


def test_no_neighbors_and_no_layers() -> None:
    rows = np.eye(5, dtype=np.float32)
    found = relate(whole(rows), whole(rows[:3]), None, 0, [(0, 5)], [(0, 2), (2, 3)], CPU)
    assert found.of_a.ids.shape == found.of_a.scores.shape == (5, 0)
    assert found.of_b.ids.shape == found.of_b.scores.shape == (3, 0)
    np.testing.assert_allclose(found.layers, [[0.2, 0.2]], rtol=1e-15)
    for layers in (([], [(0, 3)]), ([(0, 5)], []), ([], [])):
        assert relate(whole(rows), whole(rows[:3]), None, 1, *layers, CPU).layers is None


@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)])
def test_no_rows(n: int, m: int) -> None:
    found = relate(
        whole(np.ones((n, 2), np.float32)), whole(np.ones((m, 2), np.float32)), None, 4, [(0, n)], [(0, m)], CPU
    )
    assert found.of_a.ids.shape == (n, min(4, m))
    assert found.of_b.ids.shape == (m, min(4, n))
    np.testing.assert_array_equal(found.layers, [[0.0]])


@given(st.data(), st.sampled_from(BLOCKS[:4]))
def test_progress_counts_the_rows_of_a(data: st.DataObject, block_bytes: int) -> None:
    a, b = data.draw(integer_rows(2)), data.draw(integer_rows(2))
    told: list[int] = []
    relate(whole(a), whole(b), None, 1, [], [], CPU, told.append, block_bytes)
    assert sum(told) == len(a)
    assert all(told)


def test_rows_straight_from_vector_files(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = [draw.integers(-3, 4, (n, 3)).astype(np.float32) for n in (150, 70)]
    for name, part in zip("ab", rows, strict=True):
        write_flat_index(tmp_path / name, 3, [part])
    a, b = (open_rows(tmp_path / name) for name in "ab")
    layers_a, layers_b = [(0, 50), (50, 150)], [(0, 70)]
    found = relate(whole(a), whole(b), None, 6, layers_a, layers_b, CPU, block_bytes=4096)
    same_as_brute_force(found, rows[0] @ rows[1].T, 6, layers_a, layers_b)


@given(st.integers(1, 90), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_feature_rows_of_coordinates(n: int, d: int, seed: int) -> None:
    """As oracle.feature_rows, zero rows included; their layer scores are the mean |Pearson| over features."""
    draw = np.random.default_rng(seed)
    inverse = draw.normal(size=(d, d))
    rows = draw.normal(size=(n, d)).astype(np.float32)
    rows[0] = 0
    found = np.concatenate(list(feature_blocks(rows, inverse, CPU)))
    expected = oracle.feature_rows(rows @ inverse.T)
    assert found.dtype == np.float32
    if d > 1:  # the one feature of a row is its mean
        np.testing.assert_allclose(found, expected, atol=1e-6)
        scores = relate(whole(found), whole(found), None, 0, [(0, n)], [(0, n)], CPU).layers
        np.testing.assert_allclose(scores, isometry.layer_scores([expected], [expected]), atol=1e-6)


@given(st.integers(1, 90), st.integers(9, 20), st.integers(0, 2**32 - 1))
def test_rows_on_some_of_the_tokens(n: int, V: int, seed: int) -> None:
    """As of scores of those tokens alone, centred and normalized; zero where these are all equal."""
    draw = np.random.default_rng(seed)
    E, some = draw.normal(size=(V + 4, 3)), slice(0, V)
    E[some, 0] = 0.5
    W = draw.normal(size=(n, 3))
    W[0] = [1, 0, 0]
    centred = [rows - rows.mean(0) for rows in (E, E[some])]
    roots = [isometry.gram_root(rows.T @ rows, len(rows)) for rows in centred]
    rows = isometry.normalize(W @ roots[0].root.T).astype(np.float32)
    found = np.concatenate(list(restricted_blocks(rows, isometry.restriction(roots[1], roots[0]), CPU)))
    assert found.dtype == np.float32
    expected = isometry.normalize(W @ centred[1].T, 1e-6)
    basis = centred[1] @ roots[1].inverse
    np.testing.assert_allclose(found @ basis.T, expected, atol=1e-4)


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of the largest memory differs")
def test_memory_is_bounded_by_the_block() -> None:
    """6,000 x 6,000 similarities are 144 MB; with blocks of 1 MiB a fifth of that is plenty."""
    import resource

    rows = np.random.default_rng(0).normal(size=(6000, 8)).astype(np.float32)
    small = rows[:1000]
    relate(whole(small), whole(small), None, 5, [(0, 1000)], [(0, 1000)], CPU, block_bytes=1 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    relate(whole(rows), whole(rows), None, 5, [(0, 6000)], [(0, 6000)], CPU, block_bytes=1 << 20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000
