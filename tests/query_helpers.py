"""What the tests of the query package share: the brute force over whole models, and how a ranking is judged."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from dataclasses import dataclass

import duckdb
import numpy as np

import oracle

GPT2 = ["gpt2-a", "gpt2-b", "gpt2-wide"]
"""The models of one vocabulary."""
MODELS = [*GPT2, "llama-gqa", "bert"]
STRENGTH = {"top": lambda values: values, "bottom": lambda values: -values, "both": np.abs}
"""What the strongest have most of, by side."""
ERROR = 1e-5
"""The largest error that a similarity may have."""


def random_source() -> random.Random:
    """Drawn anew each run; a failing test shows the seed in its captured output, PARAMDEX_SEED=... draws it again."""
    seed = int(os.environ.get("PARAMDEX_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"PARAMDEX_SEED={seed}")
    return random.Random(seed)


@dataclass
class Everything:
    """All parameters of one model: their names, and their vectors' V scores (n x V, float64)."""

    model: str
    addresses: list[str]
    kinds: list[str]
    layers: list[int]
    scores: np.ndarray

    def chosen(self, kind: str | None = None, layer: int | None = None) -> list[int]:
        """The numbers of the parameters of a kind and layer; None is any."""
        return [
            i for i in range(len(self.addresses)) if kind in (None, self.kinds[i]) and layer in (None, self.layers[i])
        ]

    def row(self, address: str) -> np.ndarray:
        return self.scores[self.addresses.index(address)]


def everything(model: str, truth: oracle.Truth) -> Everything:
    """Every parameter of a model, with the addresses written out by the rules of the design."""
    addresses, kinds, layers, vectors = [], [], [], []
    for kind, by_layer in truth.rows.items():
        step = truth.n_heads // truth.n_kv_heads if kind in ("attn_key", "attn_value") else 1
        for layer, rows in enumerate(by_layer):
            for i, vector in enumerate(rows):
                place = f"{kind}/{i}"
                if kind.startswith("attn_"):
                    place = f"H{i // truth.d_head * step}/{kind}/{i % truth.d_head}"
                addresses.append(f"{model}/L{layer}/{place}")
                kinds.append(kind)
                layers.append(layer)
                vectors.append(vector)
    return Everything(model, addresses, kinds, layers, np.array(vectors) @ truth.E.T)


def token_rows(db: duckdb.DuckDBPyConnection, model: str) -> list[tuple[int, str, str, bool, bool]]:
    """(token_id, token, text, is_special, is_word_start) of a model's vocabulary."""
    return db.execute(
        "SELECT token_id, token, text, is_special, is_word_start FROM tokens JOIN models USING (vocabulary) "
        "WHERE model = ? ORDER BY token_id",
        [model],
    ).fetchall()


def ids_of_words(db: duckdb.DuckDBPyConnection, model: str, words: Iterable[str]) -> dict[str, list[int]]:
    """For each bare lower-case word the ids of all its spellings, without ``##`` continuations."""
    rows = token_rows(db, model)
    return {
        word: [i for i, token, text, *_ in rows if text.strip().casefold() == word and not token.startswith("##")]
        for word in words
    }


def shared_ids(db: duckdb.DuckDBPyConnection, a: str, b: str) -> tuple[list[int], list[int]]:
    """The ids in a and in b of the ordinary items that both have: same text and same beginning of a word or not."""
    first: list[dict[tuple[str, bool], int]] = []
    for model in (a, b):
        items: dict[tuple[str, bool], int] = {}
        for i, _, text, special, starts in token_rows(db, model):
            if not special and text.strip(" "):
                items.setdefault((text.strip(" "), starts), i)
        first.append(items)
    both = [item for item in first[0] if item in first[1]]
    return [first[0][item] for item in both], [first[1][item] for item in both]


def assert_ranking(rows: list[dict], truth: dict[str, float], k: int, side: str = "top") -> None:
    """``rows`` (rank, address, similarity) are the k strongest of ``truth`` on a side, strongest first.

    Every similarity is its parameter's own, and rank by rank the similarities are the brute force's, both to ERROR;
    where the brute force has a clear winner of a rank, it is the one.
    """
    strength = STRENGTH[side]
    order = sorted(truth, key=lambda address: -strength(truth[address]))
    n = min(k, len(truth))
    addresses = [row["address"] for row in rows]
    found = np.array([row["similarity"] for row in rows])
    assert [row["rank"] for row in rows] == list(range(1, n + 1))
    assert len(set(addresses)) == n
    np.testing.assert_allclose(found, [truth[address] for address in addresses], atol=ERROR, rtol=0)
    best = strength(np.array([truth[address] for address in order]))
    assert (np.diff(strength(found)) <= 0).all()
    np.testing.assert_allclose(strength(found), best[:n], atol=ERROR, rtol=0)
    for i in range(n):
        before, after = best[i - 1] if i else np.inf, best[i + 1] if i + 1 < len(best) else -np.inf
        if min(before - best[i], best[i] - after) > 2 * ERROR:
            assert addresses[i] == order[i]
