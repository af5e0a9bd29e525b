"""Questions that compare, on models whose vectors lie in several spaces, against float64 brute force.

The truth of two parameters is the correlation of all their V scores, each in its own space; between vocabularies, of
the scores of the tokens that both have.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pytest
from safetensors.torch import load_file
from scipy.optimize import linear_sum_assignment

import models
import oracle
import paramdex
import reading_oracle
from opened import opened
from paramdex import Atlas
from paramdex.web.cards.comparison import layer_pairs
from paramdex_builder import Options, build
from paramdex_schemas import vector_files
from query_helpers import ERROR, STRENGTH, Everything, assert_ranking, ids_of_words, shared_ids

GPT2 = ["gpt2-a", "gpt2-wide"]
MODELS = [*GPT2, "llama-gqa", "bert"]
SMALL = Options(top_k=12, pair_k=30, neighbor_k=4, device="cpu")


def correlations(
    db: duckdb.DuckDBPyConnection, a: Everything, of_a: list[int], b: Everything, of_b: list[int]
) -> np.ndarray:
    """Pearson of the scores of some parameters of two models (n x m), on the tokens that both have."""
    left, right = a.scores[of_a], b.scores[of_b]
    if a.model != b.model and not (a.model in GPT2 and b.model in GPT2):
        ids = shared_ids(db, a.model, b.model)
        left, right = left[:, ids[0]], right[:, ids[1]]
    return oracle.pearson(left, right)


def near(
    db: duckdb.DuckDBPyConnection, own: Everything, i: int, other: Everything, kind: str, layer: int | None = None
) -> dict[str, float]:
    """The truth of ``similar`` for the i-th parameter of a model: address -> similarity, itself left out."""
    chosen = [j for j in other.chosen(kind, layer) if (other.model, j) != (own.model, i)]
    values = correlations(db, own, [i], other, chosen)[0]
    return {other.addresses[j]: value for j, value in zip(chosen, values, strict=True)}


def test_the_models_lie_in_several_spaces(reading_atlas: Atlas) -> None:
    found = {name: model.spaces for name, model in reading_atlas.models.items()}
    assert found == {
        "gpt2-a": ["output", "entering", "reading"],
        "gpt2-wide": ["output", "entering", "reading"],
        "llama-gqa": ["output", "entering", "reading"],
        "bert": ["output"],
    }


@pytest.mark.parametrize("side", ["top", "bottom", "both"])
@pytest.mark.parametrize("model", MODELS)
def test_search(
    reading_atlas: Atlas, db: duckdb.DuckDBPyConnection, reading_wholes: dict[str, Everything], model: str, side: str
) -> None:
    """Of one kind in all layers, in one layer, and of all kinds: the indicator of the words in every space."""
    whole, words = reading_wholes[model], "canada violin river"
    ids = [i for spellings in ids_of_words(db, model, words.split()).values() for i in spellings]
    indicator = np.zeros((1, whole.scores.shape[1]))
    indicator[0, ids] = 1
    values = oracle.pearson(whole.scores, indicator)[:, 0]
    for kind, layer, k in (("ff_key", None, 300), ("attn_query", 1, 9), (None, None, 40), (None, 0, 20)):
        truth = {whole.addresses[i]: values[i] for i in whole.chosen(kind, layer)}
        found = reading_atlas.search(words, k, model=model, kind=kind, layer=layer, side=side)
        assert_ranking(found.to_rows(), truth, k, side)


@pytest.mark.parametrize("side", ["top", "bottom", "both"])
@pytest.mark.parametrize(("model", "other"), [*itertools.product(MODELS, MODELS)])
def test_similar(
    reading_atlas: Atlas,
    db: duckdb.DuckDBPyConnection,
    reading_wholes: dict[str, Everything],
    draw: random.Random,
    model: str,
    other: str,
    side: str,
) -> None:
    """A reader of layer 0, one of a later layer and a writer, each with kinds of both; in its own model and another, of
    one vocabulary and of two.
    """
    own, whole = reading_wholes[model], reading_wholes[other]
    for kind, layer in itertools.product(("ff_key", "attn_key", "ff_value", "ff_bias"), (0, 1)):
        i = draw.choice(own.chosen(kind, layer) or own.chosen("ff_key", layer))
        for asked, of_layer in (("ff_key", None), ("attn_output", None), ("attn_value", 1)):
            found = reading_atlas.similar(own.addresses[i], 9, model=other, kind=asked, layer=of_layer, side=side)
            assert_ranking(found.to_rows(), near(db, own, i, whole, asked, of_layer), 9, side)


def test_similar_in_all_models_at_once(
    reading_atlas: Atlas, db: duckdb.DuckDBPyConnection, reading_wholes: dict[str, Everything]
) -> None:
    own = reading_wholes["gpt2-wide"]
    i = own.addresses.index("gpt2-wide/L2/ff_key/40")
    truth = {a: s for name in MODELS for a, s in near(db, own, i, reading_wholes[name], "ff_key").items()}
    assert_ranking(reading_atlas.similar(own.addresses[i], 10_000, model="all").to_rows(), truth, 10_000)


@pytest.mark.parametrize(("a", "b"), [("gpt2-a", "gpt2-wide"), ("gpt2-wide", "llama-gqa"), ("bert", "gpt2-wide")])
def test_similar_is_the_same_both_ways(reading_atlas: Atlas, a: str, b: str) -> None:
    one, other = f"{a}/L1/ff_key/9", f"{b}/L0/ff_value/11"
    there = {row["address"]: row["similarity"] for row in reading_atlas.similar(one, 500, model=b, kind="ff_value")}
    back = {row["address"]: row["similarity"] for row in reading_atlas.similar(other, 500, model=a, kind="ff_key")}
    assert there[other] == pytest.approx(back[one], abs=1e-6)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(
    ("a", "b", "kind"),
    [
        ("gpt2-a", "gpt2-wide", "ff_key"),
        ("gpt2-wide", "gpt2-a", "attn_query_bias"),
        ("gpt2-wide", "llama-gqa", "attn_value"),
        ("llama-gqa", "gpt2-a", "ff_key"),
        ("bert", "gpt2-wide", "attn_key"),
        ("gpt2-wide", "bert", "ff_key"),
        ("gpt2-a", "llama-gqa", "ff_value"),
    ],
)
def test_match(
    reading_atlas: Atlas,
    db: duckdb.DuckDBPyConnection,
    reading_wholes: dict[str, Everything],
    a: str,
    b: str,
    kind: str,
    signed: bool,
) -> None:
    """Over all layers, and of one pair of layers."""
    wholes = reading_wholes[a], reading_wholes[b]
    for layers in ((None, None), (0, 1), (1, 1)):
        chosen = [whole.chosen(kind, layer) for whole, layer in zip(wholes, layers, strict=True)]
        S = correlations(db, wholes[0], chosen[0], wholes[1], chosen[1])
        strength = S if signed else np.abs(S)
        addresses = [[whole.addresses[i] for i in own] for whole, own in zip(wholes, chosen, strict=True)]
        side = "top" if signed else "both"
        rows = reading_atlas.match(a, b, kind, layer_a=layers[0], layer_b=layers[1], side=side).to_rows()
        assert [row["address"] for row in rows] == addresses[0]
        nearest = [addresses[1].index(row["nearest"]) for row in rows]
        np.testing.assert_allclose([row["similarity"] for row in rows], S[range(len(S)), nearest], atol=ERROR)
        np.testing.assert_allclose(strength[range(len(S)), nearest], strength.max(axis=1), atol=ERROR)
        for i, row in enumerate(rows):
            column = np.sort(strength[:, nearest[i]])
            if len(column) < 2 or column[-1] - column[-2] > 2 * ERROR:
                assert row["mutual"] == (strength[:, nearest[i]].argmax() == i)
        partners = [(i, addresses[1].index(row["partner"])) for i, row in enumerate(rows) if row["partner"]]
        for i, j in partners:
            assert rows[i]["partner_similarity"] == pytest.approx(S[i, j], abs=ERROR)
        if layers != (None, None):
            best = strength[linear_sum_assignment(strength, maximize=True)].sum()
            assert sum(strength[pair] for pair in partners) == pytest.approx(best, abs=ERROR * len(S))


@pytest.mark.parametrize(("a", "b"), [*itertools.permutations(MODELS, 2)])
def test_align(
    reading_atlas: Atlas, db: duckdb.DuckDBPyConnection, reading_wholes: dict[str, Everything], a: str, b: str
) -> None:
    """What is stored of related models, and what is found of others when asked."""
    wholes = reading_wholes[a], reading_wholes[b]
    for kind in ("ff_key", "ff_value", "attn_query", "attn_value"):
        for row in reading_atlas.align(a, b, kind):
            chosen = [whole.chosen(kind, row[f"layer_{x}"]) for whole, x in zip(wholes, "ab", strict=True)]
            S = correlations(db, wholes[0], chosen[0], wholes[1], chosen[1])
            assert row["score"] == pytest.approx(np.abs(S).mean(), abs=ERROR)


@pytest.mark.parametrize(("a", "b"), [("gpt2-a", "gpt2-wide"), ("llama-gqa", "gpt2-wide"), ("gpt2-a", "bert")])
@pytest.mark.parametrize("layers", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_pairs_of_two_layers_in_the_explorer(
    reading_atlas: Atlas,
    db: duckdb.DuckDBPyConnection,
    reading_wholes: dict[str, Everything],
    a: str,
    b: str,
    layers: tuple[int, int],
) -> None:
    wholes = reading_wholes[a], reading_wholes[b]
    chosen = [whole.chosen("ff_key", layer) for whole, layer in zip(wholes, layers, strict=True)]
    S = correlations(db, wholes[0], chosen[0], wholes[1], chosen[1])
    found = layer_pairs(reading_atlas, a, b, "ff_key", (f"L{layers[0]}", f"L{layers[1]}"), 12)
    np.testing.assert_allclose([row.similarity for row in found.rows], np.sort(S.ravel())[::-1][:12], atol=ERROR)
    for row in found.rows:
        i, j = (
            own.index(whole.addresses.index(each.address))
            for each, whole, own in zip((row.a, row.b), wholes, chosen, strict=True)
        )
        assert row.similarity == pytest.approx(S[i, j], abs=ERROR)


# ---- other ways to be built


def test_on_the_tokens_of_nearly_one_vocabulary(tmp_path: Path, draw: random.Random) -> None:
    """Roots and transfers that the builder keeps of every pair of spaces, both ways."""
    folders = {name: tmp_path / name for name in ("one", "two")}
    for seed, folder in enumerate(folders.values()):
        models.save(folder, models.gpt2(60, layers=3), models.word_tokenizer(60), seed)
    tokens = (folders["two"] / "tokenizer.json").read_text()
    (folders["two"] / "tokenizer.json").write_text(tokens.replace('"word7"', '"other7"'))
    path = tmp_path / "x.atlas"
    build([str(folder) for folder in folders.values()], path, Options(4, 4, 2, device="cpu", reading="effective"))
    wholes = {
        name: reading_oracle.everything_read(name, oracle.read(folder), folder, path)
        for name, folder in folders.items()
    }
    with paramdex.open(path) as atlas, opened(path) as db:
        about = atlas.database.about(atlas.models["one"], atlas.models["two"])
        assert about is not None
        assert about.shared
        for a, b in (("one", "two"), ("two", "one")):
            for kind, layer in itertools.product(("ff_key", "attn_output"), (0, 2)):
                i = draw.choice(wholes[a].chosen(kind, layer))
                for asked in ("ff_key", "ff_value"):
                    found = atlas.similar(wholes[a].addresses[i], 7, model=b, kind=asked, side="both").to_rows()
                    assert_ranking(found, near(db, wholes[a], i, wholes[b], asked), 7, "both")
            every = [wholes[each].chosen("ff_key") for each in (a, b)]
            S = correlations(db, wholes[a], every[0], wholes[b], every[1])
            found = [row["similarity"] for row in atlas.match(a, b, "ff_key")]
            np.testing.assert_allclose(found, S.max(axis=1), atol=ERROR)


def test_scored_by_the_input_embedding(
    model_folders: dict[str, Path], truths: dict[str, oracle.Truth], db: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    """Then that is the model's own space, and another than what enters layer 0."""
    folder, path = model_folders["llama-gqa"], tmp_path / "x.atlas"
    build([str(folder)], path, replace(SMALL, space="input", reading="effective"))
    E = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].double().numpy()
    truth = replace(truths["llama-gqa"], E=E[: len(truths["llama-gqa"].E)])
    whole = reading_oracle.everything_read("llama-gqa", truth, folder, path)
    with paramdex.open(path) as atlas:
        assert atlas.models["llama-gqa"].spaces == ["input", "entering", "reading"]
        for kind, layer in itertools.product(("ff_gate", "ff_value"), (0, 1)):
            i = whole.chosen(kind, layer)[5]
            found = atlas.similar(whole.addresses[i], 30, kind="ff_key").to_rows()
            assert_ranking(found, near(db, whole, i, whole, "ff_key"), 30)


