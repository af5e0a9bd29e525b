"""What ``evaluate`` says of lists and of what heads write, on whole tiny models: against float64 over all scores, and
against passes of transformers' own.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import AutoModel, AutoTokenizer

import oracle
from paramdex_builder import EvaluateOptions, evaluate
from paramdex_builder.measure.coherence import WordVectors, word_vectors
from paramdex_builder.measure.hubs import HUBS
from paramdex_builder.measure.measures import HITS
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.read.vocabulary import read_vocabulary
from paramdex_builder.stream.forward import Runner
from paramdex_builder.stream.space import alone
from paramdex_schemas.progress import Progress
from reading_oracle import Scored

TEXT = "Canada Ottawa bread butter music violin river ocean nurse seven eight green yellow winter summer canada butter"
FAMILIES = ["gpt2-a", "llama-gqa"]
READERS = ["ff_key", "ff_gate", "attn_query", "attn_key", "attn_value"]
OPTIONS = EvaluateOptions(k=5, pair_k=5, parameters=1000, heads=100, texts=0, draws=30)
BLOCKS = {"gpt2-a": lambda model: model.h, "llama-gqa": lambda model: model.layers}


@pytest.fixture(scope="module")
def found(model_folders: dict[str, Path]) -> dict[str, list[dict[str, Any]]]:
    options = EvaluateOptions(**{**vars(OPTIONS), "other_model": str(model_folders["bert"])})
    return {name: evaluate(str(model_folders[name]), TEXT, options).to_pylist() for name in FAMILIES}


@pytest.fixture(scope="module")
def scored(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Scored]]:
    """Family -> reading -> what scores its vectors."""
    made: dict[str, dict[str, Scored]] = {}
    for name in FAMILIES:
        truth, checkpoint = oracle.read(model_folders[name]), Checkpoint.open(str(model_folders[name]))
        tables = alone(Runner.open(checkpoint, dtype=torch.float64), len(truth.E), Progress())
        folder = tmp_path_factory.mktemp("read") / "models" / name
        folder.mkdir(parents=True)
        for space, Z in tables.items():
            save_file({"embedding": Z.numpy()}, folder / f"{space}.safetensors")
        atlas = folder.parents[1]
        made[name] = {
            "embedding": Scored("nothing", truth, model_folders[name], atlas),
            "effective": Scored(name, truth, model_folders[name], atlas),
        }
    return made


def tables(truth: oracle.Truth, scored: dict[str, Scored]) -> dict[tuple[str, str | None, str, int], Any]:
    """(kind, reading, ranking, layer) -> what every parameter's tokens are ranked by (n x V)."""
    made = {}
    for kind in [*READERS, "ff_value", "attn_output"]:
        if not truth.rows.get(kind):
            continue
        for reading in ("embedding", "effective") if kind in READERS else (None,):
            by = scored[reading or "embedding"]
            own = [by.scores(kind, layer, rows).T for layer, rows in enumerate(truth.rows[kind])]
            # The layers that one space scores: by the embedding all of them, by either Z the first or all others.
            groups = [range(len(own))] if reading != "effective" else [range(1), range(1, len(own))]
            for group in groups:
                together = np.concatenate([own[layer] for layer in group])
                for layer in group:
                    made[kind, reading, "score", layer] = own[layer]
                    made[kind, reading, "token_z", layer] = (own[layer] - together.mean(0)) / together.std(0)
    return made


def places(ranked: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-ranked, axis=1)[:, :k]


def of_hubs(ids: np.ndarray) -> float:
    return sum(n for _, n in Counter(ids.flatten().tolist()).most_common(HUBS)) / ids.size


@pytest.mark.parametrize("family", FAMILIES)
def test_hubs_and_coherence_are_the_brute_forces(
    model_folders: dict[str, Path],
    found: dict[str, list[dict[str, Any]]],
    scored: dict[str, dict[str, Scored]],
    family: str,
) -> None:
    truth, folder = oracle.read(model_folders[family]), model_folders[family]
    vocabulary = read_vocabulary(str(folder), folder, len(truth.E))
    words = word_vectors(vocabulary.texts, str(model_folders["bert"]), Progress())
    all_ranked = tables(truth, scored[family])
    rows = {
        (row["measure"], row["kind"], row["reading"], row["ranking"], row["layer"]): row
        for row in found[family]
        if row["measure"] in ("hubs", "coherence") and row["kind"] not in ("QK", "VO")
    }
    for (kind, reading, by, layer), ranked in all_ranked.items():
        row = rows.pop(("hubs", kind, reading, by, layer))
        ids = places(ranked, 10)
        assert (row["k"], row["n"], row["against"]) == (10, len(ranked), "uniform")
        assert row["value"] == pytest.approx(of_hubs(ids), abs=3 / ids.size)  # for near ties
        value, n = mean_cosine(places(ranked, 20), words)
        row = rows.pop(("coherence", kind, reading, by, layer), None)
        assert (row is None) == (n == 0)
        if row is not None:
            assert row["n"] == pytest.approx(n, abs=1)
            assert row["value"] == pytest.approx(value, abs=0.02)
    for kind, reading, by in {key[:3] for key in all_ranked}:
        row = rows.pop(("hubs", kind, reading, by, None))
        ids = np.concatenate(
            [places(ranked, 10) for key, ranked in all_ranked.items() if key[:3] == (kind, reading, by)]
        )
        assert row["value"] == pytest.approx(of_hubs(ids), abs=3 / ids.size)
    assert rows == {}


