"""The pages of parameters, heads and models say by what vectors are read, and how well; where that is the embedding,
they say nothing new.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from paramdex import Atlas
from paramdex.web.cards.head import HeadCard
from paramdex.web.cards.model import ModelCard
from paramdex.web.cards.parameter import ParameterCard
from web_helpers import data, page, server

ENTERING = "what enters layer 0 for each token"
READING = "what layer 0 makes of each token"
READS = "correlation of what is read with the score of the token, on held-out text"


@pytest.fixture(scope="module")
def pages(reading_folder: Path) -> Iterator[TestClient]:
    with server(reading_folder) as client:
        yield client


@pytest.mark.parametrize(
    ("address", "space", "says"),
    [
        ("gpt2-wide/L2/ff_key/3", "reading", READING),
        ("llama-gqa/L0/H1/attn_query/3", "entering", ENTERING),
        ("llama-gqa/L1/H0/attn_key/3", "reading", READING),
        ("gpt2-a/L1/ff_key/3", "reading", READING),
        ("gpt2-wide/L0/ff_key/3", "entering", ENTERING),
        ("gpt2-wide/L2/ff_value/3", "output", None),
        ("bert/L1/ff_key/3", "output", None),
    ],
)
def test_parameters(pages: TestClient, reading_atlas: Atlas, address: str, space: str, says: str | None) -> None:
    card = ParameterCard.model_validate(data(pages, f"/{address}.json"))
    (row,) = reading_atlas.sql("SELECT space, reads, mean, std FROM parameters WHERE address = ?", [address]).to_rows()
    assert (card.space, card.reads, card.mean, card.std) == tuple(row.values())
    assert (card.space, card.space_says) == (space, says)
    text = page(pages, f"/{address}").text
    assert (f"Space{space} read by {says}" in text) is (says is not None)
    assert (READS in text) is (card.reads is not None)
    of_rows = "the product of this vector with a token's row of the (un)embedding: the logit lens"
    assert (of_rows in text) is (says is None)


@pytest.mark.parametrize(
    ("address", "space", "says"),
    [
        ("gpt2-wide/L2/H1", "reading", READING),
        ("llama-gqa/L0/H3", "entering", ENTERING),
        ("gpt2-wide/L0/H1", "entering", ENTERING),
        ("bert/L1/H0", "output", None),
    ],
)
def test_heads(pages: TestClient, reading_atlas: Atlas, address: str, space: str, says: str | None) -> None:
    card = HeadCard.model_validate(data(pages, f"/{address}.json"))
    (row,) = reading_atlas.sql("SELECT space FROM heads WHERE address = ?", [address]).to_rows()
    assert (card.space, card.space_says) == (row["space"], says) == (space, says)
    assert list(card.reads) == (["attn_query", "attn_key", "attn_value"] if address.startswith("gpt2-wide") else [])
    text = page(pages, f"/{address}").text
    assert (f"Space{space} queries, keys and what VO reads, by {says}" in text) is (says is not None)
    assert (READS in text) is bool(card.reads)
    for kind, mean in card.reads.items():
        rows = reading_atlas.sql("SELECT avg(reads) AS mean FROM parameters WHERE address LIKE ? || '/%' AND kind = ?",
                        [address, kind])  # fmt: skip
        assert mean == pytest.approx(rows.to_rows()[0]["mean"], rel=1e-6)


def test_models_and_layers(pages: TestClient, reading_atlas: Atlas) -> None:
    card = ModelCard.model_validate(data(pages, "/gpt2-wide.json"))
    (row,) = reading_atlas.sql("SELECT reading, reading_text, reading_tokens FROM models WHERE model = 'gpt2-wide'")
    summary = card.summary
    assert (summary.reading, summary.reading_text, summary.reading_tokens) == tuple(row.values())
    means = reading_atlas.sql("SELECT kind, layer, reads FROM readings WHERE model = 'gpt2-wide'").to_rows()
    means = [row for row in means if not row["kind"].endswith("_bias")]
    expected = {(row["kind"], f"L{row['layer']}"): pytest.approx(row["reads"], rel=1e-6) for row in means}
    assert {(each.kind, layer): mean for each in card.reads for layer, mean in each.layers.items()} == expected
    text = page(pages, "/gpt2-wide").text
    told = "What its layers read is scored by what they see of a token (reading expected), fitted on "
    assert f"{told}{summary.reading_tokens:,} tokens of text that it wrote itself." in text
    assert "How well it is read" in text
    of_one = ModelCard.model_validate(data(pages, "/gpt2-wide/L2.json"))
    assert {tuple(each.layers) for each in of_one.reads} == {("L2",)}
    assert "How well it is read" in page(pages, "/gpt2-wide/L2").text
    for quiet in ("/bert", "/gpt2-a", "/gpt2-a/L0"):
        assert data(pages, f"{quiet}.json")["reads"] == []
        assert "How well it is read" not in page(pages, quiet).text
    told = "What its layers read is scored by what enters layer 0 for a token, or leaves it (reading effective)."
    assert told in page(pages, "/gpt2-a").text
    assert "What its layers" not in page(pages, "/bert").text


def test_the_view_of_readings_can_be_asked(pages: TestClient, reading_atlas: Atlas) -> None:
    rows = data(pages, "/sql.json", q="SELECT * FROM readings ORDER BY ALL")["rows"]
    assert rows == reading_atlas.sql("SELECT * FROM readings ORDER BY ALL").to_rows()
