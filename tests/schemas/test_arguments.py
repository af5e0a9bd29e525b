"""What a person might give a verb by mistake: a paramdex error that names it, or the answer that was meant."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

import paramdex
from paramdex import Atlas, AtlasError, ParamdexError, QueryError, TokenFilter
from paramdex_schemas import Address

PARAMETER, HEAD, A, B = "gpt2-a/L0/ff_value/1", "gpt2-a/L0/H1", "gpt2-a", "bert"

WRONG: dict[str, Callable[[Atlas], object]] = {
    # addresses and names
    "no address": lambda a: a.show(None),
    "bytes for an address": lambda a: a.show(b"gpt2-a/L0/H1"),
    "addresses": lambda a: a.similar([PARAMETER]),
    "no model": lambda a: a.lens(np.ones(24), None),
    "a model's number": lambda a: a.find("food", model=1),
    "models": lambda a: a.search("food", model=[A]),
    "a path for a model": lambda a: a.align(Path(A), B),
    "no base": lambda a: a.diff(None),
    "a null byte in a source": lambda a: a.diff("\0", "x"),
    "no parameter": lambda a: a.owner(-1),
    # kinds, sides, matrices, layers
    "no kind": lambda a: a.match(A, B, None),
    "kinds": lambda a: a.search("food", kind=["ff_key"]),
    "an array of kinds": lambda a: a.search("food", kind=np.array(["ff_key", "ff_value"])),
    "kinds of a head": lambda a: a.similar(HEAD, kind=["QK"]),
    "kinds of a difference": lambda a: a.diff(A, kind=[1]),
    "sides": lambda a: a.search("food", side=["top"]),
    "sides to match": lambda a: a.match(A, B, "ff_key", side=["top"]),
    "matrices": lambda a: a.directions(HEAD, matrix=["QK"]),
    "matrices of heads": lambda a: a.heads([("a", "b")], matrix=[]),
    "half a layer": lambda a: a.search("food", layer=0.5),
    "a layer's name": lambda a: a.find("food", layer="0"),
    "whether a layer": lambda a: a.find("food", layer=True),
    # how many
    "whether how many": lambda a: a.show(PARAMETER, True),
    "how many, as text": lambda a: a.show(PARAMETER, "3"),
    "half of a top": lambda a: a.heads([("a", "b")], top=2.5),
    "no top": lambda a: a.heads([("a", "b")], top=None),
    "NaN of a top": lambda a: a.heads([("a", "b")], top=float("nan")),
    # words and pairs
    "no words": lambda a: a.search(None),
    "bytes for words": lambda a: a.find(b"food"),
    "half a word": lambda a: a.find([0.5]),
    "whether a word": lambda a: a.find([True]),
    "a missing word": lambda a: a.find(pd.Series([1, None])),
    "a word that is none": lambda a: a.search(["food", None]),
    "a table of words": lambda a: a.find(pd.DataFrame({"food": [1]})),
    "a mapping of words": lambda a: a.find({"food": 1}),
    "one pair": lambda a: a.heads(("is", "an")),
    "a mapping of pairs": lambda a: a.heads({"is": "was"}),
    "a table of pairs": lambda a: a.heads(pd.DataFrame({"is": ["a"], "an": ["b"]})),
    "pairs without an order": lambda a: a.heads([{"a", "b"}]),
    "no pairs": lambda a: a.heads(None),
    "a side of pairs": lambda a: a.heads([("food", "bread")], side="left"),
    # filters
    "a filter as a dictionary": lambda a: a.show(PARAMETER, filter={"ascii": True}),
    "a filter that is off": lambda a: a.show(PARAMETER, filter=False),
    "a filter's class": lambda a: a.search("food", filter=TokenFilter),
    "a missing word in a list": lambda a: a.show(PARAMETER, filter=TokenFilter(words=[float("nan")])),
    "what is neither on nor off": lambda a: a.show(PARAMETER, filter=TokenFilter(ascii="yes")),
    # vectors
    "a masked vector": lambda a: a.lens(np.ma.masked_array(np.ones(24), [0] * 23 + [1]), A),
    "a ragged vector": lambda a: a.lens([[1.0], [1.0, 2.0]], A),
    "a masked vector in a list": lambda a: a.lens([np.ma.masked_array(np.ones(24), [0] * 23 + [1])], A),
    "a vector without data": lambda a: a.lens(torch.ones(24, device="meta"), A),
    "a sparse vector": lambda a: a.lens(torch.eye(24).to_sparse()[0], A),
    "a complex vector": lambda a: a.lens(torch.ones(24, dtype=torch.complex64), A),
    "a missing entry": lambda a: a.lens(pd.Series([1, None] * 12, dtype="Int64"), A),
    "texts for a vector": lambda a: a.lens(["1"] * 24, A),
    "half a row": lambda a: a.lens(np.ones((2, 24)), A, row=0.5),
    "whether a row": lambda a: a.lens(np.ones((2, 24)), A, row=True),
    "a row's name": lambda a: a.lens(np.ones((2, 24)), A, row="1"),
    "a folder for a vector": lambda a: a.lens(a.path, A),
    # SQL
    "no SQL": lambda a: a.sql(None),
    "bytes for SQL": lambda a: a.sql(b"SELECT 1"),
    "one value": lambda a: a.sql("SELECT ?", 1),
    "a text of values": lambda a: a.sql("SELECT ?", "x"),
    "a value that is none": lambda a: a.sql("SELECT ?", [object()]),
    "a value of surrogates": lambda a: a.sql("SELECT ?", ["\udc80"]),
    "lists without an end": lambda a: a.sql("SELECT ?", [[[[[[[[[[1]]]]]]]]]]),
    "values without an order": lambda a: a.sql("SELECT ?, ?", {1, 2}),
    # results
    "a kind that was not aligned": lambda a: a.align(A, B).scores("zz"),
    "a third side": lambda a: a.align(A, B).places("ff_key", "c"),
    "a format that there is not": lambda a: a.info().render("xml"),
    "kinds of an alignment": lambda a: a.align(A, B).diagonality(["ff_key"]),
    "an atlas that is none": lambda _: paramdex.open(None),
    "an empty path": lambda _: paramdex.open(""),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_named(atlas: Atlas, name: str) -> None:
    with pytest.raises(ParamdexError) as error:
        WRONG[name](atlas)
    assert len(str(error.value)) > 15
    assert "has the shape" not in str(error.value)  # vectors are as wide as the model: something else is wrong


RIGHT: dict[str, tuple[Callable[[Atlas], object], Callable[[Atlas], object]]] = {
    "an address that was read": (lambda a: a.show(a.address(PARAMETER)), lambda a: a.show(PARAMETER)),
    "an address that was made": (lambda a: a.show(Address(A, 0, 1)), lambda a: a.show(HEAD)),
    "a very large k": (lambda a: a.show(PARAMETER, 2**70), lambda a: a.show(PARAMETER, 10_000)),
    "a very large k of heads": (lambda a: a.similar(HEAD, 2**70), lambda a: a.similar(HEAD, 10_000)),
    "words of NumPy": (lambda a: a.find(np.array(["food"])), lambda a: a.find("food")),
    "words of pandas": (lambda a: a.search(pd.Series(["food", "bread"])), lambda a: a.search("food bread")),
    "words of Arrow": (lambda a: a.search(pa.array(["food", "bread"])), lambda a: a.search("food bread")),
    "words one by one": (lambda a: a.search(w for w in ("food", "bread")), lambda a: a.search("food bread")),
    "a word list of Arrow": (
        lambda a: a.show(PARAMETER, filter=TokenFilter(words=pa.array(["food", "bread"]))),
        lambda a: a.show(PARAMETER, filter=TokenFilter(words=["food", "bread"])),
    ),
    "values of NumPy": (lambda a: a.sql("SELECT ?, ?", np.array([1, 2])), lambda a: a.sql("SELECT ?, ?", [1, 2])),
    "named values of NumPy": (
        lambda a: a.sql("SELECT $x", {"x": np.float32(2)}),
        lambda a: a.sql("SELECT $x", {"x": 2.0}),
    ),
    "a value of PyTorch": (lambda a: a.sql("SELECT ?", [torch.tensor(3)]), lambda a: a.sql("SELECT ?", [3])),
    "times of NumPy": (
        lambda a: a.sql("SELECT ?, ?", [np.datetime64("2020-01-02T03:04:05", "ns"), np.timedelta64(5, "ns")]),
        lambda a: a.sql("SELECT ?, ?", [datetime.fromisoformat("2020-01-02T03:04:05"), timedelta(0)]),
    ),
    "a list of NumPy": (lambda a: a.sql("SELECT ?", [np.array([1, 2])]), lambda a: a.sql("SELECT ?", [[1, 2]])),
    "pairs of NumPy": (lambda a: a.heads(np.array([["food", "bread"]])), lambda a: a.heads([("food", "bread")])),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_meant_is_answered(atlas: Atlas, name: str) -> None:
    given, meant = RIGHT[name]
    assert given(atlas).to_rows() == meant(atlas).to_rows()


def test_a_filter_can_be_a_key() -> None:
    assert hash(TokenFilter(words=["a"])) == hash(TokenFilter(words=("a",)))
    assert TokenFilter(words=["a"]) == TokenFilter(words=iter(["a"]))


def test_a_card_is_the_same_when_asked_for_again_and_when_pickled(atlas: Atlas) -> None:
    card = atlas.show(PARAMETER)
    assert card == atlas.show(PARAMETER)
    again = pickle.loads(pickle.dumps(card))
    assert (str(again), again) == (str(card), card)
    np.testing.assert_array_equal(again.places(), card.places())


def test_numbers_are_kept_as_they_are(atlas: Atlas) -> None:
    query = (
        "SELECT 12345678901234567.891::DECIMAL(30, 3) AS wide, 0.1::DECIMAL(5, 3) AS short, 7::DECIMAL(5, 2) AS whole, "
        "MAP {'x': 0.1::FLOAT} AS of, [0.1::FLOAT] AS list"
    )
    result = atlas.sql(query)
    assert result.to_rows() == [
        {"wide": Decimal("12345678901234567.891"), "short": 0.1, "whole": 7, "of": [("x", 0.1)], "list": [0.1]}
    ]
    assert '"wide": "12345678901234567.891", "short": 0.1, "whole": 7' in result.to_json()
    assert "12345678901234567.891,0.1,7," in result.to_csv()


def test_what_pandas_has_not_is_said(atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(QueryError, match="cast them to VARCHAR"):
        atlas.sql("SELECT union_value(a := 1) AS x").to_pandas()
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(QueryError, match="pip install pandas"):
        atlas.info().to_pandas()


def test_a_printed_number_is_called_rank_only_where_it_is(atlas: Atlas) -> None:
    assert str(atlas.show(PARAMETER)).splitlines()[3].startswith("rank")
    few = atlas.show(PARAMETER, filter=TokenFilter(words=[row["text"] for row in atlas.show(PARAMETER).to_rows()[2:4]]))
    assert [row["rank"] for row in few][:2] == [3, 4]
    assert str(few).splitlines()[3].startswith("#")


def test_condition_is_that_of_the_embedding(atlas: Atlas) -> None:
    (known,) = atlas.sql("SELECT embedding_condition AS x FROM models WHERE model = ?", [A]).to_rows()
    assert atlas.vectors.space(A).root.condition == pytest.approx(known["x"], rel=1e-6)


@pytest.mark.parametrize("layers", [{}, {"layer_a": 1}, {"layer_b": 1}])
def test_biases_have_no_partners_unless_their_layers_are_given(atlas: Atlas, layers: dict[str, int]) -> None:
    """No layers are aligned by their biases."""
    found = atlas.match(A, B, "ff_bias", **layers)
    assert len(found)
    assert [row["partner"] for row in found] == [None] * len(found)
    assert not any("align" in note for note in found.notes)


def test_biases_of_given_layers_are_partners(atlas: Atlas) -> None:
    found = atlas.match(A, B, "ff_bias", layer_a=1, layer_b=0)
    assert len(found)
    for row in found:
        assert (row["address"], row["partner"]) == ("gpt2-a/L1/ff_bias/0", "bert/L0/ff_bias/0")


def test_a_closed_atlas_says_so(small_atlas: Path) -> None:
    atlas = paramdex.open(small_atlas)
    _ = atlas.vectors
    atlas.close()
    with pytest.raises(AtlasError, match="has been closed"):
        atlas.fork()
