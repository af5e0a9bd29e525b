"""``find`` against a brute force in plain Python over the public views parameter_tokens and head_pairs."""

from __future__ import annotations

from collections import defaultdict

import duckdb
import pytest

from paramdex import AddressError, Atlas, QueryError, TokenError
from query_helpers import GPT2, MODELS, ids_of_words


def wanted(db: duckdb.DuckDBPyConnection, words: list[str]) -> dict[str, dict[int, str]]:
    """model -> token id -> the word it stands for."""
    return {model: {i: word for word, ids in ids_of_words(db, model, words).items() for i in ids} for model in MODELS}


def parameters(
    db: duckdb.DuckDBPyConnection, words: list[str], models: list[str], kind: str | None, layer: int | None
) -> list[dict]:
    """Every parameter and side that has one of the words: most words first, then the largest mean z."""
    token_words = wanted(db, words)
    hits: dict[tuple, list[tuple]] = defaultdict(list)
    for model, address, each, at, side, rank, token_id, text, score, mean, std in db.execute(
        "SELECT t.model, t.address, t.kind, t.layer, t.side, t.rank, t.token_id, t.text, t.score, p.mean, p.std "
        "FROM parameter_tokens AS t JOIN parameters AS p USING (param_id) ORDER BY t.param_id, t.side DESC, t.rank"
    ).fetchall():
        if model in models and kind in (None, each) and layer in (None, at) and token_id in token_words[model]:
            hits[address, each, side].append((token_words[model][token_id], rank, abs((score - mean) / std), text))
    rows = []
    for (address, each, side), found in hits.items():
        z = {word: max(hit[2] for hit in found if hit[0] == word) for word, *_ in found}
        tokens = {}
        for word, _, _, text in found:  # by rank: the first is a word's strongest
            tokens.setdefault(word, text)
        rows.append(
            {"address": address, "kind": each, "side": side, "words": len(z), "rank": found[0][1],
             "z": sum(z.values()) / len(z), "tokens": list(tokens.values())}
        )  # fmt: skip
    return sorted(rows, key=lambda row: (-row["words"], -row["z"]))


def heads(
    db: duckdb.DuckDBPyConnection, words: list[str], models: list[str], kind: str | None, layer: int | None
) -> list[dict]:
    """Every head, matrix and side with a pair of one of the words: most words, then pairs of two of them, then z."""
    token_words = wanted(db, words)
    hits: dict[tuple, list[dict]] = defaultdict(list)
    for model, address, at, matrix, side, rank, source_id, source, target_id, target, score, mean, std in db.execute(
        "SELECT r.model, r.address, r.layer, matrix, side, rank, source_id, source, "
        "target_id, target, score, if(matrix = 'QK', qk_mean, vo_mean), if(matrix = 'QK', qk_std, vo_std) "
        "FROM head_pairs AS r JOIN heads USING (head_id)"
    ).fetchall():
        pair = [token_words[model].get(source_id), token_words[model].get(target_id)]
        if model in models and kind in (None, matrix) and layer in (None, at) and pair != [None, None]:
            hits[address, matrix, side].append(
                {
                    "words": {word for word in pair if word},
                    "linked": None not in pair and pair[0] != pair[1],
                    "rank": rank,
                    "z": abs((score - mean) / std),
                    "text": f"{source} → {target}",
                }
            )
    rows = []
    for (address, matrix, side), found in hits.items():
        first = sorted(found, key=lambda hit: (-hit["linked"], -hit["z"]))[:3]
        rows.append(
            {
                "address": address,
                "kind": matrix,
                "side": side,
                "words": len(set().union(*(hit["words"] for hit in found))),
                "rank": min((hit["rank"] for hit in found if hit["rank"]), default=None),
                "z": max(hit["z"] for hit in found),
                "tokens": [hit["text"] for hit in first],
                "linked": sum(hit["linked"] for hit in found),
            }
        )
    rows.sort(key=lambda row: (-row["words"], -row["linked"], -row["z"]))
    return [{name: value for name, value in row.items() if name != "linked"} for row in rows]


