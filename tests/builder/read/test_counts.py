"""Numbers of config.json that the weights do not have: refused at once, whatever size they are, with what there is."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, GPT2LMHeadModel

import models
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.read.source import untyped_config
from paramdex_schemas import BuildError

MANY = 2**31
LONG = 10**4000
"""So many digits that a product of two cannot be printed."""


def configured(folder: Path, maker: str, **values: Any) -> Path:
    """A model with other values in its config.json."""
    models.save(folder, models.MAKERS[maker](60), models.word_tokenizer(60), 1)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return folder


def refusal(folder: Path) -> str:
    """What opening is refused with, in less than a second or two, as one line of ordinary length."""
    start = time.perf_counter()
    with pytest.raises(BuildError) as caught:
        Checkpoint.open(str(folder))
    assert time.perf_counter() - start < 2
    message = str(caught.value).replace(f"{folder}: ", "")
    assert "\n" not in message
    assert len(message) < 700
    return message


LAYERS = {
    "GPT2LMHeadModel": ("n_layer", 2, "transformer.h.*"),
    "GPTNeoForCausalLM": ("num_layers", 2, "transformer.h.*"),
    "Gemma2ForCausalLM": ("num_hidden_layers", 2, "model.layers.*"),
    "Gemma3ForCausalLM": ("num_hidden_layers", 2, "model.layers.*"),
    "Qwen2ForCausalLM": ("num_hidden_layers", 2, "model.layers.*"),
    "SmolLM3ForCausalLM": ("num_hidden_layers", 2, "model.layers.*"),
    "GptOssForCausalLM": ("num_hidden_layers", 2, "model.layers.*"),
    "Qwen2MoeForCausalLM, every other layer sparse": ("num_hidden_layers", 4, "model.layers.*"),
    "ModernBertForMaskedLM": ("num_hidden_layers", 2, "model.layers.*"),
    "AlbertModel, two groups": ("num_hidden_groups", 2, "encoder.albert_layer_groups.*"),
    "BartForConditionalGeneration": ("encoder_layers", 2, "model.encoder.layers.*"),
    "T5ForConditionalGeneration": ("num_decoder_layers", 3, "decoder.block.*"),
}


@pytest.mark.parametrize("maker", LAYERS)
def test_more_layers_than_the_weights_have(tmp_path: Path, maker: str) -> None:
    """For families whose config classes in transformers make a list as long, too."""
    name, layers, names = LAYERS[maker]
    for number in (MANY, LONG, layers + 1):
        folder = configured(tmp_path / str(len(str(number))), maker, **{name: number})
        text = str(number) if number < LONG else str(number)[:36] + " ..."
        assert refusal(folder) == f"config.json says {text} layers, but the weights have {layers}, by tensors {names}"


@pytest.mark.parametrize("number", [0, -1, -MANY, 2.0, True, "2", [2], {}])
@pytest.mark.parametrize("model_type", ["gpt2", "brandnew"])
def test_layers_that_are_no_number(tmp_path: Path, number: Any, model_type: str) -> None:
    folder = configured(tmp_path, "GPT2LMHeadModel", n_layer=number, num_hidden_layers=number, model_type=model_type)
    assert f"config.json says {number!r} layers, but the weights have 2, by tensors transformer.h.*" in refusal(folder)


@pytest.mark.parametrize(
    ("maker", "name", "number", "message"),
    [
        (
            "GPT2LMHeadModel",
            "n_head",
            MANY,
            "config.json: hidden size 24 is not a multiple of 2147483648 attention heads",
        ),
        ("GPT2LMHeadModel", "n_head", LONG, f"config.json: n_heads is 1{35 * '0'} ..., which cannot be right"),
        ("GPT2LMHeadModel", "n_head", -3, "config.json: n_heads is -3, which cannot be right"),
        (
            "GPT2LMHeadModel", "n_inner", MANY,
            ("tensor transformer.h.0.mlp.c_fc.weight is 24 x 96, expected 24 x 2147483648 for family gpt2 with the "
            "numbers of config.json"),
        ),
        ("GPT2LMHeadModel", "n_inner", LONG, f"config.json: d_ff is 1{35 * '0'} ..., which cannot be right"),
        (
            "GPT2LMHeadModel", "vocab_size", MANY,
            "config.json: vocab_size is 2147483648, but tensor transformer.wte.weight has 60 rows",
        ),
        (
            "GPT2LMHeadModel", "vocab_size", -3,
            "config.json: vocab_size is -3, but tensor transformer.wte.weight has 60 rows",
        ),
        ("GPT2LMHeadModel", "num_labels", MANY, ("config.json: num_labels says 2147483648, which is too many; fetch it "
         "again")),
        (
            "GPTNeoForCausalLM", "attention_types", [[["global", "local"], MANY]],
            "config.json: attention_types says 2147483648, which is too many; fetch it again",
        ),
        ("LlamaForCausalLM", "num_key_value_heads", MANY, ("config.json: 4 heads cannot share 2147483648 key/value "
         "heads evenly")),
        (
            "LlamaForCausalLM", "head_dim", MANY,
            ("tensor model.layers.0.self_attn.q_proj.weight is 32 x 24, expected 8589934592 x 24 for family llama with "
            "the numbers of config.json"),
        ),
        (
            "MixtralForCausalLM", "num_local_experts", MANY,
            ("config.json says 2147483648 experts, but a layer has 3 tensors "
             "block_sparse_moe.experts.{expert}.w3.weight"),
        ),
        (
            "Qwen2MoeForCausalLM", "num_experts", 4,
            "config.json says 4 experts, but a layer has 3 tensors mlp.experts.{expert}.up_proj.weight",
        ),
        (
            "GptOssForCausalLM", "num_local_experts", MANY,
            ("tensor model.layers.0.mlp.router.weight is 3 x 24, expected 2147483648 x 24 for family gpt_oss with the "
            "numbers of config.json"),
        ),
        (
            "Qwen3MoeForCausalLM", "moe_intermediate_size", MANY,
            ("tensor model.layers.0.mlp.experts.0.up_proj.weight is 12 x 24, expected 2147483648 x 24 for family "
            "qwen3_moe with the numbers of config.json"),
        ),
    ],
)  # fmt: skip
def test_other_counts(tmp_path: Path, maker: str, name: str, number: Any, message: str) -> None:
    assert refusal(configured(tmp_path, maker, **{name: number})) == message


@pytest.mark.parametrize(
    ("maker", "values", "message"),
    [
        ("LlamaForCausalLM", {"num_hidden_layers": MANY}, ("llama: config.json says 2147483648 layers, but the weights "
         "have 2, by tensors model.layers.*")),
        ("BertForMaskedLM", {"num_hidden_layers": 3}, ("bert: config.json says 3 layers, but the weights have 2, by "
         "tensors bert.encoder.layer.*")),
        ("Qwen2MoeForCausalLM", {"num_experts": MANY}, ("qwen2_moe: config.json says 2147483648 experts, but a layer "
         "has 3 tensors mlp.experts.{expert}.up_proj.weight")),
        ("LlamaForCausalLM", {"intermediate_size": MANY}, ("llama: model.layers.0.mlp.up_proj.weight is 40 x 24, "
         "expected 2147483648 x 24; model.layers.0.mlp.gate_proj.weight is")),
        ("LlamaForCausalLM", {"num_attention_heads": LONG, "head_dim": LONG}, (f"llama: config.json: n_heads is "
         f"1{35 * '0'} ..., which cannot be right")),
        ("LlamaForCausalLM", {"vocab_size": MANY}, ""),
        ("Qwen2MoeForCausalLM", {"mlp_only_layers": 3}, "llama: there is no model.layers.1.mlp.up_proj.weight"),
        ("Qwen2MoeForCausalLM", {"decoder_sparse_step": "2"}, "llama: there is no model.layers.1.mlp.up_proj.weight"),
        ("LlamaForCausalLM", {"intermediate_size": None}, "llama: config.json: intermediate_size is missing ("),
    ],
)  # fmt: skip
def test_counts_of_a_type_that_no_family_lists(
    tmp_path: Path, maker: str, values: dict[str, Any], message: str
) -> None:
    found = refusal(configured(tmp_path, maker, model_type="brandnew", **values))
    if message:
        assert f" nearest is {message}" in found
    else:
        assert found == "config.json: vocab_size is 2147483648, but tensor model.embed_tokens.weight has 60 rows"


def test_more_heads_than_an_atlas_numbers(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    numbers = {"num_attention_heads": 40_000, "num_key_value_heads": 1, "head_dim": 1}
    folder = configured(tmp_path, "LlamaForCausalLM", model_type="brandnew", **numbers)
    state = load_file(folder / "model.safetensors")
    for layer in range(2):
        shapes = {"q_proj": (40_000, 24), "k_proj": (1, 24), "v_proj": (1, 24), "o_proj": (24, 40_000)}
        state |= {f"model.layers.{layer}.self_attn.{name}.weight": torch.ones(size) for name, size in shapes.items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    assert refusal(folder) == "config.json: n_heads is 40000; paramdex numbers 32767 at most"


def rows_read(checkpoint: Checkpoint, kind: str, layer: int) -> torch.Tensor:
    return checkpoint.layer_rows(kind, (None, layer))


def test_numbers_are_found_under_the_names_that_transformers_maps(tmp_path: Path) -> None:
    """gpt-sw3, which transformers reads as GPT-2, against the model's own forward pass."""
    folder = configured(tmp_path, "GPT2LMHeadModel, n_inner given", model_type="gpt-sw3")
    checkpoint = Checkpoint.open(str(folder))
    assert (checkpoint.family.name, checkpoint.inferred) == ("gpt2", True)
    assert checkpoint.numbers()["d_ff"] == 56
    check_gpt2(checkpoint, GPT2LMHeadModel.from_pretrained(folder))


