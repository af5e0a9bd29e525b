"""``sql``: one statement that reads, with values; writes and other files are refused; the file is plain DuckDB."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from opened import tables_file
from paramdex import Atlas, QueryError
from query_helpers import VIEWS

PARAMETERS = {
    "gpt2-a": 576 + 2 * 2 + 3 * 4 + 32,
    "gpt2-b": 576 + 2 * 2 + 3 * 4 + 32,
    "gpt2-wide": 1152 + 2 * 3 + 3 * 12 + 32,
    "llama-gqa": 432,
    "bert": 352 + 2 * 2 + 3 * 6 + 32 + 2,
}
"""Weights; where there are biases, two of each layer and three of each head; positions, and bert's two token types."""
COUNTS = {
    "models": 5,
    "layout": 2 * (11 * 2 + 1) + (11 * 3 + 1) + 7 * 2 + (11 * 2 + 2),
    "tokens": 483 + 484 + 86,
    "parameters": sum(PARAMETERS.values()),
    "readings": 0,  # all five are read by their embeddings
    "parameter_tokens": sum(PARAMETERS.values()) * 2 * 12,
    "heads": 4 + 4 + 12 + 8 + 6,
    # four in each of two other models, but of the two kinds that a layer has one of, as many as that has layers
    "neighbors": 4 * 2 * (576 + 576 + 1152 + 4 * 3 + 4 * 3 + 12 * 3 + 3 * 32) + 2 * (2 * (2 * 2 + 2 * 3) + 3 * (2 + 2)),
    "layer_alignments": 6 * (2 * 2 + 2 * 3 + 2 * 3),
}
"""Rows of the shared atlas: parameters of its five models, 12 tokens a side by score, 4 neighbours in each other GPT-2
model.
"""


@pytest.mark.parametrize("view", VIEWS)
def test_documented_columns_answer(atlas: Atlas, db: duckdb.DuckDBPyConnection, view: str) -> None:
    """Every column by its name, in paramdex and in plain DuckDB, with the same rows."""
    columns = VIEWS[view].split()
    query = f"SELECT {', '.join(columns)} FROM {view} ORDER BY ALL LIMIT 50"
    result = atlas.sql(query)
    assert result.columns == columns
    assert [tuple(row.values()) for row in result.to_arrow().to_pylist()] == db.execute(query).fetchall()
    assert len(result) == min(50, COUNTS.get(view, 50))


@pytest.mark.parametrize("view", COUNTS)
def test_counts(atlas: Atlas, db: duckdb.DuckDBPyConnection, view: str) -> None:
    counted = "rank" if view == "parameter_tokens" else "*"  # NULL where a token is in the list by token_z alone
    assert atlas.sql(f"SELECT count({counted}) AS n FROM {view}").to_rows() == [{"n": COUNTS[view]}]
    assert db.execute(f"SELECT count({counted}) FROM {view}").fetchall() == [(COUNTS[view],)]


def test_a_models_tables_open_alone_in_plain_duckdb(small_atlas: Path, db: duckdb.DuckDBPyConnection) -> None:
    """With the public views of the one model, and nothing attached."""
    with duckdb.connect(str(tables_file(small_atlas, "bert")), read_only=True) as alone:
        there = alone.execute("SELECT database_name FROM duckdb_databases() WHERE NOT internal").fetchall()
        assert there == [("tables",)]
        views = alone.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY 1").fetchall()
        assert [name for (name,) in views] == sorted({*VIEWS} - {"neighbors", "layer_alignments"})
        for name in ("models", "heads", "head_pairs", "readings", "token_embeddings"):
            own = alone.execute(f"SELECT * FROM {name} ORDER BY ALL").fetchall()
            numbered = "* REPLACE (head_id - (SELECT min(head_id) FROM heads WHERE model = 'bert') AS head_id)"
            columns = numbered if "head_id" in VIEWS[name].split() else "*"
            assert own == db.execute(f"SELECT {columns} FROM {name} WHERE model = 'bert' ORDER BY ALL").fetchall()


