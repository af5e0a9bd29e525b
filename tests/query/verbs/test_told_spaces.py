"""What ``show`` and ``info`` tell of spaces and readings: by what a vector is read, and how well."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import paramdex
from paramdex import Atlas
from reading_spaces import READERS, READINGS, Spaced

READS = "correlation of what is read with the score of the token, on held-out text"


@pytest.fixture(scope="module")
def read(reading_atlas: Path) -> Iterator[Atlas]:
    with paramdex.open(reading_atlas) as atlas:
        yield atlas


def title(result: object) -> list[str]:
    return (result.title or "").splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("tied/L2/ff_key/3", "read by what layer 0 makes of each token (space reading)"),
        ("tied/L1/H1/attn_value/0", "read by what layer 0 makes of each token (space reading)"),
        ("tied/L1/H1/attn_query_bias/0", "read by what layer 0 makes of each token (space reading)"),
        ("untied/L0/ff_gate/3", "read by the input embedding (space input)"),
        ("untied/L0/H2/attn_key/3", "read by the input embedding (space input)"),
        ("effective/L2/ff_key/3", "read by what layer 0 makes of each token (space reading)"),
        ("tied/L0/ff_key/3", None),
        ("tied/L2/ff_value/3", None),
        ("untied/L1/H0/attn_output/3", None),
        ("tied/position/3", None),
        ("plain/L2/ff_key/3", None),
    ],
)
def test_a_parameter_says_by_what_it_is_read(read: Atlas, address: str, says: str | None) -> None:
    (reads,) = (row["reads"] for row in read.sql("SELECT reads FROM parameters WHERE address = ?", [address]))
    known = [] if reads is None else [f"reads {reads:.4g}: {READS}"]
    assert title(read.show(address, 3))[2:] == [*([says] if says else []), *known]
    if says is None or not address.startswith(("tied/L2", "tied/L1")):
        assert reads is None
    else:
        assert known


def test_scores_are_those_of_the_space(read: Atlas, spaced: dict[str, Spaced]) -> None:
    """The numbers below the title are of the same scores as the list."""
    for model, address in (("tied", "tied/L2/ff_key/7"), ("effective", "effective/L2/ff_key/7")):
        own = spaced[model]
        w = own.truth.vector("ff_key", 2, None, 7)
        scores = own.scores("ff_key", 2, w)
        row = title(read.show(address, 3))[1]
        found = [float(number) for number in re.findall(r"-?\d+\.\d+(?:e-\d+)?", row)]
        np.testing.assert_allclose(found, [np.linalg.norm(w), scores.mean(), scores.std()], rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("tied/L2/H1", "queries, keys and what VO reads: read by what layer 0 makes of each token (space reading)"),
        ("untied/L0/H2", "queries, keys and what VO reads: read by the input embedding (space input)"),
        ("tied/L0/H1", None),
        ("plain/L2/H1", None),
    ],
)
def test_a_head_says_by_what_it_is_read(read: Atlas, address: str, says: str | None) -> None:
    lines = title(read.show(address, 3))[1:]
    assert lines[:1] == ([says] if says else [])
    assert lines[1:] == ([] if address != "tied/L2/H1" else [f"reads {_means(read, address)}: {READS}"])


def test_shared_keys_count_for_every_head_that_has_them(read: Atlas) -> None:
    """Heads 2 and 3 of the Llama layout share a key/value head, numbered by the first of them."""
    for head in (2, 3):
        last = title(read.show(f"untied/L1/H{head}", 3))[-1]
        means = {kind: _means(read, f"untied/L1/H{2 if kind != 'attn_query' else head}", kind) for kind in _OF_HEADS}
        assert last == f"reads {', '.join(means.values())}: {READS}"


_OF_HEADS = ("attn_query", "attn_key", "attn_value")


def _means(read: Atlas, head: str, *kinds: str) -> str:
    found = []
    for kind in kinds or _OF_HEADS:
        rows = read.sql("SELECT reads FROM parameters WHERE address LIKE ? || '/%' AND kind = ?", [head, kind])
        found.append(f"{kind} {np.mean([row['reads'] for row in rows], dtype=np.float64):.4g}")
    return ", ".join(found)


def test_readings_are_means_by_kind_and_layer(read: Atlas) -> None:
    rows = read.sql("SELECT model, stack, layer, kind, n, reads FROM readings").to_rows()
    assert len({(row["model"], row["layer"], row["kind"]) for row in rows}) == len(rows)
    assert {(row["model"], row["stack"]) for row in rows} == {("tied", None), ("untied", None)}
    assert {row["layer"] for row in rows} == {1, 2}
    assert {row["kind"] for row in rows} == set(READERS)
    for row in rows:
        where = [row[name] for name in ("model", "layer", "kind")]
        own = read.sql("SELECT reads FROM parameters WHERE model = ? AND layer = ? AND kind = ?", where).to_rows()
        values = [each["reads"] for each in own if each["reads"] is not None]
        assert row["n"] == len(values)
        assert row["reads"] == pytest.approx(np.mean(values), abs=1e-6)


def test_info_says_how_models_are_read(read: Atlas) -> None:
    found = read.info()
    assert {row["model"]: row["reading"] for row in found} == READINGS
    for row in found:
        told = (row["reading_text"], row["reading_tokens"])
        assert told == (("its own", 96 * 32) if row["reading"] == "expected" else (None, None))
    table, readings = str(found).split("\n\n")
    assert [line.split()[-1] for line in table.splitlines()[3:7]] == list(READINGS.values())
    lines = readings.splitlines()
    assert lines[0] == f"reads, mean of each layer: {READS}"
    assert lines[1].split() == ["model", "text", "tokens", "kind", "layers", "reads"]
    means = {
        kind: [f"{row['reads']:.2f}" for row in rows]
        for kind in ("ff_key", "attn_query")
        if (rows := read.sql("FROM readings WHERE model = 'tied' AND kind = ? ORDER BY layer", [kind]).to_rows())
    }
    assert lines[3].split() == ["tied", "its", "own", "3072", "ff_key", "L1,", "L2", *means["ff_key"]]
    assert lines[4].split() == ["attn_query", "L1,", "L2", *means["attn_query"]]
    assert {row["model"] for row in found.readings or ()} == {"tied", "untied"}
    assert "reads, mean of each layer" in found._repr_html_()


def test_a_models_row_says_it_too(read: Atlas) -> None:
    lines = [" ".join(line.split()) for line in str(read.show("tied")).splitlines()]
    assert {"reading expected", "reading_text its own", "reading_tokens 3072"} <= set(lines)
    rows = read.sql("FROM readings WHERE model = 'tied' AND kind = 'attn_value' ORDER BY layer").to_rows()
    assert f"reads of attn_value, L1, L2 {' '.join(format(row['reads'], '.2f') for row in rows)}" in lines
    assert read.show("tied").columns == read.info().columns


def test_where_all_is_read_by_the_embedding_nothing_is_said(atlas: Atlas) -> None:
    found = atlas.info()
    assert found.readings is None
    assert "reads" not in str(found)
    assert "reads" not in found._repr_html_()
    for address in ("gpt2-a/L1/ff_key/3", "bert/L1/H1", "llama-gqa/L1/ff_gate/3", "llama-gqa/L0/H1"):
        assert "space" not in str(atlas.show(address, 3))
    assert len(title(atlas.show("gpt2-a/L1/ff_key/3", 3))) == 2
    assert len(title(atlas.show("gpt2-a/L1/H1", 3))) == 1
    assert not any("reads of" in line for line in str(atlas.show("bert")).splitlines())
