"""``find`` against a brute force in plain Python over the public views parameter_tokens and head_pairs."""

from __future__ import annotations

import math
from collections import defaultdict

import duckdb
import pytest

from paramdex import AddressError, Atlas, QueryError, TokenError, TokenFilter
from paramdex_schemas.model import Ranking
from query_helpers import GPT2, MODELS, ids_of_words


def wanted(db: duckdb.DuckDBPyConnection, words: list[str]) -> dict[str, dict[int, str]]:
    """model -> token id -> the word it stands for."""
    return {model: {i: word for word, ids in ids_of_words(db, model, words).items() for i in ids} for model in MODELS}


def of_ranking(column: str, by: str) -> str:
    """SQL for a column of ranks in a ranking; what has no token_z is ranked by score."""
    return column if by == "score" else f"if(token_z IS NULL, {column}, {column}_token_z)"


def parameters(
    db: duckdb.DuckDBPyConnection, words: list[str], models: list[str], kind: str | None, layer: int | None, by: str
) -> list[dict]:
    """Every parameter and side that has one of the words in its list of a ranking: most words first, then the largest
    mean z, or token_z where that ranks it.
    """
    token_words = wanted(db, words)
    hits: dict[tuple, list[dict]] = defaultdict(list)
    for model, address, each, at, side, place, token_id, text, score, token_z, mean, std in db.execute(
        f"SELECT t.model, t.address, t.kind, t.layer, t.side, {of_ranking('rank', by)} AS place, "
        "t.token_id, t.text, t.score, t.token_z, p.mean, p.std "
        "FROM parameter_tokens AS t JOIN parameters AS p USING (param_id) WHERE place IS NOT NULL "
        "ORDER BY t.param_id, t.side DESC, place"
    ).fetchall():
        if model in models and kind in (None, each) and layer in (None, at) and token_id in token_words[model]:
            sign = 1 if side == "top" else -1
            hits[address, each, side].append(
                {
                    "word": token_words[model][token_id],
                    "rank": place,
                    "z": sign * (score - mean) / std,
                    "token_z": None if token_z is None else sign * token_z,
                    "text": text,
                }
            )
    rows = []
    for (address, each, side), found in hits.items():
        of_words = [[hit for hit in found if hit["word"] == word] for word in dict.fromkeys(h["word"] for h in found)]
        row = {"address": address, "kind": each, "side": side, "words": len(of_words), "rank": found[0]["rank"]}
        for name in ("z", "token_z"):
            known = found[0][name] is not None
            row[name] = sum(max(hit[name] for hit in own) for own in of_words) / len(of_words) if known else None
        rows.append(row | {"tokens": [own[0]["text"] for own in of_words]})  # by rank: the first is a word's strongest
    return sorted(rows, key=lambda row: (-row["words"], -strength(row, by)))


def strength(row: dict, by: str) -> float:
    """What a row or a pair is ranked by."""
    return row["z"] if by == "score" or row["token_z"] is None else row["token_z"]


def heads(
    db: duckdb.DuckDBPyConnection, words: list[str], models: list[str], kind: str | None, layer: int | None, by: str
) -> list[dict]:
    """Every head, matrix and side with a pair of one of the words in its lists of a ranking: most words, then pairs of
    two of them, then z, or token_z where that ranks it.
    """
    token_words = wanted(db, words)
    hits: dict[tuple, list[dict]] = defaultdict(list)
    for (
        model,
        address,
        at,
        matrix,
        side,
        place,
        source_id,
        source,
        target_id,
        target,
        score,
        token_z,
        mean,
        std,
    ) in db.execute(
        f"SELECT r.model, r.address, r.layer, matrix, side, {of_ranking('rank', by)} AS place, source_id, source, "
        "target_id, target, score, token_z, if(matrix = 'QK', qk_mean, vo_mean), if(matrix = 'QK', qk_std, vo_std) "
        "FROM head_pairs AS r JOIN heads USING (head_id) "
        f"WHERE coalesce({of_ranking('rank', by)}, {of_ranking('rank_distinct', by)}) IS NOT NULL"
    ).fetchall():
        pair = [token_words[model].get(source_id), token_words[model].get(target_id)]
        if model in models and kind in (None, matrix) and layer in (None, at) and pair != [None, None]:
            sign = 1 if side == "top" else -1
            hits[address, matrix, side].append(
                {
                    "words": {word for word in pair if word},
                    "linked": None not in pair and pair[0] != pair[1],
                    "rank": place,
                    "z": sign * (score - mean) / std,
                    "token_z": None if token_z is None else sign * token_z,
                    "text": f"{source} → {target}",
                }
            )
    rows = []
    for (address, matrix, side), found in hits.items():
        first = sorted(found, key=lambda hit: (-hit["linked"], -strength(hit, by)))[:3]
        rows.append(
            {
                "address": address,
                "kind": matrix,
                "side": side,
                "words": len(set().union(*(hit["words"] for hit in found))),
                "rank": min((hit["rank"] for hit in found if hit["rank"]), default=None),
                "z": max(hit["z"] for hit in found),
                "token_z": max((hit["token_z"] for hit in found if hit["token_z"] is not None), default=None),
                "tokens": [hit["text"] for hit in first],
                "linked": sum(hit["linked"] for hit in found),
            }
        )
    rows.sort(key=lambda row: (-row["words"], -row["linked"], -strength(row, by)))
    return [{name: value for name, value in row.items() if name != "linked"} for row in rows]


def assert_rows(found: list[dict], expected: list[dict]) -> None:
    """The same rows in the same order; z to float32 rounding."""
    assert [{**row, "z": None, "token_z": None} for row in found] == [
        {**row, "z": None, "token_z": None} for row in expected
    ]
    for name in ("z", "token_z"):
        numbers = [[math.nan if row[name] is None else row[name] for row in rows] for rows in (found, expected)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-5, abs=1e-5, nan_ok=True)


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
@pytest.mark.parametrize("by", ["score", "token_z"])
def test_agrees_with_brute_force(
    atlas: Atlas, db: duckdb.DuckDBPyConnection, words: list[str], options: dict, by: Ranking
) -> None:
    model, kind, layer = (options.get(name) for name in ("model", "kind", "layer"))
    models = MODELS if model is None else [model]
    expected = []
    if kind not in ("QK", "VO"):
        expected += parameters(db, words, models, kind, layer, by)[:6]
    if kind in (None, "QK", "VO"):
        expected += heads(db, words, models, kind, layer, by)[:6]
    assert len(expected) > 3
    assert_rows(atlas.find(words, k=6, filter=TokenFilter(by=by), **options).to_rows(), expected)


@pytest.mark.parametrize("by", ["score", "token_z"])
def test_gives_all_where_k_is_large(atlas: Atlas, db: duckdb.DuckDBPyConnection, by: Ranking) -> None:
    expected = [row for each in (parameters, heads) for row in each(db, ["bread"], ["bert"], None, None, by)]
    assert_rows(atlas.find("bread", k=10_000, model="bert", filter=TokenFilter(by=by)).to_rows(), expected)


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
