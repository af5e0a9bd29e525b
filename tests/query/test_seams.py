"""What a stranger adds to paramdex without changing it, each as short as it can be: a verb, and a vector store.

The vector store is tried as a package too, of which the explorer's processes and the command line know.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

import paramdex
from opened import list_anew
from paramdex.result import Result
from paramdex.store.nearest import Ids, Rows
from paramdex.store.store import Store
from paramdex.store.vectors import OPENERS, Vectors
from paramdex_schemas import atlas_files, vector_files
from paramdex_schemas.model import Span
from web_helpers import data, server

# ---- a verb: a function of a store that gives a result


def loudest(store: Store, model: str | None = None, kind: str = "ff_value", k: int = 5) -> Result:
    """The k parameters of a kind with the largest norms, each with its strongest token."""
    scope = store.scope(model, kind)
    found = []
    for each in scope.models:
        rows = store.database.of(each).rows(
            "SELECT norm, path, top_tokens[1] FROM store.parameters WHERE kind = ? "
            "ORDER BY norm DESC, param_id LIMIT ?",
            [kind, k],
        )
        says = store.database.texts(each.vocabulary, [token for _, _, token in rows])
        found += [(norm, f"{each.name}/{path}", text) for (norm, path, _), text in zip(rows, says, strict=True)]
    found.sort(key=lambda row: -row[0])
    norms, addresses, says = zip(*found[:k], strict=True)
    return Result(pa.table({"address": addresses, "norm": norms, "says": says}), f"the loudest of {kind}")


def test_a_verb_of_ones_own_asks_an_open_atlas(atlas: paramdex.Atlas) -> None:
    found = loudest(atlas, "bert", k=3)
    want = atlas.sql("SELECT address FROM parameters WHERE model = 'bert' AND kind = 'ff_value' ORDER BY norm DESC")
    assert [row["address"] for row in found] == [row["address"] for row in want][:3]
    for row in found:
        assert row["says"] == atlas.show(row["address"], 1).to_rows()[0]["text"]
    assert str(found).startswith("the loudest of ff_value\naddress")
    assert len(loudest(atlas)) == 5


def test_its_scope_is_checked_as_that_of_any_verb(atlas: paramdex.Atlas) -> None:
    with pytest.raises(paramdex.QueryError, match="did you mean ff_value"):
        loudest(atlas, kind="ff_valu")
    with pytest.raises(paramdex.AddressError, match="no model 'bertt'; did you mean bert"):
        loudest(atlas, "bertt")


# ---- a vector store: rows that can be searched, and what opens them


@dataclass(frozen=True)
class Mapped:
    """The rows of a kind in a .npy file, mapped into memory. Every row is a candidate: ``nearest`` ranks them all."""

    rows: npt.NDArray[np.float32]

    @property
    def ntotal(self) -> int:
        return len(self.rows)

    def reconstruct_n(self, first: int, n: int) -> npt.NDArray[np.float32]:
        return self.rows[first : first + n]

    def reconstruct_batch(self, ids: Ids) -> npt.NDArray[np.float32]:
        return self.rows[ids]

    def candidates(self, query: npt.NDArray[np.floating], k: int, span: Span) -> Ids:  # noqa: ARG002
        return np.arange(*span)


def open_npy(vectors: Vectors, model: str, kind: str) -> Rows:
    return Mapped(np.load(vectors.file(model, f"{kind}.npy"), mmap_mode="r"))


@pytest.fixture
def npy_atlas(small_atlas: Path, tmp_path: Path) -> Path:
    """The shared atlas with bert's ff_value in a .npy file, and in no other."""
    atlas = shutil.copytree(small_atlas, tmp_path / "npy.atlas")
    folder = atlas_files.model_folder(atlas, "bert")
    flat = folder / vector_files.index_name("ff_value")
    file = folder / "ff_value.npy"
    np.save(file, vector_files.load_rows(flat))
    flat.unlink()
    list_anew(atlas, "bert")
    return atlas


