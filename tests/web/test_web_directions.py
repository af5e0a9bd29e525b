"""The singular directions on a head's card: the atlas's own, on the page and as data."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from paramdex import Atlas
from paramdex_builder import Options, build
from web_helpers import HOSTILE, server


@pytest.mark.parametrize("address", ["gpt2-wide/L2/H3", "llama-gqa/L1/H2", "bert/L0/H1"])
def test_a_heads_card_has_its_directions(client: TestClient, atlas: Atlas, address: str) -> None:
    card = client.get(f"/{address}.json").json()
    expected = atlas.directions(address, 4).to_rows()
    assert len(card["directions"]) == 8
    for found, row in zip(card["directions"], expected, strict=True):
        assert {name: found[name] for name in ("matrix", "direction")} == {
            name: row[name] for name in ("matrix", "direction")
        }
        assert found["singular_value"] == pytest.approx(row["singular_value"])
        assert found["share"] == pytest.approx(row["share"])
        for name in ("source_top", "source_bottom", "target_top", "target_bottom"):
            assert [token["text"] for token in found[name]] == row[name][:6]
    page = client.get(f"/{address}").text
    assert page.count('class="list directions"') == 2
    assert f"{100 * expected[0]['share']:.1f}%" in page


def test_hostile_tokens_are_escaped(strange: TestClient) -> None:
    page = strange.get("/hostile/L0/H0").text
    directions = page[page.index("Its directions") : page.index("Heads like it")]
    assert directions.count("<tr>") == 2 + 2 * 8
    assert not any(word in directions for word in HOSTILE if "<" in word and "&" not in word)
    assert "<script" not in directions


def test_an_atlas_without_directions(word_model: Path, tmp_path: Path) -> None:
    build([str(word_model)], tmp_path / "x.atlas", Options(top_k=5, pair_k=5, device="cpu", directions_k=0))
    with server(tmp_path / "x.atlas") as client:
        assert client.get("/word-model/L0/H0.json").json()["directions"] == []
        assert "Its directions" not in client.get("/word-model/L0/H0").text
