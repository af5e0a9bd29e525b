"""Weights that are replaced while a build reads them: no atlas of both, and the same command again builds the new."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import models
from opened import opened
from paramdex_builder import Options, Progress, build
from paramdex_schemas import CheckpointError, atlas_files
from paramdex_schemas.progress import Advance

OPTIONS = Options(top_k=3, pair_k=3, neighbor_k=1, device="cpu")
WEIGHTS = "model.safetensors"


class Acting(Progress):
    """Does something in the middle of the step whose name ends in ``when``."""

    def __init__(self, when: str, act: Callable[[], None]) -> None:
        self.when, self.act, self.done = when, act, False

    @contextmanager
    def step(self, what: str, total: int) -> Iterator[Advance]:  # noqa: ARG002
        def advance(_: int) -> None:
            if what.endswith(self.when) and not self.done:
                self.done = True
                self.act()

        yield advance


def renamed_over(file: Path, other: Path) -> None:
    """As downloads and most programs replace a file."""
    copy = file.with_name("copy")
    shutil.copyfile(other, copy)
    os.utime(copy, ns=(0, file.stat().st_mtime_ns))  # size and time are the same; the file is another
    copy.replace(file)


def overwritten(file: Path, other: Path) -> None:
    file.write_bytes(other.read_bytes())


def deleted(file: Path, other: Path) -> None:
    del other
    file.unlink()


def adapter(folder: Path, base: Path, seed: int) -> Path:
    """A LoRA adapter of rank 1 of the base's first output projections."""
    folder.mkdir()
    settings = {"peft_type": "LORA", "lora_alpha": 2, "fan_in_fan_out": True}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    n_in, n_out = load_file(base / WEIGHTS)["transformer.h.0.attn.c_proj.weight"].shape
    generator, name = torch.Generator().manual_seed(seed), "base_model.model.transformer.h.0.attn.c_proj.lora_"
    factors = {"A": (1, n_in), "B": (n_out, 1)}
    state = {f"{name}{letter}.weight": torch.randn(shape, generator=generator) for letter, shape in factors.items()}
    save_file(state, folder / "adapter_model.safetensors")
    return folder


def assert_changed(
    source: Path, options: Options, changed: Path, file: str, act: Callable[[], None], when: str
) -> None:
    """The build of ``source`` in which ``act`` happens fails with one line and leaves nothing; again, it succeeds, with
    the checksum of what is there now.
    """
    atlas = changed.parent / "x.atlas"
    progress = Acting(when, act)
    message = f"^the weights of {changed} changed while they were read; run the same command again$"
    with pytest.raises(CheckpointError, match=message):
        build([f"m={source}"], atlas, options, progress)
    assert progress.done
    assert not atlas.exists()
    assert not list(changed.parent.glob("*.building"))
    if not (changed / file).exists():
        return
    build([f"m={source}"], atlas, options)
    with opened(atlas) as connection:
        ((own, base),) = connection.execute("SELECT weights_sha256, base_sha256 FROM store.models").fetchall()
    expected = [changed / file] if file == WEIGHTS else [changed / "adapter_config.json", changed / file]
    assert atlas_files.sha256(*expected) in (own, base)


@pytest.mark.parametrize(
    ("change", "when"),
    [
        (renamed_over, "projecting parameters"),
        (renamed_over, "pairing tokens"),
        (overwritten, "pairing tokens"),
        (deleted, "projecting parameters"),
    ],
)
def test_of_a_model(word_model: Path, tmp_path: Path, change: Callable[[Path, Path], None], when: str) -> None:
    other = models.save_word_model(tmp_path / "other", 9) / WEIGHTS
    act = lambda: change(word_model / WEIGHTS, other)  # noqa: E731
    assert_changed(word_model, OPTIONS, word_model, WEIGHTS, act, when)


@pytest.mark.parametrize("which", ["tuned", "base"])
def test_of_a_displacement(word_model: Path, tmp_path: Path, which: str) -> None:
    tuned, other = (models.save_word_model(tmp_path / name, seed) for name, seed in (("tuned", 8), ("other", 9)))
    changed = tuned if which == "tuned" else word_model
    act = lambda: renamed_over(changed / WEIGHTS, other / WEIGHTS)  # noqa: E731
    options = replace(OPTIONS, base=str(word_model))
    assert_changed(tuned, options, changed, WEIGHTS, act, "projecting parameters")


def test_of_an_adapter(word_model: Path, tmp_path: Path) -> None:
    tuned, other = (adapter(tmp_path / name, word_model, seed) for name, seed in (("tuned", 8), ("other", 9)))
    file = "adapter_model.safetensors"
    act = lambda: renamed_over(tuned / file, other / file)  # noqa: E731
    assert_changed(tuned, replace(OPTIONS, base=str(word_model)), tuned, file, act, "projecting parameters")


def test_models_that_are_done_stay(word_model: Path, tmp_path: Path) -> None:
    """The second model's weights change while the first is built."""
    second, other = (models.save_word_model(tmp_path / name, seed) for name, seed in (("second", 8), ("other", 9)))
    atlas = tmp_path / "x.atlas"
    progress = Acting("storing parameters", lambda: renamed_over(second / WEIGHTS, other / WEIGHTS))
    with pytest.raises(CheckpointError, match=r"^the weights of .*second changed"):
        build([str(word_model), str(second)], atlas, OPTIONS, progress)
    with opened(atlas) as connection:
        assert connection.execute("SELECT model FROM models").fetchall() == [("word-model",)]
    build([str(word_model), str(second)], atlas, OPTIONS)
