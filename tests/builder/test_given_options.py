"""What callers give: sources, paths and options of every type are taken as they are meant, or refused at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import models
from opened import opened
from paramdex_builder import EvaluateOptions, Options, StitchOptions, build, evaluate, stitch
from paramdex_builder.measure.classifier import Labelled
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_schemas import BuildError

FEW = {"top_k": 3, "pair_k": 3, "neighbor_k": 1, "device": "cpu"}
EMPTY = "^a source cannot be empty; give a folder or a Hugging Face name$"


def row(atlas: Path, columns: str) -> tuple[Any, ...]:
    with opened(atlas) as connection:
        (found,) = connection.execute(f"SELECT {columns} FROM store.models").fetchall()
    return found


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong has to be said before a model is opened."""
    monkeypatch.setattr(Checkpoint, "open", lambda *_, **__: pytest.fail("a model was opened"))


@pytest.mark.parametrize("sources", [lambda path: path, lambda path: [path], str], ids=["path", "list", "text"])
def test_sources_and_base_as_paths(word_model: Path, tmp_path: Path, sources: Callable[[Path], Any]) -> None:
    tuned = models.save_word_model(tmp_path / "tuned", 8)
    atlas = build(sources(tuned), tmp_path / "x.atlas", Options(**FEW, base=word_model))
    assert row(atlas, "model, source, base") == ("tuned-minus-word-model", str(tuned), str(word_model))


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("sources", "base", "message"),
    [
        (["x="], None, EMPTY),
        ("", None, EMPTY),
        (["model"], "", EMPTY),
        (["model"], " ", EMPTY),
        ([3], None, "^a source is text or a path, not 3$"),
        (None, None, "^sources are texts or paths, not None$"),
        (["model"], 3, "^a source is text or a path, not 3$"),
        ([], None, "^give at least one model to build$"),
        (["a b=m1"], None, r"^'a b' cannot name a model; use letters, digits, \. _ \+ and -; write a-b=m1$"),
        (["./runs/a b=1"], None, r"^'a b=1' cannot name a model; use .*; write a-b-1=\./runs/a b=1$"),
        (["m\udce9"], None, r"^the path 'm\\udce9' is not valid UTF-8 text; give another$"),
    ],
)
def test_sources_that_are_none(tmp_path: Path, sources: Any, base: Any, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        build(sources, tmp_path / "x.atlas", Options(**FEW, base=base))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"^expected Options\(\.\.\.\) or None, not \{\}$"),
        (Options(memory=8), "^memory must be a size such as 8G or 800M, not 8$"),
        (Options(device=None), "^device None cannot be used here .*; try --device cpu$"),
        (Options(device="meta"), "^device 'meta' cannot be used here .*, cuda and cuda:N.; try --device cpu$"),
        (Options(top_k=np.float64(3)), r"^top_k must be a whole number, not np\.float64\(3\.0\)$"),
        (Options(top_k=True), "^top_k must be a whole number, not True$"),
        (Options(pair_k=np.int64(0)), "^pair_k must be from 1 to 10,000, not 0$"),
    ],
)
def test_options_of_a_build_that_cannot_be(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        build(["model"], tmp_path / "x.atlas", options)
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_numpy(word_model: Path, tmp_path: Path) -> None:
    """The same plan as with Python's own: the second build finds its work done."""
    whole = {name: np.int64(value) for name, value in FEW.items() if name != "device"}
    atlas = build(word_model, tmp_path / "x.atlas", Options(device="cpu", **whole))
    assert row(atlas, "top_k, pair_k, neighbor_k") == (3, 3, 1)
    build(word_model, atlas, Options(**FEW))


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 2}, r"^expected EvaluateOptions\(\.\.\.\) or None, not "),
        (EvaluateOptions(samples=1), "^samples must be at least 2, not 1$"),
        (EvaluateOptions(k=2.0), "^k must be a whole number, not 2.0$"),
        (EvaluateOptions(seed=2**70), "^seed must be from 0 to 9,223,372,036,854,775,807, not 1180591620717411303424$"),
        (EvaluateOptions(seed=-1), "^seed must be from 0 to "),
        (EvaluateOptions(fold_norm=1), "^fold_norm is True or False, not 1$"),
    ],
)
def test_options_of_an_evaluation_that_cannot_be(options: Any, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        evaluate("model", "text", options)


def test_evaluate_takes_paths(word_model: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("canada ottawa toronto france paris food bread " * 20)
    options = EvaluateOptions(k=np.int32(3), pair_k=3, samples=20, draws=2)
    table = evaluate(word_model, tmp_path / "text", options)
    assert table.equals(evaluate(str(word_model), (tmp_path / "text").read_text(), options))
    with pytest.raises(BuildError, match=r"^text is valid UTF-8 text, or the Path of a file, not 3$"):
        evaluate(word_model, 3, options)


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("last", [3, "3", (), [1.0], (-1,), (True,)])
def test_last_layers_that_are_no_numbers(last: Any) -> None:
    texts = Labelled(["a"], torch.tensor([0]), ["x", "y"])
    with pytest.raises(BuildError, match=r"^(last must be whole numbers, |each number of last must be )"):
        stitch("a", ["b"], texts, StitchOptions(last=last))


def test_stitch_takes_one_source(word_model: Path) -> None:
    """A text is one source, not a letter each."""
    texts = Labelled(["a"], torch.tensor([0]), ["x", "y"])
    with pytest.raises(BuildError, match=r"^there is no folder \./one-source$"):
        stitch(str(word_model), "./one-source", texts)
