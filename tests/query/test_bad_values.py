"""Whatever value is given to whichever argument of the public Python API, what comes out is an answer, or one of
paramdex's own errors: one line, not longer than a screen.

``pytest tests/query/test_bad_values.py`` tries some combinations, drawn anew each time (PARAMDEX_SEED=... draws the
same ones). PARAMDEX_BAD_VALUES=all tries each value in place of each argument, and as many draws of two arguments at a
time, in some minutes; a number tries that many.
"""

from __future__ import annotations

import inspect
import os
import random
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import paramdex
import paramdex_builder
import paramdex_schemas
from bad_values import VALUES
from paramdex import Atlas, AtlasError, ParamdexError, Result, TokenFilter
from paramdex_builder import EvaluateOptions, Options, Progress, StitchOptions
from paramdex_schemas import KINDS, Address, Kind, Layout, Run
from paramdex_schemas.foreign import reason

PARAMETER, HEAD, A, B = "gpt2-a/L0/ff_value/1", "gpt2-a/L0/H1", "gpt2-a", "bert"
DRAWN = 500
"""Combinations that are tried where nothing else is asked for."""
SECONDS = 20
"""A call that takes longer than this hangs."""
NO_ARGUMENTS = {"AddressError", "AtlasError", "BuildError", "CheckpointError", "FamilyError", "ParamdexError",
                "QueryError", "TokenError", "FORMAT_VERSION", "KINDS", "MATRICES", "TerminalProgress"}  # fmt: skip
"""Public names that take no arguments of their own: errors, which carry any, and constants."""


@dataclass(frozen=True)
class Target:
    """Something public that can be called, with arguments that it answers."""

    name: str
    call: Callable[..., Any]
    good: dict[str, Any]


@pytest.fixture(scope="module")
def moved(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Atlas]:
    """An atlas with nothing but a displacement."""
    path = tmp_path_factory.mktemp("moved") / "x.atlas"
    options = Options(top_k=5, pair_k=5, device="cpu", base=model_folders["gpt2-a"])
    paramdex_builder.build(f"moved={model_folders['gpt2-b']}", path, options)
    with paramdex.open(path) as atlas:
        yield atlas