def test_every_view_is_documented(atlas: Atlas) -> None:
    assert [row["name"] for row in atlas.sql("SHOW TABLES")] == sorted(VIEWS)


def test_values(atlas: Atlas) -> None:
    assert atlas.sql("SELECT ? AS x, ? AS y", [3, "a'b"]).to_rows() == [{"x": 3, "y": "a'b"}]
    assert atlas.sql("SELECT $a || $b AS x", {"a": "one ", "b": "two"}).to_rows() == [{"x": "one two"}]
    query = "SELECT d_model FROM models WHERE model = ?"
    assert atlas.sql(query, ["gpt2-wide"]).to_rows() == [{"d_model": 32}]
    assert atlas.sql(query, ["gpt2-wide' OR 1 = 1 --"]).to_rows() == []


@pytest.mark.parametrize("model", PARAMETERS)
def test_parameters_are_counted_by_the_layout(atlas: Atlas, model: str) -> None:
    count = "SELECT count(*) AS n FROM parameters WHERE model = ?"
    counted = "SELECT sum(n_parameters) AS n FROM layout WHERE model = ?"
    stored = "SELECT n_parameters AS n FROM models WHERE model = ?"
    assert [atlas.sql(query, [model]).to_rows() for query in (count, counted, stored)] == [
        [{"n": PARAMETERS[model]}]
    ] * 3


def test_columns_that_a_model_has_no_use_for_are_null(atlas: Atlas) -> None:
    """No stacks, no experts, and no layer for a position."""
    assert atlas.sql("SELECT DISTINCT n_experts, d_expert, stacks, fold_norm FROM models").to_rows() == [
        {"n_experts": None, "d_expert": None, "stacks": None, "fold_norm": False}
    ]
    rows = atlas.sql("SELECT DISTINCT kind FROM parameters WHERE layer IS NULL ORDER BY 1").to_rows()
    assert rows == [{"kind": "position"}, {"kind": "token_type"}]
    for view in ("parameters", "parameter_tokens"):
        assert atlas.sql(f"SELECT DISTINCT stack, expert FROM {view}").to_rows() == [{"stack": None, "expert": None}]
    rows = atlas.sql(
        "SELECT kind, layer, head, kv_head, idx FROM parameters WHERE address = 'bert/position/31'"
    ).to_rows()
    assert rows == [{"kind": "position", "layer": None, "head": None, "kv_head": None, "idx": 31}]


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("SELECT 1 AS x;", [{"x": 1}]),
        ("-- a remark\nSELECT 1 AS x", [{"x": 1}]),
        ("FROM heads SELECT count(*) AS n", [{"n": 34}]),
        ("WITH a AS (SELECT 2 AS x) SELECT x FROM a", [{"x": 2}]),
        ("VALUES (1, 'a')", [{"col0": 1, "col1": "a"}]),
        ("SELECT x FROM range(3) AS t(x) WHERE x > 5", []),
        (
            "SELECT DISTINCT family FROM models ORDER BY 1",
            [{"family": "bert"}, {"family": "gpt2"}, {"family": "llama"}],
        ),
    ],
)
def test_statements_that_read(atlas: Atlas, query: str, rows: list[dict]) -> None:
    assert atlas.sql(query).to_rows() == rows


def test_describe_and_explain_read(atlas: Atlas) -> None:
    described = [row["column_name"] for row in atlas.sql("DESCRIBE parameter_tokens")]
    assert described == VIEWS["parameter_tokens"].split()
    assert "range" in atlas.sql("EXPLAIN SELECT * FROM range(3)").to_rows()[0]["explain_value"].lower()


def test_columns_of_one_name_keep_their_values(atlas: Atlas) -> None:
    assert atlas.sql("SELECT 1 AS a, 2 AS a, 3 AS b, 4 AS a").to_rows() == [{"a": 1, "a_2": 2, "b": 3, "a_3": 4}]
    joined = atlas.sql("SELECT * FROM heads AS x JOIN heads AS y ON x.head_id = y.head_id + 1 WHERE y.head_id = 0")
    assert (joined.to_rows()[0]["head_id"], joined.to_rows()[0]["head_id_2"]) == (1, 0)


