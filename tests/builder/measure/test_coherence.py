"""Coherence of the words of lists, against plain loops; and words of one model in the vectors of another."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

import models
from paramdex_builder.measure.coherence import LEAST, WordVectors, coherence, is_one, telling, word_vectors
from paramdex_schemas import CheckpointError
from paramdex_schemas.progress import Progress

TEXTS = [" bread", "butter", "ing", "x86", "to", "<s>", "violin", "river", "Ocean", "nurse"]


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def words() -> WordVectors:
    table = torch.randn(30, 6, generator=drawn(0))
    pieces = [[i, i + 1] if i % 2 else [i] for i in range(len(TEXTS))]
    pieces[7] = []  # the other model does not know "river"
    return WordVectors.of(TEXTS, pieces, table)


def test_vectors_are_the_mean_of_pieces_centred() -> None:
    table = torch.randn(30, 6, generator=drawn(0)).double().numpy()
    found = words()
    known = [0, 1, 2, 6, 8, 9]
    assert found.is_word.nonzero().flatten().tolist() == known
    rows = np.array([table[[i, i + 1] if i % 2 else [i]].mean(axis=0) for i in known])
    rows -= rows.mean(axis=0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert found.vectors[known].numpy() == pytest.approx(rows, abs=1e-6)
    assert not found.vectors[[3, 4, 5, 7]].any()


def test_coherence_is_the_mean_cosine_of_pairs() -> None:
    found = words()
    lists = torch.tensor([[0, 1, 2, 6, 3], [8, 9, 0, 1, 2], [3, 4, 5, 7, 0], [6, 8, 9, 2, 5]])
    vectors = found.vectors.double().numpy()
    means = []
    for ids in lists.tolist():
        own = [i for i in ids if found.is_word[i]]
        if len(own) >= LEAST:
            means.append(np.mean([vectors[i] @ vectors[j] for i, j in combinations(own, 2)]))
    assert telling(lists, found) == len(means) == 3
    measured = coherence(lists, found, 50, drawn(1))
    assert measured is not None
    assert measured.value == pytest.approx(np.mean(means), abs=1e-6)


def test_lists_of_like_words_are_above_those_dealt_anew() -> None:
    groups = torch.arange(40) // 8
    table = torch.eye(5)[groups] + 0.3 * torch.randn(40, 5, generator=drawn(0))
    found = WordVectors.of(["word"] * 40, [[i] for i in range(40)], table)
    alike = coherence(torch.arange(40).view(5, 8), found, 60, drawn(1))
    assert alike is not None
    assert alike.value > 0.5
    assert alike.p_value == pytest.approx(1 / 61)
    mixed = coherence(torch.arange(40).view(8, 5).T.contiguous(), found, 60, drawn(1))
    assert mixed is not None
    assert mixed.baseline == pytest.approx(alike.baseline, abs=0.05)  # the same tokens
    assert mixed.p_value is not None
    assert mixed.p_value > 0.5


def test_lists_without_words_say_nothing() -> None:
    assert coherence(torch.tensor([[3, 4, 5], [0, 1, 3]]), words(), 5, drawn(0)) is None


def test_words_of_one_model_in_another(model_folders: dict[str, Path]) -> None:
    """GPT-2's way to write a word, after a space, is no other word to BERT, and letters it lacks make none."""
    texts = [" Bread", "bread", "butter", "breading", "ox", "жук"]
    found = word_vectors(texts, str(model_folders["bert"]), Progress())
    assert found.is_word.tolist() == [True, True, True, True, False, False]
    assert torch.equal(found.vectors[0], found.vectors[1])
    after_space = word_vectors(["bread", " bread", "violin"], str(model_folders["gpt2-a"]), Progress())
    assert torch.equal(after_space.vectors[0], after_space.vectors[1])


def test_a_model_that_knows_no_words_is_refused(tmp_path: Path) -> None:
    folder = str(models.save_word_model(tmp_path / "m"))
    with pytest.raises(CheckpointError, match="its tokenizer knows none of the words; give another model"):
        word_vectors(["xylophone", "zzz"], folder, Progress())


def test_what_a_word_is() -> None:
    assert [is_one(text) for text in TEXTS] == [True, True, True, False, False, False, True, True, True, True]
