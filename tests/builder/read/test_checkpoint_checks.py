"""Models that are wrong on purpose: each is refused before any work, in one line that says what was expected and found.

Whatever is wrong, build() leaves no atlas and no staging folder behind.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import models
from paramdex_builder import Options, build
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.read.families import inherit
from paramdex_builder.read.family import parse
from paramdex_schemas import BuildError, CheckpointError, FamilyError, ParamdexError

OPTIONS = Options(top_k=3, pair_k=3, neighbor_k=1, device="cpu")
FC = "transformer.h.1.mlp.c_fc.weight"
WTE = "transformer.wte.weight"
WPE = "transformer.wpe.weight"
BIAS = "transformer.h.1.mlp.c_proj.bias"


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Rewrite the weights after ``change`` has had them."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})


def configure(folder: Path, **values: Any) -> None:
    """Change values of config.json; None takes a key out."""
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def put(name: str, index: tuple[int, ...], value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    """A change that sets one number."""
    return lambda tensors: tensors[name].__setitem__(index, value)


def shard(folder: Path, index: str) -> None:
    """An index of shards in place of the one file."""
    unlink(folder, "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)


def cut(folder: Path, keep: float) -> None:
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep)])


def unlink(folder: Path, name: str) -> None:
    (folder / name).unlink()


BAD: dict[str, tuple[Callable[[Path], Any], type[ParamdexError], str]] = {
    "transposed": (
        lambda f: edit(f, lambda t: t.update({FC: t[FC].T})),
        FamilyError,
        f"tensor {FC} is 96 x 24, expected 24 x 96 for family gpt2",
    ),
    "dropped": (lambda f: edit(f, lambda t: t.pop(FC)), FamilyError, f"no tensor {FC}, which family gpt2 needs"),
    "one axis too many": (
        lambda f: edit(f, lambda t: t.update({FC: t[FC][None]})),
        FamilyError,
        f"tensor {FC} is 1 x 24 x 96, expected 24 x 96",
    ),
    "embedding dropped": (lambda f: edit(f, lambda t: t.pop(WTE)), FamilyError, f"there is no tensor {WTE}"),
    "embedding of another width": (
        lambda f: edit(f, lambda t: t.update({WTE: t[WTE][:, :20]})),
        FamilyError,
        f"tensor {WTE} is 60 x 20, expected any x 24",
    ),
    "other width in config": (
        lambda f: configure(f, n_embd=32),
        FamilyError,
        "tensor transformer.h.0.mlp.c_fc.weight is 24 x 96, expected 32 x 128",
    ),
    "heads do not divide the width": (
        lambda f: configure(f, n_head=5),
        FamilyError,
        "hidden size 24 is not a multiple of 5 attention heads",
    ),
    "more layers in config": (
        lambda f: configure(f, n_layer=3),
        FamilyError,
        "config.json says 3 layers, but the weights have 2, by tensors transformer.h.*",
    ),
    "fewer layers in config": (
        lambda f: configure(f, n_layer=1),
        FamilyError,
        "config.json says 1 layers, but there is a tensor transformer.h.1.",
    ),
    "other feed-forward width in config": (
        lambda f: configure(f, n_inner=100),
        FamilyError,
        "tensor transformer.h.0.mlp.c_fc.weight is 24 x 96, expected 24 x 100",
    ),
    "not a number": (
        lambda f: edit(f, put(FC, (3, 5), float("nan"))),
        CheckpointError,
        f"tensor {FC} has 1 values that are NaN or infinite",
    ),
    "infinite": (
        lambda f: edit(f, lambda t: t[FC][2].fill_(float("-inf"))),
        CheckpointError,
        f"tensor {FC} has 96 values that are NaN or infinite",
    ),
    "embedding not a number": (
        lambda f: edit(f, put(WTE, (59, 23), float("nan"))),
        CheckpointError,
        f"tensor {WTE} has 1 values",
    ),
    "infinite once it is float32": (
        lambda f: edit(f, lambda t: t.update({FC: t[FC].double() * 1e60})),
        CheckpointError,
        f"tensor {FC} has 2304 values that are NaN or infinite",
    ),
    "bias of one layer dropped": (
        lambda f: edit(f, lambda t: t.pop(BIAS)),
        FamilyError,
        f"no tensor {BIAS}, though other layers have theirs",
    ),
    "bias of another width": (
        lambda f: edit(f, lambda t: t.update({BIAS: t[BIAS][:20]})),
        FamilyError,
        f"tensor {BIAS} is 20, expected 24 for family gpt2",
    ),
    "bias not a number": (
        lambda f: edit(f, put(BIAS, (7,), float("nan"))),
        CheckpointError,
        f"tensor {BIAS} has 1 values",
    ),
    "bias within heads not a number": (
        lambda f: edit(f, put("transformer.h.0.attn.c_attn.bias", (71,), float("inf"))),
        CheckpointError,
        "tensor transformer.h.0.attn.c_attn.bias has 1 values",
    ),
    "positions dropped": (lambda f: edit(f, lambda t: t.pop(WPE)), FamilyError, f"there is no tensor {WPE}"),
    "positions of another width": (
        lambda f: edit(f, lambda t: t.update({WPE: t[WPE][:, :20]})),
        FamilyError,
        f"tensor {WPE} is 32 x 20, expected any x 24",
    ),
    "positions not a number": (
        lambda f: edit(f, put(WPE, (31, 0), float("nan"))),
        CheckpointError,
        f"tensor {WPE} has 1 values",
    ),
    "truncated": (lambda f: cut(f, 0.9), CheckpointError, "model.safetensors is truncated or no safetensors file"),
    "truncated in its header": (lambda f: cut(f, 0.001), CheckpointError, "model.safetensors is truncated"),
    "empty": (lambda f: cut(f, 0), CheckpointError, "model.safetensors is truncated"),
    "no weights": (lambda f: unlink(f, "model.safetensors"), CheckpointError, "has no model.safetensors; save it with"),
    "no config": (lambda f: unlink(f, "config.json"), CheckpointError, "is not a model: it has no config.json"),
    "config is no JSON": (
        lambda f: (f / "config.json").write_text('{"model_type": '),
        CheckpointError,
        "config.json is not a JSON object",
    ),
    "config is a list": (
        lambda f: (f / "config.json").write_text("[]"),
        CheckpointError,
        "config.json is not a JSON object",
    ),
    "config names no type": (
        lambda f: configure(f, model_type=None),
        CheckpointError,
        "config.json names no model_type",
    ),
    "unknown type": (
        lambda f: configure(f, model_type="rwkv"),
        FamilyError,
        "models of type 'rwkv' are not supported; there are albert, bart, bert, bloom, cohere,",
    ),
    "mistyped type": (lambda f: configure(f, model_type="gtp2"), FamilyError, "did you mean gpt2"),
    "weights of another family": (
        lambda f: configure(f, model_type="llama", num_attention_heads=2, hidden_size=24),
        FamilyError,
        "no tensor model.embed_tokens.weight; its config says llama, its weights do not",
    ),
    "tokenizer too large": (
        lambda f: models.word_tokenizer(61).save_pretrained(f),
        CheckpointError,
        "the tokenizer has ids up to 60 but the embedding only 60 rows",
    ),
    "no tokenizer": (
        lambda f: [unlink(f, name) for name in ("tokenizer.json", "tokenizer_config.json")],
        CheckpointError,
        "has no tokenizer; save it with tokenizer.save_pretrained(folder)",
    ),
    "tokenizer is no JSON": (
        lambda f: (f / "tokenizer.json").write_text("{"),
        CheckpointError,
        "its tokenizer (tokenizer.json) cannot be read",
    ),
    "whole numbers": (
        lambda f: edit(f, lambda t: t.update({FC: (t[FC] * 100).to(torch.int8)})),
        CheckpointError,
        f"tensor {FC} is I8; paramdex reads float32, float16 and bfloat16",
    ),
    "eight-bit floats": (
        lambda f: edit(f, lambda t: t.update({FC: t[FC].to(torch.float8_e4m3fn)})),
        CheckpointError,
        f"tensor {FC} is F8_E4M3",
    ),
    "says it is quantized": (
        lambda f: configure(f, quantization_config={"quant_method": "gptq", "bits": 4}),
        CheckpointError,
        "is quantized",
    ),
    "a shard is missing": (
        lambda f: shard(f, '{"weight_map": {"a": "model-1.safetensors"}}'),
        CheckpointError,
        "the shard model-1.safetensors is missing",
    ),
    "index is damaged": (
        lambda f: shard(f, "{}"),
        CheckpointError,
        "model.safetensors.index.json is damaged",
    ),
}


def refuse(
    sources: list[str], root: Path, error: type[ParamdexError], message: str, options: Options = OPTIONS
) -> None:
    """build() raises exactly ``error`` with ``message`` in one line, and leaves nothing in ``root``."""
    before = sorted(root.iterdir())
    with pytest.raises(error) as caught:
        build(sources, root / "x.atlas", options)
    assert type(caught.value) is error
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(root.iterdir()) == before


@pytest.mark.parametrize("what", BAD)
def test_refused(word_model: Path, tmp_path: Path, what: str) -> None:
    spoil, error, message = BAD[what]
    spoil(word_model)
    refuse([str(word_model)], tmp_path, error, message)


@pytest.mark.parametrize(
    "name", ["transformer.h.0.ln_1.weight", "transformer.h.1.ln_2.weight", "transformer.ln_f.weight"]
)
def test_a_bad_gain_is_found_where_gains_are_read(word_model: Path, tmp_path: Path, name: str) -> None:
    edit(word_model, put(name, (3,), float("nan")))
    message = f"tensor {name} has 1 values that are NaN or infinite"
    refuse([str(word_model)], tmp_path, CheckpointError, message, replace(OPTIONS, fold_norm=True))
    edit(word_model, lambda tensors: tensors.pop(name))
    message = f"there is no tensor {name}, which family gpt2 needs"
    refuse([str(word_model)], tmp_path, FamilyError, message, replace(OPTIONS, fold_norm=True))
    build([str(word_model)], tmp_path / "x.atlas", OPTIONS)


def test_a_model_without_biases_has_no_kinds_of_them(word_model: Path) -> None:
    checkpoint = Checkpoint.open(str(word_model))
    kinds = checkpoint.layout.kinds
    edit(word_model, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.endswith(".bias")])
    checkpoint = Checkpoint.open(str(word_model))
    checkpoint.check_layers()
    assert checkpoint.layout.kinds == [kind for kind in kinds if not kind.endswith("_bias")]


def test_good_model_beside_a_bad_one_is_not_built(word_model: Path, tmp_path: Path) -> None:
    """All models are checked before any is worked on."""
    bad = models.save_word_model(tmp_path / "bad", 1)
    edit(bad, put(FC, (0, 0), float("nan")))
    refuse([str(word_model), str(bad)], tmp_path, CheckpointError, f"tensor {FC} has 1 values")


def test_heads_of_a_grouped_model(tmp_path: Path) -> None:
    """Head counts that the projections do not have, and such as cannot share key/value heads."""
    folder = models.save_word_model(tmp_path / "llama", 0, models.MAKERS["LlamaForCausalLM"])
    configure(folder, num_attention_heads=6)
    name = "model.layers.0.self_attn.q_proj.weight"
    refuse([str(folder)], tmp_path, FamilyError, f"tensor {name} is 32 x 24, expected 48 x 24 for family llama")
    configure(folder, num_attention_heads=4, num_key_value_heads=4)
    name = "model.layers.0.self_attn.k_proj.weight"
    refuse([str(folder)], tmp_path, FamilyError, f"tensor {name} is 16 x 24, expected 32 x 24 for family llama")
    configure(folder, num_key_value_heads=3)
    refuse([str(folder)], tmp_path, FamilyError, "4 heads cannot share 3 key/value heads evenly")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (
            "AlbertForMaskedLM",
            {"inner_group_num": 2},
            "config.json: inner_group_num is 2; paramdex reads albert models only where it is 1",
        ),
        (
            "AlbertForMaskedLM",
            {"num_hidden_groups": 2},
            "config.json says 2 layers, but the weights have 1, by tensors albert.encoder.albert_layer_groups.*",
        ),
        (
            "AlbertForMaskedLM",
            {"hidden_size": 30},
            "layer_groups.0.albert_layers.0.ffn.weight is 40 x 24, expected 40 x 30 for family albert",
        ),
        (
            "OPTForCausalLM, narrower embedding",
            {"hidden_size": 28},
            "tensor model.decoder.layers.0.fc1.weight is 40 x 24, expected 40 x 28 for family opt",
        ),
        (
            "FalconForCausalLM, new_decoder_architecture",
            {"num_kv_heads": 4},
            "tensor transformer.h.0.self_attention.query_key_value.weight is 64 x 32, expected 96 x 32",
        ),
        (
            "FalconForCausalLM, multi-query",
            {"multi_query": False},
            "tensor transformer.h.0.self_attention.query_key_value.weight is 48 x 32, expected 96 x 32",
        ),
        (
            "Phi3ForCausalLM",
            {"num_key_value_heads": 4},
            "tensor model.layers.0.self_attn.qkv_proj.weight is 48 x 24, expected 72 x 24",
        ),
        (
            "GemmaForCausalLM",
            {"head_dim": 6},
            "tensor model.layers.0.self_attn.q_proj.weight is 32 x 24, expected 24 x 24",
        ),
        ("BertModel", {"intermediate_size": 0}, "config.json: d_ff is 0, which cannot be right"),
        ("BertModel", {"num_attention_heads": 0}, "config.json: n_heads is 0, which cannot be right"),
    ],
)
def test_numbers_of_config_that_the_weights_do_not_have(
    tmp_path: Path, name: str, values: dict[str, Any], message: str
) -> None:
    folder = models.save_word_model(tmp_path / "model", 0, models.MAKERS[name])
    configure(folder, **values)
    refuse([str(folder)], tmp_path, FamilyError, message)


def test_no_such_folder(tmp_path: Path) -> None:
    missing = tmp_path / "a" / "b" / "c"
    refuse([str(missing)], tmp_path, CheckpointError, f"there is no folder {missing}")
    with pytest.raises(CheckpointError, match=r"^there is no folder \./no-such-model$"):  # the hub is not asked
        build(["./no-such-model"], tmp_path / "x.atlas", OPTIONS)


def test_file_in_place_of_a_folder(word_model: Path, tmp_path: Path) -> None:
    refuse([str(word_model / "model.safetensors")], tmp_path, CheckpointError, "is a file; give the folder that holds")


def test_name_that_is_neither_folder_nor_known_model(tmp_path: Path) -> None:
    """The hub is out of reach of the tests; what it says then is part of the message."""
    refuse(
        ["no-such-owner/no-such-model"],
        tmp_path,
        CheckpointError,
        "there is no folder no-such-owner/no-such-model, and",
    )


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], "give at least one model"),
        (["{}", "{}"], "two models would be called word-model; name one of them: OTHER="),
        (["a={}", "a={}"], "two models would be called a;"),
        (["/"], "'' cannot name a model; use letters, digits, . _ + and -; write NAME=/"),
        (["../-x"], "'-x' cannot name a model"),
    ],
)
def test_names(word_model: Path, tmp_path: Path, sources: list[str], message: str) -> None:
    refuse([source.format(word_model) for source in sources], tmp_path, BuildError, message)


def test_sharded_model_is_the_whole_one(word_model: Path, tmp_path: Path) -> None:
    """Every tensor is found, in whichever shard it lies, and read with the same values."""
    tensors = load_file(word_model / "model.safetensors")
    whole = Checkpoint.open(str(word_model))
    expected = {run: whole.rows(run) for run in whole.layout.runs}
    names = sorted(tensors)
    shards = {f"model-{i}-of-3.safetensors": names[i::3] for i in range(3)}
    for shard, part in shards.items():
        save_file({name: tensors[name] for name in part}, word_model / shard)
    index = {"weight_map": {name: shard for shard, part in shards.items() for name in part}}
    (word_model / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, word_model / "model.safetensors")
    both = AutoModelForCausalLM.from_pretrained(word_model)
    assert torch.equal(Checkpoint.open(str(word_model)).embedding()[0], both.transformer.wte.weight)  # the whole one
    (word_model / "model.safetensors").unlink()
    sharded = Checkpoint.open(str(word_model))
    assert [file.name for file in sharded.files.paths] == sorted(shards)
    assert sharded.layout.runs == tuple(expected)
    for run, rows in expected.items():
        assert torch.equal(sharded.rows(run), rows)


def test_untied_by_its_weights(tmp_path: Path) -> None:
    """A config that says tied beside two different embeddings: the output embedding counts, and it is untied."""
    folder = models.save_word_model(tmp_path / "word-model")
    other = torch.randn(60, 24)
    edit(folder, lambda t: t.update({"lm_head.weight": other}))
    checkpoint = Checkpoint.open(str(folder))
    E, which, tied = checkpoint.embedding()
    assert (which, tied) == ("output", False)
    assert torch.equal(E, other)


def spec(**keys: Any) -> dict[str, Any]:
    """A change of gpt2.json that gives ff_key these keys."""
    from importlib import resources

    data = json.loads((resources.files("paramdex_builder") / "families" / "gpt2.json").read_text())
    return {"tensors": data["tensors"] | {"ff_key": keys}}


def test_a_family_like_none_is_refused() -> None:
    with pytest.raises(FamilyError, match=r"mine\.json is like 'lama'; did you mean llama\?"):
        inherit({"family": "mine", "like": "lama"}, {"llama": {}, "bert": {}}, "mine.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, r"x.json: unknown keys \['colour'\], missing keys \[\]"),
        ({"layer": None}, r"x.json: unknown keys \[\], missing keys \['layer'\]"),
        ({"config": {"d_fff": "n_inner"}}, r"x.json: unknown keys \['d_fff'\], missing keys \[\]"),
        ({"tensors": {"ff_key": {"tensor": "a", "axes": "d_ff d_model"}}}, "x.json: tensors must be ff_key, ff_gate"),
        (spec(tensr="a", axes="d_ff d_model"), r"x.json: ff_key has the keys \['axes', 'tensr'\]"),
        (spec(tensor="a", axes="d_fff d_model"), r"x.json: ff_key has unknown axes \['d_fff'\]"),
        (spec(tensor="a", axes="(part d_ff) d_model"), "x.json: ff_key: an axis part goes with the sizes of its parts"),
        (spec(tensor="a", axes="d_ff d_model", parts=[1, 1]), "x.json: ff_key: an axis part goes with the sizes"),
        (spec(tensor="a", axes="(part d_ff) d_model", parts=[1, 1], take=2), "take says which of them is meant"),
    ],
)
def test_family_files_are_checked(change: dict[str, Any], message: str) -> None:
    from importlib import resources

    data = json.loads((resources.files("paramdex_builder") / "families" / "gpt2.json").read_text())
    data = {key: value for key, value in (data | change).items() if value is not None}
    with pytest.raises(FamilyError, match=message):
        parse(data, "x.json")
