"""``search``: z, similarity and order are the brute force's over all V scores of all parameters."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import duckdb
import numpy as np
import pytest

import models
import oracle
import paramdex
from paramdex import AddressError, Atlas, QueryError, TokenError
from paramdex.store.words import resolve
from paramdex_builder import Options, build
from query_helpers import ERROR, MODELS, STRENGTH, Everything, assert_ranking, ids_of_words


def correlations(whole: Everything, ids: list[int]) -> np.ndarray:
    """Of every parameter's V scores with the indicator of the tokens."""
    indicator = np.zeros((1, whole.scores.shape[1]))
    indicator[0, ids] = 1
    return oracle.pearson(whole.scores, indicator)[:, 0]


def truth_of(
    db: duckdb.DuckDBPyConnection,
    wholes: dict[str, Everything],
    words: list[str],
    models: list[str],
    kind: str | None,
    layer: int | None,
) -> dict[str, float]:
    truth = {}
    for model in models:
        ids = [i for spellings in ids_of_words(db, model, words).values() for i in spellings]
        if ids:
            whole, values = wholes[model], correlations(wholes[model], ids)
            truth |= {whole.addresses[i]: values[i] for i in whole.chosen(kind, layer)}
    return truth


Truth = dict[str, tuple[int, float, float, float]]
"""address -> how many of the words its model has, their mean z, the correlation, and how far z may be off."""


def by_z_of(
    db: duckdb.DuckDBPyConnection,
    wholes: dict[str, Everything],
    words: list[str],
    asked: list[str],
    kind: str | None = None,
    layer: int | None = None,
) -> Truth:
    truth: Truth = {}
    for model in asked:
        spelled = ids_of_words(db, model, words)
        ids = [i for spellings in spelled.values() for i in spellings]
        if not ids:
            continue
        whole, V = wholes[model], wholes[model].scores.shape[1]
        z = ((whole.scores - whole.scores.mean(1, keepdims=True)) / whole.scores.std(1, keepdims=True))[:, ids].mean(1)
        error, values = ERROR * (V / len(ids)) ** 0.5, correlations(whole, ids)
        known = sum(bool(spellings) for spellings in spelled.values())
        truth |= {whole.addresses[i]: (known, z[i], values[i], error) for i in whole.chosen(kind, layer)}
    return truth


def assert_by_z(rows: list[dict], truth: Truth, k: int, side: str = "top") -> None:
    """``rows`` are the k first of ``truth``: those of most words, and of as many those of strongest z."""
    strength = STRENGTH[side]
    order = sorted(truth.values(), key=lambda one: (-one[0], -strength(one[1])))[:k]
    assert [row["rank"] for row in rows] == list(range(1, len(order) + 1))
    assert len({row["address"] for row in rows}) == len(order)
    for row, best in zip(rows, order, strict=True):
        words, z, similarity, error = truth[row["address"]]
        assert row["words"] == words == best[0]
        assert row["z"] == pytest.approx(z, abs=error)
        assert row["similarity"] == pytest.approx(similarity, abs=ERROR)
        assert strength(row["z"]) == pytest.approx(strength(best[1]), abs=max(error, best[3]))
    for one, other in itertools.pairwise(rows):
        assert (one["words"], strength(one["z"])) >= (other["words"], strength(other["z"]))


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
    asked = [options["model"]] if "model" in options else MODELS
    truth = by_z_of(db, wholes, words.split(), asked, options.get("kind"), options.get("layer"))
    assert_by_z(atlas.search(words, k=9, side=side, **options).to_rows(), truth, 9, side)


@pytest.mark.parametrize("side", ["top", "bottom", "both"])
def test_between_vocabularies_z_ranks_and_not_correlation(
    atlas: Atlas, db: duckdb.DuckDBPyConnection, wholes: dict[str, Everything], side: str
) -> None:
    """The whole ranking over three vocabularies; by correlation, bert, whose vocabulary is the smallest, would lead."""
    words = "food bread music"
    truth = by_z_of(db, wholes, words.split(), MODELS)
    rows = atlas.search(words, k=100_000, side=side).to_rows()
    assert_by_z(rows, truth, 100_000, side)
    strength = STRENGTH[side]
    leading = sorted(truth, key=lambda address: -strength(truth[address][2]))[:20]
    assert {address.split("/")[0] for address in leading} == {"bert"}
    assert {row["address"].split("/")[0] for row in rows[:20]} >= {"bert", "gpt2-wide"}
    assert atlas.search(words, k=7, side=side).to_rows() == rows[:7]


