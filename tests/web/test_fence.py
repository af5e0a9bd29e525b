"""What a visitor's SQL may name: ways out of the fence that were thought of, and what must not be shut in with them."""

from __future__ import annotations

import sys
from pathlib import Path

import duckdb
import pytest
from starlette.testclient import TestClient

import paramdex
from paramdex.web.sql.visitors import _functions, internal_views
from web_helpers import data

SETTING = "current_setting('allowed_paths')"
ESCAPES = [
    # text that reads otherwise to a regular expression than to DuckDB
    f"EXPLAIN (/* ) SELECT 1 -- */ SELECT array_to_string({SETTING},'|'))",
    f"EXPLAIN (/* ) SELECT 1 -- */ SELECT {SETTING}[1])",
    f"EXPLAIN ANALYZE (/* ) SELECT 1 -- */ SELECT {SETTING})",
    f"EXPLAIN ANALYZE (SELECT {SETTING})", f"EXPLAIN (ANALYZE) SELECT {SETTING}",
    f"EXPLAIN (FORMAT json) SELECT {SETTING}", f"EXPLAIN (ANALYZE, FORMAT json) (SELECT {SETTING})",
    f"EXPLAIN -- (SELECT 1)\n SELECT {SETTING}", f"EXPLAIN /**/ (((SELECT {SETTING})))",
    f"EXPLAIN WITH x AS (SELECT {SETTING}) FROM x", f"EXPLAIN FROM (SELECT {SETTING})",
    "EXPLAIN ANALYZE (/* ) SELECT 1 -- */ FROM atlas.store.models WHERE source LIKE '/%')",
    "EXPLAIN ANALYZE FROM atlas.store.models WHERE source > '/home'",
    "EXPLAIN (FROM atlas.models)", "EXPLAIN ANALYZE SELECT 1 WHERE EXISTS (FROM atlas.store.models WHERE source > 'a')",
    f"SELECT 1 /* ; */ , {SETTING} -- x", f"SELECT 1) AS x, (SELECT {SETTING}", "SELECT 1) AS x; SELECT (2",
    f"SELECT '\\' , {SETTING} --'", f"SELECT $$x$$, {SETTING}", f"SELECT e'\\'', {SETTING} -- '",
    # names in other dress
    'SELECT "current_setting"(\'allowed_paths\')', "SELECT CURRENT_SETTING('allowed_paths')",
    "SELECT Current_Setting ('allowed_paths')", "SELECT current_setting/**/('allowed_paths')",
    "SELECT main.current_setting('allowed_paths')", "SELECT \"system\".\"main\".\"current_setting\"('allowed_paths')",
    "SELECT 'allowed_paths'.current_setting()", "SELECT ('allowed_' || 'paths').current_setting()",
    "SELECT x.current_setting() FROM (SELECT 'allowed_paths' AS x)",
    'SELECT U&"\\0063urrent_setting"(\'allowed_paths\')', "SELECT CURREN\N{LATIN SMALL LETTER LONG S}_setting('x')",
    "SELECT list_transform(['allowed_paths'], lambda x: current_setting(x))",
    "SELECT list_transform(['allowed_paths'], x -> x.current_setting())",
    "SELECT [current_setting(x) FOR x IN ['allowed_paths']]", "SELECT apply(['x'], lambda x: current_setting(x))",
    "SELECT list_reduce(['allowed_paths', 'x'], lambda x, y: current_setting(x))",
    # where a call can stand
    f"SELECT 1 ORDER BY {SETTING}", f"SELECT 1 LIMIT len({SETTING})", f"SELECT 1 OFFSET len({SETTING})",
    f"SELECT CASE WHEN {SETTING} IS NULL THEN 1 END", f"SELECT 1 WHERE len({SETTING}) > 3",
    f"SELECT count(*) FILTER (WHERE len({SETTING}) > 0)", f"SELECT sum(1) OVER (ORDER BY {SETTING})",
    f"SELECT row_number() OVER (PARTITION BY {SETTING})", f"SELECT 1 GROUP BY {SETTING}",
    f"SELECT 1 HAVING len({SETTING}) > 0", f"SELECT 1 QUALIFY len({SETTING}) > 0", f"VALUES ({SETTING})",
    f"SELECT (VALUES ({SETTING}))", f"FROM (VALUES ({SETTING}))", f"SELECT 1 UNION ALL SELECT len({SETTING})",
    f"WITH RECURSIVE r AS (SELECT 1 AS x UNION ALL SELECT x + len({SETTING}) FROM r WHERE x < 3) FROM r",
    f"WITH x AS MATERIALIZED (SELECT {SETTING}) FROM x", f"SELECT * REPLACE ({SETTING} AS model) FROM models",
    f"SELECT COLUMNS(*) = {SETTING} FROM models", f"SELECT {{'x': {SETTING}}}", f"SELECT MAP {{'x': {SETTING}}}",
    f"FROM range(len({SETTING}))", f"FROM unnest({SETTING})", f"FROM models, LATERAL (SELECT {SETTING})",
    f"FROM models JOIN heads ON len({SETTING}) > 0", f"FROM models AT (VERSION => len({SETTING}))",
    f"SELECT error({SETTING}[1])", f"DESCRIBE SELECT {SETTING}", f"SUMMARIZE SELECT {SETTING}",
    f"SELECT string_agg('x', ',' ORDER BY {SETTING})", f"UNPIVOT (SELECT {SETTING}[1] AS a) ON a",
    # PIVOTs, of which DuckDB tells no tree where they have no list of values
    f"PIVOT models ON array_to_string({SETTING}, ',')", f"PIVOT (SELECT {SETTING} AS x) ON x",
    f"PIVOT models ON model USING max({SETTING}[1])", f"FROM (PIVOT (SELECT {SETTING}[1] AS x) ON x)",
    f"WITH x AS (SELECT {SETTING}[1] AS a) PIVOT x ON a", f"EXPLAIN PIVOT (SELECT {SETTING}[1] AS x) ON x",
    f"PIVOT models ON model IN ('x'), array_to_string({SETTING}, ',')", "PIVOT atlas.store.models ON source",
    f"PIVOT models ON model || {SETTING}[1] IN ('x')", "PIVOT (FROM atlas.models) ON source USING count(*)",
    f"PIVOT models ON ({SETTING}[1]) IN ('x') USING count(*)", f"PIVOT models ON model /* IN ('x') */ || {SETTING}[1]",
    f"PIVOT (PIVOT (SELECT {SETTING}[1] AS x) ON x) ON model", "SHOW threads", "SHOW allowed_paths",
    f"PIVOT heads JOIN (SELECT {SETTING}[1] AS model) USING (model) ON layer USING count(*)",
    f"PIVOT heads JOIN models USING (model) ON family || {SETTING}[1] USING count(*)",
    # the file's own tables by other ways
    'FROM "atlas"."main"."models"', "TABLE atlas.models", "SELECT atlas.models.source FROM atlas.models",
    "DESCRIBE atlas.models", "SUMMARIZE atlas.store.models", "SHOW TABLES FROM atlas", "SHOW atlas.models",
    "FROM query('FROM atlas.models')", "FROM query_table('atlas.store.models')", "FROM query_table(['models'])",
    "FROM seq_scan('models')", "FROM duckdb_table_sample('models')", "SELECT stats(source) FROM models",
    # text that is run, addresses in memory, what waits or counts on
    "FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))", "SELECT json_serialize_plan('SELECT 1')",
    "FROM pandas_scan(140000000000)", "FROM arrow_scan(1, 2, 3)", "FROM python_map_function(1)",
    "SELECT finalize('\\x00'::BLOB)", "SELECT variant_bytes_to_variant('\\x00'::BLOB)", "SELECT sleep_ms(60000)",
    "SELECT pg_sleep(60)", "SELECT write_log('x')", "SELECT nextval('x')", "SELECT getenv('HOME')",
    "SELECT __internal_decompress_string(1::UTINYINT)", "FROM register_external_resource('x')",
    # accounts of the machine
    "FROM duckdb_databases()", "FROM duckdb_databases", "FROM main.duckdb_databases", "FROM system.duckdb_databases()",
    "FROM pragma_database_list", "FROM pragma_database_size()", "FROM pragma_storage_info('models')",
    "FROM pragma_metadata_info()", "FROM pragma_user_agent()", "FROM pragma_platform()", "FROM pg_settings",
    "FROM pg_catalog.pg_settings", "FROM pg_catalog.pg_proc", "FROM sqlite_master", "FROM duckdb_logs",
    "FROM duckdb_secrets()", "FROM duckdb_temporary_files()", "FROM duckdb_external_file_cache()",
    "FROM duckdb_profiling_settings()", "FROM duckdb_extensions()", "SELECT current_query()",
    "SELECT pg_conf_load_time()",
    "FROM read_text('/etc/passwd')", "FROM glob('/*')", "FROM sniff_csv('/etc/passwd')", "FROM '/etc/passwd'",
    "FROM parquet_metadata('x')", "FROM read_duckdb('x')", "FROM summary((FROM models))",
    f"SELECT {'1 + ' * 900} {SETTING}", "SELECT " + "-(" * 330 + SETTING + ")" * 330,
    "WITH x AS (DELETE FROM store.models RETURNING *) FROM x",
    "WITH x AS (INSERT INTO store.models SELECT * FROM store.models RETURNING *) FROM x",
    "WITH x AS (UPDATE store.models SET source = 'x' RETURNING *) FROM x",
]  # fmt: skip
FILE = '"models/gpt2-a"'
ESCAPES = [
    each.replace('"atlas".', f"{FILE}.").replace("atlas.", f"{FILE}.").replace("FROM atlas", f"FROM {FILE}")
    for each in ESCAPES
]
READS = {
    "SELECT 1 AS x; -- x": [{"x": 1}],
    "SELECT ';' AS x ; ; /* ; */": [{"x": ";"}],
    "SELECT 'current_setting(''x'')' AS x -- current_setting": [{"x": "current_setting('x')"}],
    "FROM range(2) AS t(x)": [{"x": 0}, {"x": 1}],
    "VALUES (1), (2)": [{"col0": 1}, {"col0": 2}],
    "SELECT 1 AS x, 2 AS x": [{"x": 1, "x_1": 2}],
    "WITH RECURSIVE r AS (SELECT 1 AS x UNION ALL SELECT x + 1 FROM r WHERE x < 3) SELECT sum(x) AS s FROM r": [
        {"s": 6}
    ],
    "SELECT list_transform([1, 2], lambda x: x * 2) AS x": [{"x": [2, 4]}],
    "PIVOT (VALUES (1, 'a'), (2, 'b'), (3, 'b')) AS t(n, k) ON k USING sum(n)": [{"a": 1, "b": 5}],
    "PIVOT (VALUES (1, 'a'), (2, 'b')) AS t(n, k) ON k IN ('a') USING sum(n); -- x": [{"a": 1}],
    "UNPIVOT (SELECT 1 AS a, 2 AS b) ON a, b": [{"name": "a", "value": 1}, {"name": "b", "value": 2}],
    "SELECT x FROM (VALUES (2), (1)) AS t(x) ORDER BY x": [{"x": 1}, {"x": 2}],
    "SELECT column_name FROM (DESCRIBE SELECT 1 AS x)": [{"column_name": "x"}],
    "SELECT 'é'.upper() AS x, 1 BETWEEN 0 AND 2 AS y, 'ab' LIKE 'a%' AS z": [{"x": "É", "y": True, "z": True}],
    "SELECT regexp_replace('abc', 'b', 'x') AS x, 5 // 2 AS y, [1, 2][1] AS z": [{"x": "axc", "y": 2, "z": 1}],
    "SELECT " + "+".join(["1"] * 900) + " AS x": [{"x": 900}],
    "SELECT count(*) AS n FROM heads WHERE model = 'gpt2-a' AND layer IN (FROM range(1))": [{"n": 2}],
}


