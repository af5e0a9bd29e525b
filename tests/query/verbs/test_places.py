"""Models of several stacks and of experts: every verb finds what lies in a stack, in an expert or in no layer.

The vectors are the builder's own, which test_families.py compares with the models; here it is what comes of them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL_OPTIONS
from scipy.optimize import linear_sum_assignment

import models
import oracle
import paramdex
from paramdex import AddressError, Atlas
from paramdex_builder import build
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_schemas import KINDS, Address
from query_helpers import Everything, assert_ranking

MAKERS = {
    "t5": "T5ForConditionalGeneration",
    "bart": "BartForConditionalGeneration",
    "mixed": "Qwen2MoeForCausalLM, every other layer sparse",
    "sparse": "MixtralForCausalLM",
}
"""Three stacks, with positions and without; dense layers between mixtures of experts; experts in all layers."""


@dataclass
class Whole(Everything):
    """All parameters of a model, with what its heads are made of and where its layers begin and end."""

    E: np.ndarray
    rows: dict[tuple[str, str | None, int | None], np.ndarray]
    """kind, stack, layer -> vectors (n x d)"""

    def layers_of(self, kind: str) -> dict[str, np.ndarray]:
        """Name of a layer -> its vectors of a kind."""
        named = {(stack, layer): f"{stack}/L{layer}" if stack else f"L{layer}" for _, stack, layer in self.rows}
        return {named[stack, layer]: rows for (each, stack, layer), rows in self.rows.items() if each == kind}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four models of 60 words."""
    root = tmp_path_factory.mktemp("places")
    return {
        name: models.save_word_model(root / name, seed, models.MAKERS[maker])
        for seed, (name, maker) in enumerate(MAKERS.items())
    }


@pytest.fixture(scope="module")
def atlas(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Atlas]:
    sources = [str(folder) for folder in folders.values()]
    with paramdex.open(build(sources, tmp_path_factory.mktemp("atlas") / "places.atlas", SMALL_OPTIONS)) as atlas:
        yield atlas


@pytest.fixture(scope="module")
def wholes(folders: dict[str, Path]) -> dict[str, Whole]:
    """Every parameter, with its address written out run by run."""
    found = {}
    for name, folder in folders.items():
        addresses, kinds, layers, vectors = [], [], [], []
        rows: dict[tuple[str, str | None, int | None], list[np.ndarray]] = {}
        checkpoint = Checkpoint.open(str(folder))
        E = checkpoint.embedding()[0].double().numpy()[:60]
        for run in checkpoint.layout.runs:
            own = checkpoint.rows(run).double().numpy()
            for i, vector in enumerate(own):
                owner, idx = divmod(i, run.size)
                place = [name, run.stack, None if run.layer is None else f"L{run.layer}"]
                if run.owner is not None:
                    owner *= run.group if run.owner == "kv_head" else 1
                    place.append(f"{'E' if run.owner == 'expert' else 'H'}{owner}")
                addresses.append("/".join(part for part in [*place, run.kind, str(idx)] if part is not None))
                kinds.append(run.kind)
                layers.append(run.layer)
                vectors.append(vector)
            rows.setdefault((run.kind, run.stack, run.layer), []).append(own)
        whole = {place: np.concatenate(parts) for place, parts in rows.items()}
        found[name] = Whole(name, addresses, kinds, layers, np.array(vectors) @ E.T, E, whole)
    return found


