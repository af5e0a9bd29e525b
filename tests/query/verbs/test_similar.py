"""``similar``: every similarity is the Pearson correlation of two full score vectors, within a model and across.

Models of different vocabularies are compared on the rows of the tokens that both have, and on nothing else.
"""

from __future__ import annotations

import random

import duckdb
import numpy as np
import pytest

import oracle
from paramdex import AddressError, Atlas, QueryError
from query_helpers import GPT2, MODELS, Everything, assert_ranking, shared_ids


def truth_of(
    db: duckdb.DuckDBPyConnection,
    wholes: dict[str, Everything],
    address: str,
    model: str,
    kind: str,
    layer: int | None = None,
) -> dict[str, float]:
    """Of one parameter with every parameter of a kind in a model, itself left out."""
    own, whole = wholes[address.split("/", maxsplit=1)[0]], wholes[model]
    mine, theirs = own.row(address)[None, :], whole.scores
    if (own.model in GPT2) != (model in GPT2) or (own.model not in GPT2 and own.model != model):
        ids, their_ids = shared_ids(db, own.model, model)
        mine, theirs = mine[:, ids], theirs[:, their_ids]
    values = oracle.pearson(theirs, mine)[:, 0]
    return {whole.addresses[i]: values[i] for i in whole.chosen(kind, layer) if whole.addresses[i] != address}


@pytest.mark.parametrize("side", ["top", "bottom", "both"])
@pytest.mark.parametrize("model", MODELS)
def test_within_a_model(
    atlas: Atlas,
    db: duckdb.DuckDBPyConnection,
    wholes: dict[str, Everything],
    draw: random.Random,
    model: str,
    side: str,
) -> None:
    """The nearest of its own kind and of another, for parameters drawn anew, of every kind."""
    whole = wholes[model]
    for i in whole.some(draw, 4):
        address, kind = whole.addresses[i], whole.kinds[i]
        rows = atlas.similar(address, k=8, side=side).to_rows()
        assert_ranking(rows, truth_of(db, wholes, address, model, kind), 8, side)
        other = draw.choice(sorted(set(whole.kinds)))
        rows = atlas.similar(address, k=8, kind=other, side=side).to_rows()
        assert_ranking(rows, truth_of(db, wholes, address, model, other), 8, side)


@pytest.mark.parametrize("side", ["top", "bottom", "both"])
@pytest.mark.parametrize(
    ("model", "other"),
    [("gpt2-a", "gpt2-b"), ("gpt2-b", "gpt2-a"), ("gpt2-a", "gpt2-wide"), ("gpt2-wide", "gpt2-b")],
)
def test_across_models_of_one_vocabulary(
    atlas: Atlas,
    db: duckdb.DuckDBPyConnection,
    wholes: dict[str, Everything],
    draw: random.Random,
    model: str,
    other: str,
    side: str,
) -> None:
    """Of the same width and of another, both ways."""
    whole = wholes[model]
    for i in whole.some(draw, 2):
        address, kind = whole.addresses[i], draw.choice(["ff_key", "ff_value", whole.kinds[i]])
        rows = atlas.similar(address, k=8, model=other, kind=kind, side=side).to_rows()
        assert_ranking(rows, truth_of(db, wholes, address, other, kind), 8, side)


@pytest.mark.parametrize(
    ("model", "other"),
    [("gpt2-a", "bert"), ("bert", "gpt2-a"), ("gpt2-wide", "llama-gqa"), ("llama-gqa", "bert"), ("bert", "llama-gqa")],
)
def test_across_vocabularies(
    atlas: Atlas,
    db: duckdb.DuckDBPyConnection,
    wholes: dict[str, Everything],
    draw: random.Random,
    model: str,
    other: str,
) -> None:
    """Of its own kind, or of neurons where the other model has none of that kind."""
    whole = wholes[model]
    ids, _ = shared_ids(db, model, other)
    for i in whole.some(draw, 2):
        kind = whole.kinds[i] if whole.kinds[i] in wholes[other].kinds else "ff_key"
        for side in ("top", "bottom", "both"):
            result = atlas.similar(whole.addresses[i], k=8, model=other, kind=kind, side=side)
            assert_ranking(result.to_rows(), truth_of(db, wholes, whole.addresses[i], other, kind), 8, side)
            (note,) = result.notes
            assert note.startswith(f"{model} and {other} are compared on the {len(ids)} tokens whose text both have (")