def mean_cosine(lists: np.ndarray, words: WordVectors) -> tuple[float, int]:
    """The mean over lists of at least four words, and how many they are."""
    means = []
    for ids in lists:
        own = words.vectors[[i for i in ids if words.is_word[i]]].double().numpy()
        if len(own) >= 4:
            cosines = own @ own.T
            means.append(cosines[~np.eye(len(own), dtype=bool)].mean())
    return float(np.mean(means)) if means else 0.0, len(means)


@pytest.mark.parametrize("family", FAMILIES)
def test_hits_are_the_brute_forces(
    model_folders: dict[str, Path], scored: dict[str, dict[str, Scored]], family: str
) -> None:
    """In a text of fewer than HITS tokens every one is among the most active; ``test_reads`` has longer ones."""
    truth, text = oracle.read(model_folders[family]), "bread butter music violin"
    ids = AutoTokenizer.from_pretrained(model_folders[family])(text)["input_ids"]
    assert len(ids) <= HITS
    options = EvaluateOptions(**{**vars(OPTIONS), "heads": 0, "draws": 2})
    rows = evaluate(str(model_folders[family]), text, options).to_pylist()
    counted = np.array([i for i in ids if i > 2])  # no special ones
    top = max(1, round(0.01 * len(truth.E)))
    all_ranked = tables(truth, scored[family])
    rows = [row for row in rows if row["measure"] == "hits"]
    assert len(rows) == sum(key[0] in READERS for key in all_ranked)
    for row in rows:
        ranked = all_ranked[row["kind"], row["reading"], row["ranking"], row["layer"]]
        inside = [np.isin(counted, own).mean() for own in places(ranked, top)]
        assert row["n"] == len(counted)
        assert row["value"] == pytest.approx(np.mean(inside), abs=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_heads_write_is_the_brute_forces(
    model_folders: dict[str, Path],
    found: dict[str, list[dict[str, Any]]],
    scored: dict[str, dict[str, Scored]],
    family: str,
) -> None:
    """Over all V scores, for outputs put together from attention weights by hand."""
    folder, truth = model_folders[family], oracle.read(model_folders[family])
    model = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float64).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt")["input_ids"]
    kept: dict[int, np.ndarray] = {}
    for layer, block in enumerate(BLOCKS[family](model)):
        module = block.attn.c_proj if family == "gpt2-a" else block.self_attn.o_proj
        module.register_forward_pre_hook(lambda _, args, i=layer: kept.update({i: args[0][0].detach().numpy()}))
    with torch.no_grad():
        attentions = model(tokens, output_attentions=True).attentions
    ids = tokens[0, 1:].numpy()  # the first is left out
    rows = {(row["layer"], row["reading"]): row for row in found[family] if row["measure"] == "writes"}
    assert set(rows) == {(layer, how) for layer in range(truth.n_layers) for how in ("embedding", "effective")}
    for (layer, how), row in rows.items():
        correlations = []
        for head in range(truth.n_heads):
            values = slice(head * truth.d_head, (head + 1) * truth.d_head)
            W_O = truth.rows["attn_output"][layer][values]
            shared = head * truth.n_kv_heads // truth.n_heads
            own = truth.rows["attn_value"][layer][shared * truth.d_head : (shared + 1) * truth.d_head]
            said = scored[family][how].scores("attn_value", layer, own)[ids]  # n x d_head
            o = kept[layer][1:, values] @ W_O @ truth.E.T
            p = attentions[layer][0, head, 1:, 1:].numpy() @ said @ W_O @ truth.E.T
            o, p = o - o.mean(0), p - p.mean(0)
            correlations += [np.corrcoef(a, b)[0, 1] for a, b in zip(o, p, strict=True)]
        assert row["n"] == len(ids)
        assert row["value"] == pytest.approx(np.mean(correlations), abs=1e-4)
        assert abs(row["baseline"]) < 0.25


