"""Where an atlas really lies: through links, on another disk, in folders that may not be written."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import duckdb
import pytest
from filelock import FileLock

from opened import names
from paramdex_builder import Options, build
from paramdex_builder.files.tables import new_tables, tables
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_schemas import AtlasError, BuildError, CheckpointError, ParamdexError

OPTIONS = Options(top_k=3, pair_k=3, neighbor_k=1, device="cpu")
only_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can play another user"
)


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights may be read: what is wrong has to be said before."""

    def opened(*_: object, **__: object) -> None:
        pytest.fail("the model was opened")

    monkeypatch.setattr(Checkpoint, "open", opened)


@pytest.fixture
def link(word_model: Path, tmp_path: Path) -> Path:
    """A link to an atlas in another folder."""
    (tmp_path / "far").mkdir()
    (tmp_path / "near").mkdir()
    atlas = build([f"one={word_model}"], tmp_path / "far" / "x.atlas", OPTIONS)
    link = tmp_path / "near" / "link.atlas"
    link.symlink_to(atlas)
    return link


def test_adding_through_a_link_works_beside_the_atlas(
    word_model: Path, link: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is renamed from the link's folder, which may be on another disk."""
    rename = os.rename

    def on_one_disk(source: str, target: str) -> None:
        assert "near" not in f"{source} {target}"
        rename(source, target)

    monkeypatch.setattr(os, "rename", on_one_disk)
    monkeypatch.setattr(os, "replace", on_one_disk)
    assert build([f"two={word_model}"], link, OPTIONS) == link
    assert names(link.resolve()) == ["one", "two"]
    assert [path.name for path in link.parent.iterdir()] == ["link.atlas"]
    assert [path.name for path in link.resolve().parent.iterdir()] == ["x.atlas"]


def test_a_link_and_its_atlas_are_not_built_at_once(word_model: Path, link: Path) -> None:
    staging = link.resolve().with_name("x.atlas.building")
    staging.mkdir()
    with (
        FileLock(staging / ".lock"),
        pytest.raises(BuildError, match=f"^another build is writing to {link}; wait for it to end"),
    ):
        build([f"two={word_model}"], link, OPTIONS)


def test_a_link_to_nothing_yet(word_model: Path, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    link = tmp_path / "link.atlas"
    link.symlink_to("far/x.atlas")
    build([f"one={word_model}"], link, OPTIONS)
    assert names(tmp_path / "far" / "x.atlas") == ["one"]
    assert link.is_symlink()


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere/x.atlas", "there is no folder {folder}/nowhere to put x.atlas in; make it first"),
        ("link.atlas", "{folder}/link.atlas is a link that leads nowhere; give another path with -o"),
    ],
)
def test_a_link_to_where_nothing_can_be(tmp_path: Path, target: str, message: str) -> None:
    (tmp_path / "link.atlas").symlink_to(target)
    with pytest.raises(BuildError, match=f"^{message.format(folder=tmp_path)}$"):
        build(["some-model"], tmp_path / "link.atlas", OPTIONS)


def test_an_atlas_is_added_to_from_within(word_model: Path, link: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(link.resolve())
    build([f"two={word_model}"], ".", OPTIONS)
    assert names(link.resolve()) == ["one", "two"]


# ---- permissions


@contextmanager
def nobody() -> Iterator[None]:
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter and write."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


@only_root
@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("locked", ["", "x.atlas", "x.atlas/models", "x.atlas/relations"])
def test_a_locked_folder_is_named_before_any_work(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch, locked: str
) -> None:
    for folder in ("x.atlas", "x.atlas/models", "x.atlas/relations"):
        (open_folder / folder).mkdir()
        (open_folder / folder).chmod(0o777)
    (open_folder / locked).chmod(0o755)
    monkeypatch.setattr(import_module("paramdex_builder.build"), "_present", lambda _: {"one": ""})
    message = f"^no permission to write at {(open_folder / locked)}; give another path with -o$"
    with nobody(), pytest.raises(BuildError, match=message):
        build(["some-model"], open_folder / "x.atlas", OPTIONS)
    assert [path.name for path in open_folder.iterdir()] == ["x.atlas"]


@pytest.mark.usefixtures("unread")
def test_a_locked_folder_is_named_without_being_root(
    word_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, *a, **b: Path(path) != tmp_path and allowed(path, *a, **b))
    with pytest.raises(BuildError, match=f"^no permission to write at {tmp_path}; give another path with -o$"):
        build([str(word_model)], tmp_path / "x.atlas", OPTIONS)


@only_root
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda folder: (folder / "model").chmod(0o700), CheckpointError, "{folder}/model: config.json cannot be read"),
        (
            lambda folder: (folder / "model" / "config.json").chmod(0o600),
            CheckpointError,
            "{folder}/model/config.json cannot be read",
        ),
        (
            lambda folder: (folder / "x.atlas" / "atlas.json").chmod(0o600),
            AtlasError,
            "{folder}/x.atlas cannot be read: atlas.json: Permission denied$",
        ),
        (
            lambda folder: (folder / "x.atlas" / "models" / "one" / "manifest.json").chmod(0o600),
            AtlasError,
            "{folder}/x.atlas cannot be read: models/one/manifest.json: Permission denied$",
        ),
    ],
    ids=["model", "config", "index", "manifest"],
)
def test_a_locked_file_is_named(
    word_model: Path, open_folder: Path, change: Callable[[Path], None], error: type[ParamdexError], message: str
) -> None:
    shutil.copytree(word_model, open_folder / "model")
    atlas = build([f"one={word_model}"], open_folder / "x.atlas", OPTIONS)
    for path in open_folder.rglob("*"):
        path.chmod(0o777)
    change(open_folder)
    with nobody(), pytest.raises(error, match=f"^{message.format(folder=open_folder)}") as caught:
        build([f"two={open_folder / 'model'}"], atlas, OPTIONS)
    assert type(caught.value) is error


# ---- interruptions


@pytest.mark.waits
def test_ctrl_c_while_the_database_works_is_an_interruption(
    word_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DuckDB hears the signal before Python does, and raises an error of its own."""
    publish = import_module("paramdex_builder.publish.publish")

    def long(connection: duckdb.DuckDBPyConnection, *_: object) -> None:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        connection.execute("SELECT count(*) FROM range(1_000_000) AS a, range(20_000) AS b WHERE a.range < b.range")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background have none
    try:
        with monkeypatch.context() as patch:
            patch.setattr(publish, "insert_heads", long)
            with pytest.raises(KeyboardInterrupt):
                build([str(word_model)], tmp_path / "x.atlas", OPTIONS)
    finally:
        signal.signal(signal.SIGINT, before)
    assert names(build([str(word_model)], tmp_path / "x.atlas", OPTIONS)) == ["word-model"]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Query interrupted"),
        duckdb.InvalidInputException("reading the schema of the object registered as 'unit' failed: KeyboardInterrupt"),
        duckdb.InterruptException("INTERRUPT Error: Interrupted!"),
    ],
)
def test_all_that_duckdb_says_of_ctrl_c(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(KeyboardInterrupt), new_tables(tmp_path / "x.duckdb"):
        raise error
    with pytest.raises(KeyboardInterrupt), tables({}):
        raise error
    with pytest.raises(RuntimeError, match="another"), new_tables(tmp_path / "y.duckdb"):
        raise RuntimeError("another")
