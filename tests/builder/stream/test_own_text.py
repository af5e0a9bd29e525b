"""The text that a model writes itself: drawn from what it says, with its cache as without, and the same every time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import models
from paramdex_builder import Progress
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.stream import own_text

CAUSAL = [name for name in models.MAKERS if "ForCausalLM" in name or "LMHead" in name]
CAUSAL = [name for name in CAUSAL if not name.startswith("Bart")]


def test_text_is_drawn_from_what_the_model_says(model_folders: dict[str, Path]) -> None:
    author = own_text.writer(Checkpoint.open(str(model_folders["gpt2-a"])))
    many = own_text.write(author, 0, 60, 200, 12, 0, Progress())
    assert many.shape == (200, 12)
    assert not many[:, 0].any()
    assert int(many.max()) < 60
    model = AutoModelForCausalLM.from_pretrained(model_folders["gpt2-a"], dtype=torch.float64).eval()
    with torch.no_grad():
        chances = model(many).logits[:, :-1, :60].softmax(-1)
    surprise = -chances.gather(2, many[:, 1:, None]).log().squeeze(2)
    entropy = -(chances * chances.log()).sum(-1)
    spread = float((surprise - entropy).std()) / surprise.numel() ** 0.5
    assert abs(float((surprise - entropy).mean())) < 5 * spread


def test_seeds_share_no_batch(model_folders: dict[str, Path]) -> None:
    author = own_text.writer(Checkpoint.open(str(model_folders["gpt2-a"])))
    n = 3 * own_text.BATCH

    def written(seed: int, n: int = n) -> list[tuple[int, ...]]:
        return [tuple(text) for text in own_text.write(author, None, 60, n, 12, seed, Progress()).tolist()]

    first = written(5)
    assert first == written(5)
    assert first[: own_text.BATCH] == written(5, own_text.BATCH)
    assert len(set(first)) == n
    for seed in (4, 6, 7, 8):
        assert not set(first) & set(written(seed))


@pytest.mark.parametrize("name", CAUSAL)
def test_a_cache_changes_nothing(name: str, tmp_path: Path) -> None:
    folder = models.save_word_model(tmp_path / "model", 0, models.MAKERS[name])
    author = own_text.writer(Checkpoint.open(str(folder)))
    texts = own_text.write(author, 3, 60, 6, 14, 1, Progress())

    class Slow:
        """Reads the whole text anew for each token."""

        def forward(self, input_ids: torch.Tensor) -> None: ...

        def __call__(self, **given: object) -> object:
            del given["past_key_values"]
            output = author(**given | {"use_cache": False})
            return type("Output", (), {"logits": output.logits})

    assert torch.equal(texts, own_text.write(Slow(), 3, 60, 6, 14, 1, Progress()))


def test_chances_are_kept() -> None:
    logits = torch.tensor([[0.0, 1.0, -1e9, 2.0]]).repeat(20_000, 1)
    ids = own_text.drawn(logits, torch.Generator().manual_seed(0)).flatten()
    found = torch.bincount(ids, minlength=4) / len(ids)
    assert torch.allclose(found, logits[0].softmax(0), atol=0.015)
    assert not found[2]


def test_who_writes(model_folders: dict[str, Path], tmp_path: Path) -> None:
    """An encoder writes nothing, nor what was saved without its head."""
    assert own_text.writer(Checkpoint.open(str(model_folders["bert"]))) is None
    assert own_text.writer(Checkpoint.open(str(model_folders["llama-gqa"]))) is not None
    headless = models.save_word_model(tmp_path / "m", 0, lambda rows: models.llama(rows, cls="LlamaModel"))
    assert own_text.writer(Checkpoint.open(str(headless))) is None