@pytest.mark.parametrize("model", MAKERS)
def test_every_parameter_is_there_under_its_name(atlas: Atlas, wholes: dict[str, Whole], model: str) -> None:
    """In the order of the numbering, its columns as in its address; and its address leads to it."""
    rows = atlas.sql("SELECT * FROM parameters WHERE model = ? ORDER BY param_id", [model]).to_rows()
    assert [row["address"] for row in rows] == wholes[model].addresses
    for row in rows:
        address = Address.parse(row["address"])
        assert atlas.models[model].param_id(address) == row["param_id"]
        for name in ("stack", "layer", "kind", "head", "expert", "idx"):
            assert getattr(address, name) == row[name]
    moments = np.array([(row["mean"], row["std"]) for row in rows])
    scores = wholes[model].scores
    np.testing.assert_allclose(moments, np.stack([scores.mean(1), scores.std(1)], 1), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("model", MAKERS)
def test_every_head_is_there_under_its_name(atlas: Atlas, model: str) -> None:
    rows = atlas.sql("SELECT * FROM heads WHERE model = ? ORDER BY head_id", [model]).to_rows()
    assert len(rows) == {"t5": (2 + 3 + 3) * 4, "bart": 2 * 3 + (3 + 3) * 4, "mixed": 4 * 4, "sparse": 2 * 4}[model]
    for row in rows:
        address = Address.parse(row["address"])
        assert atlas.models[model].head_id(address) == row["head_id"]
        assert (address.stack, address.layer, address.head) == (row["stack"], row["layer"], row["head"])
        assert row["kv_head"] == row["head"] // (1 if model in ("t5", "bart") else 2)


def test_models_say_what_they_have(atlas: Atlas) -> None:
    rows = atlas.sql(
        "SELECT model, n_layers, d_ff, n_experts, d_expert, stacks, gated FROM models ORDER BY model"
    ).to_rows()
    three = ["encoder", "decoder", "cross"]
    assert [tuple(row.values()) for row in rows] == [
        ("bart", 2, 40, None, None, three, False),
        ("mixed", 4, 40, 4, 12, None, True),
        ("sparse", 2, None, 3, 40, None, True),
        ("t5", 2, 40, None, None, three, False),
    ]
    shown = {row["model"]: (row["neurons"], row["experts"], row["stacks"]) for row in atlas.info()}
    assert shown == {
        "t5": (40, None, three),
        "bart": (40, None, three),
        "mixed": (40, 4, None),
        "sparse": (40, 3, None),
    }
    assert "stacks            ['encoder', 'decoder', 'cross']" in str(atlas.show("t5"))


def test_layout_of_a_layer_of_experts(atlas: Atlas) -> None:
    """What all tokens pass, which has a gate of its own, comes before the experts; a dense layer has no router."""
    rows = atlas.sql(
        "SELECT layer, owner, n_owners, size, n_parameters FROM layout WHERE model = 'mixed' AND kind = 'ff_key' "
        "ORDER BY first_param_id"
    ).to_rows()
    assert [tuple(row.values()) for row in rows] == [
        (0, None, 1, 40, 40),
        (1, None, 1, 20, 20),
        (1, "expert", 4, 12, 48),
        (2, None, 1, 40, 40),
        (3, None, 1, 20, 20),
        (3, "expert", 4, 12, 48),
    ]
    rows = atlas.sql("SELECT layer, owner, n_owners, size FROM layout WHERE kind = 'router' AND model = 'mixed'")
    assert [tuple(row.values()) for row in rows] == [
        (1, None, 1, 1),
        (1, "expert", 4, 1),
        (3, None, 1, 1),
        (3, "expert", 4, 1),
    ]


def test_layout_of_stacks(atlas: Atlas) -> None:
    rows = atlas.sql(
        "SELECT kind, stack, list(layer ORDER BY layer) AS layers FROM layout WHERE model = 'bart' "
        "AND kind IN ('ff_value', 'attn_key_bias', 'position') GROUP BY ALL ORDER BY min(first_param_id)"
    ).to_rows()
    assert [tuple(row.values()) for row in rows] == [
        ("ff_value", "encoder", [0, 1]),
        ("ff_value", "decoder", [0, 1, 2]),
        ("attn_key_bias", "encoder", [0, 1]),
        ("attn_key_bias", "decoder", [0, 1, 2]),
        ("attn_key_bias", "cross", [0, 1, 2]),
        ("position", "encoder", [None]),
        ("position", "decoder", [None]),
    ]


@pytest.mark.parametrize("model", MAKERS)
def test_show(atlas: Atlas, wholes: dict[str, Whole], draw: random.Random, model: str) -> None:
    whole = wholes[model]
    for i in whole.some(draw, 10):
        rows = atlas.show(whole.addresses[i], k=5).to_rows()
        for side in ("top", "bottom"):
            own = [row for row in rows if row["side"] == side]
            ids = [row["token_id"] for row in own]
            oracle.assert_strongest([row["score"] for row in own], whole.scores[i][ids], whole.scores[i], side)


@pytest.mark.parametrize(
    ("address", "n_heads", "kv_head"),
    [("t5/cross/L2/H3", 4, 3), ("bart/encoder/L1/H2", 3, 2), ("mixed/L3/H3", 4, 1), ("sparse/L0/H1", 4, 0)],
)
def test_show_of_a_head(atlas: Atlas, wholes: dict[str, Whole], address: str, n_heads: int, kv_head: int) -> None:
    """The strongest pairs of both matrices, against the whole matrix."""
    where, whole = Address.parse(address), wholes[address.split("/", maxsplit=1)[0]]
    result = atlas.show(address, k=6, distinct=False)
    for matrix, kinds in (("QK", ("attn_query", "attn_key")), ("VO", ("attn_value", "attn_output"))):
        factors = []
        for kind in kinds:
            rows = whole.rows[kind, where.stack, where.layer]
            shared = kind in oracle.SHARED
            d_head = len(whole.rows["attn_query", where.stack, where.layer]) // n_heads
            factors.append(whole.E @ rows[(kv_head if shared else where.head) * d_head :][:d_head].T)
        S = factors[0] @ factors[1].T
        for side in ("top", "bottom"):
            own = [row for row in result if (row["matrix"], row["side"]) == (matrix, side)]
            at = S[[row["source_id"] for row in own], [row["target_id"] for row in own]]
            oracle.assert_strongest([row["score"] for row in own], at, S, side)
    sharing = f", sharing key/value head {kv_head}" if where.model in ("mixed", "sparse") else ""
    assert str(result.title) == f"{address}: QK pairs are query → key, VO pairs read → written{sharing}"


@pytest.mark.parametrize(
    ("address", "what", "examples"),
    [
        ("t5/encoder", "a stack", ["t5/encoder/L0/ff_value/0", "t5/encoder/L0/H0"]),
        ("t5/cross", "a stack", ["t5/cross/L0/H0/attn_query/0", "t5/cross/L0/H0"]),
        ("bart/decoder/L2", "a layer", ["bart/decoder/L2/ff_value/0", "bart/decoder/L2/H0"]),
        ("t5/cross/L1", "a layer", ["t5/cross/L1/H0/attn_query/0", "t5/cross/L1/H0"]),
        ("mixed/L1", "a layer", ["mixed/L1/ff_value/0", "mixed/L1/H0"]),
        ("sparse/L1", "a layer", ["sparse/L1/E0/ff_value/0", "sparse/L1/H0"]),
        ("sparse/L0/E2", "an expert", ["sparse/L0/E2/ff_value/0"]),
        ("mixed/L3/E1", "an expert", ["mixed/L3/E1/ff_value/0"]),
    ],
)
def test_what_is_no_thing_to_show_is_answered_with_what_is(
    atlas: Atlas, address: str, what: str, examples: list[str]
) -> None:
    with pytest.raises(AddressError) as caught:
        atlas.show(address)
    written = " or ".join(examples)
    assert str(caught.value) == f"{address} is {what}; show takes a parameter or a head, {written}, say"
    for example in examples:
        assert len(atlas.show(example)) > 0
    with pytest.raises(AddressError) as caught:
        atlas.similar(address)
    assert str(caught.value) == f"similar takes the address of a parameter or a head, {examples[0]}, say, not {address}"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("t5/L0/H0", "t5 has the stacks encoder, decoder, cross; write t5/encoder/L0/H0, say"),
        ("t5/L2/ff_key/0", "t5 has the stacks encoder, decoder, cross; write t5/decoder/L2/ff_key/0, say"),
        ("t5/encoder/L2", "t5/encoder has layers L0 to L1"),
        ("bart/position/40", "bart has the stacks encoder, decoder, cross; write bart/encoder/position/0, say"),
        ("bart/cross/position/3", "bart/cross has no position; write bart/encoder/position/3, say"),
        ("bart/encoder/L0/H3", "bart/encoder has heads H0 to H2 in each layer"),
        ("mixed/L0/E0", "mixed/L0 has no experts"),
        ("mixed/L1/E4", "mixed/L1 has experts E0 to E3"),
        ("mixed/L2/E0/ff_key/0", "ff_key of mixed/L2 belongs to no expert; write mixed/L2/ff_key/0, say"),
        ("sparse/L1/ff_key/7", "ff_key of sparse/L1 belongs to an expert; write sparse/L1/E0/ff_key/7, say"),
        ("sparse/L1/E0/router/1", "sparse/L1/E0 has one router; write sparse/L1/E0/router/0"),
    ],
)
def test_what_is_not_there_is_said(atlas: Atlas, address: str, message: str) -> None:
    with pytest.raises(AddressError) as caught:
        atlas.show(address)
    assert str(caught.value) == f"{address}: {message}"


