"""Head directions: against NumPy's SVD of the whole centred V x V matrix in float64."""

from __future__ import annotations

import json
import random
from pathlib import Path

import duckdb
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import models
import oracle
from paramdex import AddressError, Atlas, BuildError, QueryError, TokenFilter
from paramdex import open as open_atlas
from paramdex.cli import cli
from paramdex_builder import Options, build
from paramdex_builder.project.directions import Direction, Factor, directions
from paramdex_builder.project.pairs import factors
from paramdex_builder.project.space import Space, make_space
from query_helpers import MODELS


def centred(truth: oracle.Truth, matrix: str, layer: int, head: int) -> np.ndarray:
    """The V x V matrix less the means of its rows and columns."""
    S = truth.pair_scores(matrix, layer, head)
    return S - S.mean(axis=0) - S.mean(axis=1, keepdims=True) + S.mean()


@pytest.mark.parametrize("matrix", ["QK", "VO"])
@pytest.mark.parametrize("model", MODELS)
def test_directions_are_the_svds(
    db: duckdb.DuckDBPyConnection, truths: dict[str, oracle.Truth], draw: random.Random, model: str, matrix: str
) -> None:
    """Values, shares, and the tokens of every singular vector with their scores, of one head of each layer."""
    truth = truths[model]
    for layer in range(truth.n_layers):
        address = f"{model}/L{layer}/H{draw.randrange(truth.n_heads)}"
        S = centred(truth, matrix, layer, int(address.rpartition("H")[2]))
        U, values, Wt = np.linalg.svd(S)
        n = min(8, truth.d_head)
        rows = db.execute(
            "SELECT direction, singular_value, share FROM head_directions WHERE address = ? AND matrix = ? ORDER BY 1",
            [address, matrix],
        ).fetchall()
        assert [row[0] for row in rows] == list(range(1, n + 1))
        np.testing.assert_allclose([row[1] for row in rows], values[:n], rtol=1e-6)
        np.testing.assert_allclose([row[2] for row in rows], values[:n] ** 2 / (S**2).sum(), rtol=1e-6)
        for i in range(n):
            u, w = U[:, i] * len(S) ** 0.5, Wt[i] * len(S) ** 0.5
            sign = np.sign(u[np.argmax(np.abs(u))])
            for role, vector in (("source", sign * u), ("target", sign * w)):
                for side in ("top", "bottom"):
                    found = db.execute(
                        "SELECT token_id, score, rank FROM head_direction_tokens WHERE address = ? AND matrix = ? "
                        "AND direction = ? AND role = ? AND side = ? ORDER BY rank",
                        [address, matrix, i + 1, role, side],
                    ).fetchall()
                    ids, scores, ranks = zip(*found, strict=True)
                    assert list(ranks) == list(range(1, 11))
                    np.testing.assert_allclose(scores, vector[list(ids)], rtol=1e-6, atol=1e-8)
                    strength = vector if side == "top" else -vector
                    np.testing.assert_allclose(strength[list(ids)], np.sort(strength)[::-1][:10], rtol=1e-6, atol=1e-8)


def found_directions(P: torch.Tensor, Q: torch.Tensor, space: Space, k: int) -> list[Direction]:
    sides = zip((P, Q), factors(space.embedding, [P, Q]), strict=True)
    return directions(*(Factor(rows, space, scores) for rows, scores in sides), k)


def some_space(V: int, d: int, seed: int) -> tuple[Space, torch.Generator]:
    draw = torch.Generator().manual_seed(seed)
    return make_space(torch.randn(V, d, generator=draw) + 2, torch.device("cpu")), draw


def test_of_low_rank_there_are_as_few() -> None:
    space, draw = some_space(200, 16, 1)
    P, Q = (torch.randn(8, 16, generator=draw, dtype=torch.float64) for _ in range(2))
    P[3:] = P[:1]
    P[5] = 0
    found = found_directions(P, Q, space, 8)
    assert len(found) == 3
    assert sum(each.share for each in found) == pytest.approx(1)
    assert found_directions(P * 0, Q, space, 8) == []
    assert found_directions(P, Q, space, 0) == []
    assert len(found_directions(P, Q, space, 2)) == 2


