"""Filters: what passes, by each rule on its own, in every verb that shows tokens, and what is said of short lists."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pytest
from click.testing import CliRunner

import models
from opened import change
from paramdex import Atlas, QueryError, TokenFilter
from paramdex import open as open_atlas
from paramdex.cli import cli
from paramdex.store.words import items
from paramdex_builder import Options, build
from query_helpers import GPT2, ids_of_words, token_rows

WORDS = ["canada", "Ġbread", "seven"]
RULES = {
    "ascii": (TokenFilter(ascii=True), lambda row: row["text"].isascii()),
    "alnum": (TokenFilter(alnum=True), lambda row: row["text"].strip().isalnum()),
    "word_starts": (TokenFilter(word_starts=True), lambda row: row["is_word_start"]),
    "words": (
        TokenFilter(words=WORDS),
        lambda row: (
            (row["text"].strip().lower() in ("canada", "seven") and not row["token"].startswith("##"))
            or row["token"] == "Ġbread"
        ),
    ),
    "two": (TokenFilter(ascii=True, alnum=True), lambda row: row["text"].isascii() and row["text"].strip().isalnum()),
}


def passing(atlas: Atlas, model: str, rule: str) -> set[int]:
    """The ids of a model's tokens that a rule lets pass, by the rule's own words."""
    rows = atlas.sql("SELECT t.* FROM tokens AS t JOIN models USING (vocabulary) WHERE model = ?", [model]).to_rows()
    return {row["token_id"] for row in rows if RULES[rule][1](row)}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("model", ["gpt2-a", "llama-gqa", "bert"])
def test_show_of_a_parameter(atlas: Atlas, model: str, rule: str) -> None:
    """The kept tokens that pass, in their order, with their rank, score and z; a note where there are fewer than k."""
    address, left = f"{model}/L1/ff_value/3", passing(atlas, model, rule)
    every = atlas.show(address, k=12).to_rows()
    result = atlas.show(address, k=4, filter=RULES[rule][0])
    expected = []
    for side in ("top", "bottom"):
        expected += [row for row in every if row["side"] == side and row["token_id"] in left][:4]
    assert result.to_rows() == expected
    short = sum(len([row for row in expected if row["side"] == side]) < 4 for side in ("top", "bottom"))
    said = [note for note in result.notes if note.startswith("filtered: ")]
    why = "because the atlas keeps no more that pass (build with a larger --top-k to keep more)"
    have = "has" if short == 1 else "have"
    assert said == [f"filtered: {short} of 2 lists {have} fewer than 4 tokens, {why}"][: short > 0]


@pytest.mark.parametrize("rule", RULES)
def test_show_of_a_head(atlas: Atlas, rule: str) -> None:
    left = passing(atlas, "gpt2-a", rule)
    for distinct in (True, False):
        every = atlas.show("gpt2-a/L0/H1", k=30, distinct=distinct).to_rows()
        rows = atlas.show("gpt2-a/L0/H1", k=3, distinct=distinct, filter=RULES[rule][0]).to_rows()
        expected = []
        for matrix in ("QK", "VO"):
            for side in ("top", "bottom"):
                own = [row for row in every if (row["matrix"], row["side"]) == (matrix, side)]
                expected += [row for row in own if row["source_id"] in left and row["target_id"] in left][:3]
        assert rows == expected


def test_pairs_of_one_token_and_of_one_word(atlas: Atlas) -> None:
    rows = atlas.sql("SELECT * FROM head_pairs WHERE same_word AND source_id <> target_id AND rank <= 30").to_rows()
    heads = {row["address"] for row in rows} | {"gpt2-a/L0/H0"}
    dropped = {"no_identical": 0, "no_same_word": 0}
    for head in heads:
        every = atlas.show(head, k=30, distinct=False).to_rows()
        for name, bad in (
            ("no_identical", lambda row: row["source_id"] == row["target_id"]),
            ("no_same_word", lambda row: row["same_word"]),
        ):
            found = atlas.show(head, k=30, distinct=False, filter=TokenFilter(**{name: True})).to_rows()
            assert found == [row for row in every if not bad(row)]
            dropped[name] += len(every) - len(found)
    assert dropped["no_same_word"] >= dropped["no_identical"] > 0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("model", ["gpt2-wide", "llama-gqa", "bert"])
def test_search_and_similar_describe_by_what_passes(atlas: Atlas, model: str, rule: str) -> None:
    left = passing(atlas, model, rule)
    for find in (
        lambda **more: atlas.search("canada bread", k=6, model=model, side="both", **more),
        lambda **more: atlas.similar(f"{model}/L1/ff_value/3", k=6, **more),
    ):
        plain, result = find(), find(filter=RULES[rule][0])
        assert [(row["address"], row["similarity"]) for row in result.to_rows()] == [
            (row["address"], row["similarity"]) for row in plain.to_rows()
        ]
        for row in result.to_rows():
            for side in ("top", "bottom"):
                kept = atlas.sql(
                    "SELECT token_id, text FROM parameter_tokens WHERE address = ? AND side = ? AND rank IS NOT NULL "
                    "ORDER BY rank",
                    [row["address"], side],
                ).to_rows()
                assert row[side] == [each["text"] for each in kept if each["token_id"] in left][:5]
        short = sum(len(row[side]) < 5 for row in result.to_rows() for side in ("top", "bottom"))
        assert any(note.startswith(f"filtered: {short} of ") for note in result.notes) == (short > 0)


@pytest.mark.parametrize("rule", ["ascii", "word_starts", "words"])
def test_find_counts_only_what_passes(atlas: Atlas, db: duckdb.DuckDBPyConnection, rule: str) -> None:
    """Parameters and heads that are found have a wanted token that passes, and rank and tokens are of such alone."""
    for model, third in (("gpt2-a", "toronto"), ("bert", "é")):
        words = ["canada", "bread", third]
        left = passing(atlas, model, rule)
        texts = {i: text for i, _, text, *_ in token_rows(db, model)}
        result = atlas.find(words, k=500, model=model, filter=RULES[rule][0])
        wanted = {i: texts[i] for ids in ids_of_words(db, model, words).values() for i in ids if i in left}
        found = {(row["address"], row["side"]): row for row in result.to_rows() if row["kind"] not in ("QK", "VO")}
        marks = ", ".join("?" * len(wanted))
        rows = db.execute(
            "SELECT address, side, min(rank) FROM parameter_tokens "
            f"WHERE model = ? AND token_id IN ({marks}) AND rank IS NOT NULL GROUP BY ALL",
            [model, *wanted],
        ).fetchall()
        assert len(rows) < 500
        assert {key: row["rank"] for key, row in found.items()} == {(a, s): rank for a, s, rank in rows}
        assert all(set(row["tokens"]) <= set(wanted.values()) for row in found.values())
        pairs = db.execute(
            "SELECT DISTINCT address, matrix, side, source_id, target_id FROM head_pairs "
            "WHERE model = ? AND coalesce(rank, rank_distinct) IS NOT NULL",
            [model],
        ).fetchall()
        good = {(a, m, s) for a, m, s, i, j in pairs if i in left and j in left and (i in wanted or j in wanted)}
        heads = {(r["address"], r["kind"], r["side"]) for r in result.to_rows() if r["kind"] in ("QK", "VO")}
        assert heads == good


def test_find_names_words_of_which_nothing_passes(atlas: Atlas) -> None:
    result = atlas.find(["canada", "é"], model="bert", filter=TokenFilter(ascii=True))
    assert "filtered: no token of é passes in bert" in result.notes


def test_find_without_pairs_of_one_word(atlas: Atlas, db: duckdb.DuckDBPyConnection) -> None:
    for model in GPT2:
        rows = atlas.find("bread", k=200, model=model, kind="VO", filter=TokenFilter(no_same_word=True)).to_rows()
        ids = [i for (i,) in db.execute("SELECT token_id FROM tokens JOIN models USING (vocabulary) "
               "WHERE model = ? AND lower(trim(text)) = 'bread'", [model]).fetchall()]  # fmt: skip
        expected = db.execute(
            "SELECT DISTINCT address, side FROM head_pairs "
            "WHERE model = ? AND matrix = 'VO' AND NOT same_word AND rank_distinct IS NOT NULL AND "
            "(list_contains($2, source_id) OR list_contains($2, target_id))".replace("?", "$1"),
            [model, ids],
        ).fetchall()
        assert {(row["address"], row["side"]) for row in rows} == set(expected)


def test_undertrained_tokens_by_model(tmp_path: Path) -> None:
    """Each model's lists lose what is under-trained in that model."""
    for number, rows in enumerate([range(100, 120), range(90, 110)]):
        models.save_planted(tmp_path / f"m{number}", rows, number)
    options = Options(top_k=120, pair_k=50, neighbor_k=1, device="cpu")
    build([str(tmp_path / "m0"), str(tmp_path / "m1")], tmp_path / "x.atlas", options)
    with open_atlas(tmp_path / "x.atlas") as atlas:
        for model, left in (("m0", range(100)), ("m1", [*range(90), *range(110, 120)])):
            rows = atlas.show(f"{model}/L0/ff_value/0", k=120, filter=TokenFilter(no_undertrained=True)).to_rows()
            for side in ("top", "bottom"):
                assert {row["token_id"] for row in rows if row["side"] == side} == set(left)
        result = atlas.find("word63", k=1000, filter=TokenFilter(no_undertrained=True))
        assert {row["address"].split("/")[0] for row in result.to_rows()} == {"m0", "m1"}
        result = atlas.find("word70", k=1000, filter=TokenFilter(no_undertrained=True))  # the token 92
        assert {row["address"].split("/")[0] for row in result.to_rows()} == {"m0"}
        assert "filtered: no token of word70 passes in m1" in result.notes


