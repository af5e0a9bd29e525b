"""What an atlas says of itself in small files: nothing is lost on the way, and no damage goes unseen."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramdex_schemas import FORMAT_VERSION, AtlasError, Layout, Run
from paramdex_schemas.contents import (
    STRIDE,
    Contents,
    Index,
    Manifest,
    Relation,
    listed,
    read_contents,
    read_index,
    sealed,
    unsealed,
)

ROW = {
    "vocabulary": "words", "vocabulary_size": 60, "embedding": "output", "reading": "embedding", "top_k": 6,
    "source": 'C:\\models\\"mine", é', "revision": None, "stacks": ["encoder", "decoder"], "embedding_condition": 0.1,
    "gated": True, "built_at": datetime.fromisoformat("2026-02-03T04:05:06"),
}  # fmt: skip
LAYOUT = Layout.number(
    [
        Run("ff_value", None, 0, None, 1, 12, 1),
        Run("ff_key", "decoder", 1, "expert", 3, 4, 2, space="reading"),
        Run("position", None, None, None, 1, 5, 1, space="input"),
    ]
)
FILES = {"tables.duckdb": (3, "0" * 64), "ff_value.faiss": (1 << 40, "f" * 64)}


def manifest(name: str) -> Manifest:
    return Manifest(f"uid-{name}", ROW | {"model": name}, LAYOUT, FILES, {"models": 1, "parameters": 29})


def relation(a: str, b: str) -> Relation:
    return Relation(f"uid-{a}", f"uid-{b}", 58, True, {"tables.duckdb": (7, "a" * 64)}, {"neighbors": 12})


def write(atlas: Path, folders: dict[str, str], pairs: list[tuple[str, str]]) -> Path:
    """An atlas of the small files alone: models by name with their folders, and those that are related."""
    atlas.mkdir()
    (atlas / "atlas.json").write_text(Index(folders).text("paramdex 1"), "utf-8")
    for name, folder in folders.items():
        place = atlas / "models" / folder
        place.mkdir(parents=True)
        (place / "manifest.json").write_text(manifest(name).text(), "utf-8")
    for pair in pairs:
        place = atlas / "relations" / relation(*pair).folder
        place.mkdir(parents=True)
        (place / "manifest.json").write_text(relation(*pair).text(), "utf-8")
    return atlas


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    """Three models, the second in a folder of another name; the third is related to both."""
    return write(
        tmp_path / "x.atlas", {"one": "one", "two": "old name", "three": "three"}, [("two", "three"), ("one", "three")]
    )


# ---- seals


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 60), 1 << 60) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), values, min_size=1, max_size=4))
def test_what_is_sealed_comes_back(tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any]) -> None:
    file = tmp_path_factory.getbasetemp() / "sealed.json"
    file.write_bytes(sealed(data).encode())
    assert unsealed(file, "sealed.json") == data


@pytest.mark.parametrize("text", [Index({"é": "e"}).text("p"), manifest("one").text(), relation("a", "b").text()])
def test_any_flipped_byte_is_found(tmp_path: Path, text: str) -> None:
    """Each bit of each byte; and each byte that is left out, put in, or cut off with what follows."""
    file, data = tmp_path / "x.json", text.encode()

    def damaged(raw: bytes) -> bool:
        file.write_bytes(raw)
        try:
            unsealed(file, "x.json")
        except AtlasError as error:
            return (
                str(error)
                == f"{tmp_path} is damaged: x.json is not what was written; copy the atlas again or rebuild it"
            )
        return False

    assert not damaged(data)
    for i in range(len(data)):
        bit = 1 << i % 8
        assert damaged(data[:i] + bytes([data[i] ^ bit]) + data[i + 1 :])
        assert damaged(data[:i] + data[i + 1 :])
        assert damaged(data[:i] + b" " + data[i:])
        assert damaged(data[:i])
    assert damaged(data + b"\n")
    assert damaged(data + data)
    assert damaged(data.replace(b"\n", b"\r\n"))


@pytest.mark.parametrize(
    ("file", "where"),
    [
        ("atlas.json", "atlas.json"),
        ("models/old name/manifest.json", "models/old name/manifest.json"),
    ],
)
@pytest.mark.parametrize("damage", ["flipped", "missing", "folder"])
def test_a_damaged_file_is_named(atlas: Path, file: str, where: str, damage: str) -> None:
    path = atlas / file
    data = bytearray(path.read_bytes())
    path.unlink()
    if damage == "flipped":
        data[10] ^= 4
        path.write_bytes(data)
    elif damage == "folder":
        path.mkdir()
    with pytest.raises(AtlasError) as caught:
        read_contents(atlas)
    what = {"flipped": "is not what was written", "missing": "is missing", "folder": "Is a directory"}[damage]
    said = str(caught.value)
    if file == "atlas.json" and damage != "flipped":
        assert (
            said == f"{atlas} is not an atlas: it holds no atlas.json; make one with: paramdex build MODEL -o {atlas}"
        )
    else:
        assert said.startswith(f"{atlas} ")
        assert f"{where}" in said
        assert what in said
    assert "\n" not in said


def test_a_damaged_relation_is_found_when_it_is_asked_for(atlas: Path) -> None:
    """Opening an atlas reads none of them: there are as many as pairs of models."""
    file = atlas / "relations" / "uid-two~uid-three" / "manifest.json"
    file.write_bytes(file.read_bytes().replace(b"58", b"59"))
    contents = read_contents(atlas)
    assert contents.about("one", "three") == relation("one", "three")
    message = f"^{atlas} is damaged: relations/uid-two~uid-three/manifest.json is not what was written"
    with pytest.raises(AtlasError, match=message):
        contents.about("three", "two")


# ---- round trips


def test_index(tmp_path: Path) -> None:
    index = Index({"b": "b", "a": "other", "é+1": "a"})
    (tmp_path / "atlas.json").write_text(index.text("paramdex 1.2"), "utf-8")
    assert read_index(tmp_path) == index
    assert list(read_index(tmp_path).models) == ["b", "a", "é+1"]  # in the order in which they were added
    found = json.loads((tmp_path / "atlas.json").read_text("utf-8"))
    assert found["format_version"] == FORMAT_VERSION
    assert found["created_by"] == "paramdex 1.2"


def test_manifest(tmp_path: Path) -> None:
    """Of every column the value and its type, and the layout with all that its runs have."""
    one = manifest("one")
    (tmp_path / "manifest.json").write_text(one.text(), "utf-8")
    found = Manifest.read(tmp_path, "manifest.json")
    assert found == one
    assert [type(value) for value in found.row.values()] == [type(value) for value in one.row.values()]
    assert found.layout.runs == LAYOUT.runs
    assert found.layout.n_parameters == 12 + 12 + 5


def test_relation(tmp_path: Path) -> None:
    one = relation("a", "b")
    (tmp_path / "manifest.json").write_text(one.text(), "utf-8")
    assert Relation.read(tmp_path, "manifest.json") == one
    assert one.folder == "uid-a~uid-b"


def test_files_are_listed_with_their_size_and_hash(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"abc")
    (tmp_path / "a").write_bytes(b"")
    assert listed(tmp_path, ["b", "a"]) == {
        "a": (0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        "b": (3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
    }


# ---- what an atlas holds


def test_models_are_numbered_in_their_order(atlas: Path) -> None:
    contents = read_contents(atlas)
    assert list(contents.models) == ["one", "two", "three"]
    assert contents.manifests == {name: manifest(name) for name in contents.models}
    assert [model.model_id for model in contents.numbered] == [0, 1, 2]
    for number, model in enumerate(contents.numbered):
        assert (model.first_param_id, model.first_head_id) == (number * STRIDE, number * STRIDE)
        assert model.span == (number * STRIDE, number * STRIDE + 29)
        assert (model.vocabulary, model.vocabulary_size, model.top_k) == ("words", 60, 6)
        assert model.layout == LAYOUT
    assert contents.folder("two") == Path("models/old name")
    assert contents.names == {"uid-one": "one", "uid-two": "two", "uid-three": "three"}
    assert STRIDE == 2**32


def test_relations_are_found_whichever_model_is_first(atlas: Path) -> None:
    contents = read_contents(atlas)
    for one, other in (("two", "three"), ("three", "two")):
        assert contents.relation(one, other) == Path("relations/uid-two~uid-three")
        assert contents.about(one, other) == relation("two", "three")
    assert contents.is_first("two", "three")
    assert not contents.is_first("three", "two")
    assert contents.relation("one", "two") is None
    assert contents.about("one", "two") is None


def test_relations_come_in_the_order_of_the_models(tmp_path: Path) -> None:
    """By the later of the two models, then by the earlier, whatever order the file system has; a relation says itself
    which of them is a.
    """
    names = ["d", "a", "c", "b"]
    pairs = [("b", "c"), ("d", "b"), ("a", "d"), ("c", "a"), ("b", "a"), ("d", "c")]
    atlas = write(tmp_path / "x.atlas", {name: name for name in names}, pairs)
    related = [("a", "d"), ("d", "c"), ("c", "a"), ("d", "b"), ("b", "a"), ("b", "c")]
    assert read_contents(atlas).related == tuple((f"uid-{a}", f"uid-{b}") for a, b in related)


@pytest.mark.parametrize("name", ["uid-one~uid-gone", "uid-gone~uid-two", "uid-one", "uid-one~uid-two~uid-three", ".x"])
def test_folders_that_name_no_two_models_are_none(atlas: Path, name: str) -> None:
    """Those that an interrupted command left, or of models that are gone."""
    before = read_contents(atlas)
    shutil.copytree(atlas / "relations" / "uid-one~uid-three", atlas / "relations" / name)
    (atlas / "models" / "left").mkdir()
    assert read_contents(atlas) == before


def test_an_atlas_without_relations(tmp_path: Path) -> None:
    contents = read_contents(write(tmp_path / "x.atlas", {"one": "one"}, []))
    assert contents.related == ()
    assert contents.relation("one", "one") is None
    assert Contents(tmp_path).models == {}


def test_a_folder_of_another_model_is_damage(atlas: Path) -> None:
    """Two folders that changed places: each is whole, and what atlas.json says of them is not true."""
    shutil.copy(atlas / "models" / "one" / "manifest.json", atlas / "models" / "three" / "manifest.json")
    with pytest.raises(AtlasError, match=r"is damaged: models/three/manifest.json is not what was written"):
        read_contents(atlas)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (
            FORMAT_VERSION - 1,
            f"has format {FORMAT_VERSION - 1}, this paramdex reads format {FORMAT_VERSION}; build it again",
        ),
        (FORMAT_VERSION + 1, f"has format {FORMAT_VERSION + 1}, .* install a newer one with: pip install -U paramdex"),
        (None, "has format None, this paramdex reads format"),
        ("8", "has format 8, this paramdex reads format 8; install a newer one"),
    ],
)
def test_other_formats(tmp_path: Path, version: object, message: str) -> None:
    (tmp_path / "atlas.json").write_text(sealed({"format_version": version, "models": "of another shape"}))
    with pytest.raises(AtlasError, match=f"^{tmp_path} {message}"):
        read_index(tmp_path)


@pytest.mark.parametrize("what", ["nothing", "file", "folder", "old"])
def test_what_is_no_atlas(tmp_path: Path, what: str) -> None:
    path = tmp_path / "x.atlas"
    if what == "file":
        path.write_text("")
    elif what != "nothing":
        path.mkdir()
    if what == "old":
        (path / "atlas.duckdb").write_text("")
    message = {
        "nothing": f"{path} is not an atlas: there is no such folder; make one with: paramdex build MODEL -o {path}",
        "file": f"{path} is not an atlas: it is a file; give the folder that holds atlas.json",
        "folder": f"{path} is not an atlas: it holds no atlas.json; make one with: paramdex build MODEL -o {path}",
        "old": f"{path} has an older format, this paramdex reads format {FORMAT_VERSION}; build it again",
    }[what]
    with pytest.raises(AtlasError) as caught:
        read_contents(path)
    assert str(caught.value) == message


def test_contents_compare_by_what_they_hold(atlas: Path) -> None:
    contents = read_contents(atlas)
    assert contents == read_contents(atlas)
    assert contents != replace(contents, related=())