@pytest.mark.parametrize(
    "options",
    [
        {"layer": 1}, {"layer": 2}, {"layer": 3}, {"kind": "router"}, {"kind": "router", "layer": 1},
        {"kind": "ff_value", "layer": 1}, {"kind": "attn_output", "layer": 2, "model": "t5"},
        {"kind": "attn_key_bias", "layer": 1}, {"kind": "position"}, {"kind": "position", "model": "bart"},
        {"kind": "ff_gate", "layer": 1, "model": "mixed"}, {"kind": "router", "layer": 0, "model": "mixed"},
    ],
    ids=str,
)  # fmt: skip
def test_find_and_search_in_a_layer_look_into_all_its_stacks_and_experts(
    atlas: Atlas, wholes: dict[str, Whole], options: dict
) -> None:
    """A layer's number means that layer of every stack."""
    chosen = [wholes[options["model"]]] if "model" in options else list(wholes.values())
    addresses = {
        whole.addresses[i] for whole in chosen for i in whole.chosen(options.get("kind"), options.get("layer"))
    }
    ids = [atlas.sql("SELECT token_id FROM tokens WHERE text = ?", [word]).to_rows()[0]["token_id"] for word in WORDS]
    indicator = np.zeros((1, 60))
    indicator[0, ids] = 1
    correlations = {
        address: value
        for whole in chosen
        for address, value in zip(whole.addresses, oracle.pearson(whole.scores, indicator)[:, 0], strict=True)
    }
    rows = atlas.search(WORDS, k=10_000, **options).to_rows()
    assert_ranking(rows, {address: correlations[address] for address in addresses}, 10_000)
    listed = {row["address"] for row in atlas.find(WORDS, k=10_000, **options) if row["kind"] not in ("QK", "VO")}
    having = atlas.sql(
        "SELECT DISTINCT address FROM parameter_tokens WHERE list_contains(?, token_id) AND rank > 0", [ids]
    )
    assert listed == addresses & {row["address"] for row in having}


