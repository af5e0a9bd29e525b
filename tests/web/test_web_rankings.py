"""The pages by score and by token_z: the cards, forms and SQL, searches, and the links that keep a choice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from starlette.testclient import TestClient

from paramdex import Atlas, TokenFilter
from paramdex_schemas.model import Ranking
from web_helpers import data, page, server

RANKINGS: list[Ranking] = ["score", "token_z"]
PARAMETER, HEAD = "gpt2-wide/L2/ff_key/3", "gpt2-wide/L2/H3"


@pytest.fixture(scope="module")
def pages(reading_folder: Path) -> Iterator[TestClient]:
    with server(reading_folder) as client:
        yield client


def asked(by: str | None) -> dict[str, str]:
    return {} if by is None else {"by": by}


@pytest.mark.parametrize("by", [*RANKINGS, None])
@pytest.mark.parametrize(
    ("address", "own", "known"),
    [
        (PARAMETER, "token_z", True),
        ("gpt2-wide/L1/ff_bias/0", "token_z", False),
        ("bert/L1/ff_key/3", "score", True),
    ],
)
def test_parameters(
    pages: TestClient, reading_atlas: Atlas, address: str, own: str, known: bool, by: Ranking | None
) -> None:
    card = data(pages, f"/{address}.json", k=9, **asked(by))
    shown = reading_atlas.show(address, 9, filter=TokenFilter(by=by))
    for side in ("top", "bottom"):
        expected = [(r["token_id"], r["score"], r["z"], r["token_z"]) for r in shown if r["side"] == side]
        assert [(t["token_id"], t["score"], t["z"], t["token_z"]) for t in card[side]] == expected
    assert card["own_ranking"] == own
    assert card["ranked_by"] == ((by or own) if known else "score")
    assert card["notes"] == list(shown.notes)
    for choice in ({}, {"alnum": "true"}):
        filtered = data(pages, f"/{address}.json", k=6, **asked(by), **choice)
        texts = [token["text"] for side in ("top", "bottom") for token in filtered[side]]
        assert [row["text"] for row in reading_atlas.sql(filtered["sql"])] == texts
    text = page(pages, f"/{address}?by={by or ''}").text
    assert ("what is usual for the token" in text) is (card["ranked_by"] == "token_z")


@pytest.mark.parametrize("by", [*RANKINGS, None])
@pytest.mark.parametrize("words", ["different", "all"])
@pytest.mark.parametrize(("address", "known"), [(HEAD, True), ("gpt2-a/L1/H0", False)])
def test_heads(
    pages: TestClient, reading_atlas: Atlas, address: str, known: bool, words: str, by: Ranking | None
) -> None:
    card = data(pages, f"/{address}.json", k=15, words=words, **asked(by))
    shown = reading_atlas.show(address, 15, distinct=words == "different", filter=TokenFilter(by=by)).to_rows()
    names = ("score", "token_z", "rank", "rank_distinct")
    for each in card["lists"]:
        rows = [row for row in shown if (row["matrix"], row["side"]) == (each["matrix"], each["side"])]
        assert [[pair[name] for name in names] for pair in each["pairs"]] == [[r[name] for name in names] for r in rows]
    assert card["ranked_by"] == ((by or "token_z") if known else "score")
    for choice in ({}, {"contains": "e"}, {"alnum": "true", "min_z": "1"}):
        chosen = data(pages, f"/{address}.json", k=6, words=words, **asked(by), **choice)
        pairs = [(p["source"]["text"], p["target"]["text"]) for each in chosen["lists"] for p in each["pairs"]]
        found = [(row["source"], row["target"]) for row in reading_atlas.sql(chosen["sql"])]
        assert sorted(found) == sorted(pairs)
    text = page(pages, f"/{address}?by={by or ''}").text
    assert ("what is usual for its tokens" in text) is (card["ranked_by"] == "token_z")


@pytest.mark.parametrize("by", [*RANKINGS, None])
def test_searches(pages: TestClient, reading_atlas: Atlas, by: Ranking | None) -> None:
    """What is found, both numbers of it, and by which tokens and pairs things are described."""
    found = data(pages, "/find.json", q="river ocean", k=8, **asked(by))
    rows = reading_atlas.find("river ocean", 100, filter=TokenFilter(by=by)).to_rows()
    for name, are_heads in (("parameters", False), ("heads", True)):
        expected = [row for row in rows if (row["kind"] in ("QK", "VO")) is are_heads][:8]
        keys = ("address", "side", "words", "rank", "z", "token_z")
        assert [[row[key] for key in keys] for row in found[name]] == [[row[key] for key in keys] for row in expected]

    def described(row: dict[str, Any]) -> None:
        shown = reading_atlas.show(row["address"], 6, filter=TokenFilter(by=by)).to_rows()
        for side in ("top", "bottom"):
            assert [token["text"] for token in row[side]] == [r["text"] for r in shown if r["side"] == side]

    near = data(pages, "/search.json", q="river", k=5, **asked(by))["rows"]
    near += data(pages, "/similar.json", address=PARAMETER, model="llama-gqa", **asked(by))["rows"]
    layers = data(pages, "/align/gpt2-a/llama-gqa/pairs.json", kind="ff_key", layer_a="L1", layer_b="L0", **asked(by))
    for row in [*found["parameters"], *near, *(pair[end] for pair in layers["rows"][:4] for end in "ab")]:
        described(row)
    pairs = data(pages, "/similar.json", address=HEAD, **asked(by))["rows"]
    similar = reading_atlas.similar(HEAD, 5, filter=TokenFilter(by=by)).to_rows()
    assert [row["pairs"] for row in pairs] == [row["top"] for row in similar]
    card = data(pages, f"/{PARAMETER}.json", **asked(by))
    for row in [*card["partners"], *(row for group in card["nearest"] for row in group["rows"])]:
        described(row)


@pytest.mark.parametrize("address", [PARAMETER, HEAD, "bert/L1/ff_key/3"])
def test_the_form_offers_both(pages: TestClient, address: str) -> None:
    """The model's own has an empty value, which is left out of the address."""
    own = data(pages, f"/{address}.json")["own_ranking"]
    for by in (*RANKINGS, None):
        tags = page(pages, f"/{address}?by={by or ''}").tags
        assert any(tag.get("name") == "by" for name, tag in tags if name == "select")
        options = [tag for name, tag in tags if name == "option" and tag.get("value") in ("", *RANKINGS)]
        assert [tag["value"] for tag in options] == ["" if each == own else each for each in RANKINGS]
        assert [tag["value"] for tag in options if "selected" in tag] == ["" if by in (own, None) else by]


