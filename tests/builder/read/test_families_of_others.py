"""Families that other distributions bring by an entry point: they are read as ours are, and cannot take their place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import models
from opened import opened
from paramdex_builder import Options, build
from paramdex_builder.read.families import by_model_type, families
from paramdex_schemas import FamilyError

OPTIONS = Options(top_k=5, pair_k=5, neighbor_k=1, directions_k=2, device="cpu")
THEIRS: dict[str, Any] = {
    "family": "theirs",
    "about": "A GPT-2 whose layers have other names",
    "like": "gpt2",
    "model_types": ["theirs"],
    "config": {
        "n_layers": "n_layer",
        "d_model": "n_embd",
        "n_heads": "n_head",
        "n_kv_heads": "n_head",
        "d_ff": {"product": [4, "n_embd"]},
    },
    "layer": "blocks.{layer}.",
}
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution with family files on Python's path, as pip would."""

    def put(name: str, files: dict[str, Any], value: str | None = None) -> None:
        site, package = tmp_path / name, f"{name.replace('-', '_')}_families"
        info = site / f"{name.replace('-', '_')}-1.0.dist-info"
        for folder in (site / package, info):
            folder.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[paramdex.families]\nall = {value or package}\n")
        for file, data in files.items():
            (site / package / file).write_text(data if isinstance(data, str) else json.dumps(data))
        monkeypatch.syspath_prepend(site)
        families.cache_clear()

    families.cache_clear()
    yield put
    families.cache_clear()


def renamed(folder: Path) -> None:
    """Make a GPT-2 one of a type that nobody knows, with layers of another name."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file({name.replace("h.", "blocks.", 1): tensor.clone() for name, tensor in tensors.items()}, file)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "theirs"}))


def rows(atlas: Path) -> list[tuple[Any, ...]]:
    with opened(atlas) as connection:
        return connection.execute("SELECT * EXCLUDE (path) FROM store.parameters ORDER BY param_id").fetchall()


def test_a_model_of_an_invented_type_is_built(word_model: Path, tmp_path: Path, install: Install) -> None:
    """With the rows that the same weights have under the names of GPT-2."""
    expected = rows(build(f"m={word_model}", tmp_path / "ours.atlas", OPTIONS))
    renamed(word_model)
    with pytest.raises(FamilyError, match="models of type 'theirs' are not supported"):
        build(f"m={word_model}", tmp_path / "theirs.atlas", OPTIONS)
    install("their-models", {"theirs.json": THEIRS})
    atlas = build(f"m={word_model}", tmp_path / "theirs.atlas", OPTIONS)
    assert rows(atlas) == expected
    with opened(atlas) as connection:
        found = connection.execute("SELECT family, family_inferred, model_type FROM store.models").fetchall()
    assert found == [("theirs", False, "theirs")]


def test_a_file_may_be_like_one_beside_it(install: Install) -> None:
    more = {"family": "more", "about": "More of it", "model_types": ["more"], "like": "theirs"}
    install("their-models", {"theirs.json": THEIRS, "more.json": more, "notes.txt": "no family"})
    assert by_model_type()["more"].stacks == by_model_type()["theirs"].stacks
    assert by_model_type()["more"].distribution == "their-models"
    assert {family.distribution for family in families().values()} == {"paramdex", "their-models"}


BROKEN: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "no JSON": ({"x.json": "{"}, None, r"their-models: x\.json is not a family file: "),
    "a list": ({"x.json": []}, None, r"their-models: x\.json is not a family file: it holds no object"),
    "an unknown key": ({"x.json": THEIRS | {"colour": 1}}, None, r"their-models: x\.json: unknown keys \['colour'\]"),
    "keys of another sort": ({"x.json": THEIRS | {"config": 7}}, None, r"their-models: x\.json is not a family file: "),
    "like nothing": (
        {"x.json": THEIRS | {"like": "gtp2"}},
        None,
        r"their-models: x\.json is like 'gtp2'; did you mean gpt2",
    ),
    "like itself": ({"x.json": THEIRS | {"like": "x"}}, None, r"their-models: x\.json is like 'x', which is like it"),
    "our model type": (
        {"x.json": THEIRS | {"model_types": ["theirs", "gpt2"]}},
        None,
        r"their-models: x\.json: gpt2\.json of paramdex is of the model type 'gpt2' already",
    ),
    "our family": (
        {"x.json": THEIRS | {"family": "gpt2"}},
        None,
        r"their-models: x\.json: gpt2\.json of paramdex is of the family 'gpt2' already",
    ),
    "no package": (
        {},
        "their_absent",
        r"their-models: their_absent, an entry point of paramdex\.families, is not a pack",
    ),
    "a module": ({}, "json.decoder", r"their-models: json\.decoder, an entry point of paramdex\.families, "),
    "an object": (
        {},
        "json:loads",
        r"their-models: json:loads, an entry point of paramdex\.families, is something wit",
    ),
    "no files": ({"x.txt": "x"}, None, r"their-models: their_models_families, an entry point .* has no JSON files"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_broken_is_one_line_that_names_its_distribution(
    word_model: Path, tmp_path: Path, install: Install, broken: str
) -> None:
    files, value, message = BROKEN[broken]
    install("their-models", files, value)
    with pytest.raises(FamilyError, match=f"^{message}") as raised:
        build(str(word_model), tmp_path / "x.atlas", OPTIONS)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "x.atlas").exists()


def test_two_distributions_with_one_type_are_refused(install: Install) -> None:
    install("one", {"theirs.json": THEIRS})
    install("two", {"others.json": THEIRS | {"family": "others"}})
    message = r"^two: others\.json: one: theirs\.json is of the model type 'theirs' already"
    with pytest.raises(FamilyError, match=message):
        families()


def test_a_model_that_fits_both_is_read_by_ours(tmp_path: Path, install: Install) -> None:
    """Where no family lists its type."""
    folder = models.save_word_model(tmp_path / "words")
    usual = {"num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 2}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "unlisted"} | usual))
    install("their-models", {"aaa.json": THEIRS | {"family": "aaa", "layer": "h.{layer}."}})
    atlas = build(f"m={folder}", tmp_path / "x.atlas", OPTIONS)
    with opened(atlas) as connection:
        assert connection.execute("SELECT family FROM store.models").fetchall() == [("gpt2",)]
