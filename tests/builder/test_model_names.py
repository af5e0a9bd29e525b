"""NAME=SOURCE: which names a model may have, and what is a path that has = in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import paramdex
from paramdex_builder import Options, build
from paramdex_schemas import BuildError, CheckpointError

RULE = "cannot name a model; use letters, digits, . _ \\+ and -; write "


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("org/name=./folder", rf"'org/name' {RULE}org-name=./folder \(and there is no folder org/name=./folder\)"),
        ("a/b/c=gpt2", f"'a/b/c' {RULE}a-b-c=gpt2 "),
        ("my model=./folder", f"'my model' {RULE}my-model=./folder"),
        ("-x=./folder", f"'-x' {RULE}x=./folder"),
        ("é=./folder", f"'é' {RULE}NAME=./folder"),
        ("=./folder", f"'' {RULE}NAME=./folder"),
        ("./my model", f"'my model' {RULE}my-model=./my model"),
        ("all=./folder", "a model cannot be called all, which stands for every model; write NAME=./folder"),
        ("name=", "a source cannot be empty"),
    ],
)
def test_a_name_that_cannot_be(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(BuildError, match=f"^{message}"):
        build(source, tmp_path / "x.atlas")


@pytest.mark.parametrize("source", ["n=./a/x=y", "n=/a/x=y", "n=a=b"])
def test_what_can_only_be_a_path_is_one(tmp_path: Path, source: str) -> None:
    with pytest.raises(CheckpointError, match=f"there is no folder {source[2:]}"):
        build(source, tmp_path / "x.atlas")


def test_a_path_with_an_equals_sign_that_is_there_is_a_path(
    word_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(word_model, "runs/lr=0.1")
    with pytest.raises(BuildError, match=f"'lr=0.1' {RULE}lr-0.1=runs/lr=0.1$"):  # a path, but no name
        build("runs/lr=0.1", "x.atlas")
    build("tuned=runs/lr=0.1", "x.atlas", Options(top_k=5, pair_k=5, device="cpu"))
    with paramdex.open("x.atlas") as atlas:
        assert list(atlas.models) == ["tuned"]


def test_a_dictionary_of_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"sources are texts or paths, not \{'n': './x'\}"):
        build({"n": "./x"}, tmp_path / "x.atlas")  # type: ignore[arg-type]
