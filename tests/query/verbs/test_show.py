"""``show``: the tokens and z of a parameter, the pairs of a head, the row of a model, all from the weights."""

from __future__ import annotations

import random

import numpy as np
import pytest

import oracle
from paramdex import AddressError, Atlas, QueryError
from query_helpers import MODELS, Everything


@pytest.mark.parametrize("model", MODELS)
def test_parameter(atlas: Atlas, wholes: dict[str, Everything], draw: random.Random, model: str) -> None:
    """Five strongest of each side: ids, texts, scores and z, against the whole score vector; of every kind."""
    whole = wholes[model]
    texts = dict(
        atlas.sql("SELECT token_id, text FROM tokens JOIN models USING (vocabulary) WHERE model = ?", [model])
        .to_pandas()
        .itertuples(index=False)
    )
    for i in whole.some(draw, 6):
        rows = atlas.show(whole.addresses[i], k=5).to_rows()
        assert [(row["side"], row["rank"]) for row in rows] == [(s, n) for s in ("top", "bottom") for n in range(1, 6)]
        scores = whole.scores[i]
        for side in ("top", "bottom"):
            ours = [row for row in rows if row["side"] == side]
            ids = [row["token_id"] for row in ours]
            oracle.assert_strongest([row["score"] for row in ours], scores[ids], scores, side)
            z = (scores[ids] - scores.mean()) / scores.std()
            np.testing.assert_allclose([row["z"] for row in ours], z, rtol=1e-5, atol=1e-5)
            assert [row["text"] for row in ours] == [texts[j] for j in ids]


def test_printed_parameter_says_what_it_is(atlas: Atlas, truths: dict[str, oracle.Truth]) -> None:
    truth = truths["bert"]
    vector = truth.vector("ff_value", 1, None, 7)
    scores = truth.scores(vector)
    lines = str(atlas.show("bert/L1/ff_value/7", k=3)).splitlines()
    assert lines[0] == "bert/L1/ff_value/7: what a feed-forward neuron writes"
    numbers = f"mean {scores.mean():.4g}, std {scores.std():.4g}"
    assert lines[1] == f"norm {np.linalg.norm(vector):.4g}; scores over {len(truth.E)} tokens: {numbers}"
    assert "readable" in lines[2]
    assert lines[3].split() == ["rank", "top", "top", "score", "top", "z", "bottom", "bottom", "score", "bottom", "z"]
    assert [line.split()[0] for line in lines[5:]] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("gpt2-a/L1/ff_bias/0", "what a feed-forward layer writes whatever it reads"),
        ("bert/L0/attn_bias/0", "what an attention layer writes whatever it reads"),
        ("bert/L0/H2/attn_query_bias/0", "what a head attends to whatever the query"),
        ("gpt2-wide/L2/H3/attn_key_bias/0", "which queries a head's key bias answers, whatever the key"),
        ("gpt2-wide/L2/H3/attn_value_bias/0", "what a head writes whatever it attends to"),
        ("gpt2-b/position/31", "what a position adds"),
        ("bert/token_type/1", "what a token type adds"),
    ],
)
def test_biases_and_what_belongs_to_no_layer(
    atlas: Atlas, wholes: dict[str, Everything], address: str, says: str
) -> None:
    result = atlas.show(address, k=4)
    assert str(result.title).splitlines()[0] == f"{address}: {says}"
    scores = wholes[address.split("/", maxsplit=1)[0]].row(address)
    for side in ("top", "bottom"):
        rows = [row for row in result if row["side"] == side]
        oracle.assert_strongest([row["score"] for row in rows], scores[[row["token_id"] for row in rows]], scores, side)


@pytest.mark.parametrize("distinct", [True, False])
@pytest.mark.parametrize("address", ["gpt2-wide/L2/H3", "llama-gqa/L1/H2", "bert/L0/H1"])
def test_head(atlas: Atlas, truths: dict[str, oracle.Truth], address: str, distinct: bool) -> None:
    """Seven strongest pairs of both matrices and sides, all or of different words only, against the V x V matrix."""
    model, layer, head = address.split("/")
    tokens = atlas.sql(
        "SELECT text FROM tokens JOIN models USING (vocabulary) WHERE model = ? ORDER BY token_id", [model]
    )
    texts = np.array([row["text"] for row in tokens], dtype=object)  # NumPy's own strings drop a NUL
    words = np.array([text.strip().casefold() or text for text in texts], dtype=object)
    rows = atlas.show(address, k=7, distinct=distinct).to_rows()
    place = "rank_distinct" if distinct else "rank"
    expected = [(m, side, n) for m in ("QK", "VO") for side in ("top", "bottom") for n in range(1, 8)]
    assert [(row["matrix"], row["side"], row[place]) for row in rows] == expected
    for matrix in ("QK", "VO"):
        S = truths[model].pair_scores(matrix, int(layer[1:]), int(head[1:]))
        everywhere = S[words[:, None] != words[None, :]] if distinct else S
        for side in ("top", "bottom"):
            ours = [row for row in rows if (row["matrix"], row["side"]) == (matrix, side)]
            sources, targets = ([row[name] for row in ours] for name in ("source_id", "target_id"))
            assert [(row["source"], row["target"]) for row in ours] == list(
                zip(texts[sources], texts[targets], strict=True)
            )
            at = S[sources, targets]
            oracle.assert_strongest([row["score"] for row in ours], at, everywhere, side)


