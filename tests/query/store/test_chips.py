"""Runs of white space and words in either form of Unicode are found as typed, and chips lead to their tokens."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from click.testing import CliRunner
from conftest import _shared
from hypothesis import given
from hypothesis import strategies as st
from transformers import AddedToken

import models
import paramdex
from paramdex import Atlas, TokenError, TokenFilter
from paramdex.cli import cli
from paramdex.store.words import items
from paramdex.web.cards.choices import split_words
from paramdex.web.cards.shapes import Token
from paramdex.web.html.drawing import ask_for
from paramdex_builder import Options, build
from paramdex_schemas.folding import fold
from tokenizer_styles import STYLES
from web_helpers import data, hostile_tokenizer, page, server

COMPOSED, DECOMPOSED = "café", "cafe\u0301"
ADDED = [
    "▁▁", "▁▁▁▁", "  ", "    ", "\n", "\n\n", "\t", "\tif", " \n", "Ġx", "ĠĠ", "▁the", " lead", "##y", "##", " ##",
    DECOMPOSED, 'say "no"', '"', ' "b', "Straße", "İstanbul", "\u0131s\u0131", "ﬁn", "x²", "x2",
]  # fmt: skip
STYLE_OF = {
    "bytes": "byte-level BPE",
    "gemma": "Gemma's BPE",
    "unigram": "Unigram",
    "wordpiece": "WordPiece",
    "ends": "ends of words",
}
OTHERS = {"underscores": "underscores", "replacements": "replacements", "prefix": "another prefix"}
MAKERS = {name: STYLES[style][0] for name, style in (STYLE_OF | OTHERS).items()} | {"hostile": hostile_tokenizer}


@pytest.fixture(scope="module")
def spaced_atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of every style of tokenizer, each with the same added tokens; kept are all tokens of every vector."""

    def make(part: Path) -> None:
        folders = []
        for name, maker in MAKERS.items():
            tokenizer = maker()
            had = tokenizer.get_vocab()
            tokenizer.add_tokens([AddedToken(each, normalized=False) for each in ADDED if each not in had])
            model = models.gpt2(len(tokenizer), layers=1, width=12)
            folders.append(str(models.save(part / name, model, tokenizer, len(folders))))
        build(folders, part / "spaced.atlas", Options(1000, 200, 1, device="cpu"))

    return _shared(tmp_path_factory, "spaced", make) / "spaced.atlas"


@pytest.fixture
def atlas(spaced_atlas: Path) -> Atlas:
    return paramdex.open(spaced_atlas)


def tokens_of(atlas: Atlas, model: str) -> list[dict]:
    return atlas.sql(
        "SELECT t.* FROM tokens AS t JOIN models USING (vocabulary) WHERE model = ? ORDER BY token_id", [model]
    ).to_rows()


def found(atlas: Atlas, model: str, word: str) -> set[str]:
    """The texts of the tokens that a word finds."""
    vocabulary = atlas.models[model].vocabulary
    rows = tokens_of(atlas, model)
    return {rows[i]["text"] for i in items(atlas.database, [vocabulary], [word])[vocabulary, word]}


@pytest.mark.parametrize("model", STYLE_OF)
def test_white_space_finds_just_so_much_of_it(atlas: Atlas, model: str) -> None:
    there = {row["text"] for row in tokens_of(atlas, model)}
    runs = {text for text in there if text.isspace()}
    assert {"  ", "    ", "\n", "\n\n", "\t", " \n"} <= runs
    for text in runs:
        assert found(atlas, model, text) == {text}
    for n in range(1, 9):
        wanted = {" " * n} & runs
        assert found(atlas, model, " " * n) == wanted
        for marker in "▁Ġ":  # spelled so, or else as many spaces
            assert found(atlas, model, marker * n) == ({marker * n} if marker * n in there else wanted)
    assert found(atlas, model, "\tif") == {"\tif"}
    assert found(atlas, model, "if") == {"\tif"}


def test_runs_of_white_space_in_every_verb(atlas: Atlas, spaced_atlas: Path) -> None:
    """``find``, ``search``, filters and the program: by their tokens, as words that are typed bare are."""
    one, two, four = (atlas.find(" " * n, k=5, model="gemma").to_rows() for n in (1, 2, 4))
    assert one != two != four != one
    for rows in (two, atlas.find("▁▁", k=5, model="gemma").to_rows()):
        assert {text for row in rows if row["kind"] not in ("QK", "VO") for text in row["tokens"]} == {"  "}
    for word in ("  ", "▁▁", "\n\n"):
        nearest = atlas.search([word], k=5, model="gemma").to_rows()
        assert atlas.search(word, k=5, model="gemma").to_rows() == nearest
        assert nearest != atlas.search([word[0]], k=5, model="gemma").to_rows()
    kept = atlas.show("gemma/L0/ff_key/0", k=9, filter=TokenFilter(words=["  ", "\n\n"])).to_rows()
    assert sorted(row["text"] for row in kept if row["side"] == "top") == ["\n\n", "  ", "  "]  # ▁▁ and two spaces
    for model, words in (("bytes", ["▁▁"]), ("bytes", ["  "]), ("unigram", ["ĠĠ", "  "])):
        kept = atlas.show(f"{model}/L0/ff_key/0", k=9, filter=TokenFilter(words=words)).to_rows()
        texts = {row["text"] for row in tokens_of(atlas, model) if row["text"] in ("  ", *words)}
        assert {row["text"] for row in kept} == texts >= {"  "}
    for verb in ("find", "search"):
        ran = CliRunner().invoke(cli, [verb, str(spaced_atlas), "  ", "-k", "5", "--in", "gemma", "--format", "json"])
        rows = atlas.find("  ", k=5, model="gemma") if verb == "find" else atlas.search(["  "], k=5, model="gemma")
        assert (ran.exit_code, ran.stdout) == (0, rows.to_json() + "\n")
    with pytest.raises(TokenError, match="no vocabulary here has '     '; the nearest words are "):
        atlas.find("     ", model="gemma")


