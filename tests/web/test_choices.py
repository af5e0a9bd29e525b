"""Which tokens and pairs a card shows: as the command line filters them and as the card's own SQL does."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from paramdex import Atlas
from paramdex.store.token_filter import TokenFilter
from web_helpers import data, page

HEADS = ["gpt2-a/L1/H0", "bert/L1/H2", "llama-gqa/L0/H3"]
FILTERS: list[dict[str, Any]] = [
    {"alnum": True},
    {"ascii": True},
    {"word_starts": True},
    {"no_undertrained": True},
    {"alnum": True, "ascii": True, "word_starts": True, "no_undertrained": True},
    {"only": "canada food bread wine"},
    {"only": '" canada" ##ing wine', "alnum": True},
    {"only": "nowhere-to-be-found"},
]
PAIRS: list[dict[str, Any]] = [
    {}, {"words": "tokens"}, {"words": "all"}, {"min_z": 4.2}, {"contains": "A"}, {"contains": "'"},
    {"contains": "e", "min_z": 4, "words": "all"}, {"contains": "%", "words": "tokens"},
]  # fmt: skip


def token_filter(asked: dict[str, Any], **of_pairs: bool) -> TokenFilter:
    words = [word.strip('"') for word in ('" canada"', "##ing", "wine")] if "##" in asked.get("only", "") else None
    words = words or asked.get("only", "").split() or None
    return TokenFilter(words=words, **{name: on for name, on in asked.items() if name != "only"}, **of_pairs)


def shown(card: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        (each["matrix"], each["side"], pair["source"]["text"], pair["target"]["text"], pair["score"])
        for each in card["lists"]
        for pair in each["pairs"]
    ]


@pytest.mark.parametrize("address", HEADS)
@pytest.mark.parametrize("words", ["different", "tokens", "all"])
@pytest.mark.parametrize("asked", FILTERS, ids=str)
def test_pairs_are_those_of_show(
    client: TestClient, atlas: Atlas, address: str, words: str, asked: dict[str, Any]
) -> None:
    card = data(client, f"/{address}.json", k=9, words=words, **asked)
    expected = atlas.show(
        address, 9, distinct=words == "different", filter=token_filter(asked, no_identical=words == "tokens")
    )
    rows = [(r["matrix"], r["side"], r["source"], r["target"], r["score"]) for r in expected.to_rows()]
    assert shown(card) == rows
    assert card["notes"] == [note for note in expected.notes if note.startswith(("filtered", "the vocabulary"))]


@pytest.mark.parametrize("address", HEADS)
@pytest.mark.parametrize("of_pairs", PAIRS, ids=str)
@pytest.mark.parametrize("asked", [{}, *FILTERS[4:7]], ids=str)
def test_pairs_are_those_of_the_cards_own_sql(
    client: TestClient, atlas: Atlas, address: str, of_pairs: dict[str, Any], asked: dict[str, Any]
) -> None:
    card = data(client, f"/{address}.json", k=7, **asked, **of_pairs)
    rows = [(r["matrix"], r["side"], r["source"], r["target"], r["score"]) for r in atlas.sql(card["sql"]).to_rows()]
    order = lambda row: (row[0], row[1] != "top")  # noqa: E731
    assert sorted(shown(card), key=order) == sorted(rows, key=order)
    for each in card["lists"]:
        for pair in each["pairs"]:
            assert abs(pair["z"]) >= of_pairs.get("min_z", 0)
            text = f"{pair['source']['text']}\n{pair['target']['text']}".lower()
            assert of_pairs.get("contains", "").lower() in text


def test_there_is_something_to_leave_out(client: TestClient) -> None:
    """Each part of a choice changes what some card shows, so that the tests above compare more than the whole."""
    whole = {address: shown(data(client, f"/{address}.json", k=30)) for address in HEADS}
    for choice in (*FILTERS[:3], *FILTERS[5:], *PAIRS[1:6]):
        changed = {address: shown(data(client, f"/{address}.json", k=30, **choice)) for address in HEADS}
        assert changed != whole, choice


@pytest.mark.parametrize("address", ["gpt2-a/L1/ff_value/3", "bert/L0/ff_key/7", "llama-gqa/L1/H2/attn_key/1"])
@pytest.mark.parametrize("asked", FILTERS, ids=str)
def test_tokens_are_those_of_show_and_of_the_cards_own_sql(
    client: TestClient, atlas: Atlas, address: str, asked: dict[str, Any]
) -> None:
    card = data(client, f"/{address}.json", k=5, **asked)
    expected = atlas.show(address, 5, filter=token_filter(asked))
    found = [(side, token["text"], token["score"]) for side in ("top", "bottom") for token in card[side]]
    assert found == [(row["side"], row["text"], row["score"]) for row in expected.to_rows()]
    assert card["notes"] == list(expected.notes)
    assert found == [(row["side"], row["text"], row["score"]) for row in atlas.sql(card["sql"]).to_rows()]


@pytest.mark.parametrize("address", ["gpt2-a/L1/H0", "gpt2-a/L1/ff_value/3"])
def test_the_form_says_what_was_chosen(client: TestClient, address: str) -> None:
    asked = "alnum=true&no_undertrained=on&only=canada%20%22%3E&k=50"
    of_head = "&words=tokens&contains=%3Cb%3E&min_z=2.5" if address.endswith("H0") else ""
    inputs = [tag for name, tag in page(client, f"/{address}?{asked}{of_head}").tags if name == "input"]
    checked = {tag["name"]: tag["value"] for tag in inputs if "checked" in tag}
    assert checked == {"alnum": "true", "no_undertrained": "true"} | ({"words": "tokens"} if of_head else {})
    typed = {tag["name"]: tag["value"] for tag in inputs if tag.get("type") not in ("checkbox", "radio", "search")}
    assert typed == {"only": 'canada ">'} | ({"contains": "<b>", "min_z": "2.5"} if of_head else {"k": "50"})
    plain = [tag for name, tag in page(client, f"/{address}").tags if name == "input" and "checked" in tag]
    assert [tag["value"] for tag in plain] == (["different"] if of_head else [])


def test_an_empty_form_is_the_plain_card(client: TestClient) -> None:
    plain = data(client, "/gpt2-a/L1/H0.json")
    assert client.get("/gpt2-a/L1/H0.json?words=different&contains=&min_z=&only=&k=20").json() == plain


@pytest.mark.parametrize(
    "wrong", ["min_z=x", "min_z=-1", "min_z=nan", "alnum=perhaps", "words=some", "only=" + 51 * "a+"]
)
def test_what_cannot_be_chosen_is_refused(client: TestClient, wrong: str) -> None:
    answer = client.get(f"/gpt2-a/L1/H0.json?{wrong}")
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]["message"]


def test_the_description_has_the_types(client: TestClient) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/{address}.json"]["get"]
    types = {each["name"]: each["schema"] for each in operation["parameters"]}
    for name in ("ascii", "alnum", "word_starts", "no_undertrained"):
        assert (types[name]["type"], types[name]["default"]) == ("boolean", False)
    assert types["words"]["enum"] == ["different", "tokens", "all"]
    assert types["min_z"]["type"] == "number"
    assert all(each["description"] for each in operation["parameters"] if each["name"] != "k")
