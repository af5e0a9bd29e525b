"""Which items two vocabularies have in common, whatever their tokenizers say of where words begin."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oracle
import paramdex
from opened import change, opened
from paramdex import QueryError
from paramdex.store.common_space import shared_tokens
from paramdex_schemas import atlas_files
from query_helpers import Everything, Item, assert_ranking, shared_ids, shared_items, token_rows


@cache
def empty() -> duckdb.DuckDBPyConnection:
    """The tables of two models, a and b."""
    connection = duckdb.connect()
    for name in "ab":
        connection.execute(f"ATTACH ':memory:' AS {name}; USE {name}")
        connection.execute(atlas_files.model_tables()[0])
    return connection


def found(a: list[Item], b: list[Item]) -> list[tuple[int, int]]:
    """What the atlas says of two vocabularies of these items."""
    connection = empty()
    for name, items in (("a", a), ("b", b)):
        connection.execute(f"DELETE FROM {name}.store.tokens")
        for i, token, text, special, starts, byte, added in items:
            row = (i, token, text, text, special, byte, added, False, False, starts)
            connection.execute(f"INSERT INTO {name}.store.tokens VALUES ({', '.join('?' * len(row))})", row)
    sql = atlas_files.shared_tokens("a.store.tokens", "b.store.tokens")
    database = SimpleNamespace(shared_tokens=lambda *_: connection.sql(sql).to_arrow_table())
    left, right = shared_tokens(database, *(SimpleNamespace(name=name) for name in "ab"))  # type: ignore[arg-type]
    return list(zip(left, right, strict=True))


def item(i: int, text: str, starts: bool | None = False, *, byte: bool = False, added: bool = False) -> Item:
    return i, text, text, False, starts, byte, added


texts = st.sampled_from(["a", "b", " a", " b", "a ", "b ", "c", " c", "", " ", "  a"])
says = st.sampled_from([True, False])
how = st.sampled_from([(False, False), (True, False), (False, True)])
"""Whether an item is a byte piece, and whether it is added."""
marked = st.tuples(texts, st.booleans(), says, how)
"""Of a vocabulary that says what begins a word: text, whether it is special, and whether it begins one."""
unmarked = st.tuples(texts, st.booleans(), st.none() | st.just(False), how)
"""Of one that does not, but of added tokens."""
vocabularies = st.one_of(st.lists(marked, max_size=12), st.lists(unmarked, max_size=12)).map(
    lambda items: [(i, text, text, special, starts, *of) for i, (text, special, starts, of) in enumerate(items)]
)


@given(vocabularies, vocabularies)
def test_agrees_with_brute_force_and_is_one_to_one(a: list[Item], b: list[Item]) -> None:
    expected = shared_items(a, b)
    if len(expected) < 2:
        with pytest.raises(QueryError, match=f"a and b share {len(expected)} tokens: too few to compare them on"):
            found(a, b)
        return
    pairs = found(a, b)
    assert sorted(pairs) == sorted(expected)
    assert pairs == sorted(pairs)
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    for i, j in pairs:
        (_, _, text, special, starts, byte, _), (_, _, their_text, their_special, theirs, their_byte, _) = a[i], b[j]
        assert text.strip() == their_text.strip() != ""
        assert not special
        assert not their_special
        assert starts == theirs or None in (starts, theirs)
        assert byte == their_byte


def test_is_the_same_both_ways() -> None:
    special = (3, "", "x", True, False, False, False)
    a = [item(0, "the"), item(1, " the", True), item(2, " of", True), special]
    b = [item(0, "the", None), item(1, "of ", None), item(2, "the ", None), item(3, "x", None)]
    assert found(a, b) == [(1, 2), (2, 1)]  # a word is a word, and not the beginning of others
    assert found(b, a) == [(1, 2), (2, 1)]


@pytest.mark.parametrize(
    ("alike", "first"),
    [
        ([item(0, "A", byte=True), item(1, "A")], 1),
        ([item(0, "é"), item(1, "é", added=True)], 1),
        ([item(0, "A", byte=True), item(1, "A", added=True), item(2, "A")], 1),
        ([item(0, "x "), item(1, "x")], 1),
        ([item(0, "  x", True), item(1, " x", True)], 1),
        ([item(0, "x"), item(1, "x")], 0),
    ],
)
def test_of_items_that_read_the_same_the_one_that_text_uses(alike: list[Item], first: int) -> None:
    """A byte piece after all others, an added token before them, fewer spaces, the first."""
    own = [*alike, item(9, "other")]
    theirs = [item(5, alike[first][2].strip(), alike[0][4]), item(6, "other")]
    assert found(own, theirs) == [(first, 5), (9, 6)]
    assert found(theirs, own) == [(5, first), (6, 9)]


def test_a_byte_is_a_byte_in_both_and_no_text() -> None:
    """Of a byte that has no piece of its own: byte-level tokenizers have all 256 as ordinary items."""
    A, newline, high = ({"text": text, "byte": True} for text in ("A", "\n", "\\xe2"))
    fallback = [item(0, **A), item(1, **newline), item(2, **high), item(3, "A"), item(4, "b")]
    other = [item(0, **high), item(1, **newline), item(2, "b"), item(3, "A"), item(4, **A)]
    byte_level = [item(0, "\n"), item(1, "A"), item(2, "b"), item(3, "\\xe2")]
    assert found(fallback, other) == [(1, 1), (2, 0), (3, 3), (4, 2)]
    assert found(fallback, byte_level) == [(3, 1), (4, 2)]


def test_forms_of_unicode_are_texts_of_their_own() -> None:
    """A tokenizer that has both gives them rows of their own; one that normalizes never uses the other."""
    a = [item(0, "é"), item(1, "e\u0301"), item(2, "a"), item(3, "b")]
    assert found(a, [item(0, "e\u0301"), item(1, "a"), item(2, "b")]) == [(1, 0), (2, 1), (3, 2)]
    assert found(a[:1] + a[2:], [item(0, "e\u0301"), item(1, "a"), item(2, "b")]) == [(2, 1), (3, 2)]


@pytest.fixture
def unsaid(small_atlas: Path, tmp_path: Path) -> Path:
    """A copy of the shared atlas in which bert's vocabulary does not say what begins a word."""
    atlas = Path(shutil.copytree(small_atlas, tmp_path / "unsaid.atlas"))
    change(atlas, "bert", "UPDATE store.tokens SET is_word_start = NULL WHERE NOT is_special")
    return atlas