def test_all_models_at_once(atlas: Atlas, db: duckdb.DuckDBPyConnection, wholes: dict[str, Everything]) -> None:
    address = "gpt2-b/L1/ff_value/40"
    truth = {a: s for model in MODELS for a, s in truth_of(db, wholes, address, model, "ff_value").items()}
    result = atlas.similar(address, k=10_000, model="all")
    assert_ranking(result.to_rows(), truth, 10_000)
    assert [note.split(" are compared")[0] for note in result.notes] == ["gpt2-b and llama-gqa", "gpt2-b and bert"]


def test_all_leaves_out_models_without_the_kind_or_layer(
    atlas: Atlas, db: duckdb.DuckDBPyConnection, wholes: dict[str, Everything]
) -> None:
    rows = atlas.similar("llama-gqa/L0/ff_gate/3", k=500, model="all").to_rows()
    assert_ranking(rows, truth_of(db, wholes, "llama-gqa/L0/ff_gate/3", "llama-gqa", "ff_gate"), 500)
    rows = atlas.similar("gpt2-a/L0/ff_key/3", k=500, model="all", layer=2).to_rows()
    assert_ranking(rows, truth_of(db, wholes, "gpt2-a/L0/ff_key/3", "gpt2-wide", "ff_key", 2), 500)


def test_what_belongs_to_no_layer_is_near_to_what_does(
    atlas: Atlas, db: duckdb.DuckDBPyConnection, wholes: dict[str, Everything]
) -> None:
    """A position asks for positions, or for another kind, of which it may ask one layer."""
    for address in ("gpt2-a/position/17", "bert/token_type/1"):
        kind = address.split("/")[1]
        for model in ("gpt2-wide", "bert"):
            if kind in wholes[model].kinds:
                rows = atlas.similar(address, k=500, model=model).to_rows()
                assert_ranking(rows, truth_of(db, wholes, address, model, kind), 500)
            rows = atlas.similar(address, k=500, model=model, kind="ff_key", layer=1).to_rows()
            assert_ranking(rows, truth_of(db, wholes, address, model, "ff_key", 1), 500)
    rows = atlas.similar("gpt2-a/L1/ff_bias/0", k=500, model="all", kind="position").to_rows()
    truth = [truth_of(db, wholes, "gpt2-a/L1/ff_bias/0", model, "position") for model in [*GPT2, "bert"]]
    assert_ranking(rows, {address: value for each in truth for address, value in each.items()}, 500)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("other", ["gpt2-a", "gpt2-b", "gpt2-wide", "bert"])
def test_in_one_layer(
    atlas: Atlas, db: duckdb.DuckDBPyConnection, wholes: dict[str, Everything], other: str, layer: int
) -> None:
    address = "gpt2-a/L1/H1/attn_output/7"
    rows = atlas.similar(address, k=500, model=other, layer=layer).to_rows()
    assert_ranking(rows, truth_of(db, wholes, address, other, "attn_output", layer), 500)


def test_the_parameter_itself_is_left_out_of_its_own_kind_only(atlas: Atlas) -> None:
    """k of the others are given, and a shared vector is left out under whichever head it is asked for."""
    for head in (2, 3):
        rows = atlas.similar(f"llama-gqa/L1/H{head}/attn_value/4", k=31).to_rows()
        assert len(rows) == 31  # 2 layers x 2 key/value heads x 8, less one
        assert "llama-gqa/L1/H2/attn_value/4" not in {row["address"] for row in rows}
    assert len(atlas.similar("llama-gqa/L1/H2/attn_value/4", k=500, kind="attn_key")) == 32
    assert len(atlas.similar("gpt2-a/L0/ff_key/0", k=500, side="both")) == 191


def test_is_the_same_both_ways(atlas: Atlas) -> None:
    """Of the one in the other's ranking what it is in its own."""
    pairs = [("gpt2-a/L0/ff_key/9", "gpt2-wide/L2/ff_key/100"), ("bert/L1/ff_key/9", "gpt2-b/L0/ff_key/64")]
    for a, b in pairs:
        there, back = (
            {row["address"]: row["similarity"] for row in atlas.similar(x, k=500, model=y.split("/")[0])}[y]
            for x, y in ((a, b), (b, a))
        )
        assert there == pytest.approx(back, abs=1e-6)


