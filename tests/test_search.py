"""``search``: every similarity is the Pearson correlation of V scores with the words' indicator, by brute force."""

from __future__ import annotations

import random

import duckdb
import numpy as np
import pytest

import oracle
from paramdex import AddressError, Atlas, QueryError, TokenError
from query_helpers import MODELS, Everything, assert_ranking, ids_of_words

pytest_plugins = ["query_fixtures"]


def correlations(whole: Everything, ids: list[int]) -> np.ndarray:
    """Of every parameter's V scores with the indicator of the tokens."""
    indicator = np.zeros((1, whole.scores.shape[1]))
    indicator[0, ids] = 1
    return oracle.pearson(whole.scores, indicator)[:, 0]


def truth_of(
    db: duckdb.DuckDBPyConnection, wholes: dict[str, Everything], words: list[str], models: list[str],
    kind: str | None, layer: int | None,
) -> dict[str, float]:  # fmt: skip
    truth = {}
    for model in models:
        ids = [i for spellings in ids_of_words(db, model, words).values() for i in spellings]
        if ids:
            whole, values = wholes[model], correlations(wholes[model], ids)
            truth |= {whole.addresses[i]: values[i] for i in whole.chosen(kind, layer)}
    return truth


@pytest.mark.parametrize("side", ["top", "bottom", "both"])
@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("canada", {}),
        ("canada ottawa toronto", {}),
        ("canada bread-butter", {}),
        ("violin music", {"model": "gpt2-wide"}),
        ("violin music", {"model": "llama-gqa", "kind": "ff_gate"}),
        ("winter summer", {"kind": "ff_value"}),
        ("winter summer", {"kind": "attn_key", "layer": 1}),
        ("river ocean", {"kind": "position"}),
        ("river ocean", {"kind": "token_type"}),
        ("river ocean", {"kind": "attn_query_bias", "layer": 1}),
        ("river ocean", {"kind": "ff_bias", "model": "bert"}),
        ("doctor nurse", {"layer": 2}),
        ("seven eight", {"layer": 0, "model": "gpt2-b"}),
    ],
)
def test_agrees_with_brute_force(
    atlas: Atlas, db: duckdb.DuckDBPyConnection, wholes: dict[str, Everything], words: str, options: dict, side: str
) -> None:
    models = [options["model"]] if "model" in options else MODELS
    truth = truth_of(db, wholes, words.split(), models, options.get("kind"), options.get("layer"))
    assert_ranking(atlas.search(words, k=9, side=side, **options).to_rows(), truth, 9, side)


@pytest.mark.parametrize("model", MODELS)
def test_every_parameter_of_a_model(
    atlas: Atlas, db: duckdb.DuckDBPyConnection, wholes: dict[str, Everything], draw: random.Random, model: str
) -> None:
    """The whole ranking, for words drawn anew."""
    words = [
        word.lower() for word in draw.sample(["Canada", "Ottawa", "France", "bread", "music", "river", "green"], 3)
    ]
    truth = truth_of(db, wholes, words, [model], None, None)
    assert_ranking(atlas.search(words, k=10_000, model=model).to_rows(), truth, 10_000)


def test_single_spelling(atlas: Atlas, db: duckdb.DuckDBPyConnection, wholes: dict[str, Everything]) -> None:
    """A word with a mark of its own stands for one item, not for all its spellings."""
    ((token_id,),) = db.execute(
        "SELECT token_id FROM tokens JOIN models USING (vocabulary) WHERE model = 'gpt2-b' AND token = 'ĠCanada'"
    ).fetchall()
    whole = wholes["gpt2-b"]
    truth = dict(zip(whole.addresses, correlations(whole, [token_id]), strict=True))
    assert_ranking(atlas.search([" Canada"], k=20, model="gpt2-b").to_rows(), truth, 20)
    assert_ranking(atlas.search("ĠCanada", k=20, model="gpt2-b").to_rows(), truth, 20)


def test_rows_carry_the_strongest_tokens(atlas: Atlas) -> None:
    for row in atlas.search("canada ottawa", k=4):
        for side in ("top", "bottom"):
            shown = [each["text"] for each in atlas.show(row["address"], k=5) if each["side"] == side]
            assert row[side] == shown


def test_words_missing_in_some_vocabularies_are_said(atlas: Atlas) -> None:
    result = atlas.search("bread-butter", k=10_000)
    assert {row["address"].split("/")[0] for row in result} == {"bert"}
    assert list(result.notes) == ["the vocabulary of gpt2-a, gpt2-b, gpt2-wide, llama-gqa has none of these words"]


def test_layer_that_only_some_models_have(atlas: Atlas) -> None:
    rows = atlas.search("canada", k=10_000, layer=2).to_rows()
    assert {row["address"].split("/L2/")[0] for row in rows} == {"gpt2-wide"}
    assert len(rows) == 384 + 2 + 3 * 4  # no position among them, which is of no layer


@pytest.mark.parametrize(
    ("words", "options", "error", "message"),
    [
        ("zzzz", {}, TokenError, "no vocabulary here has 'zzzz'; the nearest words are"),
        ("canada zzzz", {}, TokenError, "no vocabulary here has 'zzzz'"),
        ("canada", {"model": "nope"}, AddressError, "has no model 'nope'; there are gpt2-a, gpt2-b"),
        ("canada", {"kind": "QK"}, QueryError, "there is no kind 'QK'; there are ff_key, ff_gate"),
        ("canada", {"layer": 3}, AddressError, "there is no layer 3; gpt2-wide has layers L0 to L2"),
        ("canada", {"layer": -1, "model": "gpt2-a"}, AddressError, "there is no layer -1"),
        ("canada", {"layer": 0, "kind": "position"}, QueryError, "position belongs to no layer; ask without layer 0"),
        (
            "canada",
            {"kind": "token_type", "model": "gpt2-a"},
            QueryError,
            "gpt2-a has no parameters of kind 'token_type'",
        ),
        ("canada", {"side": "left"}, QueryError, "side is one of top, bottom, both, not 'left'"),
        ("canada", {"k": 0}, QueryError, "at least 1, not 0"),
        ("canada", {"k": -3}, QueryError, "at least 1, not -3"),
    ],
)
def test_what_is_not_there_is_said(
    atlas: Atlas, words: str, options: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        atlas.search(words, **options)