def test_codes_of_every_space(
    reading_atlas: Atlas, model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where kinds of at least 8 KiB are coded, in each space: the same answers."""
    monkeypatch.setattr(vector_files, "CODED_BYTES", 8192)
    path = tmp_path / "x.atlas"
    build([str(model_folders["gpt2-a"])], path, replace(SMALL, reading="effective"))
    with paramdex.open(path) as coded:
        for stem in ("ff_key", "ff_key.entering", "ff_key.reading"):
            assert f"{stem}.codes.faiss" in coded.database.contents.manifests["gpt2-a"].files
        for address in ("gpt2-a/L0/ff_key/9", "gpt2-a/L1/ff_key/9", "gpt2-a/L1/ff_value/9"):
            for asked in ({}, {"layer": 1}, {"kind": "ff_value", "k": 500}, {"kind": "ff_key", "side": "both"}):
                assert coded.similar(address, **asked).to_rows() == reading_atlas.similar(address, **asked).to_rows()
        for asked in ({"kind": "ff_key", "k": 500}, {"side": "bottom"}):
            found = [atlas.search("canada", model="gpt2-a", **asked).to_rows() for atlas in (coded, reading_atlas)]
            assert found[0] == found[1]


def test_what_moved_is_measured_against_a_base_that_is_read_otherwise(tmp_path: Path) -> None:
    """Norms do not depend on the spaces."""
    base, tuned = models.save_word_model(tmp_path / "base", 1), models.save_word_model(tmp_path / "tuned", 2)
    few = {"top_k": 5, "pair_k": 5, "device": "cpu"}
    for name, reading in (("same", "effective"), ("otherwise", "embedding")):
        build([str(base)], tmp_path / f"{name}.atlas", Options(reading=reading, **few))
        build([f"moved={tuned}"], tmp_path / f"{name}.atlas", Options(base=str(base), reading="effective", **few))
    found = []
    for name in ("same", "otherwise"):
        with paramdex.open(tmp_path / f"{name}.atlas") as atlas:
            found.append([(row["address"], row["relative"]) for row in atlas.diff("moved")])
    assert found[0] == found[1]
    assert all(relative for _, relative in found[0])


# ---- heads: a matrix is the product of its two factors' scores


def head_matrix(whole: Everything, truth: oracle.Truth, matrix: str, layer: int, head: int) -> np.ndarray:
    """The whole V x V matrix of a head: of the scores of its queries and keys, or of its values and outputs."""
    group = truth.n_heads // truth.n_kv_heads
    factors = []
    for kind in {"QK": ("attn_query", "attn_key"), "VO": ("attn_value", "attn_output")}[matrix]:
        owner = head // group * group if kind in oracle.SHARED else head
        names = [oracle.address(whole.model, kind, layer, owner, i) for i in range(truth.d_head)]
        factors.append(np.array([whole.row(name) for name in names]))
    left, right = factors
    return left.T @ right


@pytest.mark.parametrize("matrix", ["QK", "VO"])
@pytest.mark.parametrize("model", MODELS)
def test_heads(
    reading_atlas: Atlas,
    db: duckdb.DuckDBPyConnection,
    reading_wholes: dict[str, Everything],
    truths: dict[str, oracle.Truth],
    draw: random.Random,
    model: str,
    matrix: str,
) -> None:
    """Scores of pairs, and where their targets stand among all tokens."""
    words = draw.sample(["canada", "ottawa", "france", "bread", "music", "river", "green", "violin"], 8)
    pairs = list(itertools.pairwise(words))
    spelled, truth, top = ids_of_words(db, model, words), truths[model], 25
    pairs = [pair for pair in pairs if all(spelled[word] for word in pair)]
    rows = reading_atlas.heads(pairs, k=1000, model=model, matrix=matrix, top=top).to_rows()
    assert len(rows) == truth.n_layers * truth.n_heads
    for row in rows:
        layer, head = (int(part[1:]) for part in row["address"].split("/")[1:])
        S = head_matrix(reading_wholes[model], truth, matrix, layer, head)
        scores, above, below = [], [], []
        for source, target in pairs:
            both = list(itertools.product(spelled[source], spelled[target]))
            scores.append(np.mean([S[pair] for pair in both]))
            above.append(any((S[s] > S[s, t]).sum() < top for s, t in both))
            below.append(any((S[s] < S[s, t]).sum() < top for s, t in both))
        mean, std = float(np.mean(scores)), S.std()
        assert row["score"] == pytest.approx(mean, rel=1e-4, abs=1e-5 * std)
        assert row["z"] == pytest.approx((mean - S.mean()) / (std / len(pairs) ** 0.5), rel=1e-4, abs=1e-4)
        assert (row["share"], row["share_bottom"]) == (pytest.approx(np.mean(above)), pytest.approx(np.mean(below)))


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(("a", "b"), [*itertools.product(MODELS, MODELS)])
def test_similar_heads(
    reading_atlas: Atlas,
    db: duckdb.DuckDBPyConnection,
    reading_wholes: dict[str, Everything],
    truths: dict[str, oracle.Truth],
    a: str,
    b: str,
    layer: int,
) -> None:
    """Factors in other spaces on either side: within a model, between models, and on the tokens that both have."""
    ids = (slice(None), slice(None)) if a == b or (a in GPT2 and b in GPT2) else shared_ids(db, a, b)

    def centred(model: str, matrix: str, layer: int, head: int, ids: list[int] | slice) -> np.ndarray:
        M = head_matrix(reading_wholes[model], truths[model], matrix, layer, head)[ids][:, ids]
        return M - M.mean(axis=0) - M.mean(axis=1, keepdims=True) + M.mean()

    side = "both"
    rows = reading_atlas.similar(f"{a}/L{layer}/H1", 1000, model=b, side=side).to_rows()
    for matrix in ("QK", "VO"):
        own, truth = centred(a, matrix, layer, 1, ids[0]), {}
        for place in itertools.product(range(truths[b].n_layers), range(truths[b].n_heads)):
            if (b, *place) != (a, layer, 1):
                other = centred(b, matrix, *place, ids[1])
                cosine = (own * other).sum() / (np.linalg.norm(own) * np.linalg.norm(other))
                truth[f"{b}/L{place[0]}/H{place[1]}"] = float(cosine)
        found = [row for row in rows if row["matrix"] == matrix]
        assert_ranking(found, truth, 1000, side)
        assert STRENGTH[side](np.array([row["similarity"] for row in found])).max() <= 1 + ERROR