@pytest.mark.parametrize("model", MAKERS)
def test_chips_lead_to_their_tokens(atlas: Atlas, model: str) -> None:
    """What a chip asks for is one word that finds the token; one with white space before it finds only its like."""
    vocabulary = atlas.models[model].vocabulary
    rows = tokens_of(atlas, model)
    words = {}
    for row in rows:
        asked = ask_for(Token(token_id=row["token_id"], token=row["token"], text=row["text"]))
        (words[row["token_id"]],) = split_words(asked)
    answers = items(atlas.database, [vocabulary], list(set(words.values())))
    for row in rows:
        ids = answers[vocabulary, words[row["token_id"]]]
        assert row["token_id"] in ids, row
        if row["text"][:1].isspace():
            assert {rows[i]["text"] for i in ids} == {row["text"]}, row


def test_pages_of_chips(spaced_atlas: Path) -> None:
    """Followed as a browser follows them, the links of a page find the tokens that they stand on."""
    with server(spaced_atlas) as client:
        links = [link for link in page(client, "/gemma/L0/ff_key/0?k=200").links if link.startswith("/find?")]
        asked = {parse_qs(urlsplit(link).query)["q"][0]: link for link in links}
        assert {'"  "', '"    "', '"\n\n"', '"\tif"', '" ##"'} <= set(asked)
        for q in ('"  "', '"    "', '"\n\n"', '"\tif"', '" ##"'):
            (word,) = split_words(q)
            answer = data(client, asked[q].replace("/find?", "/find.json?") + "&model=gemma&k=3")
            assert answer["words"] == [word]
            assert [row["matched"] for row in answer["parameters"]] == [[word]] * 3
        said = data(client, "/ask.json", q='"  "')
        assert said["says"] == "the word “␣␣”"


def test_both_forms_of_unicode_are_one_word(atlas: Atlas, spaced_atlas: Path) -> None:
    for model in STYLE_OF:
        texts = {row["text"] for row in tokens_of(atlas, model)} & {COMPOSED, DECOMPOSED}
        assert texts
        for word in (COMPOSED, DECOMPOSED, "CAFÉ", "Cafe\u0301", "CAFE\u0301"):
            assert found(atlas, model, word) == texts
    kept = atlas.show("gemma/L0/ff_key/0", k=9, filter=TokenFilter(words=[COMPOSED])).to_rows()
    assert {row["text"] for row in kept} == {DECOMPOSED}


@pytest.mark.parametrize(
    ("word", "texts"),
    [
        ("strasse", {"Straße"}), ("STRASSE", {"Straße"}), ("STRAẞE", {"Straße"}), ("fin", {"ﬁn"}), ("FIN", {"ﬁn"}),
        ("x2", {"x2"}), ("x²", {"x²"}), ("ISI", set()), ("\u0131s\u0131", {"\u0131s\u0131"}),
        ("İSTANBUL", {"İstanbul"}),
        ("I\u0307stanbul", {"İstanbul"}), ("istanbul", set()),
    ],
)  # fmt: skip
def test_forms_that_are_alike(atlas: Atlas, word: str, texts: set[str]) -> None:
    """What folding of case makes equal is found; what only looks alike is another token."""
    assert found(atlas, "gemma", word) == texts


def test_pairs_are_narrowed_in_both_forms(spaced_atlas: Path, atlas: Atlas) -> None:
    """The card of a head, and the query that it shows, which has the same rows."""
    (row,) = atlas.sql(
        "SELECT address FROM head_pairs WHERE source = ? AND rank_distinct > 0 ORDER BY ALL LIMIT 1", [DECOMPOSED]
    ).to_rows()
    with server(spaced_atlas) as client:
        first, second = (
            data(client, f"/{row['address']}.json", contains=contains) for contains in (COMPOSED, DECOMPOSED)
        )
        pairs = [pair for each in first["lists"] for pair in each["pairs"]]
        assert pairs
        assert first["lists"] == second["lists"]
        assert all(DECOMPOSED in (pair["source"]["text"], pair["target"]["text"]) for pair in pairs)
        assert len(atlas.sql(first["sql"])) == len(pairs)


@given(st.text())
def test_folding(text: str) -> None:
    """Equal for both forms and any case, and stable."""
    assert fold(fold(text)) == fold(text)
    for form in ("NFC", "NFD"):
        assert fold(unicodedata.normalize(form, text)) == fold(text)
    assert fold(text.casefold()) == fold(text)
    assert fold(f" {text}\n") == fold(text) or not text.strip()
    assert (fold(text) == text) or not text.isspace()


def test_folding_is_of_the_words_that_are_paired(atlas: Atlas) -> None:
    """Tokens that are one word in either form are one word for heads' pairs too."""
    from paramdex_builder.read.vocabulary import Vocabulary

    texts = [COMPOSED, DECOMPOSED, " Café", "cafe", "  ", " "]
    never = [False] * 6
    vocabulary = Vocabulary(texts, texts, [fold(text) for text in texts], never, never, never, never, "")
    assert vocabulary.words().tolist() == [0, 0, 0, 1, 2, 3]
