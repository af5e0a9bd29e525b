"""SQL over HTTP: what it gives, in every form; and a fence that nothing passes and nothing brings down."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

import paramdex
from paramdex import Atlas
from paramdex.web.sql.examples import EXAMPLES
from web_helpers import LIMITS, data, page, server

SECRET = "fence-hidden-secret"


def test_rows_are_the_atlas_own(client: TestClient, atlas: Atlas) -> None:
    query = "SELECT address, side, rank, text, score FROM parameter_tokens ORDER BY ALL LIMIT 300"
    answer = data(client, "/sql.json", q=query)
    assert answer["rows"] == atlas.sql(query).to_rows()
    assert [column["name"] for column in answer["columns"]] == ["address", "side", "rank", "text", "score"]
    assert (answer["truncated"], answer["limit"]) == (False, 1000)


@pytest.mark.parametrize(("n", "limit", "kept"), [(5, 5, 5), (6, 5, 5), (10**12, 10_000, 10_000), (0, 5, 0)])
def test_what_is_cut_off_is_said(client: TestClient, n: int, limit: int, kept: int) -> None:
    query = f"SELECT * FROM range({n})"
    answer = data(client, "/sql.json", q=query, limit=limit)
    assert (len(answer["rows"]), answer["truncated"]) == (kept, n > limit)
    csv = client.get("/sql.csv", params={"q": query, "limit": limit})
    assert csv.headers["x-truncated"] == str(n > limit).lower()
    assert len(csv.text.splitlines()) == kept + 1
    found = page(client, f"/sql?q=SELECT * FROM range({n})")
    assert ("truncated" in found.text) == (n > 200)


def test_downloads(client: TestClient) -> None:
    query = """SELECT * FROM (VALUES (1, 'a,"b', 0.5::FLOAT, ['x']), (2, NULL, 'nan', [])) AS t(i, s, f, l)"""
    for ending in ("csv", "parquet"):
        answer = client.get(f"/sql.{ending}", params={"q": query})
        assert answer.headers["content-disposition"] == f'attachment; filename="paramdex.{ending}"'
        if ending == "csv":
            assert answer.text == 'i,s,f,l\n1,"a,""b",0.5,"[""x""]"\n2,,nan,[]'
        else:
            table = pq.read_table(io.BytesIO(answer.content))
            assert table.column("s").to_pylist() == ['a,"b', None]
            assert table.column("l").to_pylist() == [["x"], []]
    assert data(client, "/sql.json", q=query)["rows"][1] == {"i": 2, "s": None, "f": None, "l": []}


@pytest.mark.parametrize(
    "value",
    ["1::UHUGEINT", "'infinity'::TIMESTAMP", "'290000-01-01'::DATE", "INTERVAL 3 MONTH", "uuid()", "'101'::BIT",
    "'\\xAA'::BLOB",
     "MAP {'a': 1}", "{'a': [1, {'b': NULL}]}", "union_value(x := 1)", "1e400", "1::DECIMAL(38, 10)", "NULL",
     "'x'::ENUM ('x')",
     "TIME '12:00'", "TIMETZ '12:00+01'", "TIMESTAMPTZ '2020-01-01'", "'NaN'::DOUBLE", "[1, 2]::INT[2]", "chr(0)",
     "lambda x: x"],
)  # fmt: skip
def test_every_type_has_a_form_or_an_answer(client: TestClient, value: str) -> None:
    for ending in ("json", "csv", "parquet"):
        assert client.get(f"/sql.{ending}", params={"q": f"SELECT {value} AS x"}).status_code in (200, 400)
    assert client.get("/sql", params={"q": f"SELECT {value} AS x"}).status_code in (200, 400)


@pytest.mark.parametrize("title", EXAMPLES)
def test_examples_run(client: TestClient, title: str) -> None:
    assert data(client, "/sql.json", q=EXAMPLES[title])["columns"]


def test_addresses_are_linked(client: TestClient) -> None:
    found = page(client, "/sql?q=SELECT address, model, 'gpt2-a/L99/H0' AS no FROM heads LIMIT 1")
    assert "/gpt2-a/L0/H0" in found.links
    assert "/gpt2-a" in found.links
    assert "/gpt2-a/L99/H0" not in found.links


def test_the_editor_keeps_what_failed(client: TestClient) -> None:
    found = page(client, "/sql?q=SELECT nope FROM heads", 400)
    assert "SELECT nope FROM heads" in found.text
    assert 'Referenced column "nope" not found' in found.text


QUICK = [
    # files and the network
    "SELECT * FROM read_text('{secret}')", "SELECT * FROM read_blob('{secret}')", "SELECT * FROM read_csv('{secret}')",
    "SELECT * FROM read_csv_auto('{secret}')", "SELECT * FROM sniff_csv('{secret}')",
    "SELECT * FROM read_json('{secret}')",
    "SELECT * FROM read_ndjson_objects('{secret}')", "SELECT * FROM read_parquet('{secret}')",
    "SELECT * FROM '{secret}'",
    "FROM '{secret}'", "SELECT * FROM '{folder}/*.csv'", "SELECT * FROM glob('{folder}/*')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM parquet_metadata('{secret}')", "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM read_text('/proc/self/environ')", "SELECT * FROM read_text('/proc/self/cmdline')",
    "SELECT * FROM read_csv('https://example.org/x.csv')", "SELECT * FROM read_text('s3://bucket/x')",
    "SELECT (SELECT content FROM read_text('{secret}'))", "WITH x AS (FROM read_text('{secret}')) FROM x",
    "SELECT * FROM query('SELECT * FROM read_text(''{secret}'')')", "SELECT * FROM query_table('{secret}')",
    "SELECT * FROM query_table(['heads'])", "DESCRIBE SELECT * FROM read_text('{secret}')",
    "SUMMARIZE SELECT * FROM read_text('{secret}')", "EXPLAIN ANALYZE SELECT * FROM read_text('{secret}')",
    # writing
    "COPY heads TO '{folder}/out.csv'", "COPY (SELECT 1) TO '{folder}/out.parquet' (FORMAT parquet)",
    "COPY models FROM '{secret}'", "EXPORT DATABASE '{folder}/out'", "IMPORT DATABASE '{folder}'",
    "EXPLAIN ANALYZE COPY heads TO '{folder}/out.csv'", "CREATE TABLE x (y INT)", "CREATE TEMP TABLE x AS SELECT 1",
    "CREATE TABLE memory.main.x AS SELECT 1", "CREATE MACRO f() AS 1", "CREATE OR REPLACE VIEW models AS SELECT 1",
    "INSERT INTO models VALUES (2, 'x')", "UPDATE models SET model = 'x'", "DELETE FROM models",
    "DROP TABLE models", "ALTER TABLE models RENAME TO x", "TRUNCATE models",
    "EXPLAIN ANALYZE INSERT INTO models VALUES (2, 'x')", "EXPLAIN ANALYZE CREATE TABLE memory.main.x AS SELECT 1",
    "WITH x AS (DELETE FROM models RETURNING *) SELECT * FROM x", "VACUUM", "CHECKPOINT", "FORCE CHECKPOINT",
    # attaching, installing, settings, secrets
    "ATTACH '{folder}/x.db'", "ATTACH ':memory:' AS x", 'DETACH "models/bert"', "USE memory",
    "INSTALL httpfs", "LOAD httpfs",
    "LOAD '{folder}/x.duckdb_extension'", "FORCE INSTALL spatial FROM community", "PRAGMA database_list",
    "PRAGMA enable_profiling", "PRAGMA memory_limit='100GB'", "SET memory_limit = '100GB'", "SET threads = 64",
    "SET enable_external_access = true", "SET lock_configuration = false", "RESET memory_limit",
    "SET temp_directory = '{folder}'", "CREATE SECRET s (TYPE s3, KEY_ID 'x', SECRET 'y')", "CALL pragma_version()",
    "CALL duckdb_settings()", "BEGIN", "COMMIT", "PREPARE p AS SELECT 1", "EXECUTE p", "DEALLOCATE p",
    # what would tell of the machine
    "SELECT getenv('HOME')", "SELECT getenv('PATH')", "SELECT path FROM duckdb_databases()", "FROM duckdb_databases",
    "SELECT * FROM duckdb_settings()", "SELECT current_setting('allowed_paths')",
    "SELECT 'allowed_paths'.current_setting()",
    'SELECT "current_setting"(\'secret_directory\')', "SELECT system.main.current_setting('home_directory')",
    "EXPLAIN SELECT current_setting('allowed_paths')", "EXPLAIN /* x */ SELECT current_setting('allowed_paths')",
    "SELECT * FROM duckdb_secrets()", "SELECT * FROM duckdb_extensions()", "SELECT * FROM duckdb_temporary_files()",
    "SELECT * FROM duckdb_logs", "FROM pragma_database_list",
    "SELECT list_transform(['allowed_paths'], lambda x: current_setting(x))",
    "SELECT * FROM query('FROM duckdb_databases()')", "SELECT which_secret('s3://x', 's3')", "FROM pg_settings",
    "FROM json_execute_serialized_sql(json_serialize_sql('FROM duckdb_settings()'))", "FROM histogram('heads', layer)",
    "FROM pg_catalog.pg_settings", "SELECT json_serialize_plan('FROM heads')", "SELECT write_log('x')",
    "SELECT source FROM atlas.models", "FROM atlas.models", "SUMMARIZE atlas.models",
    # more than one, none, and not SQL
    "SELECT 1; SELECT 2", "SELECT 1; DROP TABLE models", "", ";", "-- x", "\x00", "SELECT '", "{secret}",
    "select " * 500,
    "SELECT " + "(" * 3000 + "1" + ")" * 3000, "SELECT " + "-" * 10_000 + "1",
    # the server's own variables
    "SELECT * FROM connection", "SELECT * FROM question", "SELECT * FROM sys", "SELECT * FROM database",
]  # fmt: skip
SLOW = [
    # memory
    "SELECT repeat('x', 3000000000)",
    "SELECT length(repeat('x', 1000000000))",
    "SELECT list(x) FROM range(1000000000) AS t(x)",
    "SELECT range(1000000000)",
    "SELECT string_agg(repeat('x', 1000000), '') FROM range(100000)",
    "SELECT list(repeat('x', 1000000) || i) FROM range(10000) AS t(i)",
    "SELECT rpad('x', 2000000000, 'y')",
    "SELECT x, count(*) FROM range(100000000) AS t(x) GROUP BY x ORDER BY 2",
    "SELECT repeat([1], 1000000000)",
    "SELECT bitstring('1', 2000000000)::VARCHAR",
    "SELECT sum(n) FROM (SELECT row_number() OVER (ORDER BY hash(x)) AS n FROM range(100000000) AS t(x))",
    "SELECT histogram(x) FROM range(100000000) AS t(x)",
    # time
    "SELECT count(*) FROM range(10000000) AS a, range(10000000) AS b WHERE (a.range * b.range) % 7 = 3",
    "SELECT count(*) FROM parameter_tokens AS a, tokens AS b, parameter_tokens AS c WHERE a.score < c.score",
    "WITH RECURSIVE r AS (SELECT 1 AS x UNION ALL SELECT x + 1 FROM r) SELECT max(x) FROM r",
    "WITH RECURSIVE r AS (SELECT 1 AS x UNION ALL SELECT a.x + b.x FROM r AS a, r AS b) SELECT count(*) FROM r",
    "EXPLAIN ANALYZE SELECT count(*) FROM range(10000000) AS a, range(10000000) AS b WHERE a.range < b.range",
    "SELECT sum(list_sum(range(i))) FROM range(1000000) AS t(i)",
    "SELECT levenshtein(repeat('a', 1000000), repeat('b', 1000000))",
    "SUMMARIZE SELECT * FROM range(10000000000)",
]


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secret") / "secret.csv"
    path.write_text(f"a,b\n1,{SECRET}\n")
    return path


def attempt(client: TestClient, secret: Path, query: str) -> Any:
    text = query.replace("{secret}", str(secret)).replace("{folder}", str(secret.parent))
    return client.get("/sql.json", params={"q": text})


def test_there_are_enough_attempts() -> None:
    assert len({*QUICK, *SLOW}) == len(QUICK) + len(SLOW) >= 60


@pytest.mark.parametrize("query", QUICK, ids=[query[:40] for query in QUICK])
def test_nothing_passes_the_fence(client: TestClient, small_atlas: Path, secret: Path, query: str) -> None:
    answer = attempt(client, secret, query)
    assert answer.status_code in (400, 422), answer.text[:300]
    assert SECRET not in answer.text
    assert "root:" not in answer.text
    assert str(small_atlas) not in answer.text
    assert [file.name for file in secret.parent.iterdir()] == [secret.name]


@pytest.fixture(scope="module")
def hurried(small_atlas: Path) -> Iterator[TestClient]:
    """The server, whose time is up soon."""
    with server(small_atlas, replace(LIMITS, seconds=2)) as client:
        yield client


@pytest.mark.parametrize("query", SLOW, ids=[query[:40] for query in SLOW])
def test_nothing_takes_too_much(hurried: TestClient, secret: Path, query: str) -> None:
    started = time.monotonic()
    answer = attempt(hurried, secret, query)
    assert answer.status_code == 400, answer.text[:300]
    message = answer.json()["error"]["message"]
    assert "took longer than 2 seconds" in message or "takes more memory than" in message or "Error" in message, message
    assert time.monotonic() - started < 20  # two seconds, half of one of grace, and a new process on a busy machine


def test_after_all_that_it_still_answers(hurried: TestClient, small_atlas: Path) -> None:
    assert data(hurried, "/sql.json", q="SELECT count(*) AS n FROM heads")["rows"] == [{"n": 34}]
    with paramdex.open(small_atlas) as whole:
        whole.check()


@pytest.mark.waits
def test_a_runaway_leaves_the_others_unharmed(small_atlas: Path) -> None:
    """While a runaway has one worker, pages and other SQL answer; where too many wait, the next is told so."""
    runaway = next(query for query in SLOW if "RECURSIVE" in query)
    with server(small_atlas, replace(LIMITS, seconds=5, waiting=1)) as client:
        client.get("/sql.json", params={"q": "SELECT 1"})
        statuses: list[int] = []

        def run() -> None:
            statuses.append(client.get("/sql.json", params={"q": runaway}).status_code)

        first, started = threading.Thread(target=run), time.monotonic()
        first.start()
        time.sleep(0.5)
        assert data(client, "/sql.json", q="SELECT 1 AS x")["rows"] == [{"x": 1}]
        assert client.get("/gpt2-a/L0/ff_value/1").status_code == 200
        assert first.is_alive() or time.monotonic() - started > 5
        others = [threading.Thread(target=run) for _ in range(4)]
        for other in others:
            other.start()
        for thread in (first, *others):
            thread.join()
        assert sorted(set(statuses)) == [400, 429]
        assert data(client, "/sql.json", q="SELECT 1 AS x")["rows"] == [{"x": 1}]