def test_the_shares_of_all_are_one() -> None:
    space, draw = some_space(120, 16, 2)
    P, Q = (torch.randn(6, 16, generator=draw, dtype=torch.float64) for _ in range(2))
    found = found_directions(P, Q, space, 100)
    assert sum(each.share for each in found) == pytest.approx(1)
    M = space.embedding.double().numpy() - space.means.numpy()
    M = M @ (P.T @ Q).numpy() @ M.T
    np.testing.assert_allclose([each.singular_value for each in found], np.linalg.svd(M)[1][:6], rtol=1e-9)


def test_what_all_tokens_have_in_common_does_not_count() -> None:
    draw = torch.Generator().manual_seed(3)
    E = torch.randn(100, 12, generator=draw).double()
    P, Q = (torch.randn(4, 12, generator=draw, dtype=torch.float64) for _ in range(2))
    spaces = (make_space((E + shift).float(), torch.device("cpu")) for shift in (0, torch.arange(12)))
    plain, moved = (found_directions(P, Q, space, 4) for space in spaces)
    for a, b in zip(plain, moved, strict=True):
        assert a.singular_value == pytest.approx(b.singular_value, rel=1e-5)
        for key, (ids, scores) in a.tokens.items():
            assert ids.tolist() == b.tokens[key][0].tolist()
            np.testing.assert_allclose(scores, b.tokens[key][1], rtol=1e-4, atol=1e-4)


