"""Folded norms, by value against autodiff: of one norm, and of the scores, coordinates and relations of an atlas."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import models
import oracle
import paramdex
from paramdex_builder import Options, build
from paramdex_builder.read.families import families
from paramdex_builder.read.family import parse
from paramdex_builder.read.norms import folded
from paramdex_schemas import FamilyError, isometry

OPTIONS = Options(top_k=60, pair_k=10, neighbor_k=3, directions_k=2, fold_norm=True, device="cpu")
D = 24


def jacobian(norm: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.autograd.functional.jacobian(norm, x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("role", ["reads", "writes"])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_folding_is_the_norms_jacobian(kind: Any, role: str) -> None:
    """At any state, but for the scale that the norm divides by and what it takes off along the state."""
    generator = torch.Generator().manual_seed(3)
    gains, x, rows = (torch.randn(n, D, generator=generator).double() for n in (1, 1, 3000))
    norm = torch.nn.LayerNorm(D, bias=False) if kind == "layer" else torch.nn.RMSNorm(D, eps=1e-5)
    norm = norm.double()
    norm.weight.data.copy_(gains[0])
    x = x[0]
    y = x - x.mean() if kind == "layer" else x
    s2 = y.pow(2).mean() + 1e-5
    J = jacobian(norm, x) * s2.sqrt() + torch.outer(gains[0] * y, y) / (D * s2)
    found = folded(rows, gains[0], kind, role)
    np.testing.assert_allclose(found, rows @ (J if role == "reads" else J.T), atol=1e-12)
    in_place = rows.clone()
    assert folded(in_place, gains[0], kind, role, out=in_place) is in_place
    assert torch.equal(in_place, found)
    mean = found.mean(1).abs().max() if role == "reads" else (found / gains[0]).mean(1).abs().max()
    assert (mean < 1e-14) == (kind == "layer")


def test_a_float32_product_is_rounded_once() -> None:
    generator = torch.Generator().manual_seed(4)
    rows, gains = torch.randn(50, D, generator=generator), torch.randn(D, generator=generator)
    assert torch.equal(folded(rows, gains.double(), "rms", "reads"), rows * gains)
    exact = rows.double() * gains.double()
    assert torch.equal(folded(rows, gains.double(), "layer", "reads"), (exact - exact.mean(1, keepdim=True)).float())


def test_every_family_says_what_its_norms_are() -> None:
    from importlib import resources
    from json import loads

    assert {family.norm for family in families().values()} == {"layer", "rms"}
    data = loads((resources.files("paramdex_builder") / "families" / "gpt2.json").read_text())
    with pytest.raises(FamilyError, match=r"^x\.json: norm is 'batch'; there are layer, rms$"):
        parse(data | {"norm": "batch"}, "x.json")
    del data["norm"]
    with pytest.raises(FamilyError, match=r"missing keys \['norm'\]"):
        parse(data, "x.json")


MODELS = ["GPT2LMHeadModel", "GPTJForCausalLM", "CohereForCausalLM", "Starcoder2ForCausalLM", "Gemma2ForCausalLM"]


def made(folder: Path, name: str, seed: int) -> Any:
    """A saved model of word tokens, of which everything that is written has a mean; in float64."""
    model = models.randomize(models.MAKERS[name](60), seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2)
    model.save_pretrained(folder)
    models.word_tokenizer(60).save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def written(model: Any, name: str) -> torch.Tensor:
    """What the last layer's neurons write (n x d), before any norm."""
    layer = (model.base_model.h if hasattr(model.base_model, "h") else model.base_model.layers)[-1].mlp
    out = next(getattr(layer, each) for each in ("c_proj", "fc_out", "down_proj") if hasattr(layer, each))
    return (out.weight if name == "GPT2LMHeadModel" else out.weight.T).detach()


@pytest.mark.parametrize("name", MODELS)
def test_scores_follow_the_logits(tmp_path: Path, name: str) -> None:
    """What adding a written vector to the last state changes in the logits, without the part along the state, is its
    scores, but for one factor: their order is that of the logits.
    """
    model = made(tmp_path / "m", name, 1)
    base = model.base_model
    final = base.ln_f if hasattr(base, "ln_f") else base.norm
    W = written(model, name)
    if name == "Gemma2ForCausalLM":  # written through a norm, an RMS norm: its gains and nothing else
        W = W * (1 + base.layers[-1].post_feedforward_layernorm.weight.detach())
    build([f"m={tmp_path / 'm'}"], tmp_path / "x.atlas", OPTIONS)
    atlas = paramdex.open(tmp_path / "x.atlas")
    # As many entries 1000 as -1000: mean 0 and mean square 1000^2, so that both kinds of norm divide it by 1000.
    d = W.shape[1]
    x = 1000 * (1.0 - 2.0 * (torch.arange(d) % 2)).double()
    final = deepcopy(final).requires_grad_(False)
    E = model.lm_head.weight.detach()
    logits = lambda x: E @ final(x[None])[0]  # noqa: E731
    changes = 1000 * jacobian(logits, x) @ W.T  # V x n
    along = torch.outer((logits(x) - logits(-x)) / 2, x / 1000 @ W.T / d)
    expected = (changes + along).T.numpy()
    rows = atlas.sql(
        "SELECT p.idx, token_id, score, p.mean, p.std FROM parameter_tokens JOIN parameters AS p USING (address) "
        "WHERE p.kind = 'ff_value' AND p.layer = 1 AND side = 'top' ORDER BY p.idx, rank"
    ).to_rows()
    found = np.full(expected.shape, np.nan)
    for row in rows:
        found[row["idx"], row["token_id"]] = row["score"]
    np.testing.assert_allclose(found, expected, atol=3e-6 * np.abs(expected).max())
    by_idx = {row["idx"]: row for row in rows}
    for column, value in (("mean", expected.mean(1)), ("std", expected.std(1))):
        stored = [by_idx[idx][column] for idx in range(len(W))]
        np.testing.assert_allclose(stored, value, atol=3e-6 * np.abs(expected).max())
    (row,) = atlas.sql("SELECT embedding_rank, d_model FROM models").to_rows()
    assert row["embedding_rank"] == row["d_model"] - (families()[row_family(name)].norm == "layer")