def test_a_vector_store_of_ones_own_answers_similar(
    npy_atlas: Path, atlas: paramdex.Atlas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPENERS, ".npy", open_npy)
    with paramdex.open(npy_atlas) as own:
        for asked in ({}, {"side": "both"}, {"kind": "ff_key"}, {"layer": 1}):
            address = "bert/L0/ff_value/3"
            assert own.similar(address, 7, **asked).to_rows() == atlas.similar(address, 7, **asked).to_rows()
        assert isinstance(own.vectors.index("bert", "ff_value"), Mapped)
        assert not isinstance(own.vectors.index("bert", "ff_key"), Mapped)
        assert own.search("canada", model="bert").to_rows() == atlas.search("canada", model="bert").to_rows()


def test_its_files_are_checked_as_all_others(npy_atlas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPENERS, ".npy", open_npy)
    with (atlas_files.model_folder(npy_atlas, "bert") / "ff_value.npy").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\x00\x00\x80\x3f")
    with paramdex.open(npy_atlas) as own, pytest.raises(paramdex.AtlasError, match=r"ff_value\.npy is not what was"):
        own.similar("bert/L0/ff_value/3")


THEIRS = """
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mapped:
    rows: np.ndarray

    @property
    def ntotal(self):
        return len(self.rows)

    def reconstruct_n(self, first, n):
        return self.rows[first : first + n]

    def reconstruct_batch(self, ids):
        return self.rows[ids]

    def candidates(self, query, k, span):
        return np.arange(*span)


def open_npy(vectors, model, kind):
    return Mapped(np.load(vectors.file(model, f"{kind}.npy"), mmap_mode="r"))


number = 7
"""
"""The module of a package that brings the store above."""


def install(folder: Path, package: str, value: str, code: str = THEIRS) -> None:
    """A package of one module, with the metadata that pip writes for it; ``value`` is what its entry point names."""
    (folder / f"{package}.py").write_text(code)
    metadata = folder / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[paramdex.vectors]\n.npy = {value}\n")


def python_path(folder: Path) -> str:
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)


def test_a_package_brings_one_to_every_process_of_the_explorer(
    npy_atlas: Path, atlas: paramdex.Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    install(packages, "their_vectors", "their_vectors:open_npy")
    monkeypatch.setenv("PYTHONPATH", python_path(packages))
    monkeypatch.syspath_prepend(packages)
    address = "bert/L0/ff_value/3"
    with server(npy_atlas) as client:
        found = data(client, "/similar.json", address=address, k=7)
        assert [row["address"] for row in found["rows"]] == [row["address"] for row in atlas.similar(address, 7)]
        assert data(client, "/search.json", q="canada", model="bert")["rows"]
        assert data(client, "/align/bert/gpt2-a.json")["maps"]
        assert data(client, f"/{address}.json")["address"] == address


BROKEN = {
    "imports what is missing": (
        "import no_such_module",
        "their_vectors:open_npy",
        "the vector store .npy cannot be loaded from their_vectors:open_npy: ModuleNotFoundError: ",
    ),
    "is something else": (
        THEIRS,
        "their_vectors:number",
        "the vector store .npy cannot be used: their_vectors:number is of the type int, not a function; ",
    ),
    "names no module": (THEIRS, "", "the vector store .npy cannot be loaded from : "),
}
"""Code of the package, what its entry point names, what is said."""


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_one_is_one_line(npy_atlas: Path, tmp_path: Path, case: str) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    code, value, message = BROKEN[case]
    install(packages, "their_vectors", value, code)
    command = [sys.executable, "-m", "paramdex", "similar", str(npy_atlas), "bert/L0/ff_value/3"]
    environment = {**os.environ, "PYTHONPATH": python_path(packages)}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert ran.stderr.startswith(f"error: {message}")
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