@pytest.mark.parametrize("words", ["canada", "violin green river", "Canada canada"])
@pytest.mark.parametrize("side", ["top", "bottom", "both"])
def test_in_one_vocabulary_z_and_correlation_have_one_order(atlas: Atlas, words: str, side: str) -> None:
    for model in MODELS:
        rows = atlas.search(words, k=100_000, side=side, model=model).to_rows()
        found = np.array([(row["z"], row["similarity"]) for row in rows])
        assert (np.diff(STRENGTH[side](found), axis=0) <= 0).all()
        vocabulary = atlas.sql("SELECT vocabulary FROM models WHERE model = ?", [model]).to_rows()[0]["vocabulary"]
        (wanted,) = resolve(atlas.database, [vocabulary], words.split())
        m, V = len(wanted.ids), atlas.models[model].vocabulary_size
        np.testing.assert_allclose(found[:, 1], found[:, 0] * np.sqrt(m / (V - m)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("side", ["top", "bottom", "both"])
def test_models_that_have_more_of_the_words_come_first(
    atlas: Atlas, db: duckdb.DuckDBPyConnection, wholes: dict[str, Everything], side: str
) -> None:
    words = "ottawa bread-butter river"
    result = atlas.search(words, k=100_000, side=side)
    rows = result.to_rows()
    assert_by_z(rows, by_z_of(db, wholes, words.split(), MODELS), 100_000, side)
    last = max(i for i, row in enumerate(rows) if row["address"].startswith("bert/"))
    assert {(row["address"].split("/")[0], row["words"]) for row in rows[: last + 1]} == {("bert", 3)}
    assert {row["words"] for row in rows[last + 1 :]} == {2}
    strength = STRENGTH[side]
    assert strength(rows[last + 1]["z"]) > strength(rows[last // 2]["z"])  # by z alone it would stand before these
    assert result.notes == [
        "the vocabulary of gpt2-a, gpt2-b, gpt2-wide has no bread-butter",
        "the vocabulary of llama-gqa has no bread-butter",
        "parameters of models that have more of the words come first",
    ]


def test_how_many_words_a_model_has_is_printed_where_it_differs(atlas: Atlas) -> None:
    few, all_of_them = atlas.search("ottawa bread-butter", k=3), atlas.search("ottawa bread-butter", k=100_000)
    for result in (few, all_of_them):
        assert result.columns == ["rank", "words", "z", "similarity", "address", "top", "bottom"]
    assert str(few).splitlines()[0].split() == ["rank", "z", "similarity", "address", "top", "bottom"]
    assert str(all_of_them).splitlines()[0].split()[:4] == ["rank", "words", "z", "similarity"]
    assert str(atlas.search("ottawa", k=100_000)).splitlines()[0].split()[:3] == ["rank", "z", "similarity"]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An atlas of one model under two vocabularies of one size, which differ in a number."""
    folder = tmp_path_factory.mktemp("twins")
    for name in ("one", "two"):
        models.save(folder / name, models.gpt2(60), models.word_tokenizer(60), 1)
    text = (folder / "two" / "tokenizer.json").read_text()
    (folder / "two" / "tokenizer.json").write_text(text.replace('"word7"', '"other7"'))
    build([str(folder / name) for name in ("one", "two")], folder / "x.atlas", Options(4, 4, 2, device="cpu"))
    return folder / "x.atlas"


@pytest.mark.parametrize("side", ["top", "bottom", "both"])
def test_equal_z_of_two_vocabularies_go_by_param_id(twins: Path, side: str) -> None:
    with paramdex.open(twins) as atlas:
        assert len({model.vocabulary for model in atlas.models.values()}) == 2
        rows = atlas.search("canada river", k=41, side=side).to_rows()
        alone = atlas.search("canada river", k=21, side=side, model="one").to_rows()
    expected = [(name, row["address"].removeprefix("one"), row["z"]) for row in alone for name in ("one", "two")]
    assert [(row["address"][:3], row["address"][3:], row["z"]) for row in rows] == expected[:41]


def test_all_tokens_at_once_have_z_0(twins: Path) -> None:
    """Their indicator has no variation."""
    with paramdex.open(twins) as atlas:
        words = atlas.sql("SELECT token FROM tokens JOIN models USING (vocabulary) WHERE model = 'one'").to_rows()
        rows = atlas.search([row["token"] for row in words], k=5, model="one").to_rows()
    assert [(row["z"], row["similarity"]) for row in rows] == [(0, 0)] * 5


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
        ("fooood", {}, TokenError, "no vocabulary here has 'fooood'; the nearest words are food"),
        ("zzzz", {}, TokenError, "no vocabulary here has 'zzzz', nor one that is like it"),
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
