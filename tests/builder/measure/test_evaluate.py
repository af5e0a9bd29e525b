"""The paper's measures: against plain Python sets over float64 passes of transformers' own, and bad input."""

from __future__ import annotations

import json
import lzma
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModel, AutoTokenizer
from transformers import logging as transformers_logging

import models
import oracle
from paramdex.cli import cli
from paramdex.measures import evaluation
from paramdex_builder import EvaluateOptions, evaluate
from paramdex_builder.measure import measures
from paramdex_builder.measure.evaluate import read_words
from paramdex_builder.measure.table import SCHEMA
from paramdex_schemas import BuildError, CheckpointError, FamilyError

transformers_logging.disable_progress_bar()

TEXT = "Canada Ottawa bread butter music violin river ocean nurse seven eight green yellow winter summer canada butter"
"""Short enough to be one window of every model, so that all of its tokens are looked at."""
OPTIONS = EvaluateOptions(k=10, pair_k=20, active=5, samples=1000, texts=0, draws=60)
PAIRS = [("ff_key", "ff_value"), ("ff_gate", "ff_value"), ("attn_value", "attn_output"), ("attn_query", "attn_key")]
FAMILIES = ["gpt2-a", "llama-gqa", "bert"]
MEASURES = ["states", "pairs", "reads", "hits", "coherence", "hubs", "writes", "keep_k"]


def tops(rows: np.ndarray, E: np.ndarray, k: int, *, absolute: bool = False) -> list[set[int]]:
    """The sets of the k strongest tokens of each row."""
    scores = rows @ E.T
    order = np.argsort(-(np.abs(scores) if absolute else scores), axis=1)
    return [set(row[:k].tolist()) for row in order]