def test_agrees_with_the_stored_neighbors(atlas: Atlas) -> None:
    for address in ("gpt2-a/L1/ff_value/3", "gpt2-wide/L0/H3/attn_key/2"):
        stored = atlas.sql(
            "SELECT rank, similarity, neighbor AS address FROM neighbors "
            "WHERE address = ? AND neighbor_model = 'gpt2-b' ORDER BY rank",
            [address],
        ).to_rows()
        rows = atlas.similar(address, k=4, model="gpt2-b").to_rows()
        assert [row["address"] for row in rows] == [row["address"] for row in stored]
        assert [row["similarity"] for row in rows] == pytest.approx([row["similarity"] for row in stored], abs=1e-6)


def test_title_says_what_was_asked_in_printable_words(atlas: Atlas) -> None:
    address = atlas.sql(
        "SELECT address FROM parameter_tokens WHERE model = 'gpt2-a' AND side = 'top' AND rank <= 5 AND text = chr(10)"
    ).to_rows()[0]["address"]
    title = str(atlas.similar(address, k=1).title)
    assert title.startswith(f"nearest to {address}: ")
    assert title.isprintable()
    assert r"\n" in title


@pytest.mark.parametrize("address", ["gpt2-a", "gpt2-a/L1", "bert"])
def test_only_parameters_and_heads_have_similar_ones(atlas: Atlas, address: str) -> None:
    with pytest.raises(AddressError) as caught:
        atlas.similar(address)
    message = str(caught.value)
    assert message.endswith(f", say, not {address}")
    example = message.removeprefix("similar takes the address of a parameter or a head, ").partition(", say")[0]
    assert len(atlas.similar(example, k=3)) == 3


@pytest.mark.parametrize(
    ("address", "options", "error", "message"),
    [
        ("gpt2-a/L0/ff_key/0", {"model": "nope"}, AddressError, "has no model 'nope'"),
        ("nope/L0/ff_key/0", {}, AddressError, "has no model 'nope'"),
        ("gpt2-a/L0/ff_key/96", {}, AddressError, "ff_key of gpt2-a/L0 goes from 0 to 95"),
        ("gpt2-a/L0/ff_key/0", {"kind": "ff_gate"}, QueryError, "gpt2-a has no parameters of kind 'ff_gate'"),
        ("llama-gqa/L0/ff_gate/0", {"model": "bert"}, QueryError, "bert has no parameters of kind 'ff_gate'"),
        ("gpt2-a/L0/ff_key/0", {"layer": 2}, AddressError, "there is no layer 2; gpt2-a has layers L0 to L1"),
        ("gpt2-a/position/0", {"layer": 1}, QueryError, "position belongs to no layer; ask without layer 1"),
        ("gpt2-a/L0/ff_key/0", {"kind": "position", "layer": 1}, QueryError, "position belongs to no layer"),
        ("bert/token_type/0", {"model": "gpt2-a"}, QueryError, "gpt2-a has no parameters of kind 'token_type'"),
        ("gpt2-a/L0/ff_key/0", {"side": "x"}, QueryError, "side is one of top, bottom, both, not 'x'"),
        ("gpt2-a/L0/ff_key/0", {"k": 0}, QueryError, "at least 1, not 0"),
    ],
)
def test_what_is_not_there_is_said(
    atlas: Atlas, address: str, options: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        atlas.similar(address, **options)


def test_is_a_sum_in_float64(atlas: Atlas) -> None:
    """Also within a model, where the query is a stored row of float32."""
    rows = atlas.vectors.rows("gpt2-a", "ff_value").astype(np.float64)
    expected = (rows * rows[3]).sum(axis=1).astype(np.float32)
    expected[3] = -2  # itself
    found = [row["similarity"] for row in atlas.similar("gpt2-a/L0/ff_value/3", 20).to_rows()]
    assert np.array_equal(np.float32(found), np.sort(expected)[::-1][:20])
