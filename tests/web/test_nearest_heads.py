"""The heads that are like a head, which its card fetches: those of ``similar``."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from paramdex import Atlas
from paramdex.web.cards import lookups
from web_helpers import HOSTILE


@pytest.mark.parametrize("model", [None, "gpt2-a", "llama-gqa"])
@pytest.mark.parametrize("address", ["gpt2-wide/L2/H3", "llama-gqa/L1/H2", "bert/L0/H1"])
def test_nearest_heads(client: TestClient, atlas: Atlas, address: str, model: str | None) -> None:
    asked = f"address={address}" + (f"&model={model}" if model else "")
    answer = client.get(f"/similar.json?{asked}").json()
    expected = atlas.similar(address, 5, model=model).to_rows()
    assert (answer["address"], answer["model"]) == (address, model or address.partition("/")[0])
    assert [(row["matrix"], row["rank"], row["address"], row["pairs"]) for row in answer["rows"]] == [
        (row["matrix"], row["rank"], row["address"], row["top"]) for row in expected
    ]
    similarities = [row["similarity"] for row in expected]
    assert [row["similarity"] for row in answer["rows"]] == pytest.approx(similarities, rel=1e-6)
    page = client.get(f"/similar?{asked}").text
    assert all(f'href="/{row["address"]}"' in page for row in expected)


@pytest.mark.parametrize("matrix", ["QK", "VO"])
def test_by_one_matrix(client: TestClient, matrix: str) -> None:
    rows = client.get(f"/similar.json?address=bert/L0/H1&kind={matrix}&k=2").json()["rows"]
    assert [row["matrix"] for row in rows] == [matrix] * 2


def test_a_heads_card_says_where_to_look(client: TestClient) -> None:
    models = client.get("/bert/L0/H1.json").json()["comparable"]
    assert models[0] == "bert"
    assert set(models) == {row["model"] for row in client.get("/.json").json()["models"]}
    page = client.get("/bert/L0/H1").text
    assert 'data-load="/similar?address=bert%2FL0%2FH1"' in page
    assert all(f"/similar?address=bert%2FL0%2FH1&amp;model={name}" in page for name in models[1:])


def test_too_many_heads_are_said_to_be(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "MOST_COMPARED", 10)
    assert client.get("/bert/L0/H1.json").json()["comparable"] == []
    page = client.get("/bert/L0/H1").text
    assert "paramdex similar ATLAS bert/L0/H1" in page
    assert "data-load" not in page  # which would be refused
    answer = client.get("/similar.json?address=bert/L0/H1")
    assert answer.status_code == 400
    assert "paramdex similar ATLAS bert/L0/H1 --in bert" in answer.json()["error"]["message"]


def test_pairs_are_escaped(strange: TestClient) -> None:
    """Of hostile tokens, some of which stand in these pairs."""
    page = strange.get("/similar?address=hostile/L0/H0").text
    words = [word for word in HOSTILE if "<" in word and "&" not in word]
    rows = strange.get("/similar.json?address=hostile/L0/H0").json()["rows"]
    assert any(word in pair for word in words for row in rows for pair in row["pairs"])
    assert not any(word in page for word in words)
