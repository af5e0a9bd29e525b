"""What the index of a sharded model says is held against its shards: each tensor is read from the shard that the index
names, or the model is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import models
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.read.displacement import Displacement
from paramdex_builder.stream.forward import Runner
from paramdex_schemas import CheckpointError

State = dict[str, torch.Tensor]
FORMATS: dict[str, tuple[str, Callable[[State, Path], Any]]] = {
    "safetensors": ("model", lambda state, file: save_file(state, file, {"format": "pt"})),
    "bin": ("pytorch_model", torch.save),
}
HEAD, BIAS = "lm_head.weight", "model.layers.1.self_attn.q_proj.bias"


@pytest.fixture(params=FORMATS)
def sharded(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Path]:
    """Saves the two halves of a model, after a change of them and of what the index says, in either format."""
    stem, write = FORMATS[request.param]
    ending = request.param

    def save(change: Callable[[list[State], dict[str, int]], Any] | None = None) -> Path:
        folder = tmp_path / "model"
        models.save(folder, models.llama(60, cls="Qwen2ForCausalLM"), models.word_tokenizer(60), 3)
        state = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = sorted(state)
        halves = [{name: state[name] for name in half} for half in (names[::2], names[1::2])]
        index = {name: i for i, half in enumerate(halves) for name in half}
        if change is not None:
            change(halves, index)
        shards = [f"{stem}-0000{i + 1}-of-00002.{ending}" for i in range(2)]
        for shard, half in zip(shards, halves, strict=True):
            write(half, folder / shard)
        where = {name: shards[i] for name, i in index.items()}
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
        return folder

    return save


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(str(folder))
    return str(caught.value).removeprefix(f"{folder}: ")


def rows_of(folder: Path) -> list[torch.Tensor]:
    checkpoint = Checkpoint.open(str(folder))
    return [checkpoint.embedding()[0], *(checkpoint.rows(run).clone() for run in checkpoint.layout.runs)]


@pytest.mark.parametrize("name", [HEAD, BIAS, "model.layers.0.mlp.up_proj.weight", "model.norm.weight", "extra.bias"])
def test_every_promised_tensor_is_there(name: str, sharded: Callable[..., Path]) -> None:
    """One that is needed, one without which there would be another embedding, and one of which nobody knows."""
    folder = sharded(lambda halves, index: halves[index.setdefault(name, 1)].pop(name, None))
    index = json.loads(next(folder.glob("*.index.json")).read_text())["weight_map"]
    assert refused(folder) == (
        f"the index says that tensor {name} is in {index[name]}, but it is not there; fetch both again, or save the "
        "model again"
    )


@pytest.mark.parametrize("name", [HEAD, BIAS])
def test_a_tensor_in_another_shard_than_promised_is_refused(name: str, sharded: Callable[..., Path]) -> None:
    message = refused(sharded(lambda _, index: index.update({name: 1 - index[name]})))
    assert message.startswith(f"the index says that tensor {name} is in ")
    assert message.endswith("; fetch both again, or save the model again")
    assert ", but it is in " in message


@pytest.mark.parametrize("stale", [0, 1])
@pytest.mark.parametrize("name", [HEAD, BIAS, "model.layers.0.mlp.up_proj.weight"])
def test_a_stale_copy_is_not_read(name: str, stale: int, sharded: Callable[..., Path]) -> None:
    """Whether it is in the first shard or the last. transformers takes the last, so that what it would run is refused
    where that is the stale one.
    """
    expected = rows_of(sharded())

    def duplicate(halves: list[State], index: dict[str, int]) -> None:
        tensor = halves[index[name]].pop(name)
        halves[1 - stale][name] = tensor
        halves[stale][name] = tensor + 1
        index[name] = 1 - stale

    folder = sharded(duplicate)
    for mine, theirs in zip(rows_of(folder), expected, strict=True):
        assert torch.equal(mine, theirs)
    checkpoint = Checkpoint.open(str(folder))
    if stale == 0:
        Runner.open(checkpoint)
        return
    with pytest.raises(CheckpointError) as caught:
        Runner.open(checkpoint)
    shards = sorted(path.name for path in checkpoint.files.paths)
    assert str(caught.value) == (
        f"{folder}: the index says that tensor {name} is in {shards[0]}, but transformers would run the one in "
        f"{shards[1]}, which is different; take that out"
    )


def test_a_second_copy_of_the_same_numbers_is_run(sharded: Callable[..., Path]) -> None:
    def duplicate(halves: list[State], index: dict[str, int]) -> None:
        halves[1][HEAD] = halves[index[HEAD]].pop(HEAD)
        halves[0][HEAD] = halves[1][HEAD].clone()

    checkpoint = Checkpoint.open(str(sharded(duplicate)))
    assert Runner.open(checkpoint).checkpoint is checkpoint


@pytest.mark.parametrize("name", [HEAD, BIAS])
def test_a_tensor_that_the_index_does_not_name_is_read_as_transformers_does(
    name: str, sharded: Callable[..., Path]
) -> None:
    folder = sharded(lambda _, index: index.pop(name))
    model = AutoModelForCausalLM.from_pretrained(folder)
    E, *mine = rows_of(folder)
    assert torch.equal(E, model.lm_head.weight)
    checkpoint = Checkpoint.open(str(folder))
    module = model.model.layers[1].self_attn
    for run, rows in zip(checkpoint.layout.runs, mine, strict=True):
        if (run.kind, run.layer) == ("attn_query_bias", 1):
            carried = module.q_proj.bias.view(4, 6), module.k_proj.weight.view(2, 6, 24)
            wanted = torch.stack([carried[0][h] @ carried[1][h // 2] for h in range(4)])
            torch.testing.assert_close(rows, wanted)
            return
    raise AssertionError("no such run")


def test_two_copies_of_which_the_index_names_neither_are_refused(sharded: Callable[..., Path]) -> None:
    def duplicate(halves: list[State], index: dict[str, int]) -> None:
        tensor = halves[index.pop(HEAD)][HEAD]
        halves[0][HEAD], halves[1][HEAD] = tensor.clone(), tensor + 1

    folder = sharded(duplicate)
    shards = sorted(path.name for path in folder.iterdir() if "-of-" in path.name)
    assert refused(folder) == (
        f"tensor {HEAD} is in {shards[0]} and in {shards[1]}, and the index does not say which counts; save the model "
        "again"
    )


def test_a_tuned_model_or_base_that_lacks_what_its_index_promises_is_refused(
    sharded: Callable[..., Path], tmp_path: Path
) -> None:
    """The base has all that the tuned one lacks."""
    models.save(tmp_path / "whole", models.llama(60, cls="Qwen2ForCausalLM"), models.word_tokenizer(60), 3)
    broken = sharded(lambda halves, index: halves[index[BIAS]].pop(BIAS))
    for tuned, base in ((broken, tmp_path / "whole"), (tmp_path / "whole", broken)):
        with pytest.raises(CheckpointError, match=rf"^{broken}: the index says that tensor {BIAS} is in"):
            Displacement.open(str(tuned), str(base))


def test_an_index_with_the_names_of_old_is_kept(tmp_path: Path) -> None:
    """LayerNorm's gamma and beta, in a file and in its index, are its weight and bias."""
    folder = models.save(tmp_path / "model", models.encoder(60), models.word_tokenizer(60), 3)
    state = load_file(folder / "model.safetensors")
    expected = rows_of(folder)
    (folder / "model.safetensors").unlink()
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): value for name, value in state.items()}
    assert set(old) != set(state)
    save_file(old, folder / "model-00001-of-00001.safetensors", {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(old, "model-00001-of-00001.safetensors")}))
    for mine, theirs in zip(rows_of(folder), expected, strict=True):
        assert torch.equal(mine, theirs)
