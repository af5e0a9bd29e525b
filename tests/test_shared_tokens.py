"""Which items two vocabularies have in common, whatever their tokenizers say of where words begin."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oracle
import paramdex
from paramdex import QueryError
from paramdex.common import shared_tokens
from paramdex.database import named_query
from paramdex_schemas import atlas_files
from query_helpers import Everything, Item, assert_ranking, shared_ids, shared_items, token_rows

pytest_plugins = ["query_fixtures"]


def found(a: list[Item], b: list[Item]) -> list[tuple[int, int]]:
    """What the atlas says of two vocabularies of these items."""
    with duckdb.connect() as connection:
        for statements in atlas_files.ddl():
            connection.execute(statements)
        rows = [
            (name, i, token, text, text, special, False, False, starts, False)
            for name, items in (("A", a), ("B", b))
            for i, token, text, special, starts in items
        ]
        for row in rows:
            connection.execute("INSERT INTO store.tokens VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        run = lambda name, values: connection.sql(named_query(name), params=values).to_arrow_table()  # noqa: E731
        models = [SimpleNamespace(name=name.lower(), vocabulary=name) for name in "AB"]
        left, right = shared_tokens(SimpleNamespace(named=run), *models)  # type: ignore[arg-type]
    return list(zip(left, right, strict=True))


texts = st.sampled_from(["a", "b", " a", " b", "a ", "b ", "c", " c", "", " "])
says = st.sampled_from([True, False])
marked = st.tuples(texts, st.booleans(), says)
"""Of a vocabulary that says what begins a word: text, whether it is special, and whether it begins one."""
unmarked = st.tuples(texts, st.booleans(), st.none() | st.just(False))
"""Of one that does not, but of added tokens."""
vocabularies = st.one_of(st.lists(marked, max_size=12), st.lists(unmarked, max_size=12)).map(
    lambda items: [(i, text, text, *rest) for i, (text, *rest) in enumerate(items)]
)


@given(vocabularies, vocabularies)
def test_agrees_with_brute_force_and_is_one_to_one(a: list[tuple], b: list[tuple]) -> None:
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
        (_, _, text, special, starts), (_, _, their_text, their_special, theirs) = a[i], b[j]
        assert text.strip() == their_text.strip() != ""
        assert not special
        assert not their_special
        assert starts == theirs or None in (starts, theirs)


def test_is_the_same_both_ways() -> None:
    a = [
        (0, "", "the", False, False),
        (1, "", " the", False, True),
        (2, "", " of", False, True),
        (3, "", "x", True, False),
    ]
    b = [
        (0, "", "the", False, None),
        (1, "", "of ", False, None),
        (2, "", "the ", False, None),
        (3, "", "x", False, None),
    ]
    assert found(a, b) == [(1, 2), (2, 1)]  # a word is a word, and not the beginning of others
    assert found(b, a) == [(1, 2), (2, 1)]


@pytest.fixture
def unsaid(small_atlas: Path, tmp_path: Path) -> Path:
    """A copy of the shared atlas in which bert's vocabulary does not say what begins a word."""
    atlas = Path(shutil.copytree(small_atlas, tmp_path / "unsaid.atlas"))
    with duckdb.connect(str(atlas / "atlas.duckdb")) as connection:
        connection.execute(
            "UPDATE store.tokens SET is_word_start = NULL FROM store.models AS m "
            "WHERE m.model = 'bert' AND tokens.vocabulary = m.vocabulary AND NOT is_special"
        )
    return atlas


def test_models_compare_where_one_does_not_say_what_begins_a_word(
    unsaid: Path, db: duckdb.DuckDBPyConnection, wholes: dict[str, Everything]
) -> None:
    with duckdb.connect(str(unsaid / "atlas.duckdb"), read_only=True) as other:
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
