"""Vocabularies hold markup, quotes and characters that cannot be seen: nothing of it becomes part of a page."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from paramdex.web.cards.shapes import Token
from paramdex.web.html.drawing import ask_for, pieces
from web_helpers import HOSTILE, Page, data

TAGS = {
    "a", "abbr", "aside", "body", "br", "button", "caption", "circle", "code", "dd", "details", "div", "dl", "dt",
    "fieldset",
    "footer", "form", "h1", "h2", "h3", "head", "header", "html", "i", "input", "label", "legend", "li", "line", "link",
    "main", "meta", "nav", "option", "p", "path", "pre", "rect", "script", "section", "select", "span", "strong",
    "summary",
    "svg", "table", "tbody", "td", "text", "textarea", "th", "thead", "title", "tr", "ul",
}  # fmt: skip
ASSETS = {"/-/static/theme.js", "/-/static/page.js", "/-/static/style.css", "/-/static/icon.svg"}


def assert_tame(text: str) -> None:
    """Only the templates' own tags; no inline script, style or handler; scripts and styles of the server's own."""
    found = Page(text)
    scripts = 0
    for tag, attributes in found.tags:
        assert tag in TAGS, tag
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcdoc", "formaction")]
        for name in ("href", "src", "action"):
            value = attributes.get(name) or "/"
            assert value[0] in "/#"
            assert not value.startswith("//")
        if tag in ("script", "link"):
            scripts += tag == "script"
            assert str(attributes.get("src") or attributes.get("href")).split("?")[0] in ASSETS
    assert scripts == 2


@pytest.mark.parametrize(
    "path",
    ["/", "/hostile", "/hostile/L0/H1?k=200&words=all", "/hostile/L0/ff_value/1?k=50", "/hostile/L0/ff_key/1?k=50",
     "/search?q=word1&k=200", "/find?q=word1&k=200", "/sql?q=SELECT%20*%20FROM%20tokens",
     "/sql?q=SELECT%20address,%20list(text)%20AS%20x,%20%7B'a':%20any_value(text)%7D%20FROM%20parameter_tokens%20GROUP%20BY%20ALL"],
)  # fmt: skip
def test_pages_of_hostile_words_are_tame(strange: TestClient, path: str) -> None:
    answer = strange.get(path)
    assert answer.status_code == 200
    assert_tame(answer.text)


@pytest.mark.parametrize("word", HOSTILE)
@pytest.mark.parametrize("path", ["/ask?q=", "/find?q=", "/search?q=", "/sql?q=", "/", "/hostile/L0/H0?contains=",
                                  "/hostile/L0/H0?only=", "/hostile/L0/ff_key/1?only=",
                                  "/align?a=", "/similar?address=", "/hostile?column="])  # fmt: skip
def test_what_is_asked_is_escaped_too(strange: TestClient, word: str, path: str) -> None:
    answer = strange.get(path + quote(word, safe=""), follow_redirects=True)
    assert answer.status_code < 500
    assert_tame(answer.text)


def test_json_gives_the_words_as_they_are(strange: TestClient) -> None:
    found = set()
    for i in range(40):
        card = data(strange, f"/hostile/L0/ff_value/{i}.json")
        found |= {token["text"] for token in (*card["top"], *card["bottom"])}
    assert len(found & set(HOSTILE)) > 20


@pytest.mark.parametrize("word", HOSTILE)
def test_a_chip_leads_to_its_own_token(strange: TestClient, word: str) -> None:
    found = data(strange, "/find.json", q=ask_for(word), model="hostile")
    assert found["words"] == [word]


def test_the_unseen_is_seen() -> None:
    def shown(text: str, token: str | None = None) -> list[tuple[str, str]]:
        return [(p.text, p.mark) for p in pieces(Token(token_id=0, token=token or text, text=text))]

    assert shown("ing", "##ing") == [("##", "continues"), ("ing", "")]
    assert shown("ing") == [("ing", "")]
    assert shown(" ing", "Ġing") == [("␣", "space"), ("ing", "")]
    assert shown(" ") == [("␣", "space")]
    assert shown("a b") == [("a b", "")]
    assert shown("a\tb\x00") == [("a", ""), ("\\t", "control"), ("b", ""), ("\\x00", "control")]
    assert shown("\u202ex") == [("\\u202e", "control"), ("x", "")]
    assert shown("") == [("empty", "control")]
