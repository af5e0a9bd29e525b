"""``lens`` of vectors that read: scored in the space of their place, against float64 over the whole vocabulary."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import oracle
import paramdex
from paramdex import AddressError, Atlas, QueryError
from paramdex.cli import cli
from query_helpers import assert_ranking
from reading_spaces import PLACES, Spaced

EXPECTED = [("tied", layer, place) for layer in range(3) for place in PLACES]
EXPECTED += [("untied", layer, place) for layer in range(2) for place in PLACES]


@pytest.fixture(scope="module")
def read(reading_atlas: Path) -> Iterator[Atlas]:
    with paramdex.open(reading_atlas) as atlas:
        yield atlas


def rows_of(result: object, what: str) -> list[dict]:
    return [row for row in result if row["what"] == what]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("model", "layer", "place"), EXPECTED)
def test_tokens_and_nearest_parameters_are_exact(
    read: Atlas, spaced: dict[str, Spaced], draw: random.Random, model: str, layer: int, place: str
) -> None:
    own = spaced[model]
    w = np.random.default_rng(draw.randrange(1 << 32)).normal(size=24)
    scores = own.scores(PLACES[place][0], layer, w)
    for side in ("top", "bottom", "both"):
        result = read.lens(w, model, 9, reads=f"L{layer}.{place}", side=side)
        truth = oracle.pearson(scores[None], own.whole.scores)[0]
        named = dict(zip(own.whole.addresses, truth, strict=True))
        assert_ranking(rows_of(result, "parameter"), named, 9, side)
    tokens = rows_of(result, "token")
    for side in ("top", "bottom"):
        ours = [row for row in tokens if row["side"] == side]
        ids = [row["token_id"] for row in ours]
        # Z is float32 in the atlas, and came out of a model that ran in float32
        np.testing.assert_allclose([row["score"] for row in ours], scores[ids], atol=2e-5 * np.abs(scores).max())
        sign = 1 if side == "top" else -1
        best = np.sort(-sign * scores)[: len(ours)] * -sign
        np.testing.assert_allclose([row["score"] for row in ours], best, atol=2e-5 * np.abs(scores).max())
        z = (scores[ids] - scores.mean()) / scores.std()
        np.testing.assert_allclose([row["z"] for row in ours], z, atol=1e-3)


@pytest.mark.parametrize(("model", "layer", "place"), EXPECTED)
def test_a_vector_of_the_model_says_what_show_says(
    read: Atlas, spaced: dict[str, Spaced], model: str, layer: int, place: str
) -> None:
    kind = PLACES[place][0]
    head = 1 if place == "attn" else None
    w = spaced[model].truth.vector(kind, layer, head, 5)
    address = oracle.address(model, kind, layer, head, 5)
    result = read.lens(w, model, 6, reads=f"L{layer}.{place}")
    nearest = rows_of(result, "parameter")[0]
    assert nearest["address"] == address
    assert nearest["similarity"] == pytest.approx(1, abs=1e-6)
    shown = read.show(address, 6).to_rows()
    tokens = rows_of(result, "token")
    assert [row["token_id"] for row in tokens] == [row["token_id"] for row in shown]
    np.testing.assert_allclose([row["score"] for row in tokens], [row["score"] for row in shown], rtol=1e-5)


def test_what_is_written_is_scored_by_the_main_space(read: Atlas, spaced: dict[str, Spaced]) -> None:
    """Its nearest parameters are found in every space."""
    own = spaced["untied"]
    w = own.truth.vector("ff_value", 1, None, 3)
    result = read.lens(w, "untied", 20)
    assert str(result).splitlines()[0] == "the vector: a vector of untied"
    truth = oracle.pearson((own.X["output"] @ w)[None], own.whole.scores)[0]
    assert_ranking(rows_of(result, "parameter"), dict(zip(own.whole.addresses, truth, strict=True)), 20)
    assert rows_of(read.lens(w, "untied", 3), "parameter")[0]["address"] == "untied/L1/ff_value/3"


def test_of_an_effective_reading_the_gain_is_the_users(read: Atlas, spaced: dict[str, Spaced]) -> None:
    own = spaced["effective"]
    w = own.truth.vector("ff_key", 2, None, 8)
    result = read.lens(own.gains["ff", 2] * w, "effective", 5, reads="L2.ff")
    assert rows_of(result, "parameter")[0]["address"] == "effective/L2/ff_key/8"
    tokens, shown = rows_of(result, "token"), read.show("effective/L2/ff_key/8", 5).to_rows()
    assert [row["token_id"] for row in tokens] == [row["token_id"] for row in shown]
    note = "no map is kept for the reading effective: the gain of the norm before L2.ff belongs in the vector"
    assert note in result.notes
    assert not any("gain" in note for note in read.lens(w, "effective", 5, reads="L0.ff").notes)


def test_rows_of_a_matrix_are_what_each_is_alone(read: Atlas, draw: random.Random) -> None:
    matrix = np.random.default_rng(draw.randrange(1 << 32)).normal(size=(19, 24))
    matrix[4] = 0
    result = read.lens(matrix, "tied", reads="L1.attn")
    for row in result.to_rows():
        if row["row"] == 4:
            assert row["top"] is None
            continue
        alone = read.lens(matrix[row["row"]], "tied", 5, reads="L1.attn")
        tokens = [each["text"] for each in rows_of(alone, "token") if each["side"] == "top"]
        first = rows_of(alone, "parameter")[0]
        assert (row["top"], row["nearest"], row["similarity"]) == (tokens, first["address"], first["similarity"])


def test_it_says_by_what_it_is_read(read: Atlas) -> None:
    w = np.arange(24.0)
    lines = str(read.lens(w, "tied", 3, reads="l2.FF")).splitlines()
    assert lines[0] == "the vector: a vector of tied, reading at L2.ff"
    assert lines[2] == "read by what layer 0 makes of each token (space reading), through the map of L2.ff"
    assert str(read.lens(w, "effective", 3, reads="L2.ff")).splitlines()[2] == (
        "read by what layer 0 makes of each token (space reading)"
    )
    lines = str(read.lens(w, "untied", 3, reads="L0.attn")).splitlines()
    assert lines[2] == "read by the input embedding (space input)"
    lines = str(read.lens(np.stack([w, w]), "tied", reads="L1.attn")).splitlines()
    assert lines[0] == "the vector: 2 vectors of tied, reading at L1.attn; choose one row to see more"
    assert lines[1] == "read by what layer 0 makes of each token (space reading), through the map of L1.attn"


@pytest.mark.parametrize(
    "reads", ["", "L1", "L1.mlp", "L1/ff", "ff", " L1.ff", "L1.ff\n", "L-1.ff", 1, ["L1.ff"], b"L1.ff"]
)
def test_what_is_no_place_is_refused(read: Atlas, reads: object) -> None:
    with pytest.raises(QueryError, match=r"^reads is a place where vectors read, such as L3\.attn or L3\.ff, not "):
        read.lens(np.ones(24), "tied", reads=reads)  # type: ignore[arg-type]


def test_a_place_of_which_nothing_is_known_is_refused(read: Atlas) -> None:
    for reads in ("L3.ff", "L999999999.attn"):
        with pytest.raises(AddressError, match=rf"^there is no {reads}; tied has layers L0 to L2$"):
            read.lens(np.ones(24), "tied", reads=reads)
    message = "^plain was built with the reading embedding: .* ask without reads, or build the model with --reading exp"
    for reads in ("L0.ff", "L2.attn"):
        with pytest.raises(QueryError, match=message):
            read.lens(np.ones(24), "plain", reads=reads)


def test_command_line(reading_atlas: Path, read: Atlas, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(24.0))

    def run(*more: str) -> str:
        arguments = ["lens", str(reading_atlas), str(tmp_path / "x.npy"), *more]
        return CliRunner().invoke(cli, arguments, catch_exceptions=False).output.strip()

    expected = read.lens(tmp_path / "x.npy", "untied", 4, reads="L1.ff")
    assert run("--in", "untied", "--reads", "L1.ff", "-k", "4", "--format", "json") == expected.to_json()
    assert run("--in", "untied", "--reads", "L1.ff", "-k", "4") == str(expected).strip()
    assert "--reads PLACE" in run("--help")
