"""What a build says it needs on the disk: codes of large kinds are in it; it is enough."""

from __future__ import annotations

import shutil
import subprocess
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import SMALL_OPTIONS

from paramdex_builder import Options, build
from paramdex_builder.estimates import disk_needed
from paramdex_builder.project.scoring import scored_layout
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_schemas import BuildError, place, vector_files

Usage = namedtuple("Usage", "total used free")  # noqa: PYI024


def estimate(model: Path, options: Options = SMALL_OPTIONS) -> int:
    checkpoint = Checkpoint.open(str(model))
    layout = scored_layout(checkpoint.layout, "output", options.reading.replace("auto", "embedding"))
    return disk_needed(checkpoint, layout, len(checkpoint.embedding()[0]), options.top_k, options.pair_k)


def test_codes_of_large_kinds_are_counted(word_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte a number, four a row, and the rotation; of the kinds that have codes, and of no others."""
    checkpoint = Checkpoint.open(str(word_model))
    layout, d = checkpoint.layout, checkpoint.d_model
    before = estimate(word_model)
    assert before >= 2 * 4 * d * layout.n_parameters
    sizes = {kind: layout.blocks[kind].n_rows * d * 4 for kind in layout.kinds}
    largest = max(sizes.values())
    coded = [layout.blocks[kind].n_rows for kind in layout.kinds if sizes[kind] == largest]
    assert len(coded) < len(sizes)
    monkeypatch.setattr(vector_files, "CODED_BYTES", largest)
    assert estimate(word_model) - before == sum(n * (d + 4) + 4 * d * d for n in coded)


def test_adding_a_model_needs_no_more_room_than_the_first(
    word_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of what is there is copied."""
    atlas = tmp_path / "a.atlas"
    needed = estimate(word_model) + place._LOG
    for name in ("one", "two"):
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, needed - 1))
            with pytest.raises(BuildError, match="the build needs about"):
                build([f"{name}={word_model}"], atlas, SMALL_OPTIONS)
            patch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, needed))
            build([f"{name}={word_model}"], atlas, SMALL_OPTIONS)
            patch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 0))
            build([f"{name}={word_model}"], atlas, SMALL_OPTIONS)  # is there
    other = replace(SMALL_OPTIONS, top_k=SMALL_OPTIONS.top_k - 1, replace=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 0))
    with pytest.raises(BuildError, match="the build needs about"):  # the old one is there until the new one is
        build([f"two={word_model}"], atlas, other)


@pytest.mark.parametrize("k", [3, 50])
def test_what_is_asked_for_is_enough(word_model: Path, disk: Path, k: int) -> None:
    """For a new atlas, and for adding a model to it twice."""
    atlas, options = disk / "x.atlas", Options(top_k=k, pair_k=4 * k, neighbor_k=1, device="cpu")
    for name in ("one", "two", "three"):
        size = shutil.disk_usage(disk).used + estimate(word_model, options) + place._LOG
        subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
        build([f"{name}={word_model}"], atlas, options)