def test_there_are_enough_escapes() -> None:
    assert len(set(ESCAPES)) == len(ESCAPES) >= 120


@pytest.mark.parametrize("query", ESCAPES, ids=[f"{n}-{query[:30]}" for n, query in enumerate(ESCAPES)])
def test_no_way_out(client: TestClient, small_atlas: Path, query: str) -> None:
    answer = client.get("/sql.json", params={"q": query})
    assert answer.status_code == 400, answer.text[:300]
    text = answer.text.replace(query, "")
    for path in (small_atlas, small_atlas.parent, Path(sys.prefix), Path(paramdex.__file__).parent):
        assert str(path) not in text
    assert "root:" not in text


def test_an_explained_query_counts_no_hidden_row(client: TestClient, small_atlas: Path) -> None:
    """Two guesses of where a model came from, one right, get one answer."""
    with paramdex.open(small_atlas) as opened:
        (source,) = [row["source"] for row in opened.sql("SELECT source FROM models WHERE model = 'gpt2-a'")]
    for form in (
        "EXPLAIN ANALYZE (/* ) SELECT 1 -- */ FROM {} WHERE source = '{}')",
        "EXPLAIN ANALYZE FROM {} WHERE starts_with(source, '{}')",
    ):
        for table in (f"{FILE}.store.models", "models"):
            said = []
            for guess in (source, "/nowhere"):
                answer = client.get("/sql.json", params={"q": form.format(table, guess)})
                rows = answer.json().get("rows", [{"explain_value": answer.json().get("error")}])
                said.append("".join(c for c in str(rows[0]["explain_value"]).replace(guess, "") if c.isalpha()))
            assert said[0] == said[1]


