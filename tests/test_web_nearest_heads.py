"""The heads that are like a head, on its card: those of ``similar``."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from paramdex import Atlas
from paramdex.web import head_cards
from web_helpers import HOSTILE

pytest_plugins = ["query_fixtures", "web_fixtures"]


@pytest.mark.parametrize("address", ["gpt2-wide/L2/H3", "llama-gqa/L1/H2", "bert/L0/H1"])
def test_a_heads_card_has_its_nearest_heads(client: TestClient, atlas: Atlas, address: str) -> None:
    found = client.get(f"/{address}.json").json()["nearest"]
    expected = atlas.similar(address, 5).to_rows()
    assert [(row["matrix"], row["rank"], row["address"], row["pairs"]) for row in found] == [
        (row["matrix"], row["rank"], row["address"], row["top"]) for row in expected
    ]
    assert [row["similarity"] for row in found] == pytest.approx([row["similarity"] for row in expected], rel=1e-6)
    page = client.get(f"/{address}").text
    part = page[page.index("Heads like it") : page.index("Its vectors")]
    assert all(f'href="/{row["address"]}"' in part for row in found)


def test_too_many_heads_are_said_to_be(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_cards, "_MOST_COMPARED", 10)
    assert client.get("/bert/L0/H1.json").json()["nearest"] is None
    assert "paramdex similar ATLAS bert/L0/H1" in client.get("/bert/L0/H1").text


def test_pairs_are_escaped(strange: TestClient) -> None:
    """Of hostile tokens, some of which stand in these pairs."""
    page = strange.get("/hostile/L0/H0").text
    part = page[page.index("Heads like it") : page.index("Its vectors")]
    words = [word for word in HOSTILE if "<" in word and "&" not in word]
    pairs = [pair for row in strange.get("/hostile/L0/H0.json").json()["nearest"] for pair in row["pairs"]]
    assert any(word in pair for word in words for pair in pairs)
    assert not any(word in part for word in words)
