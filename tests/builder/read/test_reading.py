"""Weights in other files and models of unlisted types: read to the same numbers, or refused with what did not fit."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SMALL_OPTIONS
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import models
import paramdex
from paramdex_builder import build
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_schemas import CheckpointError, FamilyError


@pytest.fixture
def folder(model_folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the grouped-query Llama, the test's own."""
    return Path(shutil.copytree(model_folders["llama-gqa"], tmp_path / "model"))


def whole(state: dict[str, torch.Tensor], folder: Path) -> None:
    torch.save(state, folder / "pytorch_model.bin")


def legacy(state: dict[str, torch.Tensor], folder: Path) -> None:
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def sharded(state: dict[str, torch.Tensor], folder: Path) -> None:
    names = sorted(state)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for shard, held in shards.items():
        torch.save({name: state[name] for name in held}, folder / shard)
    where = {name: shard for shard, held in shards.items() for name in held}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))


@pytest.mark.parametrize("save", [whole, legacy, sharded])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pytorch_files_read_as_safetensors_do(folder: Path, save: Callable, dtype: torch.dtype) -> None:
    state = {name: value.to(dtype) for name, value in load_file(folder / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors")
    checkpoint = Checkpoint.open(str(folder))
    expected = {run: checkpoint.rows(run).clone() for run in checkpoint.layout.runs}
    E = checkpoint.embedding()[0].clone()
    (folder / "model.safetensors").unlink()
    save(state, folder)
    checkpoint = Checkpoint.open(str(folder))
    assert checkpoint.layout.runs == tuple(expected)
    for run, rows in expected.items():
        assert torch.equal(checkpoint.rows(run), rows)
    assert torch.equal(checkpoint.embedding()[0], E)
    assert checkpoint.dtype() == str(dtype).removeprefix("torch.")


class Dangerous:
    """Unpickled with trust, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (str(self.path), "w"))


def test_code_in_a_pickle_is_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"weight": Dangerous(tmp_path / "made")}, file)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is damaged or holds more than tensors"):
        Checkpoint.open(str(folder))
    assert not (tmp_path / "made").exists()


def test_truncated_pytorch_file(folder: Path) -> None:
    whole(load_file(folder / "model.safetensors"), folder)
    (folder / "model.safetensors").unlink()
    data = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is damaged"):
        Checkpoint.open(str(folder))


def retype(folder: Path, model_type: str = "brandnew") -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": model_type}))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def test_an_unlisted_type_of_a_known_layout_is_inferred(
    folder: Path, tmp_path: Path, model_folders: dict[str, Path]
) -> None:
    retype(folder)
    atlas = paramdex.open(build([str(folder)], tmp_path / "new.atlas", SMALL_OPTIONS))
    assert atlas.sql("SELECT model_type, family, family_inferred FROM models").to_rows() == [
        {"model_type": "brandnew", "family": "llama", "family_inferred": True}
    ]
    listed = paramdex.open(build([f"model={model_folders['llama-gqa']}"], tmp_path / "old.atlas", SMALL_OPTIONS))
    assert listed.sql("SELECT family_inferred FROM models").to_rows() == [{"family_inferred": False}]
    for table in ("parameter_tokens", "head_pairs"):
        query = f"SELECT * FROM {table} ORDER BY ALL"
        assert atlas.sql(query).to_rows() == listed.sql(query).to_rows()


BARTS = ["BlenderbotModel", "BlenderbotSmallModel", "PegasusModel", "MBartModel", "PLBartModel", "WhisperModel"]


@pytest.mark.parametrize("cls", BARTS)
@torch.no_grad()
def test_positions_of_unlisted_types_are_the_rows_that_the_model_adds(cls: str, tmp_path: Path) -> None:
    """BART's layout: some have two rows before the first position and some none; Whisper counts them by stack."""
    ids = torch.tensor([[5, 6, 7]])
    hears = cls == "WhisperModel"
    numbers = {"max_source_positions": 20, "max_target_positions": 30, "num_mel_bins": 8, "decoder_start_token_id": 2}
    model = models.bart(60, cls, **(numbers if hears else {}))
    folder = models.save(tmp_path, model, models.word_tokenizer(60), 3)
    checkpoint = Checkpoint.open(str(folder))
    assert (checkpoint.family.name, checkpoint.inferred) == ("bart", True)
    seen: dict[str, torch.Tensor] = {}
    for name in ("encoder", "decoder"):
        module = getattr(model, name).embed_positions
        module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.reshape(-1, 24)}))
    heard = {"input_features": torch.zeros(1, 8, 40)} if hears else {"input_ids": ids}
    model(**heard, decoder_input_ids=ids)
    runs = checkpoint.layout.of("position")
    assert [run.n_rows for run in runs] == ([20, 30] if hears else [32, 32])
    for run in runs:
        gave = seen[run.stack or ""]
        assert torch.equal(checkpoint.rows(run)[: len(gave)], gave)