WORDS = ["canada", "river"]


@pytest.mark.parametrize(
    ("address", "options"),
    [
        ("t5/cross/L1/H2/attn_query/3", {}),
        ("t5/encoder/L1/ff_value/3", {"layer": 1}),
        ("t5/decoder/L2/ff_value/3", {"model": "sparse"}),
        ("sparse/L1/E2/ff_key/8", {"model": "all"}),
        ("sparse/L1/E2/ff_key/8", {"model": "mixed", "layer": 1}),
        ("mixed/L3/E2/router/0", {}),
        ("mixed/L3/E2/router/0", {"model": "sparse", "layer": 0}),
        ("bart/decoder/position/5", {}),
        ("bart/encoder/position/5", {"kind": "attn_key_bias", "layer": 1}),
        ("bart/cross/L0/H1/attn_value_bias/0", {"side": "both"}),
    ],
    ids=str,
)
def test_similar(atlas: Atlas, wholes: dict[str, Whole], address: str, options: dict) -> None:
    own = wholes[address.split("/", maxsplit=1)[0]]
    kind = options.get("kind", Address.parse(address).kind)
    chosen = list(wholes.values()) if options.get("model") == "all" else [wholes[options.get("model", own.model)]]
    truth = {
        whole.addresses[i]: oracle.pearson(whole.scores[i][None, :], own.row(address)[None, :])[0, 0]
        for whole in chosen
        for i in whole.chosen(kind, options.get("layer"))
        if whole.addresses[i] != address
    }
    assert len(truth) > 2
    assert_ranking(atlas.similar(address, k=10_000, **options).to_rows(), truth, 10_000, options.get("side", "top"))


