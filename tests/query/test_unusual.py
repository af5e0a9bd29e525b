"""What is seldom given and still has one clear answer: numbers of NumPy, other encodings, types that Arrow lacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import paramdex
from paramdex import Atlas, AtlasError, BuildError, QueryError, TokenFilter
from paramdex.web.serve import bind
from paramdex_builder import Options, build

ADDRESS, HEAD = "gpt2-a/L0/ff_value/3", "bert/L1/H0"


@pytest.fixture
def atlas(small_atlas: Path) -> Any:
    with paramdex.open(small_atlas) as opened:
        yield opened


def program(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "paramdex", *map(str, arguments)],
        capture_output=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("address", [ADDRESS, HEAD])
def test_k_of_numpy(atlas: Atlas, address: str) -> None:
    assert atlas.show(address, np.int64(2)).to_rows() == atlas.show(address, 2).to_rows()
    assert len(atlas.show(address, 10**12)) == len(atlas.show(address, 10_000))


def test_pairs_of_one_word_are_asked_for_by_numpy_too(atlas: Atlas) -> None:
    shown = atlas.show(HEAD, 3, distinct=np.False_)  # type: ignore[arg-type]
    assert shown.to_rows() == atlas.show(HEAD, 3, distinct=False).to_rows()


@pytest.mark.parametrize("k", [2.5, "3", None, float("nan")])
def test_k_that_is_no_whole_number(atlas: Atlas, k: Any) -> None:
    for ask in (
        lambda: atlas.show(HEAD, k),
        lambda: atlas.find("canada", k),
        lambda: atlas.similar(ADDRESS, k),
        lambda: atlas.similar(HEAD, k),
        lambda: atlas.directions(HEAD, k),
    ):
        with pytest.raises(QueryError, match=r"^k must be a whole number, not "):
            ask()


def test_layer_that_is_no_whole_number(atlas: Atlas) -> None:
    with pytest.raises(QueryError, match=r"^layer must be a whole number, not 1.5$"):
        atlas.find("canada", layer=1.5)  # type: ignore[arg-type]


def test_match_has_two_sides(atlas: Atlas) -> None:
    with pytest.raises(QueryError, match=r"^side is one of top, both, not 'bottom'$"):
        atlas.match("gpt2-a", "gpt2-b", "ff_key", side="bottom")


def test_no_p_value_of_scores_that_there_are_not(atlas: Atlas) -> None:
    """Vectors of other widths have no raw correlations."""
    alignment = atlas.align("gpt2-a", "gpt2-wide")
    assert np.isnan(alignment.diagonality("ff_key", feature=True)).all()


@pytest.mark.parametrize("scale", [1e40, 1e-40, 1e160, 1e-170])
@pytest.mark.parametrize("n", [1, 3])
def test_lens_of_what_float32_cannot_hold(atlas: Atlas, scale: float, n: int) -> None:
    width = len(atlas.vectors.space("bert").means)
    rows = np.random.default_rng(0).normal(size=(n, width)).squeeze()
    assert len(atlas.lens(rows * 1e25, "bert", k=2)) == len(atlas.lens(rows, "bert", k=2))
    with pytest.raises(QueryError, match=r"scores are float32; multiply it"):
        atlas.lens(rows * scale, "bert", k=2)


def test_lens_says_the_same_at_a_prompt(atlas: Atlas) -> None:
    vector = np.random.default_rng(0).normal(size=len(atlas.vectors.space("bert").means))
    found = atlas.lens(vector, "bert", k=2)
    assert repr(found) == str(found)


def test_lens_of_several_arrays_in_one_file(atlas: Atlas, tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        np.savez(file, a=np.ones(3))
    with pytest.raises(QueryError, match=r"is a .npz file, which holds several arrays"):
        atlas.lens(tmp_path / "a.npy", "bert")


@pytest.mark.parametrize(
    ("value", "of"),
    [
        ("340282366920938463463374607431768211455::UHUGEINT", "UHUGEINT"),
        ("[1::UHUGEINT]", "UHUGEINT"),
        ("'0101'::BIT", "BIT"),
        ("TIMETZ '10:00:00+01'", "TIME WITH TIME ZONE"),
    ],
)
def test_types_that_arrow_does_not_hold(atlas: Atlas, value: str, of: str) -> None:
    with pytest.raises(QueryError, match=f"'x' is of type {of}, which Arrow does not hold; cast it to VARCHAR"):
        atlas.sql(f"SELECT {value} AS x")
    assert atlas.sql(f"SELECT ({value})::VARCHAR AS x").to_rows()[0]["x"]


@pytest.mark.parametrize("value", ["'infinity'::DATE", "'290000-01-01'::TIMESTAMP", "'-infinity'::TIMESTAMP"])
def test_dates_that_python_does_not_have(atlas: Atlas, value: str) -> None:
    with pytest.raises(QueryError, match=r"Python has no such date or time .*; cast it to VARCHAR"):
        atlas.sql(f"SELECT {value} AS x").to_rows()


def test_values_within_values_are_plain_too(atlas: Atlas) -> None:
    found = atlas.sql(
        "SELECT [1.5, 2, NULL] AS a, [0.1::FLOAT] AS b, {'x': 2.5, 'y': [{'z': 0.1::FLOAT}]} AS c, "
        "INTERVAL 3 MONTH AS d, NULL::FLOAT[] AS e"
    )
    assert found.to_json() == (
        '[{"a": [1.5, 2, null], "b": [0.1], "c": {"x": 2.5, "y": [{"z": 0.1}]}, "d": "P3M0DT0S", "e": null}]'
    )


def test_names_of_columns_are_printed_as_seen(atlas: Atlas) -> None:
    assert "\x1b" not in str(atlas.sql('SELECT 1 AS "\x1b[31mred"'))


def test_byte_order_mark_is_no_word(atlas: Atlas, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("canada\nottawa\n", "utf-8-sig")
    listed = atlas.find("canada", filter=TokenFilter(words=tmp_path / "words.txt")).to_rows()
    assert listed == atlas.find("canada", filter=TokenFilter(words=["canada", "ottawa"])).to_rows()
    assert listed


def test_picture_of_nothing(atlas: Atlas, tmp_path: Path) -> None:
    shown = atlas.show(ADDRESS, filter=TokenFilter(words=["no"]))
    assert len(shown) == 0
    with pytest.raises(QueryError, match=r"^there are no tokens to draw$"):
        shown.plot(tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_ending_of_a_picture_in_capitals(atlas: Atlas, tmp_path: Path) -> None:
    assert atlas.show(ADDRESS).plot(tmp_path / "a.PNG").read_bytes().startswith(b"\x89PNG")


def test_interrupted_query_is_an_interrupt(atlas: Atlas) -> None:
    """DuckDB answers Ctrl-C with a RuntimeError."""

    def stopped(*_: object) -> None:
        raise RuntimeError("Query interrupted")

    database = atlas.fork().database
    database.connection = SimpleNamespace(execute=stopped, sql=stopped, extract_statements=lambda sql: [sql])
    tables = database.of(atlas.models["bert"])
    for ask in (tables.rows, tables.arrays, tables.kept, tables.table):
        with pytest.raises(KeyboardInterrupt):
            ask("SELECT 1")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_path_that_is_no_text(word_model: Path, tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.atlas")
    with pytest.raises(AtlasError, match=r"is not valid UTF-8 text"):
        build([str(word_model)], path, Options(device="cpu"))
    with pytest.raises(AtlasError, match=r"is not valid UTF-8 text"):
        paramdex.open(path)
    assert list(tmp_path.iterdir()) == [word_model]


@pytest.mark.parametrize(
    "options", [{"top_k": 5.0}, {"pair_k": True}, {"neighbor_k": "3"}, {"directions_k": None}, {"fold_norm": None}]
)
def test_options_of_other_types(word_model: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(BuildError, match=f"^{next(iter(options))} (must be a whole number|is True or False), not "):
        build([str(word_model)], tmp_path / "a.atlas", Options(**options, device="cpu"))
    assert list(tmp_path.iterdir()) == [word_model]


def test_one_source_need_be_no_list(word_model: Path, tmp_path: Path) -> None:
    options = Options(top_k=3, pair_k=3, neighbor_k=1, device="cpu")
    with paramdex.open(build(str(word_model), tmp_path / "a.atlas", options)) as atlas:
        assert list(atlas.models) == [word_model.name]


def test_name_of_no_host() -> None:
    with pytest.raises(QueryError, match=r"^cannot listen on a..b port 0: it is not a host name"):
        bind("a..b", 0)


def test_terminal_of_another_encoding(small_atlas: Path) -> None:
    ran = program("show", small_atlas, HEAD, "-k", "1", PYTHONIOENCODING="latin-1")
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert b"\\u2192" in ran.stdout


def test_empty_path_is_not_the_current_folder() -> None:
    ran = program("info", "")
    assert ran.returncode == 2
    assert b"a path cannot be empty" in ran.stderr


@pytest.mark.waits
def test_reader_that_reads_nothing_is_no_error(small_atlas: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "paramdex", "info", str(small_atlas)]
    try:
        ran = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(write)
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_error_that_cannot_be_written(small_atlas: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    command = [sys.executable, "-m", "paramdex", "show", str(small_atlas), "x"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    for environment in (buffered, buffered | {"PYTHONUNBUFFERED": "1"}):
        with Path("/dev/full").open("w") as full:
            ran = subprocess.run(command, stderr=full, check=False, env=environment)
        assert ran.returncode == 2
