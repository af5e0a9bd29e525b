"""The committed models and all-MiniLM-L6-v2: what the README claims of them, and their numbers against brute force."""

from __future__ import annotations

import json
import random
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import oracle
import paramdex
from paramdex.tour import demo_sources
from paramdex_schemas import MATRICES
from reading_oracle import Scored

ROOT = Path(__file__).parents[2]
FOLDERS = {name: Path(folder) for name, _, folder in (s.partition("=") for s in demo_sources(ROOT / "data" / "models"))}
SEEDS = ["tiny-a", "tiny-b", "tiny-c"]


@pytest.fixture(scope="module")
def atlas(demo_atlas: Path) -> paramdex.Atlas:
    return paramdex.open(demo_atlas)


def test_they_were_trained() -> None:
    for name in [*SEEDS, "tiny-wide"]:
        log = [json.loads(line) for line in (FOLDERS[name] / "training.jsonl").read_text().splitlines()]
        assert log[1]["held_out_loss"] > 8
        assert log[-1]["held_out_loss"] < log[-1]["unigram_loss"] - 1.4


def test_layers_of_seeds_match_in_embedding_space_but_not_in_raw_weights(atlas: paramdex.Atlas) -> None:
    """The README's numbers: of 18 matchings 17 are the identity in embedding space, 3 in raw weights."""
    identical = {"matched": 0, "feature_matched": 0}
    for a, b in combinations(SEEDS, 2):
        rows = atlas.align(a, b).to_rows()
        for kind in {row["kind"] for row in rows}:
            for which in identical:
                pairs = [(row["layer_a"], row["layer_b"]) for row in rows if row["kind"] == kind and row[which]]
                identical[which] += pairs == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert identical == {"matched": 17, "feature_matched": 3}


@pytest.mark.parametrize("model", ["tiny-wide", "minilm"])
def test_tokens_and_moments_are_exact(atlas: paramdex.Atlas, demo_atlas: Path, model: str, draw: random.Random) -> None:
    truth = oracle.read(FOLDERS[model])
    scored = Scored(model, truth, FOLDERS[model], demo_atlas)
    rows = atlas.sql("SELECT * FROM parameters WHERE model = ?", [model]).to_rows()
    kinds: dict[str, list[dict]] = {}
    for row in rows:
        kinds.setdefault(row["kind"], []).append(row)
    for row in draw.sample(rows, 60) + [draw.choice(own) for own in kinds.values()]:
        vector = truth.vector(row["kind"], row["layer"], row["head"], row["idx"])
        scores = scored.scores(row["kind"], row["layer"], vector)
        np.testing.assert_allclose([row["mean"], row["std"]], [scores.mean(), scores.std()], rtol=1e-5, atol=1e-9)
        card = atlas.show(row["address"], 50, filter=paramdex.TokenFilter(by="score"))
        for side in ("top", "bottom"):
            shown = [token for token in card if token["side"] == side]
            found = np.array([token["score"] for token in shown], np.float32)
            assert len(found) == 50
            oracle.assert_strongest(found, scores[[token["token_id"] for token in shown]], scores, side)


@pytest.mark.parametrize(
    ("model", "matrix"), [("tiny-wide", "QK"), ("tiny-wide", "VO"), ("minilm", "QK"), ("minilm", "VO")]
)
def test_pairs_are_exact(atlas: paramdex.Atlas, demo_atlas: Path, model: str, matrix: str, draw: random.Random) -> None:
    truth = oracle.read(FOLDERS[model])
    scored = Scored(model, truth, FOLDERS[model], demo_atlas)
    layer, head = draw.randrange(truth.n_layers), draw.randrange(truth.n_heads)
    left, right = (
        scored.scores(kind, layer, factor.T)
        for kind, factor in zip(MATRICES[matrix], truth.head(matrix, layer, head), strict=True)
    )
    for side in ("top", "bottom"):
        pairs = atlas.sql(
            "SELECT source_id, target_id, score, rank, rank_distinct FROM head_pairs "
            "WHERE model = ? AND layer = ? AND head = ? AND matrix = ? AND side = ?",
            [model, layer, head, matrix, side],
        ).to_rows()
        for which in ("rank", "rank_distinct"):
            listed = sorted((pair for pair in pairs if pair[which] is not None), key=lambda pair: pair[which])
            assert [pair[which] for pair in listed] == list(range(1, 201))
            ids = [(pair["source_id"], pair["target_id"]) for pair in listed]
            own = np.array([left[s] @ right[t] for s, t in ids])
            everything = strongest_of_all(left, right, side, words(atlas, model) if which == "rank_distinct" else None)
            oracle.assert_strongest([pair["score"] for pair in listed], own, everything, side)


def words(atlas: paramdex.Atlas, model: str) -> np.ndarray:
    """Every token's word: its text stripped and case-folded."""
    vocabulary = atlas.models[model].vocabulary
    rows = atlas.sql("SELECT text FROM tokens WHERE vocabulary = ? ORDER BY token_id", [vocabulary]).to_rows()
    numbers: dict[str, int] = {}
    folded = [row["text"].strip().casefold() or row["text"] for row in rows]
    return np.array([numbers.setdefault(text, len(numbers)) for text in folded])


def strongest_of_all(left: np.ndarray, right: np.ndarray, side: str, number: np.ndarray | None) -> np.ndarray:
    """The 200 strongest scores of every block of rows of the V x V matrix; pairs of one word left out if asked."""
    sign = 1.0 if side == "top" else -1.0
    best = []
    for start in range(0, len(left), 500):
        scores = sign * (left[start : start + 500] @ right.T)
        if number is not None:
            scores[number[start : start + 500][:, None] == number[None, :]] = -np.inf
        best.append(np.partition(scores.ravel(), -200)[-200:])
    return sign * np.concatenate(best)


def test_similarity_is_pearson(atlas: paramdex.Atlas, draw: random.Random) -> None:
    truth = oracle.read(FOLDERS["minilm"])
    rows = {row["address"]: row for row in atlas.sql("SELECT * FROM parameters WHERE model = 'minilm'")}
    for address in draw.sample(sorted(rows), 8):
        for hit in atlas.similar(address, k=5):
            both = [rows[name] for name in (address, hit["address"])]
            vectors = [truth.vector(row["kind"], row["layer"], row["head"], row["idx"]) for row in both]
            expected = np.corrcoef(truth.scores(vectors[0]), truth.scores(vectors[1]))[0, 1]
            assert abs(hit["similarity"] - expected) < 1e-5
