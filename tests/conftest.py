"""Shared fixtures: tiny models on disk and one atlas built of them, once a test run however many workers there are.

model_folders   name -> folder of gpt2-a, gpt2-b, gpt2-wide (one vocabulary), llama-gqa and bert (one each)
small_atlas     the atlas of all five, with SMALL_OPTIONS; read it, never write to it
reading_folder  an atlas of some of them, whose readers are scored in spaces of their own; read it only
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRITON_INTERPRET", "1")  # the kernels of a GPU run without one; read as they are imported

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from hypothesis import settings

import models
from paramdex.tour import demo_sources
from paramdex_builder import Options, build, plan

pytest_plugins = ["query_fixtures", "web_fixtures"]

torch.set_num_threads(1)
settings.register_profile("paramdex", deadline=None, max_examples=40, print_blob=True)
settings.load_profile("paramdex")

ROOT = Path(__file__).parents[1]
AUTO = plan.reading_of
SMALL_OPTIONS = Options(top_k=12, pair_k=30, neighbor_k=4, device="cpu", reading="embedding")


def _shared(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder ``name`` that all workers of this run share, made by whichever comes first."""
    base = factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = root / name
    with FileLock(root / f"{name}.lock"):
        if not folder.exists():
            part = root / f"{name}.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            make(part)
            part.rename(folder)
    return folder


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """name -> folder of the five models of the shared atlas."""
    root = _shared(tmp_path_factory, "models", models.save_all)
    return {name: root / name for name in ("gpt2-a", "gpt2-b", "gpt2-wide", "llama-gqa", "bert")}


@pytest.fixture(scope="session")
def small_atlas(tmp_path_factory: pytest.TempPathFactory, model_folders: dict[str, Path]) -> Path:
    """The shared atlas of all five models. Read-only by agreement: a test that writes copies it first."""
    sources = [str(folder) for folder in model_folders.values()]
    root = _shared(tmp_path_factory, "atlases", lambda part: build(sources, part / "small.atlas", SMALL_OPTIONS))
    return root / "small.atlas"


@pytest.fixture(autouse=True, scope="session")
def read_by_the_embedding() -> Iterator[None]:
    """Builds that are not told how to read do it by the embedding, which takes no running of models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "reading_of", lambda asked, *rest: AUTO(asked.replace("auto", "embedding"), *rest))
        yield


@pytest.fixture(scope="session")
def reading_folder(tmp_path_factory: pytest.TempPathFactory, model_folders: dict[str, Path]) -> Path:
    """An atlas of models in several spaces: gpt2-a effective and gpt2-wide expected, of one vocabulary; llama-gqa
    effective, whose embeddings are two; bert read by its embedding. Read-only by agreement.
    """
    readings = {"gpt2-a": "effective", "gpt2-wide": "expected", "llama-gqa": "effective", "bert": "embedding"}

    def make(part: Path) -> None:
        for name, reading in readings.items():
            build([str(model_folders[name])], part / "reading.atlas", replace(SMALL_OPTIONS, reading=reading))

    return _shared(tmp_path_factory, "readings", make) / "reading.atlas"


@pytest.fixture
def word_model(tmp_path: Path) -> Path:
    """The folder of a two-layer GPT-2 of 60 words, the test's own: it may break it."""
    return models.save_word_model(tmp_path / "word-model")


@pytest.fixture(scope="session")
def demo_atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The atlas of ``paramdex demo``: the committed models and all-MiniLM-L6-v2. Read-only by agreement."""
    sources = demo_sources(ROOT / "data" / "models")

    def make(part: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plan, "reading_of", AUTO)  # as whoever runs the command has it
            build(sources, part / "demo.atlas")

    return _shared(tmp_path_factory, "demo", make) / "demo.atlas"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, where the machine lets the tests mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