@pytest.mark.parametrize("family", FAMILIES)
def test_hubs_of_pairs_are_those_of_whole_matrices(
    model_folders: dict[str, Path],
    found: dict[str, list[dict[str, Any]]],
    scored: dict[str, dict[str, Scored]],
    family: str,
) -> None:
    """By score; and, where there are eight heads, in what is usual for both tokens over all heads."""
    folder, truth = model_folders[family], oracle.read(model_folders[family])
    numbers = read_vocabulary(str(folder), folder, len(truth.E)).words()
    n_heads = truth.n_layers * truth.n_heads
    assert (n_heads >= 8) == (family == "llama-gqa")
    rows = {
        (row["kind"], row["reading"], row["ranking"]): row
        for row in found[family]
        if row["measure"] == "hubs" and row["kind"] in ("QK", "VO")
    }
    for matrix, how in (("QK", "embedding"), ("QK", "effective"), ("VO", "embedding"), ("VO", "effective")):
        every = all_pair_scores(truth, scored[family][how], matrix)
        centred = [scores - scores.mean(axis=1, keepdims=True) for scores in every]
        relative = np.array([scores**2 / (scores**2).mean() for scores in centred])
        alpha, beta = relative.mean(axis=(0, 2)) ** 0.5, relative.mean(axis=(0, 1)) ** 0.5
        for by, usual, of in (("score", 1.0, every), ("token_z", np.outer(alpha, beta), centred)):
            row = rows.pop((matrix, how, by), None)
            assert (row is None) == (by == "token_z" and n_heads < 8)
            if row is None:
                continue
            ids = []
            for scores in of:
                ranked = np.where(numbers[:, None] == numbers, -np.inf, scores / usual)
                ids.append(np.unravel_index(np.argsort(-ranked, axis=None)[:50], ranked.shape))
            assert (row["n"], row["layer"], row["k"]) == (n_heads, None, 50)
            assert row["value"] == pytest.approx(of_hubs(np.array(ids)), abs=3 / (100 * n_heads))
    assert rows == {}


def all_pair_scores(truth: oracle.Truth, scored: Scored, matrix: str) -> list[np.ndarray]:
    """The whole matrix (V x V) of every head."""
    kinds = {"QK": ("attn_query", "attn_key"), "VO": ("attn_value", "attn_output")}[matrix]
    found = []
    for layer in range(truth.n_layers):
        for head in range(truth.n_heads):
            sides = []
            for kind in kinds:
                owner = head * truth.n_kv_heads // truth.n_heads if kind in oracle.SHARED else head
                own = slice(owner * truth.d_head, (owner + 1) * truth.d_head)
                sides.append(scored.scores(kind, layer, truth.rows[kind][layer][own]))
            found.append(sides[0] @ sides[1].T)
    return found


def test_what_is_not_asked_for_is_left_out(model_folders: dict[str, Path]) -> None:
    options = EvaluateOptions(k=5, pair_k=5, texts=0, heads=0, draws=2, parameters=3)
    rows = evaluate(str(model_folders["bert"]), TEXT, options).to_pylist()
    assert {row["measure"] for row in rows} == {"states", "pairs", "reads", "hits", "hubs", "writes", "keep_k"}
    assert all(row["n"] == 3 for row in rows if row["measure"] == "pairs")
    assert {row["n"] for row in rows if row["measure"] == "hubs"} == {3, 6}  # lists of a layer, and of both


@pytest.mark.parametrize("measures", [("reads",), ("hubs", "writes"), ("keep_k", "states"), ("coherence", "pairs")])
def test_some_measures_alone_are_what_they_are_among_others(
    model_folders: dict[str, Path], found: dict[str, list[dict[str, Any]]], measures: tuple[str, ...]
) -> None:
    same = {"other_model": str(model_folders["bert"]), "measures": measures}
    rows = evaluate(str(model_folders["gpt2-a"]), TEXT, EvaluateOptions(**{**vars(OPTIONS), **same})).to_pylist()
    columns = ("measure", "kind", "reading", "ranking", "layer", "k", "against")

    def keyed(rows: list[dict[str, Any]]) -> dict[tuple, Any]:
        return {tuple(row[name] for name in columns): row["value"] for row in rows if row["measure"] in measures}

    alone, among = keyed(rows), keyed(found["gpt2-a"])
    assert len(alone) == len(rows)
    assert set(alone) == set(among)
    for key in alone.keys() - {key for key in alone if key[0] in ("pairs", "keep_k")}:  # which draw what they look at
        assert alone[key] == pytest.approx(among[key], abs=1e-6)


def test_a_model_that_gives_no_attention_is_said(
    model_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    class Listening(Progress):
        def say(self, line: str) -> None:
            said.append(line)

    def refuses(*_: object) -> None:
        raise ValueError("no such attention")

    monkeypatch.setattr("transformers.PreTrainedModel.set_attn_implementation", refuses)
    folder = str(model_folders["gpt2-a"])
    options = EvaluateOptions(k=5, pair_k=5, texts=0, heads=0, draws=2, parameters=3)
    rows = evaluate(folder, TEXT, options, Listening()).to_pylist()
    assert "writes" not in {row["measure"] for row in rows}
    assert said == [f"{folder}: what heads write is left out, because transformers gives no attention weights of it"]
