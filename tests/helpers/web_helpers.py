"""What the tests of the server share: the server, pages taken apart, and words that no page survives unescaped."""

from __future__ import annotations

import html.parser
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

import paramdex
from paramdex.web.app import make_app
from paramdex.web.sql.fence import Limits

HOSTILE = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onmouseover='alert(1)", "{{7*7}}", "{%raw%}",
    "</textarea><script>alert(2)</script>", "javascript:alert(1)", "</title><svg onload=alert(1)>", "--><b>",
    "&lt;i&gt;",
    "\x00", "\x1b[31m", "\u202eevil", "\n", "\t", " lead", "trail ", "a  b", "%3Cscript%3E", "'; DROP TABLE x; --",
    "../../etc/passwd", "##", "##ing", "]]>", "<!--", "\\u003cscript\\u003e", "\ufffd", "\U0001f600", "\u0301", "$1",
]  # fmt: skip
"""Tokens that would break out of a page that did not escape them, and some that cannot be seen."""
LIMITS = Limits(memory_mb=128, workers=2)
"""Seconds as they are: on a busy machine what is quick may take one."""


def server(atlas: Path, limits: Limits = LIMITS) -> TestClient:
    return TestClient(make_app(paramdex.open(atlas), limits), base_url="http://127.0.0.1:8642")


def hostile_tokenizer() -> PreTrainedTokenizerFast:
    tokens = ["[UNK]", *HOSTILE, *(f"word{i}" for i in range(59 - len(HOSTILE)))]
    tokenizer = Tokenizer(tokenizer_models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


class Page(html.parser.HTMLParser):
    """What a page holds: its tags with their attributes, its text and its links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).replace("\u200b", "").split())

    @property
    def links(self) -> list[str]:
        return [attributes["href"] or "" for tag, attributes in self.tags if tag == "a" and "href" in attributes]


def page(client: TestClient, path: str, status: int = 200) -> Page:
    answer = client.get(path)
    assert answer.status_code == status, (path, answer.status_code, answer.text[-500:])
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return Page(answer.text)


def data(client: TestClient, path: str, status: int = 200, **query: Any) -> Any:
    answer = client.get(path, params=query or None)
    assert answer.status_code == status, (path, answer.status_code, answer.text[:500])
    assert answer.headers["content-type"] == "application/json"
    return answer.json()