class Watched:
    """One float64 pass of transformers over TEXT: the states after each layer as the model reads them, and how active
    neurons and the dimensions of heads are, made from attention weights and norms by hand.
    """

    def __init__(self, folder: Path, family: str) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float64).eval()
        ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
        special = torch.isin(ids[0], torch.tensor(tokenizer.all_special_ids))
        self.n = int((~special).sum())
        kept: dict[str, torch.Tensor] = {}

        def keep(name: str, module: Any, *, output: bool) -> None:
            def hook(_: Any, args: tuple, kwargs: dict, result: Any) -> None:
                first = args[0] if args else kwargs["hidden_states"]
                kept[name] = (result if output else first)[0].detach()

            module.register_forward_hook(hook, with_kwargs=True)

        blocks = {"gpt2-a": lambda: model.h, "llama-gqa": lambda: model.layers, "bert": lambda: model.encoder.layer}
        blocks = list(blocks[family]())
        for i, block in enumerate(blocks):
            if family == "gpt2-a":
                keep(f"ff{i}", block.mlp.act, output=True)
                keep(f"v{i}", block.attn.c_attn, output=True)
            elif family == "llama-gqa":
                keep(f"ff{i}", block.mlp, output=False)
                keep(f"v{i}", block.self_attn.v_proj, output=True)
            else:
                keep(f"ff{i}", block.intermediate, output=True)
                keep(f"v{i}", block.attention.self.value, output=True)
            keep(f"out{i}", block, output=True)
        with torch.no_grad():
            done = model(ids, output_attentions=True)
        self.neurons, self.dimensions, self.states = [], [], []
        for i, block in enumerate(blocks):
            ff, v = kept[f"ff{i}"], kept[f"v{i}"]
            if family == "llama-gqa":
                with torch.no_grad():
                    ff = torch.nn.functional.silu(block.mlp.gate_proj(ff)) * block.mlp.up_proj(ff)
            if family == "gpt2-a":
                v = v[:, -24:]
            weights = done.attentions[i][0]
            d_head = 8 if family == "bert" else 12 if family == "gpt2-a" else 8
            heads = [
                weights[h] @ v.view(len(v), -1, d_head)[:, h * (v.shape[1] // d_head) // len(weights)]
                for h in range(len(weights))
            ]
            state = kept[f"out{i}"]
            norm = {"gpt2-a": "ln_f", "llama-gqa": "norm"}.get(family)
            with torch.no_grad():
                state = getattr(model, norm)(state) if norm else state
            for place, value in ((self.neurons, ff), (self.dimensions, torch.cat(heads, 1)), (self.states, state)):
                place.append(value[~special].numpy())


def of_query_heads(truth: oracle.Truth, kind: str, layer: int) -> np.ndarray:
    """The rows of a kind, those of key/value heads once for each query head."""
    rows = truth.rows[kind][layer]
    if kind not in oracle.SHARED or truth.n_heads == truth.n_kv_heads:
        return rows
    heads = rows.reshape(truth.n_kv_heads, -1, rows.shape[1])
    return np.concatenate([heads[h * truth.n_kv_heads // truth.n_heads] for h in range(truth.n_heads)])


@pytest.fixture(scope="module")
def found(model_folders: dict[str, Path]) -> dict[str, list[dict[str, Any]]]:
    return {name: evaluate(str(model_folders[name]), TEXT, OPTIONS).to_pylist() for name in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_active_parameters_are_the_brute_forces(
    model_folders: dict[str, Path], found: dict[str, list[dict[str, Any]]], family: str
) -> None:
    truth = oracle.read(model_folders[family])
    watched = Watched(model_folders[family], family)
    kinds = {kind: watched.neurons for kind in ("ff_key", "ff_gate", "ff_value") if truth.rows.get(kind)}
    kinds |= dict.fromkeys(("attn_value", "attn_output"), watched.dimensions)
    rows = [row for row in found[family] if row["measure"] == "states"]
    assert {(row["kind"], row["layer"]) for row in rows} == {(kind, i) for kind in kinds for i in range(truth.n_layers)}
    for row in rows:
        of_state = tops(watched.states[row["layer"]], truth.E, 10)
        of_row = tops(of_query_heads(truth, row["kind"], row["layer"]), truth.E, 10)
        active = np.argsort(-kinds[row["kind"]][row["layer"]], axis=1)[:, :5]
        unions = [set().union(*(of_row[i] for i in each)) for each in active]
        shares = np.array([[len(state & union) / 10 for union in unions] for state in of_state])
        assert row["n"] == watched.n >= 16
        assert row["value"] == pytest.approx(np.diag(shares).mean(), abs=2.1 / (10 * watched.n))  # two near ties
        if row["against"] == "active elsewhere":
            assert abs(row["baseline"] - shares.mean()) < 5 * row["deviation"] / math.sqrt(OPTIONS.draws) + 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_are_the_brute_forces(
    model_folders: dict[str, Path], found: dict[str, list[dict[str, Any]]], family: str
) -> None:
    truth = oracle.read(model_folders[family])
    rows = {(row["kind"], row["layer"]): row for row in found[family] if row["measure"] == "pairs"}
    pairs = [pair for pair in PAIRS if truth.rows.get(pair[0])]
    assert set(rows) == {(f"{left}, {right}", i) for left, right in pairs for i in range(truth.n_layers)}
    for left, right in pairs:
        for layer in range(truth.n_layers):
            row = rows[f"{left}, {right}", layer]
            A, B = (tops(of_query_heads(truth, kind, layer), truth.E, 20, absolute=True) for kind in (left, right))
            overlaps = np.array([[len(a & b) / len(a | b) for b in B] for a in A])
            assert row["n"] == len(A) == len(B)
            assert row["value"] == pytest.approx(np.diag(overlaps).mean(), abs=1e-3)
            assert abs(row["baseline"] - overlaps.mean()) < 5 * row["deviation"] / math.sqrt(OPTIONS.draws) + 1e-3


def folded(rows: np.ndarray, norm: Any) -> np.ndarray:
    """Rows (n x d) that read what a LayerNorm gives, as they read what it is given."""
    gained = rows * norm.weight.detach().numpy()
    return gained - gained.mean(1, keepdims=True)


def test_folded_norms_are_folded(model_folders: dict[str, Path]) -> None:
    folder = model_folders["gpt2-a"]
    truth = oracle.read(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float64)
    E = folded(truth.E, model.ln_f)
    rows = evaluate(str(folder), TEXT, EvaluateOptions(fold_norm=True, k=10, pair_k=20, draws=2)).to_pylist()
    for layer, block in enumerate(model.h):
        norms = {"attn_query": block.ln_1, "attn_key": block.ln_1, "attn_value": block.ln_1, "ff_key": block.ln_2}
        for pair in (pair for pair in PAIRS if pair[0] != "ff_gate"):
            sides = []
            for kind in pair:
                vectors = truth.rows[kind][layer]
                read = folded(vectors, norms[kind]) if kind in norms else vectors
                sides.append(tops(read, E, 20, absolute=True))
            overlap = np.mean([len(a & b) / len(a | b) for a, b in zip(*sides, strict=True)])
            (row,) = [row for row in rows if (row["kind"], row["layer"]) == (", ".join(pair), layer)]
            assert row["fold_norm"] is True
            assert row["value"] == pytest.approx(overlap, abs=1e-3)
    # The states are what the model reads, folded or not.
    plain = evaluate(str(folder), TEXT, EvaluateOptions(k=10, pair_k=20, draws=2)).to_pylist()
    values = [{(r["kind"], r["layer"]): r["value"] for r in each if r["measure"] == "states"} for each in (rows, plain)]
    assert values[0] != values[1]


def test_random_parameters_are_drawn_evenly() -> None:
    """The mean over draws is what combinatorics has: a token is missed if all five come from those that lack it."""
    generator = torch.Generator().manual_seed(0)
    E, rows = torch.randn(80, 6, generator=generator), torch.randn(20, 6, generator=generator)
    states = torch.randn(40, 6, generator=generator)
    active = torch.randint(0, 20, (40, 5), generator=generator)
    of_state = measures.strongest(states, E, 10)
    result = measures.state_overlap(active, rows, of_state, E, 8, 300, generator)["random"]
    of_row = tops(rows.double().numpy(), E.double().numpy(), 8)
    having = [sum(token in each for each in of_row) for token in range(80)]
    shares = [1 - math.comb(20 - having[token], 5) / math.comb(20, 5) for token in of_state.flatten().tolist()]
    assert abs(result.baseline - np.mean(shares)) < 5 * result.deviation / math.sqrt(300)
    expected = np.mean(
        [
            len(set(state) & set().union(*(of_row[i] for i in each))) / 10
            for state, each in zip(of_state.tolist(), active.tolist(), strict=True)
        ]
    )
    assert result.value == pytest.approx(expected)


def test_p_values_count_the_draws_that_reach_the_value() -> None:
    draws = iter([0.1, 0.5, 0.3, 0.2])
    result = measures.against(0.3, lambda: next(draws), 4)
    assert result == measures.Measured(0.3, pytest.approx(0.275), pytest.approx(np.std([0.1, 0.5, 0.3, 0.2])), 3 / 5)
    generator = torch.Generator().manual_seed(1)
    rows, E = torch.randn(50, 8, generator=generator), torch.randn(300, 8, generator=generator)
    same = measures.pair_overlap(rows, rows, E, 10, 40, generator)
    assert (same.value, same.p_value) == (1.0, 1 / 41)
    assert same.baseline < 0.2


def of_layers(p_values: list[float], draws: int, n: int, other: str = "shuffled") -> tuple[str | None, str]:
    """What is printed as above the baseline of layers of these p-values, and the notes."""
    row = {"model": "m", "fold_norm": False, "space": "output", "measure": "pairs", "kind": "x", "k": 5, "value": 0.5}
    row |= {"against": other, "baseline": 0.1, "deviation": 0.1, "draws": draws, "n": n}
    row |= {"reading": None, "ranking": None}
    rows = [row | {"layer": layer, "p_value": p} for layer, p in enumerate(p_values)]
    printed = evaluation(pa.Table.from_pylist(rows, schema=SCHEMA))
    (line,) = printed.shown.to_pylist()
    return line["above"], "\n".join(printed.notes)


@pytest.mark.parametrize("draws", [19, 39, 59, 99])
def test_one_in_twenty_is_above(draws: int) -> None:
    """As a number of 32 bits 0.05 would be more than 0.05."""
    twentieth = (draws + 1) // 20
    p_values = [reached / (draws + 1) for reached in range(1, twentieth + 3)]
    above, notes = of_layers(p_values, draws, 1000)
    assert above == f"{twentieth} of {twentieth + 2}"
    assert "left out" not in notes


@pytest.mark.parametrize("draws", [1, 5, 18])
@pytest.mark.parametrize("other", ["shuffled", "random", "active elsewhere"])
def test_too_few_draws_for_any_layer_to_be_above_are_said(draws: int, other: str) -> None:
    above, notes = of_layers([1 / (draws + 1)] * 4, draws, 1000, other)
    assert above is None
    least = f"with {draws} draws no p-value is below 1/{draws + 1}; 0.05 needs at least 19 draws (--draws)"
    assert notes.splitlines()[-1] == f"above is left out: {least}"


def test_too_few_orders_for_any_layer_to_be_above_are_said() -> None:
    for n, orders in ((2, 2), (3, 6)):
        above, notes = of_layers([0.4], 40, n)
        assert above is None
        assert f"above is left out for pairs (shuffled): {n} items have only {orders} orders, too few" in notes
        assert of_layers([0.4], 40, n, "random")[0] == "0 of 1"  # which draws parameters, and orders nothing
    assert of_layers([1 / 24], 40, 4)[0] == "1 of 1"


def test_rows_say_of_how_many_draws(found: dict[str, list[dict[str, Any]]]) -> None:
    for row in found["gpt2-a"]:
        assert (row["ranking"] is None) == (row["measure"] not in ("hits", "coherence", "hubs"))
        if row["measure"] == "keep_k":
            assert (row["p_value"], row["draws"]) == (None, None)
        else:
            assert row["draws"] == OPTIONS.draws
            reached = row["p_value"] * (OPTIONS.draws + 1)
            assert reached == pytest.approx(round(reached), abs=1e-12)
            assert 1 <= reached <= OPTIONS.draws + 1


def test_keep_k_is_the_notebooks(model_folders: dict[str, Path], found: dict[str, list[dict[str, Any]]]) -> None:
    """In the notebook's row form: E is d x V, X E, and the pseudo-inverse's transpose."""
    generator = np.random.default_rng(3)
    E, X = generator.normal(size=(7, 90)), generator.normal(size=(12, 7))

    def keep(scores: np.ndarray, k: int) -> np.ndarray:
        out = np.zeros_like(scores)
        for i, row in enumerate(scores):
            chosen = np.argsort(-np.abs(row))[:k]
            out[i, chosen] = row[chosen]
        return out

    def cosine(A: np.ndarray, B: np.ndarray) -> float:
        return float((A * B).sum() / np.linalg.norm(A) / np.linalg.norm(B))

    result = measures.robustness(torch.tensor(X), torch.tensor(E.T), [5, 40, 90])
    for k, measured in result.items():
        left = keep(X @ E, k)
        assert measured.value == pytest.approx(cosine(X @ X.T, left @ left.T), abs=1e-5)
        inverse = keep(X @ np.linalg.pinv(E).T, k)
        assert measured.baseline == pytest.approx(cosine(X @ X.T, left @ inverse.T), abs=1e-5)
    assert result[90].baseline == pytest.approx(1, abs=1e-5)
    rows = [row for row in found["bert"] if row["measure"] == "keep_k"]
    assert {row["kind"] for row in rows} == {"normal distribution", "ff_value", "states"}
    size = len(AutoTokenizer.from_pretrained(model_folders["bert"]))
    assert {row["k"] for row in rows} == {10, 30, size}


def test_a_seed_draws_the_same_again(model_folders: dict[str, Path]) -> None:
    folder, text = str(model_folders["gpt2-wide"]), " ".join(models.WORDS * 20)
    options = [EvaluateOptions(k=5, pair_k=5, samples=20, texts=2, draws=3, seed=seed) for seed in (1, 1, 2)]
    first, again, other = (evaluate(folder, text, each) for each in options)
    assert first.equals(again)
    assert not first.equals(other)
    assert {row["n"] for row in first.to_pylist() if row["measure"] == "states"} == {20}


# ---- the command


def test_command_prints_and_draws(model_folders: dict[str, Path], tmp_path: Path) -> None:
    text = tmp_path / "text.txt.xz"
    text.write_bytes(lzma.compress(TEXT.encode()))
    picture = tmp_path / "measures.svg"
    arguments = ["evaluate", str(model_folders["gpt2-a"]), "--text", str(text), "-k", "10", "--pair-k", "20"]
    arguments += ["--draws", "19", "--texts", "2", "--fold-norm", "--parameters", "9", "--heads", "3"]
    arguments += ["--other-model", str(model_folders["bert"])]
    done = CliRunner().invoke(cli, [*arguments, "--plot", str(picture)])
    assert done.exit_code == 0, done.output
    assert "<svg" in picture.read_text()
    options = EvaluateOptions(
        fold_norm=True,
        k=10,
        pair_k=20,
        texts=2,
        draws=19,
        parameters=9,
        heads=3,
        other_model=str(model_folders["bert"]),
    )
    table = evaluate(str(model_folders["gpt2-a"]), TEXT, options)
    assert str(evaluation(table)) in done.output
    own = [row for row in table.to_pylist() if (row["kind"], row["against"]) == ("ff_key", "random")]
    (line,) = [
        row for row in evaluation(table).shown.to_pylist() if (row["kind"], row["against"]) == ("ff_key", "random")
    ]
    assert line["value"] == pytest.approx(np.mean([row["value"] for row in own]))
    assert line["above"] == f"{sum(row['p_value'] <= 0.05 for row in own)} of 2"
    done = CliRunner().invoke(cli, [*arguments, "--format", "json"])
    assert json.loads(done.output) == json.loads(evaluation(table).to_json())
    assert {row["measure"] for row in json.loads(done.output)} == {*MEASURES}
    done = CliRunner().invoke(cli, [*arguments, "--format", "json", "--measure", "pairs", "--measure", "reads"])
    assert {row["measure"] for row in json.loads(done.output)} == {"pairs", "reads"}


def test_every_measure_and_layer_is_drawn(
    model_folders: dict[str, Path], found: dict[str, list[dict[str, Any]]]
) -> None:
    """A panel for each measure and kind, with a line for each reading and ranking and each baseline."""
    measured = evaluation(pa.Table.from_pylist(found["llama-gqa"], schema=SCHEMA))
    rows, figure = measured.to_rows(), measured.figure()
    drawn = {(row["measure"], row["kind"]) for row in rows if row["layer"] is not None and row["measure"] != "writes"}
    last = {row["measure"] for row in rows if row["measure"] in ("writes", "keep_k")} | {"hubs of all layers"}
    panels = [axis for axis in figure.axes if axis.has_data()]
    assert len(panels) == len(drawn) + len(last)
    lines = {
        (row["measure"], row["kind"], row["reading"], row["ranking"], other)
        for row in rows
        if (row["measure"], row["kind"]) in drawn
        for other in ("value", row["against"])
    }
    assert sum(len(axis.get_lines()) for axis in panels[: len(drawn)]) == len(lines)
    of_first = [row for row in rows if (row["measure"], row["kind"], row["against"]) == ("states", "ff_key", "random")]
    shown = [list(line.get_ydata()) for line in panels[0].get_lines()]
    assert [row["value"] for row in of_first] in shown
    assert [row["baseline"] for row in of_first] in shown


def test_of_a_deep_model_some_layers_are_printed() -> None:
    row = {
        "model": "m",
        "fold_norm": False,
        "space": "output",
        "measure": "writes",
        "kind": "VO",
        "against": "shuffled",
    }
    row |= {"reading": "expected", "p_value": 0.01, "draws": 99, "n": 50, "baseline": 0.0, "deviation": 0.1}
    rows = [row | {"layer": layer, "value": layer / 100} for layer in range(30)]
    printed = evaluation(pa.Table.from_pylist(rows, schema=SCHEMA))
    (line,) = printed.shown.to_pylist()
    layers = (0, 4, 8, 12, 17, 21, 25, 29)
    assert line["value - baseline, by layer"].split() == [f"{layer / 100:+.3f}" for layer in layers]
    assert line["above"] == "30 of 30"
    assert f"layers shown: {', '.join(map(str, layers))}" in printed.notes


def test_what_is_of_all_layers_stands_for_them() -> None:
    """A share of all places is no mean of the layers' shares."""
    row = {
        "model": "m",
        "fold_norm": False,
        "space": "output",
        "measure": "hubs",
        "kind": "ff_key",
        "against": "uniform",
    }
    row |= {"ranking": "score", "p_value": 0.01, "draws": 99, "n": 50, "baseline": 0.1, "deviation": 0.1}
    rows = [row | {"layer": layer, "value": value} for layer, value in ((0, 0.4), (1, 0.6), (None, 0.3))]
    (line,) = evaluation(pa.Table.from_pylist(rows, schema=SCHEMA)).shown.to_pylist()
    assert line["value"] == pytest.approx(0.3)
    assert line["above"] == "2 of 2"
    assert line["value - baseline, by layer"] == "+0.300 +0.500"


def test_bad_input_says_what_is_wrong(model_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = str(model_folders["gpt2-a"])

    def fails(kind: type[Exception], message: str, source: str = folder, text: str = TEXT, **options: Any) -> None:
        with pytest.raises(kind, match=re.escape(message)):
            evaluate(source, text, EvaluateOptions(**options))

    fails(BuildError, "give one of some hundred words or more", text="")
    fails(BuildError, "k is 100000, but", k=100_000)
    fails(BuildError, "pair_k is 100000, but", k=5, pair_k=100_000)
    fails(BuildError, "draws must be at least 1, not 0", draws=0)
    fails(BuildError, "parameters must be at least 2, not 1", parameters=1)
    some = "measures are some of states, pairs, reads, hits, coherence, hubs, writes, keep_k, or None for all, not "
    for wrong in ((), ("stats",), "reads", 5, (None,)):
        fails(BuildError, some, measures=wrong)
    fails(BuildError, "coherence needs another model", measures=("coherence",))
    fails(BuildError, "heads must be at least 0, not -1", heads=-1)
    fails(BuildError, "a source cannot be empty", other_model=" ")
    fails(CheckpointError, "there is no folder ./elsewhere", other_model="./elsewhere")
    fails(BuildError, "space is output or input, not 'both'", space="both")
    fails(CheckpointError, "there is no folder ./nowhere", source="./nowhere")
    t5 = models.save(tmp_path / "t5", models.t5(60), models.word_tokenizer(60), 1)
    fails(FamilyError, f"{t5}: it has several stacks of layers", source=str(t5))
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    with pytest.raises(BuildError, match="is empty; give a text"):
        read_words(empty)
    with pytest.raises(BuildError, match="cannot be read as text"):
        read_words(tmp_path / "nowhere.txt")
    empty.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(BuildError, match="cannot be read as text"):
        read_words(empty)


@pytest.mark.parametrize(
    ("verb", "arguments", "what"),
    [("evaluate", ["x", "--text", "y"], "evaluating"), ("stitch", ["x", "y", "--reviews", "z"], "stitching")],
)
def test_without_the_builders_needs_says_what_to_install(verb: str, arguments: list[str], what: str) -> None:
    program = "import sys; sys.modules['torch'] = None; sys.argv[0] = 'paramdex'; from paramdex.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, verb, *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    install = "install it with: pip install 'paramdex[build,cpu]' (or [build,gpu])"
    assert done.stderr == f"error: {what} needs torch; {install}\n"