def test_models_compare_where_one_does_not_say_what_begins_a_word(
    unsaid: Path, db: duckdb.DuckDBPyConnection, wholes: dict[str, Everything]
) -> None:
    with opened(unsaid) as other:
        ids = shared_ids(other, "gpt2-a", "bert")
        texts = [{i: text for i, _, text, *_ in token_rows(other, model)} for model in ("gpt2-a", "bert")]
    assert len(ids[0]) != len(shared_ids(db, "gpt2-a", "bert")[0])
    assert [texts[0][i].strip() for i in ids[0]] == [texts[1][i].strip() for i in ids[1]]
    own, theirs = wholes["gpt2-a"], wholes["bert"]
    address = "gpt2-a/L1/ff_value/40"
    truth = oracle.pearson(theirs.scores[:, ids[1]], own.row(address)[None, ids[0]])[:, 0]
    kind = {theirs.addresses[i]: truth[i] for i in theirs.chosen("ff_value")}
    with paramdex.open(unsaid) as atlas:
        result = atlas.similar(address, k=500, model="bert")
        assert_ranking(result.to_rows(), kind, 500)
        (note,) = result.notes
        assert note.startswith(f"gpt2-a and bert are compared on the {len(ids[0])} tokens whose text both have ")
        assert list(atlas.align("gpt2-a", "bert", "ff_key").notes) == [note]
        assert atlas.sql("SELECT DISTINCT is_word_start FROM tokens WHERE NOT is_special ORDER BY 1").to_rows() == [
            {"is_word_start": value} for value in (False, True, None)
        ]