def test_a_feed_forward_width_that_is_null_is_four_times_the_models(tmp_path: Path) -> None:
    """ImageGPT: n_embd, n_layer, n_head, and no n_inner."""
    settings = {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 32}
    model = models.make("ImageGPTModel", 60, **settings)
    models.save(tmp_path, model, models.word_tokenizer(60), 1)
    checkpoint = Checkpoint.open(str(tmp_path))
    checkpoint.check_layers()
    numbers = {name: checkpoint.numbers()[name] for name in ("n_layers", "d_model", "n_heads", "d_ff")}
    assert numbers == {"n_layers": 2, "d_model": 24, "n_heads": 4, "d_ff": 96}
    check_gpt2(checkpoint, model)


@torch.no_grad()
def check_gpt2(checkpoint: Checkpoint, model: Any) -> None:
    """What the rows read and write is what the modules gave on some tokens."""
    seen: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}

    def hook(module: Any, args: Any, output: Any) -> None:
        seen[module] = (args[0].flatten(0, -2), output.flatten(0, -2))

    for layer in model.base_model.h:
        for module in (layer.attn.c_attn, layer.attn.c_proj, layer.mlp.c_fc, layer.mlp.c_proj):
            module.register_forward_hook(hook)
    model(torch.tensor([[3, 17, 42, 8]]))
    for i, layer in enumerate(model.base_model.h):
        given, gave = seen[layer.attn.c_attn]
        read = torch.cat([given @ rows_read(checkpoint, f"attn_{name}", i).T for name in ("query", "key", "value")], 1)
        torch.testing.assert_close(read + layer.attn.c_attn.bias, gave)
        given, gave = seen[layer.mlp.c_fc]
        torch.testing.assert_close(given @ rows_read(checkpoint, "ff_key", i).T + layer.mlp.c_fc.bias, gave)
        for kind, module in (("attn_output", layer.attn.c_proj), ("ff_value", layer.mlp.c_proj)):
            given, gave = seen[module]
            torch.testing.assert_close(given @ rows_read(checkpoint, kind, i) + module.bias, gave)


