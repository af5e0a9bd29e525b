"""The public tables over all models of an atlas, against unions of each model's own that are computed here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from shutil import copytree
from typing import Any

import duckdb
import pytest

import models
from opened import change, opened, tables_file
from paramdex_builder import Options, build
from paramdex_schemas import atlas_files
from paramdex_schemas.contents import Contents, read_contents
from paramdex_schemas.everything import NUMBERED, attached, catalog, script, views

Rows = list[dict[str, Any]]
OPTIONS = Options(top_k=6, pair_k=8, neighbor_k=3, device="cpu", reading="embedding")
STRIDE = 2**32
NAMES = ["first", "other", "second", "third"]
SAME = ["first", "second", "third"]
"""Those of one vocabulary; other has one of its own."""
UNDERTRAINED = {"first": {3, 4, 5, 6}, "second": {4, 5, 6, 7}, "third": {2, 5, 6}, "other": {3, 9}}


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("everything")
    folders = [models.save_word_model(root / name, seed) for seed, name in enumerate(NAMES) if name != "other"]
    folders.insert(1, models.save(root / "other", models.gpt2(40), models.word_tokenizer(40), 9))
    return build([str(folder) for folder in folders], root / "x.atlas", OPTIONS)


@pytest.fixture(scope="module")
def db(atlas: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with opened(atlas) as connection:
        yield connection


@pytest.fixture(scope="module")
def contents(atlas: Path) -> Contents:
    return read_contents(atlas)


def rows(connection: duckdb.DuckDBPyConnection, sql: str) -> Rows:
    return connection.sql(sql).to_arrow_table().to_pylist()


def in_order(found: Rows) -> list[str]:
    return sorted(map(repr, found))


def alone(atlas: Path, model: str, sql: str) -> Rows:
    """What the file of one model says, opened alone."""
    with duckdb.connect(str(tables_file(atlas, model)), read_only=True) as connection:
        return rows(connection, sql)


def test_every_table_is_there(db: duckdb.DuckDBPyConnection, atlas: Path) -> None:
    """All that one model's file has, and what is of several; with the columns of that file, in their order."""
    named = "SELECT view_name FROM duckdb_views() WHERE NOT internal AND schema_name = 'main'"
    own = {row["view_name"] for row in alone(atlas, "first", named)}
    assert own == {*NUMBERED, "tokens"}
    assert {row["view_name"] for row in rows(db, f"{named} AND database_name = 'memory'")} == {
        *own, "neighbors", "layer_alignments",
    }  # fmt: skip
    for view in own:
        described = f"SELECT column_name, column_type FROM (DESCRIBE {view})"
        assert rows(db, described) == alone(atlas, "first", described)


@pytest.mark.parametrize("view", NUMBERED)
def test_a_table_is_the_union_of_those_of_the_models(db: duckdb.DuckDBPyConnection, atlas: Path, view: str) -> None:
    """One below the other, with numbers that tell the models apart."""
    expected: Rows = []
    for i, name in enumerate(NAMES):
        own = alone(atlas, name, f"SELECT * FROM {view}")
        assert view == "readings" or own
        assert {row["model"] for row in own} <= {name}
        expected += [{c: v + i * STRIDE if c == NUMBERED[view] else v for c, v in row.items()} for row in own]
    assert in_order(rows(db, f"SELECT * FROM {view}")) == in_order(expected)


def test_numbers_and_addresses_name_one_parameter_each(db: duckdb.DuckDBPyConnection) -> None:
    (found,) = rows(
        db,
        "SELECT count(*) AS n, count(DISTINCT param_id) AS ids, count(DISTINCT address) AS addresses FROM parameters",
    )
    assert found["n"] == found["ids"] == found["addresses"] > 1000


@pytest.mark.parametrize("view", ["parameters", "parameter_tokens", "head_pairs"])
def test_a_question_for_one_model_reads_that_one_alone(db: duckdb.DuckDBPyConnection, view: str) -> None:
    def scans(condition: str) -> int:
        ((_, plan),) = db.execute(f"EXPLAIN SELECT count(*) FROM {view} {condition}").fetchall()
        return len(re.findall("seq[_ ]scan", plan, re.IGNORECASE))

    assert scans("") == len(NAMES) * scans("WHERE model = 'second'") > 0


# ---- vocabularies


def test_each_vocabulary_has_its_items_once(db: duckdb.DuckDBPyConnection, atlas: Path) -> None:
    expected = [row for name in ("first", "other") for row in alone(atlas, name, "SELECT * FROM tokens")]
    assert in_order(rows(db, "SELECT * FROM tokens")) == in_order(expected)
    (found,) = rows(db, "SELECT count(*) AS n, count(DISTINCT (vocabulary, token_id)) AS items FROM tokens")
    assert found == {"n": 60 + 40, "items": 60 + 40}


