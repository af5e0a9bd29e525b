"""Whether parameters fire on what their tables say: the measures by brute force, and what they say of a real model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from paramdex.measures import evaluation
from paramdex_builder import EvaluateOptions, evaluate
from paramdex_builder.measure.measures import HITS, TOP, correlation, hits

ROOT = Path(__file__).parents[3]


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_correlation_is_numpys() -> None:
    activations, noise = (torch.randn(50, 7, generator=drawn(seed)) for seed in (0, 1))
    scores = activations + 2 * noise
    scores[:, 3] = 4.0  # says nothing
    found = correlation(activations, scores, 200, drawn(2))
    each = [0.0 if j == 3 else np.corrcoef(activations[:, j], scores[:, j])[0, 1] for j in range(7)]
    assert found.value == pytest.approx(np.mean(each), abs=1e-12)
    assert abs(found.baseline) < 0.05
    assert found.p_value == pytest.approx(1 / 201)


def test_hits_are_counted() -> None:
    V, n, m = 400, 60, 5
    table, rows = (torch.randn(rows, 8, generator=drawn(0)).double() for rows in (V, m))
    tokens = torch.randint(V, (n,), generator=drawn(2))
    activations = torch.randn(n, m, generator=drawn(3)) + 3 * (table[tokens] @ rows.T)
    least = (rows @ table.T).topk(round(TOP * V)).values[:, -1]
    found = hits(activations, table[tokens] @ rows.T, least, 50, drawn(4))
    share = []
    for j in range(m):
        top = set(torch.argsort(table @ rows[j], descending=True)[: round(TOP * V)].tolist())
        most = torch.argsort(activations[:, j], descending=True)[:HITS]
        share.append(np.mean([int(tokens[i]) in top for i in most]))
    assert found.value == pytest.approx(np.mean(share))
    assert found.value > found.baseline


def test_the_readings_of_a_demo_model() -> None:
    """From layer 1 on the embedding says nearly nothing of what a neuron fires on; what layers see of tokens does.

    The text is of a sort that the model never saw, and the maps are fitted on what it writes itself.
    """
    text = (ROOT / "README.md").read_text("utf-8")
    table = evaluate(str(ROOT / "data" / "models" / "tiny-a"), text, EvaluateOptions(samples=600, draws=19))
    found = {
        (row["measure"], row["reading"], row["layer"]): row
        for row in table.to_pylist()
        if row["measure"] in ("reads", "hits") and row["kind"] == "ff_key" and row["ranking"] != "token_z"
    }
    for layer in (1, 2, 3):
        assert found["reads", "expected", layer]["value"] > 0.6
        assert found["reads", "effective", layer]["value"] > 0.45
        assert found["reads", "embedding", layer]["value"] < 0.25
        assert found["hits", "expected", layer]["value"] > 0.15
        assert found["hits", "embedding", layer]["value"] < 0.03
        assert found["reads", "expected", layer]["p_value"] == pytest.approx(1 / 20)
    for measure in ("reads", "hits"):  # layer 0 reads the embedding, with positions and through its norm
        assert found[measure, "expected", 0]["value"] > found[measure, "embedding", 0]["value"] > 0.4
    printed = str(evaluation(table))
    assert "ff_key," in printed
    assert "reads: correlation of a parameter's activation" in printed


def test_without_texts_nothing_is_fitted(model_folders: dict[str, Path]) -> None:
    options = EvaluateOptions(k=5, pair_k=5, samples=20, draws=2, texts=0)
    rows = evaluate(str(model_folders["llama-gqa"]), "Canada Ottawa bread butter music violin river", options)
    assert {row["reading"] for row in rows.to_pylist()} == {None, "embedding", "effective"}