@pytest.mark.parametrize(("kind", "shared"), [("attn_key", True), ("attn_value", True), ("attn_query", False)])
def test_any_head_of_a_group_finds_its_shared_vectors(atlas: Atlas, kind: str, shared: bool) -> None:
    """llama-gqa has four heads on two key/value heads: H2 and H3 share, H1 and H2 do not."""
    shown = {head: atlas.show(f"llama-gqa/L1/H{head}/{kind}/5") for head in (1, 2, 3)}
    assert (shown[2].to_rows() == shown[3].to_rows()) is shared
    assert shown[1].to_rows() != shown[2].to_rows()
    assert str(shown[3].title).startswith(f"llama-gqa/L1/H{2 if shared else 3}/{kind}/5: ")


def test_head_says_which_key_value_head_it_shares(atlas: Atlas) -> None:
    assert str(atlas.show("llama-gqa/L0/H3").title).endswith("sharing key/value head 1")
    assert "sharing" not in str(atlas.show("bert/L0/H1").title)


def test_head_counts_its_pairs_of_one_word(atlas: Atlas) -> None:
    counts = atlas.sql(
        "SELECT matrix, sum(same_word::INT) AS n FROM head_pairs WHERE address = 'gpt2-a/L1/H0' AND side = 'top' "
        "AND rank IS NOT NULL GROUP BY matrix ORDER BY matrix"
    ).to_rows()
    notes = [f"{row['matrix']}: {row['n']} of its top 30 pairs are of a word with itself" for row in counts]
    assert list(atlas.show("gpt2-a/L1/H0").notes) == notes
    assert len(notes) == 2


def test_k_beyond_what_is_kept_gives_what_is_kept_and_says_so(atlas: Atlas) -> None:
    """The shared atlas keeps 12 tokens a side and 30 pairs a matrix and side."""
    for address, kept, what, option in (
        ("gpt2-a/L0/ff_key/0", 12, "tokens", "--top-k"),
        ("gpt2-a/L0/H0", 30, "pairs", "--pair-k"),
    ):
        found = atlas.show(address, k=10_000, distinct=False)
        assert [row["rank"] for row in found.to_rows()] == [*range(1, kept + 1)] * (2 if what == "tokens" else 4)
        assert f"the atlas keeps {kept} {what} per side; build with a larger {option} to keep more" in found.notes
        assert not any("the atlas keeps" in note for note in atlas.show(address, k=kept, distinct=False).notes)


@pytest.mark.parametrize("model", MODELS)
def test_model(atlas: Atlas, truths: dict[str, oracle.Truth], model: str) -> None:
    result = atlas.show(model)
    (row,) = result.to_rows()
    truth = truths[model]
    expected = {
        "model": model, "layers": truth.n_layers, "width": truth.E.shape[1], "heads": truth.n_heads,
        "kv_heads": truth.n_kv_heads, "neurons": len(truth.rows["ff_key"][0]), "tokens": len(truth.E),
        "parameters": truth.n_parameters, "matrices": 2 * truth.n_heads * truth.n_layers, "experts": None,
        "stacks": None, "fold_norm": False, "rotary_left_out": model == "llama-gqa",
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert [each for each in atlas.info().to_rows() if each["model"] == model] == [row]
    assert f"neurons           {expected['neurons']}" in str(result)


@pytest.mark.parametrize("k", [0, -1])
@pytest.mark.parametrize("address", ["gpt2-a/L0/ff_key/0", "gpt2-a/L0/H0"])
def test_k_below_one_is_refused(atlas: Atlas, address: str, k: int) -> None:
    with pytest.raises(QueryError, match=f"at least 1, not {k}"):
        atlas.show(address, k=k)


def test_layer_is_no_thing_to_show_but_the_message_says_what_is(atlas: Atlas) -> None:
    with pytest.raises(AddressError) as caught:
        atlas.show("gpt2-a/L1")
    assert str(caught.value) == (
        "gpt2-a/L1 is a layer; show takes a parameter or a head, gpt2-a/L1/ff_value/0 or gpt2-a/L1/H0, say"
    )
    for example in ("gpt2-a/L1/ff_value/0", "gpt2-a/L1/H0"):
        assert len(atlas.show(example, k=1)) > 0


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("gpt2-a/L0/E0", "gpt2-a/L0/E0: gpt2-a/L0 has no experts"),
        ("gpt2-a/L2", "gpt2-a/L2: gpt2-a has layers L0 to L1"),
        ("gpt2-a/encoder", "gpt2-a/encoder: gpt2-a has one stack; write it without /encoder"),
        ("gpt2-a/cross/L0/H0", "gpt2-a/cross/L0/H0: gpt2-a has one stack; write it without /cross"),
        ("gpt2-a/position/32", "gpt2-a/position/32: position of gpt2-a goes from 0 to 31"),
        ("llama-gqa/position/0", "llama-gqa has no parameters of kind 'position'; there are ff_key"),
    ],
)
def test_what_the_model_does_not_have(atlas: Atlas, address: str, message: str) -> None:
    with pytest.raises(AddressError) as caught:
        atlas.show(address)
    assert str(caught.value).startswith(message)