def test_more_positions_than_rows_are_refused(tmp_path: Path) -> None:
    folder = models.save(tmp_path, models.bart(60), models.word_tokenizer(60), 3)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": 99}))
    with pytest.raises(FamilyError) as caught:
        Checkpoint.open(str(folder))
    assert str(caught.value) == (
        f'{folder}: config.json: ["max_source_positions", "max_position_embeddings"] is 99, but should say where the '
        "positions begin in the 34 rows of encoder.embed_positions.weight"
    )


def test_norms_of_an_inferred_family_are_not_folded(folder: Path, tmp_path: Path) -> None:
    """Where its norms stand is what the family file says, and no file lists the type."""
    retype(folder)
    with pytest.raises(FamilyError) as caught:
        build([str(folder)], tmp_path / "new.atlas", replace(SMALL_OPTIONS, fold_norm=True))
    reason = "no family file lists its type; build it without --fold-norm"
    assert str(caught.value) == f"{folder}: norms cannot be folded: {reason}"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda state: state.update({"model.layers.1.mlp.extra_proj.weight": torch.ones(4, 4)}),
            r"nearest is llama: model\.layers\.1\.mlp\.extra_proj\.weight is not accounted for",
        ),
        (
            lambda state: state.pop("model.layers.0.self_attn.q_proj.weight"),
            r"nearest is llama: there is no model\.layers\.0\.self_attn\.q_proj\.weight",
        ),
        (
            lambda state: state.update(
                {"model.layers.0.mlp.up_proj.weight": state["model.layers.0.mlp.up_proj.weight"].T.contiguous()}
            ),
            r"nearest is llama: model\.layers\.0\.mlp\.up_proj\.weight is \d+ x \d+, expected \d+ x \d+",
        ),
    ],
)
def test_an_unlisted_type_of_another_layout_is_refused(folder: Path, change: Callable, reason: str) -> None:
    retype(folder)
    rewrite(folder, change)
    with pytest.raises(FamilyError, match=reason):
        Checkpoint.open(str(folder))


@pytest.mark.parametrize(
    ("cls", "left"), [("DiffLlamaForCausalLM", "self_attn.lambda_k1"), ("BitNetForCausalLM", "mlp.ffn_sub_norm.weight")]
)
def test_what_stands_within_a_block_is_accounted_for(cls: str, left: str, tmp_path: Path) -> None:
    """Llama's matrices with something between them: their products would not be what the model computes."""
    folder = models.save(tmp_path, models.llama(60, cls=cls, num_key_value_heads=4), models.word_tokenizer(60), 1)
    with pytest.raises(FamilyError) as caught:
        Checkpoint.open(str(folder))
    assert f"nearest is llama: model.layers.0.{left} is not accounted for; " in str(caught.value)