NOT_FOLLOWED: dict[str, tuple[Callable[[], Any], str]] = {
    "gpt_bigcode": (
        lambda: models.make("GPTBigCodeForCausalLM", 60, n_embd=24, n_layer=2, n_head=4, n_positions=32),
        "nearest is gpt2: transformer.h.0.mlp.c_fc.weight is 96 x 24, expected 24 x 96; ",
    ),
    "codegen": (
        lambda: models.make("CodeGenForCausalLM", 60, n_embd=32, n_layer=2, n_head=4, n_positions=32, rotary_dim=4),
        "nearest is gptj: there is no transformer.h.0.attn.q_proj.weight; ",
    ),
    "xglm": (
        lambda: models.make("XGLMForCausalLM", 60, d_model=24, num_layers=2, attention_heads=4, ffn_dim=40),
        "nearest is phi: config.json: intermediate_size is missing; there is no model.layers.0.mlp.fc1.weight; ",
    ),
}


@pytest.mark.parametrize("model_type", NOT_FOLLOWED)
def test_other_layouts_are_refused_with_what_does_not_fit(tmp_path: Path, model_type: str) -> None:
    make, message = NOT_FOLLOWED[model_type]
    models.save(tmp_path, make(), models.word_tokenizer(60), 1)
    found = refusal(tmp_path)
    assert message in found
    assert not any(name in found for name in ("n_layers is missing", "num_hidden_layers is missing"))


@pytest.mark.parametrize(
    ("model_type", "values"),
    [
        ("gpt_bigcode", {"n_embd": 24, "n_layer": 3}),
        ("gpt_bigcode", {"hidden_size": 24, "num_hidden_layers": 3}),
        ("gpt_bigcode", {"n_embd": 24, "hidden_size": 32, "n_layer": 3, "num_hidden_layers": 4}),
        ("xglm", {"d_model": 24, "num_layers": 3, "attention_heads": 4}),
        ("whisper", {"d_model": 24, "encoder_layers": 3, "encoder_attention_heads": 4}),
    ],
)
def test_names_mean_what_they_mean_to_transformers(model_type: str, values: dict[str, Any]) -> None:
    """Of two names for one thing, too."""
    mine, theirs = untyped_config({"model_type": model_type, **values}), CONFIG_MAPPING[model_type](**values)
    for usual, own in CONFIG_MAPPING[model_type].attribute_map.items():
        if {usual, own} & set(values):
            assert getattr(mine, usual) == getattr(mine, own) == getattr(theirs, usual)
        else:
            assert not hasattr(mine, usual)


