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
VIEWS = {
    "models": "model source revision family n_layers d_model n_heads n_kv_heads d_head d_ff n_experts d_expert stacks "
    "vocabulary embedding tied fold_norm reading reading_text reading_tokens top_k pair_k weights_sha256 built_at "
    "builder_version",
    "layout": "model kind stack layer owner n_owners size n_parameters first_param_id space",
    "tokens": "vocabulary token_id token text is_special is_byte is_added is_ascii is_alnum is_word_start "
    "is_undertrained",
    "token_embeddings": "model vocabulary token_id token text norm undertrained is_undertrained",
    "parameters": "param_id address model stack layer kind head kv_head expert idx norm mean std projected_norm space "
    "embedding_std reads",
    "readings": "model stack layer kind n reads",
    "parameter_tokens": "param_id address model stack layer kind head expert idx side rank token_id token text score "
    "token_z rank_token_z",
    "heads": "head_id address model stack layer head kv_head qk_norm vo_norm space",
    "head_pairs": "head_id address model stack layer head matrix side rank rank_distinct same_word source_id source "
    "target_id target score token_z rank_token_z rank_distinct_token_z",
    "head_directions": "head_id address model stack layer head matrix direction singular_value share",
    "head_direction_tokens": "head_id address model stack layer head matrix direction role side rank token_id token "
    "text score",
    "neighbors": "param_id address neighbor_id neighbor neighbor_model rank similarity",
    "layer_alignments": "model_a model_b kind stack_a layer_a stack_b layer_b score matched",
}
"""The public tables, and the columns of each that are promised to be there."""
STRENGTH = {"top": lambda values: values, "bottom": lambda values: -values, "both": np.abs}
"""What the strongest have most of, by side."""
Item = tuple[int, str, str, bool, bool | None, bool, bool]
"""(token_id, token, text, is_special, is_word_start, is_byte, is_added) of a vocabulary's item."""
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
    layers: list[int | None]
    scores: np.ndarray

    def chosen(self, kind: str | None = None, layer: int | None = None) -> list[int]:
        """The numbers of the parameters of a kind and layer; None is any."""
        return [
            i for i in range(len(self.addresses)) if kind in (None, self.kinds[i]) and layer in (None, self.layers[i])
        ]

    def some(self, draw: random.Random, n: int) -> list[int]:
        """The numbers of one parameter of every kind, drawn at random, and of ``n`` more of any."""
        return [draw.choice(self.chosen(kind)) for kind in dict.fromkeys(self.kinds)] + draw.sample(
            range(len(self.addresses)), n
        )

    def row(self, address: str) -> np.ndarray:
        return self.scores[self.addresses.index(address)]


def everything(model: str, truth: oracle.Truth) -> Everything:
    """Every parameter of a model."""
    kinds, layers, heads, indexes, vectors = zip(*truth.parameters(), strict=True)
    places = zip(kinds, layers, heads, indexes, strict=True)
    addresses = [oracle.address(model, *place) for place in places]
    return Everything(model, addresses, list(kinds), list(layers), np.array(vectors) @ truth.E.T)


def token_rows(db: duckdb.DuckDBPyConnection, model: str) -> list[Item]:
    """The items of a model's vocabulary."""
    return db.execute(
        "SELECT token_id, token, text, is_special, is_word_start, is_byte, is_added "
        "FROM tokens JOIN models USING (vocabulary) WHERE model = ? ORDER BY token_id",
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
    """The ids in a and in b of the items that both have."""
    left, right = zip(*shared_items(token_rows(db, a), token_rows(db, b)), strict=True)
    return list(left), list(right)


def shared_items(a: list[Item], b: list[Item]) -> list[tuple[int, int]]:
    """The ids of the ordinary items that both vocabularies have: same text and same beginning of a word or not.

    Where one of them does not say what begins a word, its item is the other's that does, or else the other's that does
    not. Of several items that read the same, an added one counts, which text is searched for first; then an ordinary
    one, then a byte piece; of those where only ends of words are marked, one that ends a word before one that goes on;
    then the one of fewest spaces, then the first. A byte piece has its counterpart in a byte piece alone.
    """
    found: list[dict[tuple[str, bool, bool | None], int]] = []
    for rows in (a, b):
        by_text: dict[tuple[str, bool | None], list[Item]] = {}
        for row in rows:
            _, _, text, special, starts, *_ = row
            if not special and text.strip(" "):
                by_text.setdefault((text.strip(" "), starts), []).append(row)
        items = {}
        for (text, starts), alike in by_text.items():
            first = min(
                alike, key=lambda row: (row[5], not row[6], row[4] is None and row[2][-1] != " ", len(row[2]), row[0])
            )
            items[text, first[5], starts] = first[0]
        found.append(items)

    def best_of(text: str, byte: bool, starts: bool | None, theirs: dict) -> bool | str | None:
        may_be = [each for each in (True, False, None) if each == starts or None in (each, starts)]
        return next((each for each in may_be if (text, byte, each) in theirs), "nothing")

    pairs = []
    for (text, byte, starts), i in found[0].items():
        other = best_of(text, byte, starts, found[1])
        if other != "nothing" and best_of(text, byte, other, found[0]) == starts:
            pairs.append((i, found[1][text, byte, other]))
    return pairs


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