def test_equal_rows_of_the_embedding_are_in_order_of_their_ids() -> None:
    draw = torch.Generator().manual_seed(4)
    E = torch.randn(30, 8, generator=draw).repeat(3, 1)
    P, Q = (torch.randn(3, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    for direction in found_directions(P, Q, make_space(E, torch.device("cpu")), 3):
        for ids, scores in direction.tokens.values():
            for start in range(0, 9, 3):
                first = int(ids[start])
                assert ids[start : start + 3].tolist() == [first, first + 30, first + 60]
                assert len(set(scores[start : start + 3].tolist())) == 1


def test_results_do_not_depend_on_threads() -> None:
    space, draw = some_space(5000, 64, 5)
    P, Q = (torch.randn(16, 64, generator=draw) for _ in range(2))
    before = torch.get_num_threads()
    try:
        found = []
        for n in (1, 2):
            torch.set_num_threads(n)
            found.append(found_directions(P, Q, space, 8))
    finally:
        torch.set_num_threads(before)
    for a, b in zip(*found, strict=True):
        assert np.float32(a.singular_value) == pytest.approx(np.float32(b.singular_value), rel=1e-7)
        for key, (ids, _) in a.tokens.items():
            assert ids.tolist() == b.tokens[key][0].tolist()


def test_displaced_heads_are_the_difference_of_two_matrices(tmp_path: Path) -> None:
    base, tuned = models.save_word_model(tmp_path / "base", 1), models.save_word_model(tmp_path / "tuned", 2)
    build([f"moved={tuned}"], tmp_path / "x.atlas", Options(top_k=5, pair_k=5, base=str(base), device="cpu"))
    before, after = oracle.read(base), oracle.read(tuned)
    for matrix in ("QK", "VO"):
        (A, B), (C, D) = after.head(matrix, 1, 0), before.head(matrix, 1, 0)
        E = before.E - before.E.mean(axis=0)
        values = np.linalg.svd(E @ (A @ B.T - C @ D.T) @ E.T)[1][:8]
        with open_atlas(tmp_path / "x.atlas") as atlas:
            found = atlas.sql(
                "SELECT singular_value FROM head_directions WHERE address = 'moved/L1/H0' AND matrix = ? "
                "ORDER BY direction",
                [matrix],
            ).to_rows()
        np.testing.assert_allclose([row["singular_value"] for row in found], values, rtol=1e-6)


@pytest.mark.parametrize("matrix", ["QK", "VO", None])
def test_verb(atlas: Atlas, matrix: str | None) -> None:
    result = atlas.directions("llama-gqa/L1/H2", 3, matrix=matrix)
    wanted = ["QK", "VO"] if matrix is None else [matrix]
    assert [(row["matrix"], row["direction"]) for row in result.to_rows()] == [
        (m, n) for m in wanted for n in (1, 2, 3)
    ]
    for row in result.to_rows():
        for role in ("source", "target"):
            for side in ("top", "bottom"):
                tokens = atlas.sql(
                    "SELECT text FROM head_direction_tokens WHERE address = 'llama-gqa/L1/H2' AND matrix = ? AND "
                    "direction = ? AND role = ? AND side = ? ORDER BY rank",
                    [row["matrix"], row["direction"], role, side],
                ).to_rows()
                assert row[f"{role}_{side}"] == [each["text"] for each in tokens]
    lines = str(result).splitlines()
    assert lines[0].startswith("llama-gqa/L1/H2: ")


def test_verb_with_a_filter(atlas: Atlas) -> None:
    every = atlas.directions("bert/L0/H1", 4).to_rows()
    result = atlas.directions("bert/L0/H1", 4, filter=TokenFilter(alnum=True, ascii=True))
    for row, whole in zip(result.to_rows(), every, strict=True):
        for name in ("source_top", "source_bottom", "target_top", "target_bottom"):
            assert row[name] == [text for text in whole[name] if text.isalnum() and text.isascii()]
    lists = [row[name] for row in result.to_rows() for name in row if isinstance(row[name], list)]
    short = sum(len(each) < 5 for each in lists)
    note = f"filtered: {short} of 32 lists have fewer than 5 tokens of a direction, because the atlas keeps no more"
    assert [each for each in result.notes if each.startswith(note)] == list(result.notes)
    assert len(result.notes) == (short > 0)


def test_command_line(small_atlas: Path, atlas: Atlas) -> None:
    arguments = ["directions", str(small_atlas), "gpt2-a/L0/H1", "-k", "2", "--matrix", "VO", "--format", "json"]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert json.loads(result.output) == json.loads(atlas.directions("gpt2-a/L0/H1", 2, matrix="VO").to_json())


def test_what_cannot_be_answered(atlas: Atlas, tmp_path: Path, word_model: Path) -> None:
    with pytest.raises(AddressError, match="directions takes a head, gpt2-a/L1/H0, say, not gpt2-a/L1/ff_key/3"):
        atlas.directions("gpt2-a/L1/ff_key/3")
    with pytest.raises(QueryError, match="matrix is QK or VO, not 'OV'"):
        atlas.directions("gpt2-a/L1/H0", matrix="OV")
    for number in (-1, 1001):
        with pytest.raises(BuildError, match=f"directions_k must be from 0 to 1,000, not {number}"):
            Options(directions_k=number).check()
    build([str(word_model)], tmp_path / "x.atlas", Options(top_k=5, pair_k=5, device="cpu", directions_k=0))
    with open_atlas(tmp_path / "x.atlas") as without:
        result = without.directions("word-model/L0/H0")
        assert result.to_rows() == []
        assert list(result.notes) == ["word-model was built without directions; build it anew with --directions-k 8"]


def test_more_directions_than_are_kept(atlas: Atlas) -> None:
    kept = atlas.directions("gpt2-a/L0/H1", 1000)
    said = "the atlas keeps {} directions per matrix; build with a larger --directions-k to keep more"
    assert said.format(max(row["direction"] for row in kept)) in kept.notes
    assert not atlas.directions("gpt2-a/L0/H1", 1).notes
