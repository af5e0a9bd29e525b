"""What an atlas holds of models whose readers are scored in spaces of their own, against a float64 brute force.

The models of ``reading_folder``: effective and expected readings, tied and untied embeddings, grouped-query attention.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import duckdb
import faiss
import numpy as np
import pytest

import oracle
from opened import opened
from query_helpers import Everything
from reading_oracle import READERS, head_factors

MODELS = ["gpt2-a", "gpt2-wide", "llama-gqa"]


@pytest.fixture(scope="module")
def database(reading_folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with opened(reading_folder) as connection:
        yield connection


@pytest.mark.parametrize("model", MODELS)
def test_the_space_of_every_parameter(
    database: duckdb.DuckDBPyConnection, truths: dict[str, oracle.Truth], model: str
) -> None:
    """Readers of layer 0 are scored in the space entering, those above in the space reading, all else by the output
    embedding, whether the two embeddings are tied or not.
    """
    ((main, tied),) = database.execute("SELECT embedding, tied FROM models WHERE model = ?", [model]).fetchall()
    assert (main, tied) == ("output", model != "llama-gqa")
    rows = database.execute("SELECT kind, layer, space FROM parameters WHERE model = ?", [model]).fetchall()
    assert len(rows) == truths[model].n_parameters
    for kind, layer, space in rows:
        assert space == (main if kind not in READERS else "reading" if layer else "entering")
    listed = database.execute("SELECT kind, layer, space FROM layout WHERE model = ?", [model]).fetchall()
    assert set(listed) == set(rows)
    heads = database.execute("SELECT layer, space FROM heads WHERE model = ?", [model]).fetchall()
    assert set(heads) == {(layer, space) for kind, layer, space in rows if kind == "attn_query"}


@pytest.mark.parametrize("model", MODELS)
def test_numbers_and_tokens(
    database: duckdb.DuckDBPyConnection,
    truths: dict[str, oracle.Truth],
    reading_wholes: dict[str, Everything],
    draw: random.Random,
    model: str,
) -> None:
    """Of parameters of every kind: their own norms; the moments and strongest tokens of the scores in their space."""
    truth, whole = truths[model], reading_wholes[model]
    vectors = [vector for *_, vector in truth.parameters()]
    for i in whole.some(draw, 100):
        (row,) = database.execute(
            "SELECT norm, embedding_std, mean, std, projected_norm, top_tokens[:12], top_scores[:12], "
            "bottom_tokens[:12], bottom_scores[:12] FROM store.parameters WHERE of_model || '/' || path = ?",
            [whole.addresses[i]],
        ).fetchall()
        s, w = whole.scores[i], vectors[i]
        expected = [np.linalg.norm(w), (truth.E @ w).std(), s.mean(), s.std(), np.linalg.norm(s)]
        np.testing.assert_allclose(row[:5], expected, rtol=3e-7, atol=1e-9)
        for side, ids, scores in (("top", *row[5:7]), ("bottom", *row[7:9])):
            assert len(set(ids)) == 12
            oracle.assert_strongest(scores, s[ids], s, side)


@pytest.mark.parametrize("model", MODELS)
def test_index_rows_are_pearson_coordinates_in_their_space(
    database: duckdb.DuckDBPyConnection, reading_folder: Path, reading_wholes: dict[str, Everything], model: str
) -> None:
    """KIND.SPACE.faiss has the vectors of a kind that are scored there, in order; KIND.faiss all, by the embedding."""
    whole, folder = reading_wholes[model], reading_folder / "models" / model
    ((main,),) = database.execute("SELECT embedding FROM models WHERE model = ?", [model]).fetchall()
    for kind in dict.fromkeys(whole.kinds):
        rows = database.execute(
            "SELECT address, space FROM parameters WHERE model = ? AND kind = ? ORDER BY param_id", [model, kind]
        ).fetchall()
        assert faiss.read_index(str(folder / f"{kind}.faiss")).ntotal == len(rows)
        for space in {space for _, space in rows} - {main}:
            index = faiss.read_index(str(folder / f"{kind}.{space}.faiss"))
            scores = np.array([whole.row(address) for address, own in rows if own == space])
            assert index.ntotal == len(scores)
            found = index.reconstruct_n(0, index.ntotal)
            assert np.abs(found @ found.T - oracle.pearson(scores, scores)).max() < 1e-5


@pytest.mark.parametrize("matrix", ["QK", "VO"])
@pytest.mark.parametrize("model", MODELS)
def test_pairs_and_directions(
    database: duckdb.DuckDBPyConnection,
    truths: dict[str, oracle.Truth],
    reading_wholes: dict[str, Everything],
    model: str,
    matrix: str,
) -> None:
    """Of one head of each layer: the norm of its own matrix, and all else of the V x V matrix of both sides' scores."""
    truth, whole = truths[model], reading_wholes[model]
    for layer in range(truth.n_layers):
        head = (layer + 1) % truth.n_heads
        P, Q = head_factors(truth, whole, matrix, layer, head)
        S = P.T @ Q
        address, name = f"{model}/L{layer}/H{head}", matrix.lower()
        (numbers,) = database.execute(
            f"SELECT {name}_norm, {name}_mean, {name}_std FROM heads WHERE address = ?", [address]
        ).fetchall()
        left, right = truth.head(matrix, layer, head)
        np.testing.assert_allclose(numbers, [np.linalg.norm(left @ right.T), S.mean(), S.std()], rtol=1e-6, atol=1e-9)
        for side in ("top", "bottom"):
            found = database.execute(
                "SELECT source_id, target_id, score FROM head_pairs WHERE address = ? AND matrix = ? AND side = ? "
                "AND rank IS NOT NULL ORDER BY rank",
                [address, matrix, side],
            ).fetchall()
            source, target, scores = map(list, zip(*found, strict=True))
            assert len(found) == 30
            oracle.assert_strongest(scores, S[source, target], S, side)
        values = np.linalg.svd(S - S.mean(0) - S.mean(1, keepdims=True) + S.mean(), compute_uv=False)
        kept = database.execute(
            "SELECT singular_value FROM head_directions WHERE address = ? AND matrix = ? ORDER BY direction",
            [address, matrix],
        ).fetchall()
        np.testing.assert_allclose([value for (value,) in kept], values[: len(kept)], rtol=1e-5)