@pytest.fixture(scope="module")
def marked(atlas: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy in which models find other items under-trained."""
    copy = copytree(atlas, tmp_path_factory.mktemp("marked") / "x.atlas")
    for name, ids in UNDERTRAINED.items():
        change(copy, name, f"UPDATE store.token_embeddings SET is_undertrained = token_id IN {tuple(ids)}")
    return copy


def test_an_item_is_undertrained_where_it_is_in_all_models_of_its_vocabulary(marked: Path) -> None:
    with opened(marked) as connection:
        found = rows(connection, "SELECT vocabulary, token_id FROM tokens WHERE is_undertrained ORDER BY token_id")
        each = rows(connection, "SELECT model, token_id FROM token_embeddings WHERE is_undertrained")
        vocabularies = {row["model"]: row["vocabulary"] for row in rows(connection, "SELECT * FROM models")}
        (untold,) = rows(connection, "SELECT count(*) FILTER (is_undertrained IS NULL) AS n FROM tokens")
    assert untold == {"n": 0}
    assert {name: {row["token_id"] for row in each if row["model"] == name} for name in NAMES} == UNDERTRAINED
    of_same = set.intersection(*(UNDERTRAINED[name] for name in SAME))
    expected = [(vocabularies["first"], i) for i in of_same] + [(vocabularies["other"], i) for i in (3, 9)]
    assert of_same == {5, 6}
    assert sorted((row["vocabulary"], row["token_id"]) for row in found) == sorted(expected)


# ---- what relates two models


def test_neighbors_go_both_ways(db: duckdb.DuckDBPyConnection, atlas: Path, contents: Contents) -> None:
    """The rows of every relation's file, of either model; addresses and models as the parameters have them."""
    at = {name: i * STRIDE for i, name in enumerate(NAMES)}
    address = {row["param_id"]: row["address"] for row in rows(db, "SELECT param_id, address FROM parameters")}
    expected: Rows = []
    for a, b in contents.related:
        one, other = contents.names[a], contents.names[b]
        file = atlas / contents.relation(one, other) / atlas_files.TABLES
        with duckdb.connect(str(file), read_only=True) as connection:
            for row in rows(connection, "SELECT * FROM store.neighbors"):
                of, among = (one, other) if row["of_a"] else (other, one)
                ids = at[of] + row["param_id"], at[among] + row["neighbor_id"]
                expected.append(
                    {
                        "param_id": ids[0], "address": address[ids[0]], "neighbor_id": ids[1],
                        "neighbor": address[ids[1]], "neighbor_model": among, "rank": row["rank"],
                        "similarity": row["similarity"],
                    }
                )  # fmt: skip
    assert in_order(rows(db, "SELECT * FROM neighbors")) == in_order(expected)
    ways = {(row["address"].partition("/")[0], row["neighbor_model"]) for row in expected}
    assert ways == {*permutations(SAME, 2)}


def test_every_parameter_has_its_neighbors_once(db: duckdb.DuckDBPyConnection) -> None:
    found = rows(
        db,
        "SELECT p.model, neighbor_model, count(*) AS n, count(DISTINCT (param_id, rank)) AS places, max(rank) AS k "
        "FROM neighbors JOIN parameters AS p USING (param_id, address) "
        "JOIN parameters AS q ON q.param_id = neighbor_id AND q.address = neighbor AND q.model = neighbor_model "
        "GROUP BY ALL ORDER BY ALL",
    )
    counts = {row["model"]: row["n"] for row in rows(db, "SELECT model, count(*) AS n FROM parameters GROUP BY ALL")}
    assert [(row["model"], row["neighbor_model"]) for row in found] == sorted(permutations(SAME, 2))
    for row in found:
        assert row["k"] == 3
        assert row["n"] == row["places"]
        assert 2 * counts[row["model"]] < row["n"] <= 3 * counts[row["model"]]  # fewer only of a kind of two vectors


def test_alignments(db: duckdb.DuckDBPyConnection, atlas: Path, contents: Contents) -> None:
    expected: Rows = []
    for a, b in contents.related:
        one, other = contents.names[a], contents.names[b]
        file = atlas / contents.relation(one, other) / atlas_files.TABLES
        with duckdb.connect(str(file), read_only=True) as connection:
            found = rows(connection, "SELECT * FROM store.layer_alignments")
        expected += [{"model_a": one, "model_b": other, **row} for row in found]
    assert expected
    assert in_order(rows(db, "SELECT * FROM layer_alignments")) == in_order(expected)


def test_of_one_model_all_tables_are_there(atlas: Path, db: duckdb.DuckDBPyConnection, contents: Contents) -> None:
    """What relates models is empty, and has the columns that it has elsewhere."""
    one = contents.without(set(NAMES) - {"second"})
    with duckdb.connect() as connection:
        for name, path in attached(one).items():
            connection.execute(f"ATTACH '{atlas / path}' AS {catalog(name)} (READ_ONLY)")
        for view in views(one):
            connection.execute(view)
        for view in ("neighbors", "layer_alignments"):
            assert rows(connection, f"SELECT * FROM {view}") == []
            described = f"SELECT column_name, column_type FROM (DESCRIBE {view})"
            assert rows(connection, described) == rows(db, described)
        ((n,),) = connection.execute("SELECT count(*) FROM parameters").fetchall()
    assert n == rows(db, "SELECT count(*) AS n FROM parameters WHERE model = 'second'")[0]["n"]


# ---- attach.sql


def test_what_is_attached(contents: Contents) -> None:
    found = attached(contents)
    relations = [f"relations/{a}~{b}" for a, b in contents.related]
    assert list(found) == [*(f"models/{name}" for name in NAMES), *relations]
    assert all(path == f"{folder}/tables.duckdb" for folder, path in found.items())
    assert catalog('models/a"b') == '"models/a""b"'


def test_the_script_is_what_the_atlas_has(atlas: Path, contents: Contents) -> None:
    """And it names files as they lie from the atlas's folder on: an atlas may be moved."""
    text = (atlas / "attach.sql").read_text("utf-8")
    assert text == script(contents)
    assert str(atlas) not in text
    assert text.count("READ_ONLY") == 4 + 3


def test_a_moved_atlas_opens(atlas: Path, tmp_path: Path) -> None:
    copy = copytree(atlas, tmp_path / "it's moved.atlas")
    with opened(copy) as connection:
        assert [row["model"] for row in rows(connection, "SELECT model FROM models")] == NAMES
