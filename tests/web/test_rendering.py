"""Answers to SQL are written where the SQL runs: within its time and memory, and no larger than they may be."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import monotonic

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from paramdex.web.sql.rendering import Form, RenderRequest, render
from paramdex_schemas import QueryError
from web_helpers import LIMITS, Page, data, server

ENUM = "SELECT ('x' || repeat('y', 3999))::ENUM ('x{}') AS e FROM range(10000)".format("y" * 3999)
MANY = {
    "ten columns of an ENUM": f"SELECT {', '.join(f'e AS e{i}' for i in range(10))} FROM ({ENUM})",
    "forty columns of an ENUM": f"SELECT {', '.join(f'e AS e{i}' for i in range(40))} FROM ({ENUM})",
    "400 columns of booleans": f"SELECT {', '.join(f'true AS b{i}' for i in range(400))} FROM range(10000)",
    "long names": 'SELECT 1 AS "{}" FROM range(10000)'.format("n" * 15_000),
    "lists": "SELECT range(1000) AS x FROM range(10000)",
    "lists of lists": "SELECT [[[[[[['abc']]]]]], [[[[[['abc']]]]]]] AS x, repeat('z', 2000) AS y FROM range(10000)",
    "structs": "SELECT {'a': {'b': {'c': repeat('d', 3000)}}} AS x FROM range(10000)",
    "maps": "SELECT MAP {repeat('k', 2000): repeat('v', 2000)} AS x FROM range(10000)",
    "decimals": f"SELECT {', '.join(f'range::DECIMAL(38, 10) AS d{i}' for i in range(100))} FROM range(10000)",
    "intervals": f"SELECT {', '.join(f'INTERVAL (range) SECOND AS i{i}' for i in range(100))} FROM range(10000)",
    "characters that JSON escapes": "SELECT repeat(chr(1), 4000) AS x FROM range(10000)",
    "times": f"SELECT {', '.join(f'TIMESTAMP $$2020-01-01$$ AS t{i}' for i in range(200))} FROM range(10000)",
}
"""Answers that are small in Arrow, or not, and very large as text."""
MOST = 4 << 20


@pytest.fixture(scope="module")
def small(small_atlas: Path) -> Iterator[TestClient]:
    """The server; its answers have 4 MB."""
    with server(small_atlas, replace(LIMITS, answer_bytes=MOST, memory_mb=256)) as client:
        yield client


@pytest.mark.parametrize("name", MANY)
def test_written_bytes_are_counted(small: TestClient, name: str) -> None:
    for ending, least in (("json", MOST // 2), ("csv", MOST // 4)):
        answer = small.get(f"/sql.{ending}", params={"q": MANY[name], "limit": 10_000})
        if ending == "csv" and answer.status_code == 200 and answer.headers["x-truncated"] == "false":
            continue  # names stand in the head of CSV alone
        assert answer.status_code == 200, answer.text[:300]
        assert least < len(answer.content) <= MOST
        if ending == "json":
            found = answer.json()
            assert found["truncated"]
            assert 0 < len(found["rows"]) < 10_000
            assert len({json.dumps(row) for row in found["rows"][:50]}) in (1, 50)
        else:
            assert answer.headers["x-truncated"] == "true"
    answer = small.get("/sql.parquet", params={"q": MANY[name], "limit": 10_000})
    if name == "intervals":  # Parquet has none
        assert (answer.status_code, "cannot be written as Parquet" in answer.text) == (400, True)
        return
    assert answer.status_code == 200
    assert len(answer.content) <= MOST
    found = pq.read_table(io.BytesIO(answer.content))
    assert (found.num_rows < 10_000) == (answer.headers["x-truncated"] == "true")


@pytest.mark.parametrize("name", MANY)
def test_a_page_is_cut_too(small: TestClient, name: str) -> None:
    answer = small.get("/sql", params={"q": MANY[name]})
    assert answer.status_code == 200, Page(answer.text).text[:300]
    assert len(answer.content) < 16 << 20
    assert "truncated" in Page(answer.text).text


@pytest.mark.parametrize("ending", ["json", "csv", "parquet"])
def test_a_row_that_is_too_large_is_said(small: TestClient, ending: str) -> None:
    said = data(small, f"/sql.{ending}", 400, q="SELECT list(md5(i::VARCHAR)) AS x FROM range(1000000) AS t(i)")
    assert said["error"]["message"] == "one row of this is larger than 4 MB; ask for less in a row"
    cut = small.get(f"/sql.{ending}", params={"q": "SELECT repeat('x', 5000000 * (range // 3)) AS x FROM range(9)"})
    assert cut.status_code == 200  # what fits before it is given
    if ending == "json":
        assert [row["x"] for row in cut.json()["rows"]] == ["", "", ""]


def test_pages_are_answered_while_answers_are_written(small: TestClient) -> None:
    started, done = threading.Event(), []

    def ask() -> None:
        started.set()
        done.append(small.get("/sql.json", params={"q": MANY["forty columns of an ENUM"], "limit": 10_000}).status_code)

    small.get("/gpt2-a")
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait(10)
    slowest = 0.0
    while any(thread.is_alive() for thread in threads):
        asked = time.perf_counter()
        assert small.get("/gpt2-a/L0/ff_value/1").status_code == 200
        slowest = max(slowest, time.perf_counter() - asked)
    for thread in threads:
        thread.join()
    assert done == [200] * 4
    assert slowest < 1.0


def test_not_a_number_on_a_page_and_in_json(small: TestClient) -> None:
    sql = "SELECT 'nan'::DOUBLE AS x, '-inf'::DOUBLE AS y, [1.5, 'nan'::DOUBLE] AS z, NULL AS n"
    assert data(small, "/sql.json", q=sql)["rows"] == [{"x": None, "y": None, "z": [1.5, None], "n": None}]
    assert "nan \N{MINUS SIGN}inf 1.5, nan null" in Page(small.get("/sql", params={"q": sql}).text).text


def ask(form: Form, table: pa.Table, rows: int = 100, n_bytes: int = 1000, seconds: float = 5) -> tuple[bytes, bool]:
    found = render(RenderRequest("SELECT", form, rows, n_bytes, monotonic(), monotonic() + seconds), table)
    return found.body, found.truncated


@pytest.mark.parametrize("n_bytes", [250, 251, 300, 411, 412, 413, 1000, 1500])
def test_no_row_more_and_no_row_less(n_bytes: int) -> None:
    """As many rows as there are bytes for: counted against rows that are written one by one."""
    table = pa.table({"a": range(200), "b": ["é" * (i % 7) for i in range(200)]})
    lines = [f"{i},{'é' * (i % 7)}".encode() for i in range(200)]
    body, truncated = ask("csv", table, 150, n_bytes)
    sizes = [len("a,b") + sum(len(line) + 1 for line in lines[:n]) for n in range(151)]
    kept = max(n for n in range(151) if sizes[n] <= n_bytes)
    assert body == b"\n".join([b"a,b", *lines[:kept]])
    assert truncated
    said = json.loads(ask("json", table, 150, n_bytes)[0])
    assert said["rows"] == table.slice(0, len(said["rows"])).to_pylist()
    assert said["truncated"]
    assert len(ask("json", table, 150, n_bytes)[0]) <= n_bytes


def test_all_rows_where_they_fit() -> None:
    table = pa.table({"a": range(100)})
    for form in ("json", "csv", "parquet"):
        assert not ask(form, table, 100, 1 << 20)[1]
        assert ask(form, table, 99, 1 << 20)[1]
        assert not ask(form, table.slice(0, 0), 99, 1 << 20)[1]
    assert pq.read_table(io.BytesIO(ask("parquet", table, 7, 1 << 20)[0])).column("a").to_pylist() == [*range(7)]


def test_time_and_forms_that_there_are_not() -> None:
    table = pa.table({"a": [b"\xaa"]})
    with pytest.raises(TimeoutError):
        ask("json", table, seconds=-1)
    with pytest.raises(TimeoutError):
        ask("parquet", table, seconds=-1)
    with pytest.raises(QueryError, match="cannot be written as JSON"):
        ask("json", table)
    with pytest.raises(QueryError, match="larger than"):
        ask("json", pa.table({"a": ["x" * 2000]}))
