"""No path of the machine that built an atlas, or serves it, is in any answer: on a page, in JSON, by SQL."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from starlette.testclient import TestClient

import paramdex
from opened import change
from web_helpers import data, server

MODELS = ["models", "main.models", "memory.models", "memory.main.models"]
"""The names under which a visitor has the table of models."""
FILE = [
    '"models/gpt2-a".models',
    '"models/gpt2-a".main.models',
    '"models/gpt2-a".store.models',
    '"models/gpt2-a"."store"."models"',
]
"""The names of the table in the file, which has the paths."""
FORMS = [
    "SELECT source FROM {}", "FROM {}", "TABLE {}", "SELECT (SELECT max(source) FROM {})",
    "SELECT x.source FROM {} AS x", "WITH x AS (FROM {}) SELECT source FROM x",
    "SELECT 1 WHERE 'x' IN (SELECT source FROM {})",
    "SELECT list(COLUMNS(*)) FROM {}", "SUMMARIZE {}", "SUMMARIZE FROM {}", "EXPLAIN ANALYZE SELECT source FROM {}",
    "SELECT to_json(m) FROM {} AS m", "SELECT stats(source) FROM {}", "SELECT hex(source), reverse(source) FROM {}",
    "SELECT source FROM {} WHERE source LIKE '/%'", "SELECT error(source) FROM {}", "SELECT source::INT FROM {}",
    "SELECT json_extract('{{}}', source) FROM {}", "SELECT strptime(source, '%Y') FROM {}",
]  # fmt: skip
"""Ways to read them, some of which put a value into the text of an error."""
AROUND = [
    "FROM query('FROM atlas.store.models')", "FROM query_table('atlas.store.models')", "FROM query_table(['models'])",
    "FROM json_execute_serialized_sql(json_serialize_sql('FROM atlas.store.models'))",
    "SELECT json_serialize_plan('FROM atlas.store.models', optimize := true)",
    "FROM histogram('atlas.store.models', source)", "FROM histogram_values('atlas.store.models', source)",
    "FROM pragma_storage_info('atlas.store.models')", "FROM pragma_table_info('atlas.store.models')",
    "FROM seq_scan('atlas.store.models')", "FROM summary((FROM atlas.store.models))", "FROM pg_settings",
    "FROM pg_catalog.pg_settings", "FROM duckdb_databases()", "FROM pragma_database_list", "SHOW DATABASES",
    "SHOW ALL TABLES", "FROM 'models/gpt2-a/tables.duckdb'",
    "FROM read_duckdb('models/gpt2-a/tables.duckdb')", "FROM glob('*')", "FROM glob('/*')",
    "SELECT current_query()", "SELECT current_setting('secret_directory')", "FROM sniff_csv('x')",
]  # fmt: skip
AROUND = [each.replace("atlas.store", '"models/gpt2-a".store') for each in AROUND]


def paths(atlas: Path) -> list[str]:
    """What must be told to nobody: where the atlas is, where its models were, and where programs are."""
    with paramdex.open(atlas) as opened:
        sources = [Path(row["source"]) for row in opened.sql("SELECT source FROM models")]
    assert all(source.is_absolute() for source in sources)
    places = [
        atlas,
        *sources,
        Path(paramdex.__file__),
        Path(sys.prefix),
        Path(sys.base_prefix),
        Path.home() / ".duckdb",
    ]
    return sorted(
        {str(path) for place in places for path in (place, place.resolve(), place.parent) if len(path.parts) > 2}
    )


@pytest.fixture(scope="module")
def watched(small_atlas: Path) -> Iterator[TestClient]:
    """The server; a path in any of its answers fails the test."""
    secret = paths(small_atlas)

    def look(answer: object) -> None:
        text = answer.read().decode("utf-8", "replace")  # type: ignore[attr-defined]
        told = [path for path in secret for form in (path, path.encode().hex().upper(), path[::-1]) if form in text]
        assert told == [], text[:2000]

    with server(small_atlas) as client:
        client.event_hooks = {"response": [look]}
        yield client


@pytest.mark.parametrize("form", FORMS)
def test_sql_does_not_tell_where_models_came_from(watched: TestClient, form: str) -> None:
    for ending in ("", ".json", ".csv", ".parquet"):
        for name in MODELS:
            watched.get(f"/sql{ending}", params={"q": form.format(name)})
    for name in FILE:
        answer = watched.get("/sql.json", params={"q": form.format(name)})
        assert answer.status_code == 400
        assert "alone; it has the rows of all models" in answer.json()["error"]["message"]


@pytest.mark.parametrize("query", AROUND)
def test_nor_does_it_by_a_way_around(watched: TestClient, query: str) -> None:
    watched.get("/sql.json", params={"q": query})


def test_nor_does_anything_that_duckdb_tells_of_itself(watched: TestClient) -> None:
    """All of its views, and all of its functions that can be called with nothing."""
    with duckdb.connect() as connection:
        views = connection.execute(
            "SELECT schema_name || '.' || view_name FROM duckdb_views() WHERE internal"
        ).fetchall()
        functions = connection.execute(
            "SELECT DISTINCT function_name, function_type LIKE '%table%' FROM duckdb_functions() "
            "WHERE len(parameters) = 0 AND function_name ~ '^[a-z_]+$'"
        ).fetchall()
    asked = [f"FROM {view}" for (view,) in views]
    asked += [f"FROM {name}()" if is_table else f"SELECT {name}()" for name, is_table in functions]
    assert len(asked) > 100
    answered = [watched.get("/sql.json", params={"q": query, "limit": 5000}).status_code for query in asked]
    assert set(answered) == {200, 400}


def test_sources_are_said_without_where_they_lie(watched: TestClient) -> None:
    rows = data(watched, "/sql.json", q="SELECT model, source FROM models")["rows"]
    assert [row["source"].rpartition("/")[2] for row in rows] == [row["model"] for row in rows]
    assert all(row["source"].startswith("…/") for row in rows)
    home = data(watched, "/.json")["models"]
    assert [(model["model"], model["source"]) for model in home] == [(row["model"], row["source"]) for row in rows]


def test_a_name_on_the_hub_stays(small_atlas: Path, tmp_path: Path) -> None:
    """What was given as a name, and what as a path relative to the folder that somebody was in."""
    copy = tmp_path / "copy.atlas"
    shutil.copytree(small_atlas, copy)
    for model, source, base in (
        ("gpt2-a", "openai-community/gpt2", "meta-llama/Llama-3.2-1B"),
        ("gpt2-b", "./models/b", "/home/ann/a"),
    ):
        change(copy, model, "UPDATE store.models SET source = ?, base = ?", [source, base])
    with server(copy) as client:
        found = data(client, "/sql.json", q="SELECT source, base FROM models WHERE base IS NOT NULL ORDER BY model")[
            "rows"
        ]
    assert [tuple(row.values()) for row in found] == [
        ("openai-community/gpt2", "meta-llama/Llama-3.2-1B"),
        ("./models/b", "…/a"),
    ]


@pytest.mark.parametrize("ending", ["", ".json"])
def test_pages_and_errors_tell_no_path(watched: TestClient, ending: str) -> None:
    paths = [
        "/", "/gpt2-a", "/gpt2-a/L1", "/gpt2-a/L1/H0", "/gpt2-a/L1/ff_value/3", "/find", "/find?q=canada",
        "/find?q=zzzz", "/search?q=canada", "/ask?q=canada", "/ask?q=nope/L1", "/align/gpt2-a/bert",
        "/align/nope/bert", "/align/bert/bert",
        "/similar?address=gpt2-a/L1/ff_value/3&model=bert", "/similar?address=nope", "/docs", "/openapi", "/nope",
        "/nope/L1", "/gpt2-a/L99", "/gpt2-a/L1/ff_value/99999", "/find?q=canada&kind=nope", "/gpt2-a?column=nope",
        "/align/gpt2-a/bert/pairs?kind=ff_value&layer_a=L9&layer_b=L0", "/-/static/nope.js", "/-/static/../app.py",
        "/sql?q=SELECT", "/sql?q=SELECT%201",
    ]  # fmt: skip
    for path in paths:
        where, _, query = path.partition("?")
        answer = watched.get(f"{where}{ending}" + (f"?{query}" if query else ""))
        assert answer.status_code < 500, path
        assert not [value for value in answer.headers.values() if value.startswith("/")], path
