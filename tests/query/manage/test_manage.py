"""Removing, renaming, merging and exporting models: what is left is what was, and bad input is one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import paramdex
from opened import opened
from paramdex import AddressError, AtlasError, QueryError
from paramdex.cli import cli
from paramdex.manage.export import TABLES, export
from paramdex.manage.merge import merge
from paramdex.manage.remove import remove
from paramdex.manage.rename import rename
from paramdex_schemas import atlas_files
from paramdex_schemas.contents import read_contents


@pytest.fixture
def copy(small_atlas: Path, tmp_path: Path) -> Path:
    """A copy of the shared atlas, to be changed."""
    return Path(shutil.copytree(small_atlas, tmp_path / "copy.atlas"))


def answers(atlas: Path, model: str, name: str | None = None) -> list[list[dict]]:
    """What an atlas says of a model, which may be called otherwise there; ``model`` stands for its name."""
    name = name or model
    with paramdex.open(atlas) as one:
        asks = [
            one.show(f"{name}/L1/ff_value/5"),
            one.show(f"{name}/L0/H1"),
            one.find("canada", model=name),
            one.search("canada", model=name),
            one.similar(f"{name}/L1/ff_value/5"),
            one.sql("SELECT * EXCLUDE (param_id) FROM parameters WHERE model = ? ORDER BY param_id LIMIT 50", [name]),
        ]
    return [[_renamed(row, name, model) for row in ask.to_rows()] for ask in asks]


def _renamed(row: dict, old: str, new: str) -> dict:
    text = {name: value for name, value in row.items() if name in ("address", "model")}
    return row | {name: value.replace(old, new, 1) for name, value in text.items()}


def test_what_is_removed_is_gone_and_the_rest_is_as_it_was(copy: Path) -> None:
    before = answers(copy, "gpt2-b")
    remove(copy, ["gpt2-a", "bert"])
    contents = read_contents(copy)
    assert list(contents.models) == ["gpt2-b", "gpt2-wide", "llama-gqa"]
    assert sorted(folder.name for folder in (copy / "models").iterdir()) == sorted(contents.models)
    assert {each.name for each in (copy / "relations").iterdir()} == {f"{a}~{b}" for a, b in contents.related}
    assert answers(copy, "gpt2-b") == before
    with paramdex.open(copy) as atlas:
        atlas.check()
        assert {row["model"] for row in atlas.sql("SELECT DISTINCT model FROM heads")} == set(contents.models)
        with pytest.raises(AddressError, match="no model 'bert'"):
            atlas.show("bert/L0/ff_key/0")
    with opened(copy) as db:  # attach.sql follows
        assert db.execute("SELECT count(*) FROM models").fetchall() == [(3,)]


def test_a_model_of_another_name_says_the_same(copy: Path) -> None:
    before = answers(copy, "gpt2-b")
    with paramdex.open(copy) as atlas:
        aligned = atlas.align("gpt2-a", "gpt2-b").to_rows()
        near = atlas.sql("SELECT * FROM neighbors WHERE neighbor_model = 'gpt2-b' ORDER BY ALL").to_rows()
    rename(copy, "gpt2-b", "other")
    assert list(read_contents(copy).models) == ["gpt2-a", "other", "gpt2-wide", "llama-gqa", "bert"]
    assert not (copy / "models" / "gpt2-b").exists()
    assert answers(copy, "gpt2-b", "other") == before
    with paramdex.open(copy) as atlas:
        atlas.check()
        assert [{**row, "model_b": "gpt2-b"} for row in atlas.align("gpt2-a", "other")] == aligned
        found = atlas.sql("SELECT * FROM neighbors WHERE neighbor_model = 'other' ORDER BY ALL").to_rows()
        changed = {"neighbor_model": "gpt2-b"}
        assert [row | changed | {"neighbor": row["neighbor"].replace("other", "gpt2-b")} for row in found] == near
    with duckdb.connect(str(copy / "models" / "other" / atlas_files.TABLES), read_only=True) as alone:
        assert alone.execute("SELECT model, address FROM parameters LIMIT 1").fetchall()[0][0] == "other"


def test_a_name_can_be_given_again(copy: Path) -> None:
    """After it was renamed away, and back again."""
    before = answers(copy, "bert")
    rename(copy, "bert", "x")
    rename(copy, "gpt2-a", "bert")
    rename(copy, "bert", "gpt2-a")
    rename(copy, "x", "bert")
    assert answers(copy, "bert") == before
    paramdex.open(copy).check()


def test_atlases_are_merged_with_what_relates_their_models(copy: Path, tmp_path: Path) -> None:
    other, whole = tmp_path / "other.atlas", tmp_path / "whole.atlas"
    shutil.copytree(copy, other)
    shutil.copytree(copy, whole)
    remove(copy, ["gpt2-b", "bert"])
    remove(other, ["gpt2-a", "gpt2-wide"])
    into = merge([copy, other], tmp_path / "merged.atlas")
    assert list(read_contents(into).models) == ["gpt2-a", "gpt2-wide", "llama-gqa", "gpt2-b", "bert"]
    paramdex.open(into).check()
    for name in ("gpt2-a", "gpt2-b", "bert"):
        assert answers(into, name) == answers(whole, name)
    merge([other], copy)
    assert set(read_contents(copy).models) == set(read_contents(whole).models)
    merge([whole], into)  # adds what relates the models of both
    assert len(read_contents(into).related) == len(read_contents(whole).related)
    with paramdex.open(into) as merged, paramdex.open(whole) as atlas:
        scores = [{(row["layer_a"], row["layer_b"], row["kind"]): row["score"] for row in one.align("gpt2-a", "gpt2-b")}
                  for one in (merged, atlas)]  # fmt: skip
        assert scores[0] == scores[1]


def test_a_damaged_file_is_not_merged(copy: Path, tmp_path: Path) -> None:
    file = copy / "models" / "bert" / "ff_key.faiss"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    with pytest.raises(AtlasError, match=r"is damaged: models/bert/ff_key\.faiss is not what was written"):
        merge([copy], tmp_path / "merged.atlas")
    assert not (tmp_path / "merged.atlas").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.atlas"]


def test_every_table_is_exported_as_it_is(small_atlas: Path, tmp_path: Path) -> None:
    parquet = export(small_atlas, tmp_path / "out")
    export(small_atlas, tmp_path / "out.duckdb", "duckdb")
    with paramdex.open(small_atlas) as atlas, duckdb.connect() as db:
        db.execute(f"ATTACH '{tmp_path / 'out.duckdb'}' AS one (READ_ONLY)")
        for table in TABLES:
            there = atlas.sql(f"SELECT count(*) AS n, sum(hash(t)) AS h FROM {table} AS t").to_rows()
            assert (
                db.sql(f"SELECT count(*) AS n, sum(hash(t)) AS h FROM one.{table} AS t").to_arrow_table().to_pylist()
                == there
            )
            files = (
                str(parquet / table / "*" / "*.parquet")
                if (parquet / table).exists()
                else str(parquet / f"{table}.parquet")
            )
            found = db.sql(f"SELECT count(*) AS n FROM read_parquet('{files}', hive_partitioning = true)").fetchall()
            assert found == [(there[0]["n"],)], table
    assert set(pq.read_table(parquet / "heads" / "model=bert").column_names) >= {"address", "qk_norm"}


def test_one_table_of_one_model_as_csv(small_atlas: Path, tmp_path: Path) -> None:
    path = export(small_atlas, tmp_path / "heads.csv", "csv", ["heads"], ["bert"])
    lines = path.read_text("utf-8").splitlines()
    with paramdex.open(small_atlas) as atlas:
        assert len(lines) == 1 + atlas.sql("SELECT count(*) AS n FROM heads WHERE model = 'bert'").to_rows()[0]["n"]


BAD = {
    "no such model": (["remove", "A", "bertt"], "A has no model 'bertt'; did you mean bert?"),
    "all of them": (
        ["remove", "A", "gpt2-a", "gpt2-b", "gpt2-wide", "llama-gqa", "bert"],
        "A has no other model; to remove all of it, delete the folder",
    ),
    "renamed, no such": (["rename", "A", "bertt", "x"], "A has no model 'bertt'; did you mean bert?"),
    "taken": (["rename", "A", "bert", "gpt2-a"], "A has a model gpt2-a already"),
    "no name": (["rename", "A", "bert", "a/b"], "'a/b' is no name of a model; write letters, digits and . _ + -"),
    "no atlas": (["remove", "nowhere", "x"], "nowhere is not an atlas: there is no such folder"),
    "merge of none": (["merge", "nowhere", "-o", "x.atlas"], "nowhere is not an atlas: there is no such folder"),
    "no table": (["export", "A", "-o", "x", "--table", "head"], "there is no table 'head'; did you mean heads?"),
    "csv of all": (["export", "A", "-o", "x", "--as", "csv"], "CSV holds one table; name it with --table"),
    "there": (["export", "A", "-o", "A"], "A is there already; give another path with -o"),
    "no folder": (["export", "A", "-o", "no/x"], "there is no folder no to write x in; make it first"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_changes_nothing(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, message = BAD[case]
    before = (copy / atlas_files.INDEX).read_bytes()
    done = CliRunner().invoke(cli, [str(copy) if each == "A" else each for each in arguments])
    assert isinstance(done.exception, paramdex.ParamdexError)
    said = str(done.exception).replace(str(copy), "A").replace(f"{tmp_path}/", "")
    assert said.startswith(message), said
    assert (copy / atlas_files.INDEX).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.atlas"]


def test_two_models_of_one_name_are_not_merged(copy: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(copy, tmp_path / "other.atlas"))
    rename(other, "gpt2-a", "x")
    rename(other, "bert", "gpt2-a")
    with pytest.raises(QueryError, match="have a model gpt2-a each; give one another name first: paramdex rename"):
        merge([copy, other], tmp_path / "merged.atlas")
    assert not (tmp_path / "merged.atlas").exists()
