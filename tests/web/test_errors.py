"""The server's errors: one shape, the nearest there is, no traceback; and the headers on every answer."""

from __future__ import annotations

import json

import pytest
from starlette.testclient import TestClient

from paramdex.web.app import POLICY
from paramdex.web.cards.shapes import Problem
from web_helpers import data, page


@pytest.mark.parametrize(
    ("path", "status", "kind", "nearest"),
    [
        ("/gpt2-aa.json", 404, "address", ["gpt2-a", "gpt2-b", "gpt2-wide"]),
        ("/GPT2-A/L0/H0.json", 404, "address", "gpt2-a/L0/H0"),
        ("/gpt2-a/L9/H1.json", 404, "address", "gpt2-a/L1/H1"),
        ("/gpt2-a/L0/H9.json", 404, "address", "gpt2-a/L0/H1"),
        ("/gpt2-a/L0/ff_valeu/3.json", 404, "address", "gpt2-a/L0/ff_value/3"),
        ("/gpt2-a/L0/ff_value/9999.json", 404, "address", "gpt2-a/L0/ff_value/95"),
        ("/gpt2-a/L0/attn_query/3.json", 404, "address", "gpt2-a/L0/H0/attn_query/3"),
        ("/llama-gqa/L1/H9/attn_key/99.json", 404, "address", "llama-gqa/L1/H3/attn_key/7"),
        ("/gpt2-a/decoder/L0.json", 404, "address", "gpt2-a/L0"),
        ("/bert/L1/position/5.json", 404, "address", "bert/position/5"),
        ("/nothing/at/all/like/it.json", 404, "address", None),
        ("/find.json?q=canadda", 404, "token", "canada"),
        ("/search.json?q=zzzz", 404, "token", None),
        ("/find.json?q=%20", 404, "token", None),
        ("/find.json?q=canada&kind=ff_valu", 400, "query", None),
        ("/find.json?q=canada&model=bertt", 404, "address", None),
        ("/find.json", 422, "request", None),
        ("/find.json?q=canada&k=0", 422, "request", None),
        ("/find.json?q=canada&k=x", 422, "request", None),
        ("/find.json?q=canada&side=left", 422, "request", None),
        ("/similar.json?address=bert/L0", 404, "address", None),
        ("/similar.json?address=bert/L0/ff_key/1&model=nope", 404, "address", None),
        ("/align/bert/bert.json", 400, "query", None),
        ("/align/bert/berd.json", 404, "address", "bert"),
        ("/align/bert/gpt2-a.json?kind=position", 400, "query", None),
        ("/align/gpt2-a/gpt2-b/pairs.json?kind=ff_key&layer_a=L9&layer_b=L0", 404, "address", None),
        ("/align/gpt2-a/gpt2-b/pairs.json?kind=nope&layer_a=L0&layer_b=L0", 400, "query", None),
        ("/gpt2-a.json?heads=nope", 400, "query", None),
        ("/gpt2-a.json?kind=ff_gate", 400, "query", None),
        ("/sql.json?q=SELEC", 400, "query", None),
        ("/sql.csv?q=SELEC", 400, "query", None),
        ("/sql.parquet", 422, "request", None),
        ("/-/static/nope.js", 404, "request", None),
        ("/-/static/../app.py", 404, "address", None),
        ("/-/static/%2e%2e/app.py", 404, "request", None),
    ],
)
def test_errors_have_one_shape(
    client: TestClient, path: str, status: int, kind: str, nearest: str | list[str] | None
) -> None:
    answer = client.get(path)
    if path == "/-/static/../app.py":  # the client itself takes the dots away
        assert answer.status_code == 404
        return
    assert answer.status_code == status, answer.text
    error = Problem.model_validate_json(answer.content).error
    assert (error.status, error.kind) == (status, kind)
    assert error.message
    assert "Traceback" not in answer.text
    if isinstance(nearest, list):
        assert error.nearest == nearest
    elif nearest:
        assert error.nearest[0] == nearest


def test_the_nearest_there_are_are_there(client: TestClient) -> None:
    for path in ("/gpt2/L7/H7", "/brt/L5/ff_key/70000", "/llama/L1/H1/attn_key/8", "/x/y/z", "/gpt2-a/L0/E3/ff_key/1"):
        found = page(client, path, 404)
        near = data(client, f"{path}.json", 404)["error"]["nearest"]
        assert near
        for address in near:
            assert f"/{address}" in found.links
            assert client.get(f"/{address}").status_code == 200


@pytest.mark.parametrize("path", ["/nope", "/find?q=zzzz", "/find", "/align/bert/bert", "/gpt2-a/L9"])
def test_people_get_a_page(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert 400 <= answer.status_code < 500
    assert 'role="alert"' in answer.text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_only_get_is_answered(client: TestClient, method: str) -> None:
    answer = client.request(method, "/find.json?q=canada")
    assert answer.status_code == 405
    assert answer.json()["error"]["kind"] == "request"
    assert "GET" in answer.headers["allow"]


@pytest.mark.parametrize("path", ["/", "/.json", "/nope", "/sql?q=x", "/sql.csv?q=SELECT%201", "/-/static/style.css"])
def test_every_answer_carries_the_policy(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["content-security-policy"] == POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in POLICY


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8642", 200),
        ("localhost", 200),
        ("LocalHost:8642", 200),
        ("[::1]:80", 200),
        ("evil.example", 400),
        ("127.0.0.1.evil.example:1", 400),
    ],
)
def test_the_server_answers_to_its_own_names_only(client: TestClient, host: str, status: int) -> None:
    answer = client.get("/.json", headers={"host": host})
    assert answer.status_code == status
    assert json.loads(answer.text).get("error", {}).get("status", 200) == status


@pytest.mark.parametrize(
    ("site", "dest", "status"),
    [
        ("cross-site", "document", 200),  # a link from elsewhere
        ("cross-site", "image", 403),
        ("cross-site", "script", 403),
        ("cross-site", "empty", 403),  # fetch
        ("cross-site", "iframe", 403),
        ("cross-site", "", 403),
        ("same-origin", "empty", 200),
        ("same-site", "image", 200),
        ("none", "document", 200),  # typed by hand
        ("", "", 200),  # no browser
    ],
)
@pytest.mark.parametrize("path", ["/gpt2-a", "/similar.json?address=gpt2-a/L0/ff_key/1", "/-/static/style.css"])
def test_pages_elsewhere_have_no_answer(client: TestClient, path: str, site: str, dest: str, status: int) -> None:
    headers = {name: value for name, value in (("sec-fetch-site", site), ("sec-fetch-dest", dest)) if value}
    answer = client.get(path, headers=headers)
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["error"]["message"] == "this server does not answer pages of other sites"
        assert "content-security-policy" in answer.headers