@pytest.mark.parametrize("query", READS, ids=[query[:40] for query in READS])
def test_what_only_reads_is_answered(client: TestClient, query: str) -> None:
    assert data(client, "/sql.json", q=query)["rows"] == READS[query]


@pytest.mark.parametrize(
    "query",
    ["EXPLAIN SELECT 1", "EXPLAIN ANALYZE (SELECT count(*) FROM heads); -- x", "EXPLAIN (FORMAT json) FROM heads",
     "EXPLAIN PIVOT heads ON layer USING count(*)", "SHOW TABLES", "SHOW ALL TABLES", "DESCRIBE", "DESCRIBE heads",
     "SUMMARIZE heads", "FROM information_schema.columns", "FROM duckdb_views()",
     "PIVOT heads ON layer USING count(*)", "PIVOT heads JOIN models USING (model) ON family USING count(*)",
     "EXPLAIN (FORMAT 'json') FROM heads"],
)  # fmt: skip
def test_what_tells_of_the_tables_is_answered(client: TestClient, query: str) -> None:
    assert data(client, "/sql.json", q=query)["rows"]


def test_functions_for_visitors_are_listed() -> None:
    """Each is DuckDB's; and of what DuckDB has, what tells of the machine or runs text is not among them."""
    with duckdb.connect() as connection:
        known = connection.execute(
            "SELECT lower(function_name), function_type FROM duckdb_functions() WHERE function_type NOT LIKE '%table%'"
        ).fetchall()
        hidden = internal_views(connection)
    names = {name for name, _ in known} | {"count_star"}
    assert _functions() <= names
    assert {name for name, kind in known if kind == "aggregate"} - _functions() == {
        "combine_aggr",
        "variant_group_object",
    }
    for word in ("setting", "sql", "secret", "sleep", "internal", "query"):
        assert not {name for name in _functions() if word in name.split("_")}, word
    assert {"pg_settings", "duckdb_databases", "pragma_database_list", "sqlite_master"} <= hidden
