"""Windows of a file: what is drawn, what is told of it, and what stands around it."""

from __future__ import annotations

import hashlib
import lzma
import random
from pathlib import Path

import pytest
import torch
from tokenizers import processors

import models
from paramdex_builder import Progress
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.stream.forward import Runner
from paramdex_builder.stream.reading import make_reading
from paramdex_builder.stream.texts import FITTED, HELD_OUT, windows
from paramdex_schemas import BuildError

N = FITTED + HELD_OUT


def in_order(n: int) -> str:
    """Words whose order shows where a window was cut: word0 word1 ... word37 word0 ..."""
    return " ".join(f"word{i % 38}" for i in range(n))


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A BERT whose tokenizer puts a token before and one after any text."""
    tokenizer = models.word_tokenizer(60)
    template = processors.TemplateProcessing(single="[END] $A [END]", special_tokens=[("[END]", 1)])
    tokenizer.backend_tokenizer.post_processor = template
    return models.save(tmp_path / "bert", models.encoder(60), tokenizer, 0)


def test_windows_come_from_all_of_a_text(encoder: Path) -> None:
    runner = Runner.open(Checkpoint.open(str(encoder)))
    texts = windows(runner, in_order(5000), "some.txt", N, 3)
    assert texts.ids.shape == (N, 32)
    assert (texts.before, texts.after) == (1, 1)
    assert set(texts.ids[:, 0].tolist()) == {1}
    assert set(texts.ids[:, -1].tolist()) == {1}
    bodies = texts.counted(texts.ids)
    assert texts.n_tokens == bodies.numel() == N * 30
    follows = (bodies[:, 1:] - bodies[:, :-1]) % 38
    assert bool((follows == 1).all())
    assert torch.equal(texts.ids, windows(runner, in_order(5000), "", N, 3).ids)
    assert not torch.equal(texts.ids, windows(runner, in_order(5000), "", N, 4).ids)


def test_a_long_text_is_read_in_parts(encoder: Path) -> None:
    """In no more than a megabyte of it, spread over the whole."""
    runner = Runner.open(Checkpoint.open(str(encoder)))
    words = " ".join(f"word{i * 38 // 400_000}" for i in range(400_000))
    ids = windows(runner, words, "", N, 0).ids
    first, last = (runner.tokenizer.convert_tokens_to_ids(word) for word in ("word0", "word37"))
    assert int((ids == first).sum()) > 0
    assert int((ids == last).sum()) > 0
    assert len(set(ids.flatten().tolist())) > 25


@pytest.mark.parametrize("compressed", [False, True])
def test_what_a_reading_tells_of_its_text(compressed: bool, encoder: Path, tmp_path: Path) -> None:
    path = tmp_path / ("words.txt.xz" if compressed else "words.txt")
    drawn = random.Random(0)
    raw = " ".join(f"word{drawn.randrange(38)}" for _ in range(6000)).encode()
    path.write_bytes(lzma.compress(raw) if compressed else raw)
    reading = make_reading(Checkpoint.open(str(encoder)), "expected", 60, path, Progress())
    assert reading.text == f"{path.name}, SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    assert reading.n_tokens == FITTED * 30
    assert all(A.shape == (24, 24) and A.dtype == torch.float32 for A in reading.maps.values())
    assert list(reading.maps) == [
        f"{kinds}/{i}" for i in (0, 1) for kinds in ("ff_key", "attn_query+attn_key+attn_value")
    ]
    assert all(float(each.nanmean()) > 0.3 for each in reading.reads.values())


def test_texts_that_are_no_use(encoder: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(str(encoder))
    path = tmp_path / "words.txt"
    path.write_text(in_order(90))
    short = r"words\.txt.* is too short: it has about 90 tokens of .*bert, and 4,680 are needed; give a longer one"
    with pytest.raises(BuildError, match=short):
        make_reading(checkpoint, "expected", 60, path, Progress())
    path.write_text(" \n")
    with pytest.raises(BuildError, match="is empty; give a text"):
        make_reading(checkpoint, "expected", 60, path, Progress())
    with pytest.raises(BuildError, match="cannot be read as text"):
        make_reading(checkpoint, "expected", 60, tmp_path / "none.txt", Progress())
