"""The lists of an atlas by score and by token_z, against a float64 brute force over all scores of all parameters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pytest

import oracle
from paramdex_builder.project.usual import LEAST
from query_helpers import Everything

MODELS = ["gpt2-a", "gpt2-wide", "llama-gqa"]
K = 12


@pytest.fixture(scope="module")
def database(reading_folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(str(reading_folder / "atlas.duckdb"), read_only=True) as connection:
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
