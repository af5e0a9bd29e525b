"""Changes of an atlas that are killed, or that meet an error of the disk, at any call that changes a folder.

Each is run in a child that ends, or whose system refuses, at the n-th such call. After that the atlas holds what it
held or what it is to hold, whole; and the same command once more ends in what it is to hold. Readers that were open
answer as before.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import models
import paramdex
from opened import names
from paramdex import ParamdexError
from paramdex.manage.merge import merge
from paramdex.manage.remove import remove
from paramdex.manage.rename import rename
from paramdex_builder import Options, build
from paramdex_schemas import atlas_files
from paramdex_schemas.contents import read_contents
from query_helpers import random_source

CALLS = ("fsync", "rename", "replace", "link", "mkdir", "unlink", "rmdir")
KILLED = 77
SEEDS = int(os.environ.get("PARAMDEX_SEEDS", "6"))
"""Moments that are tried of each change, drawn anew; set it higher for a long run."""

Change = Callable[[Path, Path], object]
CHANGES: dict[str, Change] = {
    "remove": lambda atlas, _: remove(atlas, ["second"]),
    "rename": lambda atlas, _: rename(atlas, "second", "last"),
    "merge": lambda atlas, other: merge([other], atlas),
    "merge into a new one": lambda atlas, other: merge([atlas, other], atlas.with_name("new.atlas")),
}


@pytest.fixture(scope="module")
def atlases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One of three models of 60 words, and one of a fourth."""
    root = tmp_path_factory.mktemp("changes")
    every = ("first", "second", "third", "fourth")
    folders = {name: models.save_word_model(root / name, seed) for seed, name in enumerate(every)}
    options = Options(top_k=3, pair_k=3, neighbor_k=1, device="cpu")
    three = build([f"{name}={folders[name]}" for name in every[:3]], root / "three.atlas", options)
    return three, build([f"fourth={folders['fourth']}"], root / "fourth.atlas", options)


def state(atlas: Path) -> object:
    """The models with their files, and what relates them; None where there is no atlas. Every file is checked."""
    if not atlas.exists():
        return None
    with paramdex.open(atlas) as one:
        one.check()
        shown = [one.show(f"{name}/L0/ff_key/1").to_rows() for name in one.models]
    contents = read_contents(atlas)
    files = [
        (name, manifest.uid, sorted((file, of) for file, of in manifest.files.items() if file != atlas_files.TABLES))
        for name, manifest in contents.manifests.items()
    ]
    return files, sorted(contents.related), shown


def in_child(work: Callable[[], None], at: int, refuse: int | None) -> tuple[int, int]:
    """(exit status, calls made) of work in a child that ends at the call of number ``at``, or where the system answers
    that call with the error ``refuse``.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def counted(call: Callable[..., object]) -> Callable[..., object]:
            def made(*arguments: object, **options: object) -> object:
                nonlocal count
                count += 1
                if count == at and refuse is None:
                    os._exit(KILLED)
                if count == at and refuse is not None:
                    raise OSError(refuse, os.strerror(refuse))
                return call(*arguments, **options)

            return made

        status = 1
        try:
            for name in CALLS:
                setattr(os, name, counted(getattr(os, name)))
            work()
            status = 0
        except (ParamdexError, OSError):
            status = 2
        finally:
            os.write(writer, str(count).encode())
            os._exit(status)
    os.close(writer)
    _, ended = os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    return os.waitstatus_to_exitcode(ended), int(text or 0)


def places(folder: Path, atlases: tuple[Path, Path]) -> tuple[Path, Path]:
    """Copies of both atlases in a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    atlas, other = (Path(shutil.copytree(each, folder / each.name)) for each in atlases)
    return atlas, other


@pytest.mark.parametrize("refuse", [None, errno.EIO, errno.ENOSPC], ids=["killed", "EIO", "ENOSPC"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_made_whole_or_not_at_all(
    atlases: tuple[Path, Path], tmp_path: Path, name: str, refuse: int | None
) -> None:
    draw: random.Random = random_source()
    change = CHANGES[name]

    def result(atlas: Path) -> Path:
        return atlas.with_name("new.atlas") if "new" in name else atlas

    atlas, other = places(tmp_path / "whole", atlases)
    before = state(result(atlas))
    status, calls = in_child(lambda: change(atlas, other), 0, None)
    assert status == 0
    after = state(result(atlas))
    assert before != after
    for n in sorted(draw.sample(range(1, calls + 1), min(SEEDS, calls))):
        atlas, other = places(tmp_path / "broken", atlases)
        with paramdex.open(atlas) as reader:
            shown = reader.show("first/L0/ff_key/1").to_rows()
            status, _ = in_child(lambda: change(atlas, other), n, refuse)  # noqa: B023  # run at once
            assert status in ((KILLED,) if refuse is None else (0, 2)), n  # what is swept in vain does not matter
            found = state(result(atlas))
            assert found in (before, after), n
            assert reader.show("first/L0/ff_key/1").to_rows() == shown
        if found == before:
            assert in_child(lambda: change(atlas, other), 0, None)[0] == 0, n  # noqa: B023
        else:  # it is done, but for what it would have swept; the next change sweeps it
            rename(result(atlas), "first", "one")
            rename(result(atlas), "one", "first")
        assert state(result(atlas)) == after, n
        assert {each.name for each in (result(atlas) / "models").iterdir()} >= set(names(result(atlas))) - {"first"}
        contents = read_contents(result(atlas))
        assert {each.name for each in (result(atlas) / "models").iterdir()} == set(contents.index.models.values())