@pytest.mark.parametrize(
    ("a", "b"), [("t5", "bart"), ("bart", "t5"), ("mixed", "t5"), ("t5", "mixed"), ("sparse", "mixed")]
)
def test_align(atlas: Atlas, wholes: dict[str, Whole], a: str, b: str) -> None:
    """Layers of all stacks with layers of all stacks, and whole layers of experts, against a brute force."""
    result = atlas.align(a, b)
    common = [kind for kind in KINDS if kind in wholes[a].kinds and kind in wholes[b].kinds]
    assert result.kinds == [kind for kind in common if KINDS[kind].form == "weight"]
    for kind in result.kinds:
        layers = [wholes[model].layers_of(kind) for model in (a, b)]
        assert [result.places(kind, side) for side in "ab"] == [list(names) for names in layers]
        scores = np.array(
            [
                [np.abs(oracle.pearson(x @ wholes[a].E.T, y @ wholes[b].E.T)).mean() for y in layers[1].values()]
                for x in layers[0].values()
            ]
        )
        np.testing.assert_allclose(result.scores(kind), scores, atol=1e-5, rtol=0)
        matched = np.reshape([row["matched"] for row in result if row["kind"] == kind], scores.shape)
        assert matched.sum() == min(scores.shape)
        assert scores[matched].sum() == pytest.approx(scores[linear_sum_assignment(-scores)].sum(), abs=1e-5)


def test_alignment_prints_and_draws_the_stacks(atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = atlas.align("mixed", "t5", "attn_key")
    pairs = [f"{row['layer_a']}-{row['stack_b'][0]}{row['layer_b']}" for row in result if row["matched"]]
    assert len(pairs) == 4
    (line,) = [line for line in str(result).splitlines() if line.startswith("attn_key")]
    assert line.split()[1:5] == pairs
    places = [*("encoder/L0", "encoder/L1"), *(f"{stack}/L{i}" for stack in ("decoder", "cross") for i in range(3))]
    assert result.places("attn_key", "b") == places
    picture = result.plot(tmp_path / "heat.svg").read_text()
    # matplotlib writes the texts it draws as remarks: below and beside each of the two heat maps its layers
    short = ["e0", "e1", "d0", "d1", "d2", "c0", "c1", "c2", "0", "1", "2", "3"]
    assert [remark for remark in re.findall(r"<!-- (\w+) -->", picture) if remark in short] == short * 2


def test_neighbors_are_those_of_the_brute_force(atlas: Atlas, wholes: dict[str, Whole], draw: random.Random) -> None:
    for a, b in (("sparse", "mixed"), ("t5", "bart"), ("bart", "sparse")):
        for kind in set(wholes[a].kinds) & set(wholes[b].kinds):
            i = draw.choice(wholes[a].chosen(kind))
            theirs = wholes[b].chosen(kind)
            values = oracle.pearson(wholes[a].scores[i][None, :], wholes[b].scores[theirs])[0]
            rows = atlas.sql(
                "SELECT rank, neighbor AS address, similarity FROM neighbors WHERE address = ? AND neighbor_model = ? "
                "ORDER BY rank",
                [wholes[a].addresses[i], b],
            ).to_rows()
            assert_ranking(rows, {wholes[b].addresses[j]: value for j, value in zip(theirs, values, strict=True)}, 4)