INFERRED = [
    "LlamaForCausalLM", "Qwen3ForCausalLM", "Gemma2ForCausalLM", "Phi3ForCausalLM", "Olmo2ForCausalLM",
    "MixtralForCausalLM", "Qwen2MoeForCausalLM", "StableLmForCausalLM, biases, parallel", "GPTNeoXForCausalLM",
    "OPTForCausalLM", "FalconForCausalLM, multi-query, bias", "BertForMaskedLM", "AlbertForMaskedLM",
    "ModernBertForMaskedLM", "BartForConditionalGeneration",
]  # fmt: skip


@pytest.mark.parametrize("name", INFERRED)
def test_layouts_with_all_their_norms_and_biases_are_inferred(name: str, tmp_path: Path) -> None:
    folder = models.save(tmp_path / "model", models.MAKERS[name](60), models.word_tokenizer(60), 1)
    listed = Checkpoint.open(str(folder))
    retype(folder)
    inferred = Checkpoint.open(str(folder))
    assert inferred.layout.runs == listed.layout.runs
    for run in listed.layout.runs:
        assert torch.equal(inferred.rows(run), listed.rows(run))


@pytest.mark.parametrize(
    ("cls", "model_type", "expected"),
    [
        ("Cohere2ForCausalLM", "cohere2", ("output", True)),  # tied by default
        ("HeliumForCausalLM", "helium", ("input", False)),  # untied by default
        ("LlamaForCausalLM", "brandnew", ("output", True)),  # a type that transformers does not know
        ("LlamaModel", "brandnew", ("input", False)),
    ],
)
def test_a_config_that_does_not_say_whether_embeddings_are_tied(
    cls: str, model_type: str, expected: tuple[str, bool], tmp_path: Path
) -> None:
    """A file without an output embedding, read as transformers does; one with another stays untied."""
    folder = models.save(tmp_path, models.llama(60, cls=cls, head_dim=6), models.word_tokenizer(60), 3)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": model_type}
    del config["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(config))
    state = load_file(folder / "model.safetensors")
    head = state.pop("lm_head.weight", None)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    assert Checkpoint.open(str(folder)).embedding()[1:] == expected
    if model_type != "brandnew":
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert (model.lm_head.weight is model.get_input_embeddings().weight) == expected[1]
    if head is not None:
        rewrite(folder, lambda state: state.update({"lm_head.weight": head}))
        assert Checkpoint.open(str(folder)).embedding()[1:] == ("output", False)


def test_frequencies_in_a_layer_are_no_part_of_it(folder: Path) -> None:
    """Checkpoints of Llama's first days have them in every layer."""
    retype(folder)
    rewrite(folder, lambda state: state.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    assert Checkpoint.open(str(folder)).family.name == "llama"


def test_an_embedding_without_layers_is_no_layout(tmp_path: Path) -> None:
    """T5's and BART's embedding have one name."""
    folder = models.save(tmp_path, models.t5(60), models.word_tokenizer(60), 1)
    retype(folder)
    with pytest.raises(FamilyError, match=r"nearest is t5: decoder\.block\.0\.layer\.0\.SelfAttention\.relative"):
        Checkpoint.open(str(folder))


def test_norms_under_their_old_names_are_found(model_folders: dict[str, Path], tmp_path: Path) -> None:
    """Checkpoints converted from TensorFlow call a LayerNorm's weight gamma and its bias beta."""
    checkpoint = Checkpoint.open(str(model_folders["bert"]), fold_norm=True)
    expected = {run: checkpoint.rows(run).clone() for run in checkpoint.layout.runs}
    folder = Path(shutil.copytree(model_folders["bert"], tmp_path / "bert"))
    state = load_file(folder / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in state.items()
    }
    assert set(old) != set(state)
    save_file(old, folder / "model.safetensors")
    checkpoint = Checkpoint.open(str(folder), fold_norm=True)
    for run, rows in expected.items():
        assert torch.equal(checkpoint.rows(run), rows)