@pytest.mark.parametrize(
    "path", [f"/{PARAMETER}", f"/{HEAD}", "/find?q=river", "/search?q=river", "/ask?q=river", "/gpt2-wide",
             f"/similar?address={PARAMETER}", f"/similar?address={HEAD}", "/align/gpt2-a/gpt2-wide",
             "/align/gpt2-a/gpt2-wide/pairs?kind=ff_key&layer_a=L1&layer_b=L2"],
)  # fmt: skip
def test_links_keep_the_choice(pages: TestClient, path: str) -> None:
    """Those to what has lists; a page without a choice has no link with one, but where it is offered."""
    lists = ("/gpt2", "/llama", "/bert", "/find", "/search", "/similar", "/ask", "/align/")
    joined = "&" if "?" in path else "?"
    links = [urlsplit(link) for link in page(pages, f"{path}{joined}by=score").links]
    links = [link for link in links if link.path.startswith(lists) and not link.path.endswith(".json")]
    assert len(links) > 3
    lost = [link.geturl() for link in links if parse_qs(link.query).get("by", [""])[0] not in RANKINGS]
    assert [link for link in lost if link.partition("?")[0] != path.partition("?")[0]] == []
    plain = [urlsplit(link) for link in page(pages, path).links]
    assert {link.path for link in plain if "by" in parse_qs(link.query)} <= {path.partition("?")[0]}


@pytest.mark.parametrize("path", [f"/{PARAMETER}", "/find?q=river", "/search?q=river", f"/similar?address={HEAD}"])
def test_other_rankings_are_refused(pages: TestClient, path: str) -> None:
    at, _, query = path.partition("?")
    answer = pages.get(f"{at}.json?{query}&by=z")
    assert answer.status_code in (400, 422)
    message = answer.json()["error"]["message"]
    assert "score" in message
    assert "token_z" in message
    assert "\n" not in message


def test_an_address_keeps_it_through_the_search_box(pages: TestClient) -> None:
    answer = pages.get(f"/ask?q={PARAMETER}&by=score", follow_redirects=False)
    assert answer.headers["location"] == f"/{PARAMETER}?asked=address&by=score"
    hidden = [
        tag for name, tag in page(pages, f"/{PARAMETER}?by=score").tags if name == "input" and tag.get("name") == "by"
    ]
    assert [(tag["type"], tag["value"]) for tag in hidden] == [("hidden", "score")]


def test_hubs_are_an_example_of_sql(pages: TestClient) -> None:
    from paramdex.web.sql.examples import EXAMPLES

    (query,) = (text for title, text in EXAMPLES.items() if title.startswith("Hubs"))
    rows = data(pages, "/sql.json", q=query)["rows"]
    assert len(rows) == 20
    assert {"by_score", "by_token_z"} <= set(rows[0])
    assert [row["by_score"] for row in rows] == sorted((row["by_score"] for row in rows), reverse=True)