def assert_rows(found: list[dict], expected: list[dict]) -> None:
    """The same rows in the same order; z to float32 rounding."""
    assert [{**row, "z": None} for row in found] == [{**row, "z": None} for row in expected]
    assert [row["z"] for row in found] == pytest.approx([row["z"] for row in expected], rel=1e-5)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["canada"], {}),
        (["canada", "bread", "paris"], {}),
        (["canada", "bread", "paris"], {"model": "gpt2-wide"}),
        (["violin", "music"], {"model": "llama-gqa"}),
        (["river", "ocean", "winter", "summer"], {"kind": "ff_value"}),
        (["river", "ocean"], {"kind": "ff_gate"}),
        (["river", "ocean"], {"kind": "attn_output", "layer": 1}),
        (["river", "ocean"], {"kind": "position"}),
        (["river", "ocean"], {"kind": "attn_value_bias"}),
        (["river", "ocean", "winter", "summer", "green"], {"kind": "attn_query_bias", "layer": 1}),
        (["doctor", "nurse"], {"kind": "QK"}),
        (["doctor", "nurse"], {"kind": "VO", "model": "bert"}),
        (["doctor", "nurse"], {"layer": 2}),
        (["seven", "eight"], {"layer": 0, "model": "gpt2-b"}),
    ],
)
def test_agrees_with_brute_force(atlas: Atlas, db: duckdb.DuckDBPyConnection, words: list[str], options: dict) -> None:
    model, kind, layer = (options.get(name) for name in ("model", "kind", "layer"))
    models = MODELS if model is None else [model]
    expected = []
    if kind not in ("QK", "VO"):
        expected += parameters(db, words, models, kind, layer)[:6]
    if kind in (None, "QK", "VO"):
        expected += heads(db, words, models, kind, layer)[:6]
    assert len(expected) > 3
    assert_rows(atlas.find(words, k=6, **options).to_rows(), expected)


def test_gives_all_where_k_is_large(atlas: Atlas, db: duckdb.DuckDBPyConnection) -> None:
    expected = parameters(db, ["bread"], ["bert"], None, None) + heads(db, ["bread"], ["bert"], None, None)
    assert_rows(atlas.find("bread", k=10_000, model="bert").to_rows(), expected)


def test_asks_every_vocabulary_at_once(atlas: Atlas) -> None:
    rows = atlas.find(["canada"], k=1000).to_rows()
    assert {row["address"].split("/")[0] for row in rows} == set(MODELS)


def test_word_missing_in_one_vocabulary_is_said(atlas: Atlas) -> None:
    """``bread-butter`` and ``東`` are items of bert's vocabulary alone."""
    result = atlas.find(["canada", "bread-butter"], k=5)
    missing = [f"the vocabulary of {names} has no bread-butter" for names in (", ".join(GPT2), "llama-gqa")]
    assert list(result.notes) == missing
    alone = atlas.find("東", k=500)
    assert {row["address"].split("/")[0] for row in alone} == {"bert"}
    assert list(alone.notes) == [f"the vocabulary of {', '.join([*GPT2, 'llama-gqa'])} has none of these words"]


def test_string_is_one_word_and_a_list_is_several(atlas: Atlas) -> None:
    assert atlas.find("bread").to_rows() == atlas.find(["bread"]).to_rows() == atlas.find(("bread", "bread")).to_rows()
    assert atlas.find("bread butter").to_rows() == atlas.find(["bread", "butter"]).to_rows()
    with pytest.raises(TokenError, match="no vocabulary here has 'buter'; the nearest words are butter"):
        atlas.find("bread buter")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "gpt2-x"}, AddressError, "has no model 'gpt2-x'; did you mean gpt2-b"),
        ({"kind": "ff_valu"}, QueryError, "there is no kind 'ff_valu'; did you mean ff_value"),
        ({"kind": "ff_gate", "model": "bert"}, QueryError, "bert has no parameters of kind 'ff_gate'; did you mean"),
        ({"layer": 3}, AddressError, "there is no layer 3; gpt2-wide has layers L0 to L2"),
        ({"layer": 2, "model": "bert"}, AddressError, "there is no layer 2; bert has layers L0 to L1"),
        ({"layer": -1}, AddressError, "there is no layer -1"),
        ({"kind": "position", "layer": 0}, QueryError, "position belongs to no layer; ask without layer 0"),
        ({"kind": "position", "model": "llama-gqa"}, QueryError, "llama-gqa has no parameters of kind 'position'"),
        ({"k": 0}, QueryError, "at least 1, not 0"),
        ({"k": -1}, QueryError, "at least 1, not -1"),
    ],
)
def test_what_is_not_there_is_said(atlas: Atlas, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        atlas.find("canada", **options)