def targets(atlas: Atlas, moved: Atlas, folder: Path) -> list[Target]:
    """Everything public. The builder is given a folder that holds no model, which is refused after all else is read."""
    lens = np.arange(24) - 3.0
    alignment, card = atlas.align(A, "gpt2-b"), atlas.show(PARAMETER)
    words, layout, where = {"k": 2, "model": A, "kind": "ff_value", "layer": 0}, atlas.models[A].layout, Address(A, 0)
    near = words | {"side": "top", "filter": TokenFilter(ascii=True)}
    run = layout.runs[0]
    (base,) = (each.row["base"] for each in moved.database.contents.manifests.values())
    found = {
        "open": (paramdex.open, {"path": atlas.path}),
        "Atlas": (Atlas, {"path": atlas.path}),
        "Atlas.owner": (atlas.owner, {"param_id": 1}),
        "Atlas.info": (atlas.info, {}),
        "Atlas.check": (lambda: None, {}),  # reads the whole atlas, and takes nothing
        "Atlas.close": (lambda: paramdex.open(atlas.path).close(), {}),
        "Atlas.fork": (lambda: atlas.fork().close(), {}),
        "Atlas.sql": (atlas.sql, {"query": "SELECT ? AS x", "values": [1]}),
        "Atlas.sql by name": (lambda x: atlas.sql("SELECT $x AS x", {"x": x}), {"x": 1}),
        "Atlas.sql of one value": (lambda x: atlas.sql("SELECT ?", [x]), {"x": 1}),
        "Atlas.show": (atlas.show, {"address": PARAMETER, "k": 2, "distinct": True, "filter": TokenFilter(ascii=True)}),
        "Atlas.show of a head": (atlas.show, {"address": HEAD, "k": 2, "distinct": True, "filter": None}),
        "Atlas.find": (atlas.find, {"tokens": "food", **words, "filter": TokenFilter(ascii=True)}),
        "Atlas.search": (atlas.search, {"words": ["food", "bread"], **near}),
        "Atlas.search_hits": (atlas.search_hits, {"words": "food", **words, "side": "both"}),
        "Atlas.similar": (atlas.similar, {"address": PARAMETER, **near}),
        "Atlas.similar of a head": (atlas.similar, {"address": HEAD, **near, "kind": "QK"}),
        "Atlas.similar_hits": (atlas.similar_hits, {"address": PARAMETER, **words, "side": "both"}),
        "Atlas.lens": (atlas.lens, {"vector": lens, **near, "row": None, "name": None, "reads": None}),
        "Atlas.lens of rows": (atlas.lens, {"vector": np.stack([lens, lens]), "model": A, "row": 1, "name": None}),
        "Atlas.directions": (atlas.directions, {"address": HEAD, "k": 2, "matrix": "QK", "filter": None}),
        "Atlas.heads": (
            atlas.heads,
            {"pairs": [("food", "bread")], "k": 2, "model": A, "matrix": "VO", "top": 2, "side": "top"},
        ),
        "Atlas.heads of one pair": (lambda x, y: atlas.heads([(x, y)], 2), {"x": "food", "y": "bread"}),
        "Atlas.diff": (
            moved.diff, {"base": base, "tuned": "moved", "k": 2, "kind": "ff_key", "layer": 0, "filter": None},
        ),
        "Atlas.align": (atlas.align, {"model_a": A, "model_b": B, "kind": "ff_key"}),
        "Atlas.match": (
            atlas.match,
            {"model_a": A, "model_b": B, "kind": "ff_key", "k": 2, "layer_a": 0, "layer_b": 1, "side": "top",
             "filter": None},
        ),
        "Atlas.address": (atlas.address, {"text": PARAMETER}),
        "TokenFilter": (
            lambda **fields: atlas.show(PARAMETER, 2, filter=TokenFilter(**fields)),
            {"ascii": True, "alnum": False, "word_starts": False, "words": ["food"], "no_undertrained": False,
             "no_identical": False, "no_same_word": False, "by": "token_z"},
        ),
        "Result": (Result, {"table": card.table, "title": "x", "notes": ["x"], "shown": card.table}),
        "Result.render": (card.render, {"output": "json"}),
        "Drawn.plot": (lambda path: card.plot(_beside(folder, path)), {"path": folder / "x.svg"}),
        "Alignment.scores": (alignment.scores, {"kind": "ff_key", "feature": True}),
        "Alignment.places": (alignment.places, {"kind": "ff_key", "side": "a"}),
        "Alignment.diagonality": (alignment.diagonality, {"kind": "ff_key", "feature": False}),
        "Address": (
            lambda **parts: atlas.show(Address(**parts)),
            {"model": A, "layer": 0, "head": None, "kind": "ff_value", "idx": 1, "stack": None, "expert": None},
        ),
        "Address.parse": (Address.parse, {"text": PARAMETER}),
        "Kind": (Kind, {name: getattr(KINDS["ff_value"], name) for name in inspect.signature(Kind).parameters}),
        "Run": (Run, {name: getattr(run, name) for name in inspect.signature(Run).parameters}),
        "Layout": (Layout, {"runs": layout.runs}),
        "Layout.of": (layout.of, {"kind": "ff_value"}),
        "Layout.places": (layout.places, {"kind": "ff_value"}),
        "Layout.row": (layout.row, {"address": Address(A, 0, kind="ff_value", idx=1)}),
        "Layout.head_row": (layout.head_row, {"address": Address(A, 0, 1)}),
        "Layout.check": (layout.check, {"address": where}),
        "Layout.n_layers": (layout.n_layers, {"stack": None}),
        "Layout.example": (layout.example, {"within": where}),
        "build": (
            paramdex_builder.build,
            {"sources": [folder], "output": folder / "x.atlas", "options": Options(), "progress": Progress()},
        ),
        "relate": (
            paramdex_builder.relate,
            {"atlas": folder, "models": ["x", "y"], "neighbor_k": 2, "device": "cpu", "progress": None},
        ),
        "evaluate": (
            paramdex_builder.evaluate,
            {"source": folder, "text": "x", "options": EvaluateOptions(), "progress": None},
        ),
        "stitch": (
            paramdex_builder.stitch,
            {"pretrained": folder, "tuned": [folder], "texts": None, "options": StitchOptions(), "progress": None},
        ),
        "Options": (lambda **fields: Options(**fields).check(), _fields(Options())),
        "EvaluateOptions": (lambda **fields: EvaluateOptions(**fields).check(), _fields(EvaluateOptions())),
        "StitchOptions": (lambda **fields: StitchOptions(**fields).check(), _fields(StitchOptions())),
        "Progress": (Progress, {}),
    }  # fmt: skip
    return [Target(name, *rest) for name, rest in found.items()]


