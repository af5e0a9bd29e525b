"""The lists of an atlas by score and by token_z, against a float64 brute force over all scores of all parameters."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pytest

import oracle
from opened import opened
from paramdex_builder.project.usual import LEAST
from paramdex_builder.project.usual_pairs import LEAST as LEAST_HEADS
from query_helpers import Everything
from reading_oracle import head_factors

MODELS = ["gpt2-a", "gpt2-wide", "llama-gqa"]
K, PAIR_K = 12, 30


@pytest.fixture(scope="module")
def database(reading_folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with opened(reading_folder) as connection:
        yield connection


def token_z(database: duckdb.DuckDBPyConnection, whole: Everything) -> np.ndarray:
    """token_z of all parameters (n x V), NaN where a kind has too few vectors in a space."""
    spaces = dict(database.execute("SELECT address, space FROM parameters WHERE model = ?", [whole.model]).fetchall())
    groups = [(kind, spaces[address]) for kind, address in zip(whole.kinds, whole.addresses, strict=True)]
    found = np.full(whole.scores.shape, np.nan)
    for group in set(groups):
        rows = [i for i, each in enumerate(groups) if each == group]
        if len(rows) >= LEAST:
            scores = whole.scores[rows]
            found[rows] = (scores - scores.mean(0)) / scores.std(0)
    return found


@pytest.mark.parametrize("model", MODELS)
def test_lists_postings_and_hubs(
    database: duckdb.DuckDBPyConnection, reading_wholes: dict[str, Everything], model: str
) -> None:
    whole = reading_wholes[model]
    every = token_z(database, whole)
    assert np.isnan(every).any(axis=1).any() or model == "llama-gqa"  # biases of few layers
    assert np.isfinite(every).any()
    rows = database.execute(
        "SELECT address, side, token_id, score, token_z, rank, rank_token_z FROM parameter_tokens WHERE model = ?",
        [model],
    ).fetchall()
    lists: dict[tuple[str, str], list[tuple[int, float, float | None, int | None, int | None]]] = {}
    for address, side, *entry in rows:
        lists.setdefault((address, side), []).append(tuple(entry))
    counts = np.zeros((2, whole.scores.shape[1]), int)
    for i, address in enumerate(whole.addresses):
        s, z = whole.scores[i], every[i]
        for side in ("top", "bottom"):
            entries = lists.pop((address, side))
            by_score = sorted((rank, token, score) for token, score, _, rank, _ in entries if rank is not None)
            ids = [token for _, token, _ in by_score]
            assert [rank for rank, *_ in by_score] == list(range(1, K + 1))
            oracle.assert_strongest(np.array([score for *_, score in by_score]), s[ids], s, side)
            np.add.at(counts[0], ids[:10], 1)
            by_z = sorted((rank, token, own) for token, _, own, _, rank in entries if rank is not None)
            if np.isnan(z).all():
                assert not by_z
                assert len(entries) == K
                continue
            others = [token for _, token, _ in by_z]
            assert [rank for rank, *_ in by_z] == list(range(1, K + 1))
            assert {token for token, *_ in entries} == {*ids, *others}
            oracle.assert_strongest(np.array([own for *_, own in by_z]), z[others], z, side)
            np.testing.assert_allclose([own for _, _, own, *_ in entries], z[[e[0] for e in entries]], atol=2e-5)
            np.add.at(counts[1], others[:10], 1)
    assert not lists
    hubs = database.execute(
        "SELECT in_top_10, in_top_10_token_z FROM token_embeddings WHERE model = ? ORDER BY token_id", [model]
    ).fetchall()
    np.testing.assert_array_equal(np.array(hubs).T, counts)


def matrices(truth: oracle.Truth, whole: Everything, matrix: str) -> dict[str, np.ndarray]:
    """Address -> the V x V scores of every head."""
    found = {}
    for layer, head in itertools.product(range(truth.n_layers), range(truth.n_heads)):
        P, Q = head_factors(truth, whole, matrix, layer, head)
        found[f"{whole.model}/L{layer}/H{head}"] = P.T @ Q
    return found


@pytest.mark.parametrize("matrix", ["QK", "VO"])
@pytest.mark.parametrize("model", MODELS)
def test_pairs(
    database: duckdb.DuckDBPyConnection,
    truths: dict[str, oracle.Truth],
    reading_wholes: dict[str, Everything],
    model: str,
    matrix: str,
) -> None:
    """token_z and both lists by it, of all pairs and of different words, from all scores of all heads."""
    every = matrices(truths[model], reading_wholes[model], matrix)
    centred = {address: S - S.mean(1, keepdims=True) for address, S in every.items()}
    relative = {address: S / np.sqrt((S**2).mean()) for address, S in centred.items()}
    squares = np.mean([S**2 for S in relative.values()], axis=0)
    usual = np.sqrt(squares.mean(1))[:, None] * np.sqrt(squares.mean(0))
    for address, S in relative.items():
        Z = S / usual
        rows = database.execute(
            "SELECT side, source_id, target_id, token_z, rank_token_z, rank_distinct_token_z, same_word "
            "FROM head_pairs WHERE address = ? AND matrix = ?",
            [address, matrix],
        ).fetchall()
        if len(every) < LEAST_HEADS:
            assert {row[3:6] for row in rows} == {(None, None, None)}
            continue
        same = {(source, target) for _, source, target, *_, is_same in rows if is_same}
        np.testing.assert_allclose([row[3] for row in rows], [Z[row[1], row[2]] for row in rows], rtol=2e-6, atol=1e-7)
        for side in ("top", "bottom"):
            for place in (4, 5):
                own = sorted((row[place], *row[1:4]) for row in rows if row[0] == side and row[place] is not None)
                assert [entry[0] for entry in own] == list(range(1, PAIR_K + 1))
                source, target, scores = map(list, list(zip(*own, strict=True))[1:])
                if place == 4:
                    at = Z[source, target]
                    best = np.sort(Z.ravel())[::-1][:PAIR_K] if side == "top" else np.sort(Z.ravel())[:PAIR_K]
                    np.testing.assert_allclose(at, best, rtol=1e-6, atol=1e-8)
                    np.testing.assert_allclose(scores, at, rtol=2e-6, atol=1e-7)
                else:
                    assert not same & set(zip(source, target, strict=True))
