"""Fixtures of the tests that ask the server.

client           the server over the shared atlas, in process
strange          the server over an atlas of hostile words, of an encoder-decoder and of a mixture of experts
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import _shared
from starlette.testclient import TestClient

import models
from paramdex_builder import Options, build
from web_helpers import hostile_tokenizer, server


@pytest.fixture(scope="session")
def client(small_atlas: Path) -> Iterator[TestClient]:
    with server(small_atlas) as client:
        yield client


@pytest.fixture(scope="session")
def strange_atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(part: Path) -> None:
        folders = [models.save(part / "hostile", models.gpt2(60), hostile_tokenizer(), 1)]
        for folder, maker in (("t5", "T5ForConditionalGeneration"), ("moe", "Qwen2MoeForCausalLM")):
            folders.append(models.save_word_model(part / folder, 2, models.MAKERS[maker]))
        build([str(folder) for folder in folders], part / "strange.atlas", Options(6, 20, 2, device="cpu"))

    return _shared(tmp_path_factory, "strange", make) / "strange.atlas"


@pytest.fixture(scope="session")
def strange(strange_atlas: Path) -> Iterator[TestClient]:
    with server(strange_atlas) as client:
        yield client
