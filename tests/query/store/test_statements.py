"""What DuckDB's parser says of a user's SQL: what reads, by its tree, and is run as it was read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import duckdb
import pytest

from paramdex import Atlas
from paramdex.store.statements import read_statement, syntax_tree, without_end
from paramdex_schemas import QueryError


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE t (a INT, b TEXT)")
        connection.execute("INSERT INTO t VALUES (1, 'x'), (2, 'y'), (2, 'x'), (3, 'é')")
        yield connection


def called(tree: Any) -> set[str]:
    """The functions that a tree calls."""
    if isinstance(tree, list):
        return {name for each in tree for name in called(each)}
    if not isinstance(tree, dict):
        return set()
    return called(list(tree.values())) | ({tree["function_name"]} if "function_name" in tree else set())


@pytest.mark.parametrize(
    "sql",
    ["SELECT 1", "SELECT 1;", "SELECT 1; -- x", "SELECT 1 ;; /* ; */ -- ;", "-- x\nSELECT 1", "/* ; */ SELECT 1"],
)
def test_what_stands_around_a_statement_is_none(atlas: Atlas, sql: str) -> None:
    assert atlas.sql(sql).to_rows() == [{"1": 1}]


@pytest.mark.parametrize(
    ("sql", "word"),
    [("SELECT 1", "SELECT 1"), ("SELECT ';' -- é ;", "SELECT ';' "), ("SELECT '-- é'; ; -- x", "SELECT '-- é'"),
     ('SELECT ";" /* x */ ;', 'SELECT ";" '), ("-- x", ""), (";", "")],
)  # fmt: skip
def test_bare(sql: str, word: str) -> None:
    assert without_end(sql) == word


@pytest.mark.parametrize(
    ("sql", "functions"),
    [
        ("PIVOT t ON b USING count(*)", {"count_star"}),
        ("PIVOT t ON upper(b), a + 1 USING sum(a) GROUP BY a", {"upper", "+", "sum"}),
        ("PIVOT t ON b || lower('x') IN ('xx') USING count(*); -- x", {"||", "lower", "count_star"}),
        ("PIVOT t JOIN (SELECT abs(1) AS a) USING (a) ON lower(b) USING count(*)", {"abs", "lower", "count_star"}),
        (
            "PIVOT t JOIN t AS u ON sqrt(t.a) = 1 JOIN t AS v USING (a) ON upper(b), a USING sum(a) ORDER BY sin(1)",
            {"sqrt", "upper", "sum", "sin"},
        ),
        ("PIVOT (FROM t WHERE abs(a) > 1) ON CASE WHEN a = 1 THEN 'q' END USING count(*)", {"abs", "count_star"}),
        ('WITH p AS (PIVOT t ON a) SELECT sqrt("1") FROM p', {"sqrt"}),
        ("PIVOT (PIVOT t ON a USING count(*) GROUP BY b) ON lower(b)", {"count_star", "lower"}),
        ("FROM (PIVOT t ON abs(a)) CROSS JOIN (PIVOT t ON lower(b) /* ) */ LIMIT 3)", {"abs", "lower"}),
        ("PIVOT t ON [a, 2] USING count(*) UNION ALL PIVOT t ON b USING count(*)", {"list_value", "count_star"}),
        ("PIVOT t ON b IN ('x') USING count(*)", {"count_star"}),
    ],
)
def test_a_pivot_has_a_tree(connection: duckdb.DuckDBPyConnection, sql: str, functions: set[str]) -> None:
    assert functions <= called(json.loads(syntax_tree(connection, sql) or ""))
    assert read_statement(connection, sql).text == sql


def test_pivots_read(atlas: Atlas) -> None:
    """The same numbers as by GROUP BY; nothing is left behind of the types that DuckDB makes for them."""
    counts = {
        (row["model"], row["layer"]): row["n"]
        for row in atlas.sql("SELECT model, layer, count(*) AS n FROM heads GROUP BY ALL")
    }
    for sql in (
        "PIVOT heads ON layer USING count(*) GROUP BY model",
        "FROM (PIVOT (SELECT model, layer FROM heads) ON layer USING count(*)) -- x",
    ):
        found = {
            (row["model"], int(layer)): n
            for row in atlas.sql(sql)
            for layer, n in row.items()
            if layer != "model" and n
        }
        assert found == counts
    assert atlas.sql("SELECT count(*) AS n FROM duckdb_types() WHERE type_name LIKE '%pivot%'").to_rows() == [{"n": 0}]


@pytest.mark.parametrize(
    ("sql", "written"),
    [
        ("EXPLAIN SELECT 1", "EXPLAIN (FORMAT TEXT) SELECT 1"),
        ("explain /* é */ analyze -- é\n (SELECT 'é')", "EXPLAIN (ANALYZE) (SELECT 'é')"),
        ("EXPLAIN (ANALYZE, FORMAT json) FROM t;", "EXPLAIN (ANALYZE, FORMAT JSON) FROM t;"),
        ("EXPLAIN (/* ) SELECT 1 -- */ SELECT 2)", "EXPLAIN (FORMAT TEXT) (/* ) SELECT 1 -- */ SELECT 2)"),
        ("EXPLAIN PIVOT t ON b", "EXPLAIN (FORMAT TEXT) PIVOT t ON b"),
    ],
)
def test_an_explain_is_written_around_what_was_read(
    connection: duckdb.DuckDBPyConnection, sql: str, written: str
) -> None:
    found = read_statement(connection, sql)
    assert found.text == written
    assert found.statement.query == written
    assert found.tree == syntax_tree(connection, written.partition(") ")[2])
    assert len(connection.execute(found.statement).fetchall()) == 1


@pytest.mark.parametrize(
    "sql",
    [
        "EXPLAIN DELETE FROM t", "EXPLAIN ANALYZE INSERT INTO t VALUES (1, 'x')", "EXPLAIN (FORMAT x) SELECT 1",
        "EXPLAIN CREATE TABLE u AS PIVOT t ON b", "CREATE TABLE u AS PIVOT t ON b", "INSERT INTO t PIVOT t ON b",
        "CREATE VIEW v AS SELECT 1", "COPY (SELECT 1) TO 'x'", "PREPARE p AS SELECT 1", "CALL pragma_version()",
        "EXPLAIN CALL pragma_version()", "SELECT 1; SELECT 2", "SELECT 1; DROP TABLE t; -- x", "SELECT 1;\x00",
    ],
)  # fmt: skip
def test_what_does_not_read_is_refused(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    with pytest.raises((QueryError, duckdb.ParserException)):
        read_statement(connection, sql)
    assert connection.execute("SELECT count(*) FROM t").fetchall() == [(4,)]


@pytest.mark.parametrize(
    ("sql", "value"),
    [
        ("SELECT " + "+".join(["1"] * 900) + " AS x", 900),
        ("SELECT " + "-(" * 300 + "1" + ")" * 300 + " AS x", 1),
        ("SELECT x FROM " + "(SELECT x FROM " * 150 + "range(7, 8) AS t(x)" + ")" * 150, 7),
    ],
)
def test_what_is_nested_deeply_is_read(atlas: Atlas, sql: str, value: int) -> None:
    assert atlas.sql(sql).to_rows() == [{"x": value}]
