"""Readings are the same to the last bit from any number of threads, and in the file that a resumed build loads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import models
from paramdex_builder import Progress
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.stream import own_text
from paramdex_builder.stream.reading import Reading, make_reading
from paramdex_builder.stream.texts import FITTED, HELD_OUT

ROOT = Path(__file__).parents[3]
TINY = ROOT / "data" / "models" / "tiny-a"


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def same(one: Reading, other: Reading) -> bool:
    pairs = []
    for of_one, of_other in ((one.tables, other.tables), (one.maps, other.maps), (one.reads, other.reads)):
        assert set(of_one) == set(of_other)
        pairs += [(of_one[name], of_other[name]) for name in of_one]
    return all(torch.equal(a.nan_to_num(9), b.nan_to_num(9)) for a, b in pairs)


def read(folder: Path, V: int, threads: int, text: Path | None = None) -> Reading:
    torch.set_num_threads(threads)
    return make_reading(Checkpoint.open(str(folder)), "expected", V, text, Progress())


def test_a_real_model_with_one_two_and_three_threads(tmp_path: Path) -> None:
    """Its texts, too; and what is stored is what was made."""
    checkpoint = Checkpoint.open(str(TINY))
    V = len(checkpoint.embedding()[0])
    author = own_text.opened(checkpoint)
    texts, found = [], []
    for threads in (1, 2, 3):
        found.append(read(TINY, V, threads))
        texts.append(own_text.write(author, 1, V, FITTED + HELD_OUT, 40, 0, Progress()))
        assert torch.get_num_threads() == threads
    assert same(found[0], found[1])
    assert same(found[0], found[2])
    assert torch.equal(texts[0], texts[1])
    assert torch.equal(texts[0], texts[2])
    found[0].save(tmp_path / "reading.safetensors")
    loaded = Reading.load(tmp_path / "reading.safetensors")
    assert same(found[0], loaded)
    assert (loaded.how, loaded.text, loaded.n_tokens) == ("expected", "its own", FITTED * 127)


@pytest.mark.parametrize("name", ["Qwen2MoeForCausalLM", "GptOssForCausalLM", "BloomForCausalLM", "Gemma3ForCausalLM"])
def test_other_families_with_one_and_three_threads(name: str, tmp_path: Path) -> None:
    folder = models.save_word_model(tmp_path / "model", 0, models.MAKERS[name])
    assert same(read(folder, 60, 1), read(folder, 60, 3))


def test_an_encoder_on_a_text(tmp_path: Path) -> None:
    folder = models.save_word_model(tmp_path / "model", 0, models.encoder)
    text = tmp_path / "words.txt"
    text.write_text(" ".join(f"word{i * i % 37}" for i in range(6000)))
    assert same(read(folder, 60, 1, text), read(folder, 60, 3, text))