def _fields(options: Any) -> dict[str, Any]:
    return dict(vars(options))


def _beside(folder: Path, path: Any) -> Any:
    """A path as it is, but for one that can be written: that is put into a folder of the test's own."""
    return folder / path if type(path) is str and path.isalnum() else path


@contextmanager
def in_time() -> Iterator[None]:
    def stop(_: int, __: FrameType | None) -> None:
        raise TimeoutError(f"it takes longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(target: Target, replaced: dict[str, str]) -> str | None:
    """What is wrong with how a target takes values (argument -> name of one of VALUES); None where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, that quantized tensors will be gone
        arguments = target.good | {name: VALUES[value]() for name, value in replaced.items()}
    said = ""
    try:
        with in_time(), warnings.catch_warnings():
            warnings.simplefilter("error")
            answer = target.call(**arguments)
            if isinstance(answer, Result) and target.name != "Result":
                str(answer)
    except ParamdexError as error:
        said = str(error)
        if len(said) > 2000:
            return f"a message of {len(said)} characters: {said[:100]!r}"
        lines = said.splitlines() if target.name.startswith("Atlas.sql") else [said]  # DuckDB points at its error
        if not all(line.isprintable() for line in lines):
            return f"a message that is no line that can be printed: {said[:100]!r}"
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  # DuckDB makes a KeyboardInterrupt of a signal
        return f"{type(error).__name__}: {reason(error)}"
    return None


def combinations(all_targets: list[Target], draw: random.Random, asked: str) -> list[tuple[Target, dict[str, str]]]:
    """The combinations to try: each one argument with each value, and as many of two arguments."""
    single = [(one, {name: value}) for one in all_targets for name in one.good for value in VALUES]
    several = [one for one in all_targets if len(one.good) > 1]
    double = []
    for _ in single:
        target = draw.choice(several)
        first, second = draw.sample(sorted(target.good), 2)
        double.append((target, {first: draw.choice(list(VALUES)), second: draw.choice(list(VALUES))}))
    every = [*single, *double]
    return every if asked == "all" else draw.sample(every, min(int(asked), len(every)))


@pytest.mark.timeout(0 if "PARAMDEX_BAD_VALUES" in os.environ else 600)
def test_only_errors_of_paramdex_come_out(
    atlas: Atlas, moved: Atlas, tmp_path: Path, draw: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    asked = os.environ.get("PARAMDEX_BAD_VALUES", str(DRAWN))
    tried = combinations(targets(atlas, moved, tmp_path), draw, asked)
    wrong = []
    for target, replaced in tried:
        found = outcome(target, replaced)
        if found is not None:
            wrong.append(f"{target.name}({', '.join(f'{name}={value}' for name, value in replaced.items())}): {found}")
            print(wrong[-1], flush=True)
    assert not wrong, f"{len(wrong)} of {len(tried)}:\n" + "\n".join(wrong[:50])


def test_everything_public_is_tried(atlas: Atlas, moved: Atlas, tmp_path: Path) -> None:
    tried = {each.name.partition(" ")[0] for each in targets(atlas, moved, tmp_path)} | NO_ARGUMENTS
    public = {*paramdex.__all__, *paramdex_schemas.__all__, *paramdex_builder.__all__}
    assert public - tried == set()
    methods = {f"Atlas.{name}" for name, each in vars(Atlas).items() if inspect.isfunction(each) and name[0] != "_"}
    assert methods - tried == set()


def test_good_arguments_are_answered(atlas: Atlas, moved: Atlas, tmp_path: Path) -> None:
    """A value that is replaced is one that would have been taken."""
    refused = {"build", "relate", "evaluate", "stitch"}  # they would work for long
    for target in targets(atlas, moved, tmp_path):
        if target.name not in refused:
            target.call(**target.good)


def test_a_closed_atlas_raises_errors_of_paramdex(small_atlas: Path, moved: Atlas, tmp_path: Path) -> None:
    atlas = paramdex.open(small_atlas)
    those = targets(atlas, moved, tmp_path)
    fork = atlas.fork()
    atlas.close()
    of_database = {"Atlas.fork", "Atlas.sql", "Atlas.show", "Atlas.find", "Atlas.similar", "Atlas.directions"}
    for target in those:
        if target.name in of_database:
            with pytest.raises(AtlasError, match="has been closed"):
                target.call(**target.good)
    with pytest.raises(AtlasError, match="has been closed"):
        fork.show(PARAMETER)