def test_names_of_tensors_are_counted_once_and_only_as_numbers(tmp_path: Path) -> None:
    """A stray tensor of a layer with a huge number, or a name that is none, makes no layers."""
    from safetensors.torch import load_file, save_file

    folder = configured(tmp_path, "GPT2LMHeadModel", n_layer=MANY)
    state = load_file(folder / "model.safetensors")
    strays = (f"transformer.h.{MANY - 1}.x", "transformer.h.01.x", "transformer.h.².x", "transformer.h.x.x")
    save_file(state | {name: torch.ones(1) for name in strays}, folder / "model.safetensors", {"format": "pt"})
    assert "says 2147483648 layers, but the weights have 3," in refusal(folder)


def test_a_map_of_another_width(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = configured(tmp_path, "OPTForCausalLM, narrower embedding")
    state = load_file(folder / "model.safetensors")
    name = "model.decoder.project_out.weight"
    save_file(state | {name: torch.ones(16, 28)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BuildError, match=rf"tensor {name} is 16 x 28, expected 16 x 24 for family opt"):
        Checkpoint.open(str(folder)).embedding()


@pytest.mark.parametrize("name", ["vocab_size", "decoder_vocab_size"])
def test_each_vocabulary_of_an_encoder_decoder_is_held_against_its_own_table(tmp_path: Path, name: str) -> None:
    """Here the encoder has 60 tokens and the decoder 48."""
    models.save(tmp_path, models.bart(60, tie_word_embeddings=False), models.word_tokenizer(48), 1)
    from safetensors.torch import load_file, save_file

    state = load_file(tmp_path / "model.safetensors")
    for table in ("model.decoder.embed_tokens.weight", "lm_head.weight"):
        state[table] = state[table][:48].contiguous()
    state["final_logits_bias"] = torch.zeros(1, 48)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    config = tmp_path / "config.json"
    data = json.loads(config.read_text()) | {"decoder_vocab_size": 48}
    config.write_text(json.dumps(data))
    E, which, _ = Checkpoint.open(str(tmp_path)).embedding()
    assert which == "output"
    assert torch.equal(E, state["lm_head.weight"])
    config.write_text(json.dumps(data | {name: 61}))
    table, rows = ("encoder", 60) if name == "vocab_size" else ("decoder", 48)
    said = f"config.json: {name} is 61, but tensor model.{table}.embed_tokens.weight has {rows} rows"
    assert refusal(tmp_path) == said


@pytest.mark.parametrize("said", [1, 7, 31])
def test_fewer_positions_than_the_table_has_are_refused(tmp_path: Path, said: int) -> None:
    """Else the last of its rows would be taken for the first positions."""
    found = refusal(configured(tmp_path, "BartForConditionalGeneration", max_position_embeddings=said))
    assert found == (
        f'config.json: ["max_source_positions", "max_position_embeddings"] is {said}, but should say where the '
        "positions begin in the 34 rows of encoder.embed_positions.weight"
    )


def test_a_shared_expert_that_config_json_does_not_say_is_refused(tmp_path: Path) -> None:
    folder = configured(tmp_path, "Qwen2MoeForCausalLM", shared_expert_intermediate_size=0)
    assert refusal(folder) == (
        "config.json says nothing of a shared expert, but there is a tensor "
        "model.layers.1.mlp.shared_expert_gate.weight"
    )


@pytest.mark.parametrize("said", [None, False])
def test_null_is_no(tmp_path: Path, said: bool | None) -> None:
    """As in transformers: such a model rotates its queries and keys."""
    maker = "FalconForCausalLM, new_decoder_architecture"
    assert Checkpoint.open(str(configured(tmp_path, maker, alibi=said))).rotary() is True


@pytest.mark.parametrize("model_type", ["llama", "brandnew"])
@pytest.mark.parametrize("said", ["false", 0, 1, [], 0.5])
def test_tied_is_true_or_false(tmp_path: Path, model_type: str, said: Any) -> None:
    """Whether or not transformers knows the type: the text "false" is not taken for true."""
    folder = configured(tmp_path, "LlamaForCausalLM", model_type=model_type, tie_word_embeddings=said)
    assert refusal(folder) == f"config.json: tie_word_embeddings is {said!r}; it is true or false"
