"""Outputs that cannot be written, and options that cannot be met: one clear line, and nothing half-written."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import tempfile
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import duckdb
import pytest
import torch

import models
from opened import names, opened
from paramdex_builder import Options, build
from paramdex_schemas import FORMAT_VERSION, AtlasError, BuildError, CheckpointError, ParamdexError
from paramdex_schemas.contents import sealed, unsealed

OPTIONS = Options(top_k=3, pair_k=3, neighbor_k=1, device="cpu")


def refuse(model: Path, output: Path, error: type[ParamdexError], message: str, options: Options = OPTIONS) -> None:
    """build() raises exactly ``error`` with ``message`` in one line, and leaves the output's folder as it was."""
    before = sorted(output.parent.iterdir()) if output.parent.is_dir() else None
    with pytest.raises(error, match=message) as caught:
        build([str(model)], output, options)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert (sorted(output.parent.iterdir()) if output.parent.is_dir() else None) == before


def test_missing_parent_folder(word_model: Path, tmp_path: Path) -> None:
    parent = tmp_path / "a" / "b"
    refuse(word_model, parent / "x.atlas", BuildError, f"there is no folder {parent} to put x.atlas in; make it first")
    assert not (tmp_path / "a").exists()


def test_parent_is_a_file(word_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refuse(word_model, tmp_path / "file" / "x.atlas", BuildError, "there is no folder .*file to put x.atlas in")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can play another user")
def test_no_permission_as_another_user(word_model: Path) -> None:
    """A folder that belongs to root, built into as nobody."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(word_model, folder / "model")
        locked = folder / "locked"
        locked.mkdir()
        folder.chmod(0o755)
        locked.chmod(0o755)
        for file in (folder / "model").iterdir():
            file.chmod(0o644)
        os.seteuid(65534)
        try:
            refuse(
                folder / "model", locked / "x.atlas", BuildError, f"no permission to write at {locked}; give another"
            )
        finally:
            os.seteuid(0)
        assert list(locked.iterdir()) == []
        locked.chmod(0o777)
        (folder / "model" / "model.safetensors").chmod(0o600)
        os.seteuid(65534)
        try:
            refuse(
                folder / "model",
                locked / "x.atlas",
                CheckpointError,
                "model.safetensors cannot be read .Permission denied",
            )
        finally:
            os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(word_model: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    try:
        refuse(word_model, locked / "x.atlas", BuildError, f"no permission to write at {locked}; give another")
    finally:
        locked.chmod(0o755)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="this system has no /proc")
def test_folder_that_takes_no_files(word_model: Path) -> None:
    with pytest.raises(
        BuildError, match=r"^(the build needs about|cannot write|no permission to write at)[^\n]*/proc[^\n]*$"
    ):
        build([str(word_model)], "/proc/x.atlas", OPTIONS)
    assert not Path("/proc/x.atlas").exists()


def test_too_little_space_is_seen_beforehand(word_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(total=1 << 30, used=(1 << 30) - 1000, free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    refuse(
        word_model,
        tmp_path / "x.atlas",
        BuildError,
        r"the build needs about \d+ (KiB|MiB) at .*, only 1000 bytes are free",
    )


def test_space_runs_out_on_the_way(word_model: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished work is kept, no atlas appears; with more space, the same command ends well."""
    monkeypatch.setattr(import_module("paramdex_builder.build"), "check_space", lambda *_: None)
    subprocess.run(["mount", "-o", "remount,size=300k", str(disk)], check=True)
    atlas = disk / "x.atlas"
    with pytest.raises(BuildError, match=f"^no space left at {disk}; free some and run the same command again[^\n]*$"):
        build([str(word_model)], atlas, OPTIONS)
    assert [path.name for path in disk.iterdir()] == ["x.atlas.building"]
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    build([str(word_model)], atlas, OPTIONS)
    with opened(atlas) as connection:
        assert connection.execute("SELECT count(rank) FROM parameter_tokens").fetchall() == [(624 * 6,)]
    assert [path.name for path in disk.iterdir()] == ["x.atlas"]


@pytest.mark.parametrize("late", [1, 2, 3, 4, 5, 12])
def test_an_error_of_fsync_fails_the_build(
    word_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: int
) -> None:
    """The ``late``-th call from the last one fails, while a second model is added. Only the last two come after the
    index is renamed: before, the atlas holds what it held. The same command ends well then.
    """
    atlas = tmp_path / "x.atlas"
    both = [f"first={word_model}", f"second={word_model}"]
    build(both[:1], atlas, OPTIONS)
    shutil.copytree(atlas, tmp_path / "copy.atlas")
    calls, fsync = 0, os.fsync

    def count(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(errno.EIO, "Input/output error")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", count)
    failing = 0
    build(both, tmp_path / "copy.atlas", OPTIONS)
    failing, calls = calls - late + 1, 0
    with pytest.raises(BuildError, match=f"^cannot write {atlas}: Input/output error$"):
        build(both, atlas, OPTIONS)
    assert names(atlas) == ["first", "second"][: 2 if late <= 2 else 1]
    build(both, atlas, OPTIONS)
    assert names(atlas) == ["first", "second"]
    with opened(atlas) as connection:
        assert connection.execute("SELECT model FROM models ORDER BY model").fetchall() == [("first",), ("second",)]
    assert sorted(path.name for path in (atlas / "models").iterdir()) == ["first", "second"]
    assert len([*(atlas / "relations").iterdir()]) == 1
    assert sorted(path.name for path in tmp_path.iterdir() if "building" in path.name) == []


def test_a_file_system_without_fsync(word_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some have none for folders."""
    fsync = os.fsync

    def of_files(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", of_files)
    assert build([str(word_model)], tmp_path / "x.atlas", OPTIONS).is_dir()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            duckdb.TransactionException("Failed to commit: Could not write file: No space left on device"),
            "^no space left at {folder}; free some and run the same command again",
        ),
        (duckdb.ConstraintException("what nobody thought of"), "^cannot write {folder}/x.atlas: what nobody thought"),
    ],
)
def test_what_the_database_refuses_is_one_line(
    word_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: duckdb.Error, message: str
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(import_module("paramdex_builder.publish.publish"), "insert_heads", refuse)
    with pytest.raises(BuildError, match=message.format(folder=tmp_path)):
        build([str(word_model)], tmp_path / "x.atlas", OPTIONS)


@pytest.mark.parametrize("what", ["folder", "empty folder", "file"])
def test_output_that_is_no_atlas(word_model: Path, tmp_path: Path, what: str) -> None:
    output = tmp_path / "x.atlas"
    if what == "file":
        output.write_text("precious")
    else:
        output.mkdir()
        if what == "folder":
            (output / "notes.txt").write_text("precious")
    refuse(word_model, output, AtlasError, f"{output} exists and is not an atlas; give another path with -o")
    assert output.is_dir() == (what != "file")


def test_atlas_of_an_older_format(word_model: Path, tmp_path: Path) -> None:
    """Before format 8 an atlas was one database."""
    output = tmp_path / "x.atlas"
    output.mkdir()
    (output / "atlas.duckdb").write_bytes(b"precious" * 1000)
    refuse(word_model, output, AtlasError, f"^{output} has an older format; build into a new atlas$")
    assert (output / "atlas.duckdb").read_bytes() == b"precious" * 1000


@pytest.mark.parametrize("text", ["", "{}", '{"models": []}', sealed({"format_version": 8, "models": []})[:-9]])
def test_index_of_something_else(word_model: Path, tmp_path: Path, text: str) -> None:
    output = tmp_path / "x.atlas"
    output.mkdir()
    (output / "atlas.json").write_text(text)
    refuse(word_model, output, AtlasError, f"^{output} is damaged: atlas.json is not what was written; copy the atlas")
    assert (output / "atlas.json").read_text() == text


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_manifest_that_is_damaged(word_model: Path, tmp_path: Path, damage: str) -> None:
    atlas = build([f"one={word_model}"], tmp_path / "x.atlas", OPTIONS)
    manifest = atlas / "models" / "one" / "manifest.json"
    data = bytearray(manifest.read_bytes())
    data[len(data) // 2] ^= 1
    manifest.write_bytes(data) if damage == "flipped" else manifest.unlink()
    what = {"flipped": "is not what was written", "missing": "is missing"}[damage]
    refuse(word_model, atlas, AtlasError, f"^{atlas} is damaged: models/one/manifest.json {what}; copy the atlas again")


@pytest.mark.parametrize(("difference", "what"), [(1, "install a newer one with: pip"), (-1, "build it again")])
def test_atlas_of_another_format(word_model: Path, tmp_path: Path, difference: int, what: str) -> None:
    atlas = build([str(word_model)], tmp_path / "x.atlas", OPTIONS)
    index = unsealed(atlas / "atlas.json", "atlas.json")
    text = sealed(index | {"format_version": FORMAT_VERSION + difference})
    (atlas / "atlas.json").write_text(text)
    other = models.save_word_model(tmp_path / "other", 5)
    message = f"^{atlas} has format {FORMAT_VERSION + difference}, this paramdex reads format {FORMAT_VERSION}; {what}"
    refuse(other, atlas, AtlasError, message)
    assert (atlas / "atlas.json").read_text() == text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k must be from 1 to 1,000, not 0"),
        ({"top_k": 1001}, "top_k must be from 1 to 1,000, not 1001"),
        ({"pair_k": -5}, "pair_k must be from 1 to 10,000, not -5"),
        ({"pair_k": 40_000}, "pair_k must be from 1 to 10,000, not 40000"),
        ({"neighbor_k": 0}, "neighbor_k must be from 1 to 1,000, not 0"),
        ({"device": "nonsense"}, "device 'nonsense' cannot be used here .*; try --device cpu"),
        ({"device": "cpu:x"}, "device 'cpu:x' cannot be used here .*; try --device cpu"),
        ({"device": ""}, "device '' cannot be used here .*; try --device cpu"),
    ],
)
def test_options(word_model: Path, tmp_path: Path, options: dict, message: str) -> None:
    refuse(word_model, tmp_path / "x.atlas", BuildError, message, Options(**options))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_gpu_where_there_is_none(word_model: Path, tmp_path: Path, device: str) -> None:
    message = f"device '{device}' cannot be used here .*; try --device cpu"
    refuse(word_model, tmp_path / "x.atlas", BuildError, message, Options(device=device))


def test_lists_longer_than_the_vocabulary(word_model: Path, tmp_path: Path) -> None:
    """All 60 tokens and all 3600 pairs are kept, each once, and no more."""
    atlas = build(
        [str(word_model)], tmp_path / "x.atlas", Options(top_k=100, pair_k=5000, neighbor_k=1000, device="cpu")
    )
    with opened(atlas) as connection:
        tokens = connection.execute(
            "SELECT DISTINCT count(*), count(DISTINCT token_id), max(rank) FROM parameter_tokens "
            "GROUP BY param_id, side"
        ).fetchall()
        pairs = connection.execute(
            "SELECT DISTINCT count(*), max(rank), count(DISTINCT (source_id, target_id)), max(rank_distinct) "
            "FROM head_pairs GROUP BY head_id, matrix, side"
        ).fetchall()
    assert tokens == [(60, 60, 60)]
    assert pairs == [(3600, 3600, 3600, 3540)]
