"""What ``show`` and ``info`` tell of spaces and readings: by what a vector is read, and how well."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import models
import paramdex
from paramdex import Atlas, TokenFilter
from paramdex_builder import Options, build
from query_helpers import Everything
from reading_oracle import READERS

READINGS = {"gpt2-a": "effective", "gpt2-wide": "expected", "llama-gqa": "effective", "bert": "embedding"}
ENTERING = "read by what enters layer 0 for each token (space entering)"
READING = "read by what layer 0 makes of each token (space reading)"
READS = "correlation of what is read with the score of the token, on held-out text"
BY_SCORE = TokenFilter(by="score")
_OF_HEADS = ("attn_query", "attn_key", "attn_value")


def title(result: object) -> list[str]:
    return (result.title or "").splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("gpt2-wide/L2/ff_key/3", READING),
        ("gpt2-wide/L1/H1/attn_value/0", READING),
        ("gpt2-wide/L1/H1/attn_query_bias/0", READING),
        ("llama-gqa/L0/ff_gate/3", ENTERING),
        ("llama-gqa/L0/H2/attn_key/3", ENTERING),
        ("gpt2-a/L1/ff_key/3", READING),
        ("gpt2-wide/L0/ff_key/3", ENTERING),
        ("gpt2-wide/L2/ff_value/3", None),
        ("llama-gqa/L1/H0/attn_output/3", None),
        ("gpt2-wide/position/3", None),
        ("bert/L1/ff_key/3", None),
    ],
)
def test_a_parameter_says_by_what_it_is_read(reading_atlas: Atlas, address: str, says: str | None) -> None:
    (reads,) = (row["reads"] for row in reading_atlas.sql("SELECT reads FROM parameters WHERE address = ?", [address]))
    known = [] if reads is None else [f"reads {reads:.4g}: {READS}"]
    every = title(reading_atlas.show(address, 3, filter=BY_SCORE))[2:]
    found = [line for line in every if "readable" not in line]
    assert found == [*([says] if says else []), *known]
    if says is None or not address.startswith("gpt2-wide/"):
        assert reads is None
    else:
        assert known


def test_scores_are_those_of_the_space(reading_atlas: Atlas, reading_wholes: dict[str, Everything]) -> None:
    """The numbers below the title are of the same scores as the list."""
    for address in ("gpt2-wide/L2/ff_key/7", "gpt2-a/L1/ff_key/7", "llama-gqa/L0/ff_gate/7"):
        scores = reading_wholes[address.partition("/")[0]].row(address)
        numbers = title(reading_atlas.show(address, 3))[1]
        assert numbers.endswith(f"mean {scores.mean():.4g}, std {scores.std():.4g}")


@pytest.mark.parametrize(
    ("address", "says"),
    [
        (
            "gpt2-wide/L2/H1",
            f"queries, keys and what VO reads: {READING}",
        ),
        ("llama-gqa/L0/H2", f"queries, keys and what VO reads: {ENTERING}"),
        ("gpt2-wide/L0/H1", f"queries, keys and what VO reads: {ENTERING}"),
        ("bert/L1/H1", None),
    ],
)
def test_a_head_says_by_what_it_is_read(reading_atlas: Atlas, address: str, says: str | None) -> None:
    lines = title(reading_atlas.show(address, 3, filter=BY_SCORE))[1:]
    assert lines[:1] == ([says] if says else [])
    known = address.startswith("gpt2-wide/")
    assert lines[1:] == ([f"reads {_means(reading_atlas, address)}: {READS}"] if known else [])


def test_shared_keys_count_for_every_head_that_has_them(tmp_path: Path) -> None:
    """Heads 2 and 3 of the Llama layout share a key/value head, numbered by the first of them."""
    folder = models.save_word_model(tmp_path / "llama", 0, models.MAKERS["LlamaForCausalLM"])
    options = Options(3, 3, 1, reading="expected", device="cpu")
    with paramdex.open(build([str(folder)], tmp_path / "x.atlas", options)) as atlas:
        for head in (2, 3):
            means = [_means(atlas, f"llama/L1/H{head}", "attn_query")]
            means += [_means(atlas, "llama/L1/H2", kind) for kind in ("attn_key", "attn_value")]
            assert (
                title(atlas.show(f"llama/L1/H{head}", 3, filter=BY_SCORE))[-1] == f"reads {', '.join(means)}: {READS}"
            )


def _means(atlas: Atlas, head: str, *kinds: str) -> str:
    found = []
    for kind in kinds or _OF_HEADS:
        rows = atlas.sql("SELECT reads FROM parameters WHERE address LIKE ? || '/%' AND kind = ?", [head, kind])
        found.append(f"{kind} {np.mean([row['reads'] for row in rows], dtype=np.float64):.4g}")
    return ", ".join(found)


def test_readings_are_means_by_kind_and_layer(reading_atlas: Atlas) -> None:
    rows = reading_atlas.sql("SELECT model, stack, layer, kind, n, reads FROM readings").to_rows()
    assert len({(row["model"], row["layer"], row["kind"]) for row in rows}) == len(rows)
    assert {(row["model"], row["stack"]) for row in rows} == {("gpt2-wide", None)}
    assert {row["layer"] for row in rows} == {0, 1, 2}
    assert {row["kind"] for row in rows} == set(READERS) - {"ff_gate"}
    for row in rows:
        where = [row[name] for name in ("model", "layer", "kind")]
        own = reading_atlas.sql(
            "SELECT reads FROM parameters WHERE model = ? AND layer = ? AND kind = ?", where
        ).to_rows()
        values = [each["reads"] for each in own if each["reads"] is not None]
        assert row["n"] == len(values)
        assert row["reads"] == pytest.approx(np.mean(values), abs=1e-6)


def test_info_says_how_models_are_read(reading_atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")  # lines are not wrapped
    found = reading_atlas.info()
    assert {row["model"]: row["reading"] for row in found} == READINGS
    (tokens,) = (row["reading_tokens"] for row in found if row["reading"] == "expected")
    assert tokens > 1000
    for row in found:
        told = (row["reading_text"], row["reading_tokens"])
        assert told == (("its own", tokens) if row["reading"] == "expected" else (None, None))
    table, readings = str(found).split("\n\n")
    assert [line.split()[-1] for line in table.splitlines()[3:7]] == list(READINGS.values())
    lines = readings.splitlines()
    assert lines[0] == f"reads, mean of each layer: {READS}"
    assert lines[1].split() == ["model", "text", "tokens", "kind", "layers", "reads"]
    sql = "SELECT printf('%.2f', reads) AS mean FROM readings WHERE kind = ? ORDER BY layer"
    means = {kind: [row["mean"] for row in reading_atlas.sql(sql, [kind])] for kind in ("ff_key", "attn_query")}
    assert lines[3].split() == ["gpt2-wide", "its", "own", str(tokens), "ff_key", "L0", "to", "L2", *means["ff_key"]]
    assert lines[4].split() == ["attn_query", "L0", "to", "L2", *means["attn_query"]]
    assert {row["model"] for row in found.readings or ()} == {"gpt2-wide"}
    assert "reads, mean of each layer" in found._repr_html_()


def test_a_models_row_says_it_too(reading_atlas: Atlas) -> None:
    lines = [" ".join(line.split()) for line in str(reading_atlas.show("gpt2-wide")).splitlines()]
    assert {"reading expected", "reading_text its own"} <= set(lines)
    (row,) = reading_atlas.sql("SELECT reading_tokens FROM models WHERE model = 'gpt2-wide'")
    assert f"reading_tokens {row['reading_tokens']}" in lines
    rows = reading_atlas.sql("FROM readings WHERE model = 'gpt2-wide' AND kind = 'attn_value' ORDER BY layer").to_rows()
    assert f"reads of attn_value, L0 to L2 {' '.join(format(row['reads'], '.2f') for row in rows)}" in lines
    assert reading_atlas.show("gpt2-wide").columns == reading_atlas.info().columns


def test_where_all_is_read_by_the_embedding_nothing_is_said(atlas: Atlas) -> None:
    found = atlas.info()
    assert found.readings is None
    assert "reads" not in str(found)
    assert "reads" not in found._repr_html_()
    for address in ("gpt2-a/L1/ff_key/3", "bert/L1/H1", "llama-gqa/L1/ff_gate/3", "llama-gqa/L0/H1"):
        assert "space" not in str(atlas.show(address, 3))
    assert [line.split()[0] for line in title(atlas.show("gpt2-a/L1/ff_key/3", 3))[1:]] == ["norm", "nothing"]
    assert len(title(atlas.show("gpt2-a/L1/H1", 3))) == 1
    assert not any("reads of" in line for line in str(atlas.show("bert")).splitlines())