def test_diff_shows_what_passes(tmp_path: Path) -> None:
    base, tuned = models.save_word_model(tmp_path / "base", 1), models.save_word_model(tmp_path / "tuned", 2)
    build([f"moved={tuned}"], tmp_path / "x.atlas", Options(top_k=60, pair_k=99, base=str(base), device="cpu"))
    words = [f"word{i}" for i in range(0, 38, 2)]
    with open_atlas(tmp_path / "x.atlas") as atlas:
        rows = atlas.diff("moved", k=3, filter=TokenFilter(words=words)).to_rows()
        assert {row["kind"] for row in rows} == {"ff_key", "ff_value", "QK", "VO"}
        for row in rows:
            for text in row["top"] + row["bottom"]:
                assert set(text.split(" → ")) <= set(words)
        of_heads = [row for row in rows if row["kind"] in ("QK", "VO")]
        assert all(row["top"] for row in of_heads)
        for row in of_heads:
            kept = atlas.show(row["address"], k=99).to_rows()
            own = [r for r in kept if (r["matrix"], r["side"]) == (row["kind"], "top")]
            first = [f"{r['source']} → {r['target']}" for r in own if {r["source"], r["target"]} <= set(words)]
            assert row["top"] == first[:3]


def test_a_vocabulary_that_marks_only_ends_of_words(small_atlas: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(small_atlas, tmp_path / "x.atlas")
    change(tmp_path / "x.atlas", "bert", "UPDATE store.tokens SET is_word_start = NULL WHERE NOT is_special")
    with open_atlas(tmp_path / "x.atlas") as atlas:
        plain, result = (atlas.show("bert/L0/ff_key/1", filter=f) for f in (None, TokenFilter(word_starts=True)))
        assert result.to_rows() == plain.to_rows()
        said = "the vocabulary of bert does not say what starts a word, so no token is left out for that"
        assert list(result.notes) == [said]


def test_command_line(small_atlas: Path, atlas: Atlas, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(cli, [arguments[0], str(small_atlas), *arguments[1:], "--format", "json"])
        assert result.exit_code == 0, result.output
        return result.output.strip()

    (tmp_path / "words.txt").write_text("canada\n\nGreen\n")
    words, rule = TokenFilter(words=["canada", "green"]), TokenFilter(True, True, True, no_undertrained=True)
    options = ("--ascii", "--alnum", "--word-starts", "--no-undertrained")
    found = run("show", "bert/L0/ff_key/1", "--words", str(tmp_path / "words.txt"))
    assert found == atlas.show("bert/L0/ff_key/1", filter=words).to_json()
    assert run("find", "canada", *options) == atlas.find("canada", filter=rule).to_json()
    assert run("search", "canada bread", *options) == atlas.search("canada bread", filter=rule).to_json()
    assert run("similar", "bert/L0/ff_key/1", *options) == atlas.similar("bert/L0/ff_key/1", filter=rule).to_json()
    pairs = atlas.show("gpt2-a/L0/H1", distinct=False, filter=TokenFilter(no_identical=True)).to_json()
    assert run("show", "gpt2-a/L0/H1", "--same-word", "--no-identical") == pairs


def test_word_lists_that_cannot_be_used(atlas: Atlas, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    for words, message in (
        (tmp_path / "none.txt", r"none.txt cannot be read: No such file"),
        (tmp_path / "bytes.txt", r"bytes.txt cannot be read: it is not UTF-8 text"),
        (str(tmp_path / "empty.txt"), r"empty.txt holds no words; write one per line"),
        ([], r"the word list holds no words"),
    ):
        with pytest.raises(QueryError, match=message):
            atlas.show("bert/L0/ff_key/1", filter=TokenFilter(words=words))


def test_masks_of_arrays_and_of_rules_agree(atlas: Atlas) -> None:
    """Of every vocabulary, each rule's mask is the set that the rule's own words give."""
    from paramdex.store.filters import Sieve

    for model in ("gpt2-a", "llama-gqa", "bert"):
        for rule, (which, _) in RULES.items():
            mask = Sieve(atlas.database, which).mask(atlas.models[model])
            assert mask is not None
            assert set(np.flatnonzero(mask)) == passing(atlas, model, rule), (model, rule)


def test_a_word_list_means_what_find_does(atlas: Atlas) -> None:
    """Of words that are no marked ones, and of one that is only printed so."""
    from paramdex.store.filters import Sieve

    for model in ("gpt2-a", "llama-gqa", "bert"):
        chosen = atlas.models[model]
        for word in ("Canada", "s", "ing", "##ing", "bread-butter", "é", "[MASK]", "nothing of the kind"):
            mask = Sieve(atlas.database, TokenFilter(words=[word])).mask(chosen)
            assert mask is not None
            found = items(atlas.database, [chosen.vocabulary], [word])[chosen.vocabulary, word]
            assert np.flatnonzero(mask).tolist() == found, (model, word)
