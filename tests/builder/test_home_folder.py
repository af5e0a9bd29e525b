"""``~`` at the beginning of a path is the home folder wherever a path can be given: no shell reads those in quotes,
after ``NAME=`` or in Python.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import paramdex
from paramdex import Atlas, AtlasError, QueryError, TokenFilter
from paramdex.cli import cli
from paramdex_builder import EvaluateOptions, Options, StitchOptions, build, evaluate
from paramdex_builder.measure.classifier import read_labelled
from paramdex_builder.measure.evaluate import read_words
from paramdex_builder.work.arguments import source_texts
from paramdex_schemas import BuildError
from paramdex_schemas.arguments import path_text

PARAMETER = "gpt2-a/L0/ff_value/1"


@pytest.fixture
def home(tmp_path: Path, small_atlas: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with whatever can be read; the test runs elsewhere."""
    folder, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "x.atlas").symlink_to(small_atlas)
    np.save(folder / "vector.npy", np.arange(24) - 3.5)
    (folder / "words.txt").write_text("canada\nfood\n", "utf-8")
    (folder / "pairs.tsv").write_text("food\tbread\n", "utf-8")
    (folder / "reviews.jsonl").write_text('{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n', "utf-8")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(elsewhere)
    return folder


def test_python_reads_it(home: Path, atlas: Atlas) -> None:
    for path in ("~/x.atlas", Path("~/x.atlas"), "~//x.atlas/"):
        with paramdex.open(path) as opened:
            assert opened.path == home / "x.atlas"
    vector = atlas.lens(home / "vector.npy", "gpt2-a").to_rows()
    for given in ("~/vector.npy", Path("~/vector.npy")):
        assert atlas.lens(given, "gpt2-a").to_rows() == vector
    assert TokenFilter(words="~/words.txt").word_list == TokenFilter(words=Path("~/words.txt")).word_list
    assert TokenFilter(words="~/words.txt").word_list == ["canada", "food"]
    assert atlas.heads("~/pairs.tsv").to_rows() == atlas.heads([("food", "bread")]).to_rows()
    assert atlas.show(PARAMETER).plot("~/card.svg") == home / "card.svg"
    assert (home / "card.svg").stat().st_size > 1000
    assert read_words("~/words.txt") == "canada\nfood\n"
    assert read_labelled("~/reviews.jsonl").texts == ["a", "b"]


def test_sources_are_read_so(home: Path) -> None:
    assert source_texts("~/m") == source_texts(Path("~/m")) == source_texts(["~/m"]) == [str(home / "m")]
    assert Options(base="~/m").check().base == StitchOptions(base="~/m").check().base == str(home / "m")
    with pytest.raises(BuildError, match=f"there is no folder {home}/m"):
        evaluate("~/m", "x", EvaluateOptions())


def test_builds_and_differences_read_it(home: Path, word_model: Path) -> None:
    for name in ("base", "tuned"):
        shutil.copytree(word_model, home / name)
    options = Options(top_k=5, pair_k=5, device="cpu")
    assert build(["m=~/base"], "~/new.atlas", options) == home / "new.atlas"
    build("moved=~/tuned", "~/new.atlas", Options(top_k=5, pair_k=5, device="cpu", base="~/base"))
    assert not list(Path().iterdir())
    with paramdex.open("~/new.atlas") as opened:
        assert opened.sql("SELECT source, base FROM models ORDER BY model").to_rows() == [
            {"source": str(home / "base"), "base": None},
            {"source": str(home / "tuned"), "base": str(home / "base")},
        ]
        assert opened.diff("~/base", "~/tuned").to_rows() == opened.diff("moved").to_rows()


def test_the_command_line_reads_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def out(*arguments: str) -> str:
        cli.main(list(arguments), standalone_mode=False)
        return capsys.readouterr().out

    whole = str(home)
    for command in (
        ["info", "~/x.atlas"],
        ["lens", "~/x.atlas", "~/vector.npy", "--model", "gpt2-a"],
        ["show", "~/x.atlas", PARAMETER, "--words", "~/words.txt"],
        ["heads", "~/x.atlas", "--pairs", "~/pairs.tsv"],
    ):
        assert out(*command) == out(*(each.replace("~", whole) for each in command)) != ""
    out("show", "~/x.atlas", PARAMETER, "--plot", "~/plot.svg")
    assert (home / "plot.svg").is_file()
    with pytest.raises(QueryError, match=f"{whole}/none holds no models"):
        out("demo", "--models", "~/none")
    assert not list(Path().iterdir())


def test_a_folder_of_that_name(home: Path, small_atlas: Path) -> None:
    Path("~").symlink_to(small_atlas)
    with paramdex.open("./~") as opened:
        assert str(opened.path) == f"{Path.cwd()}/~"
        assert "gpt2-a" in opened.models
    with pytest.raises(AtlasError, match=f"^{home} is not an atlas"):
        paramdex.open("~")


def test_a_home_of_nobody_stays_as_it_is(home: Path, small_atlas: Path) -> None:
    here = f"{Path.cwd()}/~nobody-of-that-name"
    assert path_text("~nobody-of-that-name/x", "a path", QueryError) == f"{here}/x"
    with pytest.raises(AtlasError, match=f"^{here}/x is not an atlas: there is no such folder"):
        paramdex.open("~nobody-of-that-name/x")
    Path("~nobody-of-that-name").symlink_to(small_atlas)
    with paramdex.open("~nobody-of-that-name") as opened:
        assert str(opened.path) == here
        assert "gpt2-a" in opened.models
    assert path_text("a~/~", "a path", QueryError) == "a~/~"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "an atlas is text or a path, not ''"),
        (None, "an atlas is text or a path, not None"),
        (b"x", "an atlas is text or a path, not b'x'"),
        ("x\0", r"the path 'x\\x00' has a null character in it; give another"),
        ("~\0", r"the path '~\\x00' has a null character in it; give another"),
        ("x\udc80", r"the path 'x\\udc80' is not valid UTF-8 text; give another"),
        ("x" * 300, "the path 'x{80}'... is longer than a path can be"),
    ],
)
def test_what_no_path_can_be(path: object, message: str) -> None:
    with pytest.raises(AtlasError, match=f"^{message}$"):
        paramdex.open(path)  # type: ignore[arg-type]