@pytest.mark.parametrize(("query", "n"), [("SELECT 1; SELECT 2", 2), ("", 0), ("  ;", 0), ("-- nothing", 0)])
def test_one_statement_only(atlas: Atlas, query: str, n: int) -> None:
    with pytest.raises(QueryError) as caught:
        atlas.sql(query)
    assert str(caught.value) == f"give one SQL statement, not {n}"


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("INSERT INTO models VALUES (2, 'x')", "INSERT"),
        ("UPDATE models SET model = 'x'", "UPDATE"),
        ("DELETE FROM models", "DELETE"),
        ("TRUNCATE models", "DELETE"),
        ("MERGE INTO models USING models AS s ON true WHEN MATCHED THEN DELETE", "MERGE INTO"),
        ("CREATE TABLE x (y INT)", "CREATE"),
        ("CREATE TEMP TABLE x AS SELECT 1", "CREATE"),
        ("CREATE TABLE memory.main.x AS SELECT 1", "CREATE"),
        ("CREATE OR REPLACE VIEW models AS SELECT 1", "CREATE"),
        ("CREATE MACRO f() AS 1", "CREATE"),
        ("DROP VIEW models", "DROP"),
        ("ALTER TABLE models RENAME TO x", "ALTER"),
        ("COPY models TO 'out.csv'", "COPY"),
        ("COPY (SELECT 1) TO 'out.parquet'", "COPY"),
        ("COPY models FROM 'in.csv'", "COPY"),
        ("ATTACH 'out.db'", "ATTACH"),
        ("ATTACH ':memory:' AS x", "ATTACH"),
        ('DETACH "models/bert"', "DETACH"),
        ("USE memory", "USE"),
        ("SET threads = 1", "SET"),
        ("SET enable_external_access = true", "SET"),
        ("RESET lock_configuration", "RESET"),
        ("PRAGMA database_list", "PRAGMA"),
        ("PRAGMA enable_profiling", "PRAGMA"),
        ("INSTALL httpfs", "INSTALL"),
        ("LOAD httpfs", "LOAD"),
        ("EXPORT DATABASE 'out'", "EXPORT"),
        ("IMPORT DATABASE 'out'", "IMPORT"),
        ("CALL pragma_version()", "CALL"),
        ("CHECKPOINT", "CHECKPOINT"),
        ("VACUUM", "VACUUM"),
        ("BEGIN", "TRANSACTION"),
        ("PREPARE p AS SELECT 1", "PREPARE"),
    ],
)
def test_what_writes_or_sets_is_refused(
    atlas: Atlas, small_atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str, name: str
) -> None:
    """With one message, and neither the atlas nor the working directory changes."""
    monkeypatch.chdir(tmp_path)
    file = tables_file(small_atlas, "bert")
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(QueryError) as caught:
        atlas.sql(statement)
    assert str(caught.value) == f"an atlas is read-only: {name} is not allowed, only SELECT and EXPLAIN are"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == before
    assert list(tmp_path.iterdir()) == []
    assert atlas.sql("SELECT count(*) AS n FROM models").to_rows() == [{"n": 5}]


@pytest.mark.parametrize(
    "query",
    [
        "EXPLAIN ANALYZE INSERT INTO models VALUES (2, 'x')",
        "EXPLAIN ANALYZE CREATE TABLE memory.main.x AS SELECT 1",
        "EXPLAIN ANALYZE COPY models TO 'out.csv'",
        "WITH x AS (DELETE FROM models RETURNING *) SELECT * FROM x",
    ],
)
def test_writes_in_disguise_are_refused(
    atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QueryError):
        atlas.sql(query)
    assert list(tmp_path.iterdir()) == []
    assert atlas.sql("SELECT count(*) AS n FROM models").to_rows() == [{"n": 5}]
    assert atlas.sql("SELECT count(*) AS n FROM duckdb_tables() WHERE database_name = 'memory'").to_rows() == [{"n": 0}]