def row_family(name: str) -> str:
    return {
        "GPT2LMHeadModel": "gpt2",
        "GPTJForCausalLM": "gptj",
        "CohereForCausalLM": "cohere",
        "Starcoder2ForCausalLM": "starcoder2",
        "Gemma2ForCausalLM": "gemma2",
    }[name]


def number(address: str) -> int:
    """The place of MODEL/L1/ff_value/17 among all neurons of a model that has 96 a layer."""
    _, layer, _, idx = address.split("/")
    return int(layer[1:]) * 96 + int(idx)


def test_relations_of_folded_models(tmp_path: Path) -> None:
    """The direction that a LayerNorm takes off is in no coordinates: similarities between models are those of the
    scores all the same, and raw weights are compared as ever, which is without their means.
    """
    truth, E, atlases = {}, {}, tmp_path / "x.atlas"
    for seed, name in enumerate("ab"):
        model = made(tmp_path / name, "GPT2LMHeadModel", seed)
        gained = model.lm_head.weight.detach().numpy() * model.transformer.ln_f.weight.detach().numpy()
        truth[name], E[name] = oracle.read(tmp_path / name), gained - gained.mean(1, keepdims=True)
    build([str(tmp_path / name) for name in "ab"], atlases, OPTIONS)
    build([str(tmp_path / name) for name in "ab"], tmp_path / "plain.atlas", replace(OPTIONS, fold_norm=False))
    atlas, plain = paramdex.open(atlases), paramdex.open(tmp_path / "plain.atlas")
    W = {name: np.concatenate(truth[name].rows["ff_value"]) for name in "ab"}
    similar = oracle.pearson(W["a"] @ E["a"].T, W["b"] @ E["b"].T)
    rows = atlas.sql(
        "SELECT address, neighbor, similarity FROM neighbors WHERE address LIKE 'a/%/ff_value/%' ORDER BY ALL"
    ).to_rows()
    assert len(rows) == 3 * len(similar)
    for row in rows:
        expected = similar[number(row["address"]), number(row["neighbor"])]
        assert row["similarity"] == pytest.approx(expected, abs=2e-6)
    best = {n: -np.sort(-similar[n])[2] for n in range(len(similar))}
    assert all(row["similarity"] > best[number(row["address"])] - 2e-6 for row in rows)
    sql = "SELECT layer_a, layer_b, feature_score FROM layer_alignments WHERE kind = 'ff_value' ORDER BY ALL"
    folded_scores, plain_scores = atlas.sql(sql).to_rows(), plain.sql(sql).to_rows()
    features = [[oracle.feature_rows(w) for w in truth[name].rows["ff_value"]] for name in "ab"]
    by_hand = isometry.layer_scores(*features)
    assert [row["feature_score"] for row in folded_scores] == pytest.approx(by_hand.ravel().tolist(), abs=1e-6)
    assert [row["feature_score"] for row in plain_scores] == pytest.approx(by_hand.ravel().tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("null", "keeps"),
    [([], True), ([np.ones(6)], True), ([np.eye(6)[0]], False), ([np.ones(6), np.arange(6.0)], False)],
)
def test_what_a_root_keeps_of_features(null: list[np.ndarray], keeps: bool) -> None:
    """Weights but for their mean, where nothing or the vector of ones is lost: R^+ R w less its mean is w less its."""
    E = np.random.default_rng(0).normal(size=(50, 6))
    E -= E.mean(0)
    if null:
        E -= E @ np.linalg.pinv(np.array(null)) @ np.array(null)
    root = isometry.gram_root(E.T @ E, len(E))
    assert root.rank == 6 - len(null)
    assert root.keeps_features is keeps
    w = np.random.default_rng(1).normal(size=(3, 6))
    back = oracle.feature_rows(w @ root.root.T @ root.inverse.T)
    assert np.allclose(back, oracle.feature_rows(w), atol=1e-9) is keeps
