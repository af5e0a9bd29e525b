"""``lens`` of vectors that read: scored in the space of their place, against float64 over the whole vocabulary."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

import oracle
from paramdex import AddressError, Atlas, QueryError, TokenFilter
from paramdex.cli import cli
from query_helpers import Everything, assert_ranking
from reading_oracle import gains

BY_SCORE = TokenFilter(by="score")
PLACES = {"attn": "attn_query", "ff": "ff_key"}
"""A place of a layer -> a kind that reads there, of which the layer has no fewer vectors than they have numbers."""
SCORED = [("gpt2-wide", layer, place) for layer in range(3) for place in PLACES]
SCORED += [(model, layer, place) for model in ("gpt2-a", "llama-gqa") for layer in (0, 1) for place in PLACES]
"""Where a vector is scored through a map, or as it is, which has the gain of the norm in it."""


@pytest.fixture(scope="module")
def tensors(model_folders: dict[str, Path]) -> dict[str, dict[str, np.ndarray]]:
    """Model -> its tensors."""
    return {
        model: {name: each.double().numpy() for name, each in load_file(folder / "model.safetensors").items()}
        for model, folder in model_folders.items()
    }


def as_given(
    tensors: dict[str, dict[str, np.ndarray]], model: str, layer: int, place: str, w: np.ndarray
) -> np.ndarray:
    """A vector that reads at a place as ``lens`` takes it: where no map is kept, with the norm's gain, and less its
    mean where the norm is a LayerNorm (rows in float32 have means of 1e-8, which their products with a mean show).
    """
    if model == "gpt2-wide":
        return w
    given = w * gains(tensors[model], PLACES[place], layer)
    return given - given.mean() if model == "gpt2-a" else given


def rows_of(result: object, what: str) -> list[dict]:
    return [row for row in result if row["what"] == what]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("model", "layer", "place"), SCORED)
def test_tokens_and_nearest_parameters_are_exact(
    reading_atlas: Atlas,
    truths: dict[str, oracle.Truth],
    reading_wholes: dict[str, Everything],
    tensors: dict[str, dict[str, np.ndarray]],
    draw: random.Random,
    model: str,
    layer: int,
    place: str,
) -> None:
    """Of a sum of the vectors that read there; its scores are the same sum of theirs."""
    whole, rows = reading_wholes[model], truths[model].rows[PLACES[place]][layer]
    weights = np.random.default_rng(draw.randrange(1 << 32)).normal(size=len(rows))
    w, scores = weights @ rows, weights @ whole.scores[whole.chosen(PLACES[place], layer)]
    named = dict(zip(whole.addresses, oracle.pearson(scores[None], whole.scores)[0], strict=True))
    w = as_given(tensors, model, layer, place, w)
    for side in ("top", "bottom", "both"):
        result = reading_atlas.lens(w, model, 9, reads=f"L{layer}.{place}", side=side)
        assert_ranking(rows_of(result, "parameter"), named, 9, side)
    for side in ("top", "bottom"):
        own = [row for row in rows_of(result, "token") if row["side"] == side]
        ids = [row["token_id"] for row in own]
        oracle.assert_strongest([row["score"] for row in own], scores[ids], scores, side)
        z = (scores[ids] - scores.mean()) / scores.std()
        np.testing.assert_allclose([row["z"] for row in own], z, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("model", "layer", "place"), SCORED)
def test_a_vector_of_the_model_says_what_show_says(
    reading_atlas: Atlas,
    truths: dict[str, oracle.Truth],
    tensors: dict[str, dict[str, np.ndarray]],
    model: str,
    layer: int,
    place: str,
) -> None:
    kind, head = PLACES[place], 1 if place == "attn" else None
    address = oracle.address(model, kind, layer, head, 5)
    w = as_given(tensors, model, layer, place, truths[model].vector(kind, layer, head, 5))
    result = reading_atlas.lens(w, model, 6, reads=f"L{layer}.{place}")
    nearest = rows_of(result, "parameter")[0]
    assert nearest["address"] == address
    assert nearest["similarity"] == pytest.approx(1, abs=1e-6)
    tokens, shown = rows_of(result, "token"), reading_atlas.show(address, 6, filter=BY_SCORE).to_rows()
    assert [row["token_id"] for row in tokens] == [row["token_id"] for row in shown]
    np.testing.assert_allclose([row["score"] for row in tokens], [row["score"] for row in shown], rtol=1e-6)


def test_what_is_written_is_scored_by_the_main_space(
    reading_atlas: Atlas, truths: dict[str, oracle.Truth], reading_wholes: dict[str, Everything]
) -> None:
    """Its nearest parameters are found in every space."""
    for model in ("gpt2-wide", "llama-gqa"):
        whole, w = reading_wholes[model], truths[model].vector("ff_value", 1, None, 3)
        result = reading_atlas.lens(w, model, 20)
        assert str(result).splitlines()[0] == f"the vector: a vector of {model}"
        truth = oracle.pearson((truths[model].E @ w)[None], whole.scores)[0]
        assert_ranking(rows_of(result, "parameter"), dict(zip(whole.addresses, truth, strict=True)), 20)


def test_of_an_effective_reading_the_gain_is_the_users(
    reading_atlas: Atlas, truths: dict[str, oracle.Truth], tensors: dict[str, dict[str, np.ndarray]]
) -> None:
    w = as_given(tensors, "gpt2-a", 1, "ff", truths["gpt2-a"].vector("ff_key", 1, None, 8))
    result = reading_atlas.lens(w, "gpt2-a", 5, reads="L1.ff")
    assert rows_of(result, "parameter")[0]["address"] == "gpt2-a/L1/ff_key/8"
    tokens, shown = rows_of(result, "token"), reading_atlas.show("gpt2-a/L1/ff_key/8", 5, filter=BY_SCORE).to_rows()
    assert [row["token_id"] for row in tokens] == [row["token_id"] for row in shown]
    note = "no map is kept for the reading effective: the gain of the norm before L1.ff belongs in the vector"
    assert note in result.notes
    assert note.replace("L1", "L0") in reading_atlas.lens(w, "gpt2-a", 5, reads="L0.ff").notes


def test_rows_of_a_matrix_are_what_each_is_alone(reading_atlas: Atlas, draw: random.Random) -> None:
    matrix = np.random.default_rng(draw.randrange(1 << 32)).normal(size=(19, 32))
    matrix[4] = 0
    result = reading_atlas.lens(matrix, "gpt2-wide", reads="L1.attn")
    for row in result.to_rows():
        if row["row"] == 4:
            assert row["top"] is None
            continue
        alone = reading_atlas.lens(matrix[row["row"]], "gpt2-wide", 5, reads="L1.attn")
        tokens = [each["text"] for each in rows_of(alone, "token") if each["side"] == "top"]
        first = rows_of(alone, "parameter")[0]
        assert (row["top"], row["nearest"], row["similarity"]) == (tokens, first["address"], first["similarity"])


def test_it_says_by_what_it_is_read(reading_atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")  # lines are not wrapped
    w = np.arange(32.0)
    lines = str(reading_atlas.lens(w, "gpt2-wide", 3, reads="l2.FF")).splitlines()
    assert lines[0] == "the vector: a vector of gpt2-wide, reading at L2.ff"
    assert lines[2] == "read by what layer 0 makes of each token (space reading), through the map of L2.ff"
    lines = str(reading_atlas.lens(w[:24], "gpt2-a", 3, reads="L1.ff")).splitlines()
    assert lines[2] == "read by what layer 0 makes of each token (space reading)"
    lines = str(reading_atlas.lens(w[:24], "llama-gqa", 3, reads="L0.attn")).splitlines()
    assert lines[2] == "read by what enters layer 0 for each token (space entering)"
    lines = str(reading_atlas.lens(np.stack([w, w]), "gpt2-wide", reads="L1.attn")).splitlines()
    assert lines[0] == "the vector: 2 vectors of gpt2-wide, reading at L1.attn; choose one row to see more"
    assert lines[1] == "read by what layer 0 makes of each token (space reading), through the map of L1.attn"


@pytest.mark.parametrize("reads", ["", "L1", "L1.mlp", "L1/ff", "ff", " L1.ff", "L1.ff\n", "L-1.ff", 1, ["L1.ff"], b""])
def test_what_is_no_place_is_refused(reading_atlas: Atlas, reads: object) -> None:
    with pytest.raises(QueryError, match=r"^reads is a place where vectors read, such as L3\.attn or L3\.ff, not "):
        reading_atlas.lens(np.ones(32), "gpt2-wide", reads=reads)  # type: ignore[arg-type]


def test_a_place_of_which_nothing_is_known_is_refused(reading_atlas: Atlas) -> None:
    for reads in ("L3.ff", "L999999999.attn"):
        with pytest.raises(AddressError, match=rf"^there is no {reads}; gpt2-wide has layers L0 to L2$"):
            reading_atlas.lens(np.ones(32), "gpt2-wide", reads=reads)
    message = "^bert was built with the reading embedding: .* ask without reads, or build the model with --reading exp"
    for reads in ("L0.ff", "L1.attn"):
        with pytest.raises(QueryError, match=message):
            reading_atlas.lens(np.ones(24), "bert", reads=reads)


def test_command_line(reading_folder: Path, reading_atlas: Atlas, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(32.0))

    def run(*more: str) -> str:
        arguments = ["lens", str(reading_folder), str(tmp_path / "x.npy"), *more]
        return CliRunner().invoke(cli, arguments, catch_exceptions=False).output.strip()

    expected = reading_atlas.lens(tmp_path / "x.npy", "gpt2-wide", 4, reads="L1.ff")
    assert run("--in", "gpt2-wide", "--reads", "L1.ff", "-k", "4", "--format", "json") == expected.to_json()
    assert run("--in", "gpt2-wide", "--reads", "L1.ff", "-k", "4") == str(expected).strip()
    assert "--reads PLACE" in run("--help")
