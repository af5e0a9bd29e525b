"""Models that cannot be read in a space of their layers: what is said, and what is done with auto."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import models
from paramdex_builder import Progress
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.stream.reading import Reading, make_reading, reading_held, reading_of
from paramdex_schemas import BuildError, CheckpointError, FamilyError


class Told(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def rename(folder: Path, old: str, new: str) -> None:
    """Give a tensor of a saved model another name."""
    tensors = load_file(folder / "model.safetensors")
    tensors[new] = tensors.pop(old)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def said_with_auto(checkpoint: Checkpoint) -> str:
    told = Told()
    assert reading_of("auto", checkpoint, None, told) == "embedding"
    assert len(told.lines) == 1
    return told.lines[0]


def test_a_type_that_transformers_does_not_know(tmp_path: Path) -> None:
    folder = models.save_word_model(tmp_path / "m", 0, models.llama)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "brandnew"}))
    checkpoint = Checkpoint.open(str(folder))
    why = "transformers knows no models of type brandnew, and so cannot run it"
    assert said_with_auto(checkpoint).endswith(f"because {why}")
    for asked in ("expected", "effective"):
        with pytest.raises(BuildError, match=f"{why}; build it with --reading embedding"):
            reading_of(asked, checkpoint)


def test_a_type_that_no_family_lists(tmp_path: Path) -> None:
    """It can be run, but which norms its readers have is not known."""
    folder = models.save_word_model(tmp_path / "m", 0, lambda rows: models.llama(rows, cls="SeedOssForCausalLM"))
    checkpoint = Checkpoint.open(str(folder))
    assert checkpoint.inferred
    assert reading_of("auto", checkpoint) == "expected"
    assert len(make_reading(checkpoint, "expected", 60, None, Progress()).maps) == 4
    with pytest.raises(BuildError, match="no family file lists its type"):
        reading_of("effective", checkpoint)


@pytest.mark.parametrize("cls", ["LlamaModel", "LlamaForCausalLM"])
def test_a_model_without_its_head(cls: str, tmp_path: Path) -> None:
    """Or with it under a name that transformers does not look for."""
    folder = models.save_word_model(tmp_path / "m", 0, lambda rows: models.llama(rows, cls=cls))
    if cls == "LlamaForCausalLM":
        rename(folder, "lm_head.weight", "output.weight")
    checkpoint = Checkpoint.open(str(folder))
    why = "its weights have no head by transformers' name, and so it writes no text"
    assert said_with_auto(checkpoint).endswith(f"because {why}")
    with pytest.raises(BuildError, match=f"{why}; give some with --text FILE, or build it with"):
        reading_of("expected", checkpoint)
    assert reading_of("expected", checkpoint, "words.txt") == "expected"
    assert reading_of("effective", checkpoint) == "effective"


def test_readers_without_a_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = models.save_word_model(tmp_path / "m", 0, models.MAKERS["MixtralForCausalLM"])
    checkpoint = Checkpoint.open(str(folder))
    monkeypatch.setattr(type(checkpoint.names), "module", lambda *_: None)
    assert "no module of its own for ff_key of layer 0" in said_with_auto(checkpoint)
    with pytest.raises(BuildError, match="could be read; build it with --reading effective or embedding"):
        reading_of("expected", checkpoint)
    assert reading_of("effective", checkpoint) == "effective"


def test_weights_that_transformers_does_not_take(tmp_path: Path) -> None:
    folder = models.save_word_model(tmp_path / "m", 0, models.llama)
    rename(folder, "model.norm.weight", "model.nrm.weight")
    with pytest.raises(
        CheckpointError, match=r"does not find model\.norm\.weight in its weights; .* --reading embedding"
    ):
        make_reading(Checkpoint.open(str(folder)), "expected", 60, None, Progress())


def test_states_that_are_not_finite(word_model: Path) -> None:
    tensors = load_file(word_model / "model.safetensors")
    tensors["transformer.h.0.mlp.c_fc.weight"][0, 0] = torch.nan
    save_file(tensors, word_model / "model.safetensors", {"format": "pt"})
    for how in ("effective", "expected"):
        with pytest.raises(CheckpointError, match=r"NaN or infinite.*--reading embedding"):
            make_reading(Checkpoint.open(str(word_model)), how, 60, None, Progress())


def test_a_kind_that_no_map_is_for(word_model: Path) -> None:
    checkpoint = Checkpoint.open(str(word_model))
    reading = Reading("expected", {}, {"attn_query+attn_key+attn_value/0": torch.eye(16)})
    with pytest.raises(FamilyError, match="ff_key of layer 0 reads is not known"):
        reading.map(checkpoint.layout.of("ff_key")[0])


def test_memory_grows_with_all_that_is_held(word_model: Path, tmp_path: Path) -> None:
    few = reading_held(Checkpoint.open(str(word_model)), 60)
    assert few > 4 * sum(tensor.numel() for tensor in load_file(word_model / "model.safetensors").values())
    assert reading_held(Checkpoint.open(str(word_model)), 6000) > few
    deep = models.save_word_model(tmp_path / "deep", 0, lambda rows: models.gpt2(rows, layers=6))
    assert reading_held(Checkpoint.open(str(deep)), 60) > few
    half = models.save(tmp_path / "half", models.gpt2(60), models.word_tokenizer(60), 0, torch.float16)
    assert reading_held(Checkpoint.open(str(half)), 60) == pytest.approx(few, rel=0.05)