@pytest.mark.parametrize(
    "source",
    [
        "read_csv('{file}')", "read_csv_auto('{file}')", "sniff_csv('{file}')", "read_text('{file}')",
        "read_blob('{file}')", "read_json('{file}')", "read_parquet('{file}')", "glob('{folder}/*')",
        "'{file}'", "'/etc/passwd'",
        "read_text('/etc/passwd')", "read_text('https://example.org/')", "query_table('{file}')",
    ],
)  # fmt: skip
def test_other_files_cannot_be_read(atlas: Atlas, tmp_path: Path, source: str) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("a,b\n1,hidden\n")
    with pytest.raises(QueryError) as caught:
        atlas.sql(f"SELECT * FROM {source.format(file=secret, folder=tmp_path)}")
    assert "hidden" not in str(caught.value)


def test_variables_of_the_program_are_no_tables(atlas: Atlas) -> None:
    import pandas as pd

    outside = pd.DataFrame({"x": [1]})
    assert len(outside) == 1
    for name in ("outside", "connection", "values", "sql"):
        with pytest.raises(QueryError, match=f"Table with name {name} does not exist"):
            atlas.sql(f"SELECT * FROM {name}")


@pytest.mark.parametrize(
    ("query", "lines"),
    [
        ("SELEC 1", ['Parser Error: syntax error at or near "SELEC"', "LINE 1: SELEC 1", "        ^^^^^"]),
        ("SELECT nope FROM heads", ['Binder Error: Referenced column "nope" not found in FROM clause!']),
        ("SELECT corrupt FROM heads", ['Binder Error: Referenced column "corrupt" not found in FROM clause!']),
        ("SELECT * FROM nope", ["Catalog Error: Table with name nope does not exist!"]),
        ("SELECT error('INTERNAL checksum corrupt')", ["Invalid Input Error: INTERNAL checksum corrupt"]),
        ("SELECT CAST('x' AS INT)", ["Conversion Error: Could not convert string 'x' to INT32"]),
        ("SELECT ?", ["Invalid Input Error: Values were not provided for the following parameters: 1"]),
        ("SELECT '\udcff'", [f"this SQL is not valid UTF-8 text: {chr(34)}SELECT '\\udcff'{chr(34)}"]),
    ],
)
def test_bad_sql_is_one_clear_message(atlas: Atlas, query: str, lines: list[str]) -> None:
    """DuckDB's own first line, and below it the place where it says one; never damage."""
    with pytest.raises(QueryError) as caught:
        atlas.sql(query)
    found = str(caught.value).splitlines()
    assert found[: len(lines)] == lines
    assert all(line.strip() for line in found)
    assert atlas.sql("SELECT 1 AS x").to_rows() == [{"x": 1}]


@pytest.mark.parametrize(
    ("query", "values"),
    [("SELECT ? AS x", [1, 2]), ("SELECT $x AS x", {"y": 1}), ("SELECT 1 AS x", [1]), ("SELECT ? AS x", [object()])],
)
def test_values_that_do_not_fit(atlas: Atlas, query: str, values: object) -> None:
    with pytest.raises(QueryError):
        atlas.sql(query, values)  # type: ignore[arg-type]


@pytest.mark.waits
def test_ctrl_c_stops_a_query_and_the_atlas_goes_on(small_atlas: Path) -> None:
    program = """if True:
        import os, signal, sys, threading, paramdex
        signal.signal(signal.SIGINT, signal.default_int_handler)
        atlas = paramdex.open(sys.argv[1])
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        try:
            atlas.sql("SELECT count(*) FROM range(100_000_000) AS a, range(1_000_000) AS b")
        except KeyboardInterrupt:
            print("stopped", atlas.sql("SELECT 1 AS x").to_rows())
    """
    done = subprocess.run(
        [sys.executable, "-c", program, small_atlas], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("stopped [{'x': 1}]\n", "")
