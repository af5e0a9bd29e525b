"""Every family's vectors, by value, against the model's own forward pass in float32.

From the rows that the builder reads out of a checkpoint (and the biases, norms and activations of the model itself) a
layer's feed-forward output, each head's queries, keys and attention pattern, and each head's part of the attention
output are put together again, and compared with what hooks saw in the running model. The model runs as though all
tokens stood at position 0 (no rotation, no ALiBi), which is what the matrix QK stands for. A new family adds a row to
MODULES and one to LINES; a test says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch

import models
from paramdex_builder.checkpoint import Checkpoint
from paramdex_builder.family import families

Split = Callable[[torch.Tensor, Any], Any]


def thirds(fused: torch.Tensor, out: Any) -> Any:
    """All queries, all keys, all values."""
    return fused.chunk(3, dim=-1)


def head_by_head(fused: torch.Tensor, attention: Any) -> Any:
    """Query, key and value of the first head, then of the second."""
    heads = attention.config.num_attention_heads if hasattr(attention, "config") else attention.num_heads
    return [part.flatten(-2) for part in fused.unflatten(-1, (heads, 3, -1)).unbind(-2)]


def group_by_group(fused: torch.Tensor, attention: Any) -> Any:
    """The queries of one key/value head, its key, its value, then the next one's."""
    groups = fused.unflatten(-1, (attention.num_kv_heads, -1, attention.head_dim))
    return [part.flatten(-3) for part in (groups[..., :-2, :], groups[..., -2:-1, :], groups[..., -1:, :])]


def queries_first(fused: torch.Tensor, attention: Any) -> Any:
    """All queries, then the fewer keys and as many values."""
    n_keys = attention.num_key_value_heads * attention.head_dim
    return fused.split([fused.shape[-1] - 2 * n_keys, n_keys, n_keys], dim=-1)


@dataclass(frozen=True)
class Modules:
    """Where a model has what is compared: paths from its base model, and from there within one layer."""

    layers: str
    ff: tuple[str, str]
    """What reads the residual stream and what writes to it; in a gated layer the one beside the gate."""
    activation: str
    attention: str
    qkv: tuple[str, ...]
    """Query, key and value projections within the attention, or the fused one."""
    out: str
    split: Split | None = None
    """How the output of a fused projection falls into queries, keys and values."""
    scale: Callable[[Any], float] | None = None
    """What multiplies the scores, from the config, where it is not 1 / sqrt(d_head)."""
    norms: tuple[str, str] | None = None
    """The norms of queries and keys within the attention."""
    factor: str | None = None
    """What maps an embedding of another width to the residual stream, or back (out of ``project_out``)."""
    no_alibi: str | None = None
    """The function whose ALiBi biases are set to 0."""


_SEPARATE = ("q_proj", "k_proj", "v_proj")
_NORMS = ("q_norm", "k_norm")
_LLAMA = Modules("layers", ("mlp.up_proj", "mlp.down_proj"), "mlp.act_fn", "self_attn", _SEPARATE, "o_proj")
_GPT2 = Modules("h", ("mlp.c_fc", "mlp.c_proj"), "mlp.act", "attn", ("c_attn",), "c_proj", thirds)
_BERT = Modules("encoder.layer", ("intermediate.dense", "output.dense"), "intermediate.intermediate_act_fn",
                "attention", ("self.query", "self.key", "self.value"), "output.dense")  # fmt: skip
_BLOOM = Modules("h", ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"), "mlp.gelu_impl", "self_attention",
                 ("query_key_value",), "dense", head_by_head,
                 no_alibi="transformers.models.bloom.modeling_bloom.build_alibi_tensor")  # fmt: skip
_NORMED = replace(_LLAMA, norms=_NORMS)


def query_scalar(config: Any) -> float:
    return float(config.query_pre_attn_scalar**-0.5)


MODULES = {
    "gpt2": _GPT2,
    "openai-gpt": _GPT2,
    "gpt_neo": replace(
        _GPT2, attention="attn.attention", qkv=_SEPARATE, split=None, out="out_proj", scale=lambda _: 1.0
    ),
    "gptj": replace(_GPT2, ff=("mlp.fc_in", "mlp.fc_out"), qkv=_SEPARATE, split=None, out="out_proj"),
    "gpt_neox": replace(_BLOOM, layers="layers", activation="mlp.act", attention="attention", no_alibi=None),
    "opt": Modules("decoder.layers", ("fc1", "fc2"), "activation_fn", "self_attn", _SEPARATE, "out_proj",
                   factor="decoder.project_out"),
    "bloom": _BLOOM,
    "falcon": replace(_BLOOM, activation="mlp.act", split=group_by_group,
                      no_alibi="transformers.models.falcon.modeling_falcon.build_alibi_tensor"),
    "mpt": Modules("blocks", ("ffn.up_proj", "ffn.down_proj"), "ffn.act", "attn", ("Wqkv",), "out_proj", thirds,
                   no_alibi="transformers.models.mpt.modeling_mpt.build_mpt_alibi_tensor"),
    "llama": _LLAMA,
    "qwen3": _NORMED,
    "gemma": _LLAMA,
    "gemma2": replace(_LLAMA, scale=query_scalar),
    "gemma3_text": replace(_NORMED, scale=query_scalar),
    "phi": replace(_LLAMA, ff=("mlp.fc1", "mlp.fc2"), activation="mlp.activation_fn", out="dense"),
    "phi3": replace(_LLAMA, ff=("mlp.gate_up_proj", "mlp.down_proj"), activation="mlp.activation_fn",
                    qkv=("qkv_proj",), split=queries_first),
    "olmo2": _NORMED,
    "stablelm": _LLAMA,
    "starcoder2": replace(_LLAMA, ff=("mlp.c_fc", "mlp.c_proj"), activation="mlp.act"),
    "smollm3": _LLAMA,
    "granite": replace(_LLAMA, scale=lambda config: config.attention_multiplier),
    "cohere": _LLAMA,
    "cohere, normed": _NORMED,
    "bert": _BERT,
    "distilbert": Modules("transformer.layer", ("ffn.lin1", "ffn.lin2"), "ffn.activation", "attention",
                          ("q_lin", "k_lin", "v_lin"), "out_lin"),
    "electra": replace(_BERT, factor="embeddings_project"),
    "albert": Modules("encoder.albert_layer_groups", ("albert_layers.0.ffn", "albert_layers.0.ffn_output"),
                      "albert_layers.0.activation", "albert_layers.0.attention", ("query", "key", "value"), "dense",
                      factor="encoder.embedding_hidden_mapping_in"),
    "modernbert": Modules("layers", ("mlp.Wi", "mlp.Wo"), "mlp.act", "attn", ("Wqkv",), "Wo", thirds),
}  # fmt: skip
"""Where the modules of each layout lie, each as transformers' own code names them."""

LINES = {
    "GPT2LMHeadModel": ("gpt2", "gpt2", "output", True),
    "GPT2LMHeadModel, n_inner given": ("gpt2", "gpt2", "output", True),
    "GPT2Model": ("gpt2", "gpt2", "output", True),
    "OpenAIGPTLMHeadModel": ("openai-gpt", "openai-gpt", "output", True),
    "GPTNeoForCausalLM": ("gpt_neo", "gpt_neo", "output", True),
    "GPTNeoForCausalLM, intermediate_size given": ("gpt_neo", "gpt_neo", "output", True),
    "GPTJForCausalLM": ("gptj", "gptj", "output", False),
    "GPTJForCausalLM, n_inner given": ("gptj", "gptj", "output", False),
    "GPTNeoXForCausalLM": ("gpt_neox", "gpt_neox", "output", False),
    "GPTNeoXForCausalLM, tied, no bias": ("gpt_neox", "gpt_neox", "output", True),
    "OPTForCausalLM": ("opt", "opt", "output", True),
    "OPTForCausalLM, narrower embedding": ("opt", "opt", "output", True),
    "OPTModel, narrower embedding": ("opt", "opt", "output", True),
    "BloomForCausalLM": ("bloom", "bloom", "output", True),
    "BloomModel": ("bloom", "bloom", "output", True),
    "FalconForCausalLM, multi-query": ("falcon", "falcon", "output", True),
    "FalconForCausalLM, multi-query, bias": ("falcon", "falcon", "output", True),
    "FalconForCausalLM, new_decoder_architecture": ("falcon", "falcon", "output", True),
    "FalconForCausalLM, multi-head": ("falcon", "falcon", "output", True),
    "FalconForCausalLM, multi-head, alibi": ("falcon", "falcon", "output", True),
    "MptForCausalLM": ("mpt", "mpt", "output", True),
    "MptForCausalLM, another expansion_ratio": ("mpt", "mpt", "output", True),
    "LlamaForCausalLM": ("llama", "llama", "output", False),
    "LlamaForCausalLM, all heads their own": ("llama", "llama", "output", False),
    "MistralForCausalLM": ("llama", "llama", "output", False),
    "Qwen2ForCausalLM": ("llama", "llama", "output", True),
    "Qwen3ForCausalLM": ("qwen3", "qwen3", "output", False),
    "GemmaForCausalLM": ("gemma", "gemma", "output", True),
    "Gemma2ForCausalLM": ("gemma", "gemma2", "output", True),
    "Gemma3ForCausalLM": ("gemma", "gemma3_text", "output", True),
    "PhiForCausalLM": ("phi", "phi", "output", False),
    "Phi3ForCausalLM": ("phi3", "phi3", "output", False),
    "Phi3ForCausalLM, all heads their own": ("phi3", "phi3", "output", False),
    "Olmo2ForCausalLM": ("olmo2", "olmo2", "output", False),
    "StableLmForCausalLM": ("stablelm", "stablelm", "output", False),
    "StableLmForCausalLM, biases, parallel": ("stablelm", "stablelm", "output", False),
    "Starcoder2ForCausalLM": ("starcoder2", "starcoder2", "output", True),
    "SmolLM3ForCausalLM": ("smollm3", "smollm3", "output", False),
    "GraniteForCausalLM": ("granite", "granite", "output", False),
    "CohereForCausalLM": ("cohere", "cohere", "output", True),
    "CohereForCausalLM, queries and keys normed": ("cohere", "cohere, normed", "output", True),
    "BertModel": ("bert", "bert", "output", True),
    "BertForMaskedLM": ("bert", "bert", "output", True),
    "RobertaForMaskedLM": ("roberta", "bert", "output", True),
    "XLMRobertaForMaskedLM": ("roberta", "bert", "output", True),
    "DistilBertForMaskedLM": ("distilbert", "distilbert", "output", True),
    "ElectraForMaskedLM": ("electra", "electra", "output", True),
    "ElectraForMaskedLM, narrower embedding": ("electra", "electra", "input", True),
    "ElectraForMaskedLM, narrower embedding, untied": ("electra", "electra", "input", False),
    "ElectraForPreTraining, narrower embedding": ("electra", "electra", "input", True),
    "AlbertForMaskedLM": ("albert", "albert", "input", True),
    "AlbertModel, two groups": ("albert", "albert", "input", True),
    "ModernBertForMaskedLM": ("modernbert", "modernbert", "output", True),
}
"""model of models.MAKERS -> (family file, row of MODULES, which embedding is read, whether it is tied)."""

ROWS = 60


def flat(x: torch.Tensor) -> torch.Tensor:
    """Without the batch of one: positions x width."""
    return x.reshape(-1, x.shape[-1])


class Layer:
    """One layer of a model that has run: its modules and what they were given and gave."""

    def __init__(self, names: Modules, block: Any, run: Run, pattern: torch.Tensor) -> None:
        self._names, self._run = names, run
        self.ff_in, self.ff_out = (attrgetter(path)(block) for path in names.ff)
        self.activation = attrgetter(names.activation)(block)
        self.attention = attrgetter(names.attention)(block)
        self.out = attrgetter(names.out)(self.attention)
        self.projections = [attrgetter(path)(self.attention) for path in names.qkv]
        self.norms = [attrgetter(path)(self.attention) for path in names.norms or ()]
        self.pattern = pattern
        """The attention pattern that the model used: heads x positions x positions."""

    def given(self, module: Any) -> torch.Tensor:
        return flat(self._run.seen[module][0])

    def gave(self, module: Any) -> torch.Tensor:
        return flat(self._run.seen[module][1])

    def _split(self, parts: list[Any]) -> list[Any]:
        if self._names.split is None:
            return parts
        return [None] * 3 if parts[0] is None else list(self._names.split(parts[0], self.attention))

    def qkv(self) -> list[torch.Tensor]:
        """Queries, keys, values as the projections gave them, each positions x (heads * d_head)."""
        return self._split([self.gave(module) for module in self.projections])

    def qkv_biases(self) -> list[Any]:
        return self._split([module.bias for module in self.projections])

    def scale(self) -> float:
        """What the scores are multiplied with."""
        config = self._run.model.config
        if self._names.scale is not None:
            return self._names.scale(config)
        return float((self.given(self.out).shape[-1] / config.num_attention_heads) ** -0.5)


@dataclass
class Run:
    """A model that has run once on a few tokens with hooks on, beside its opened checkpoint."""

    model: Any
    checkpoint: Checkpoint
    seen: dict[Any, Any]
    """module -> (what it was given, what it gave)."""
    layers: list[Layer]
    factor: Any
    logits: Any

    def read(self, kind: str, layer: int, bias: Any = None) -> torch.Tensor:
        """What the vectors of an attention kind read from what the layer's projections were given, with ``bias``:
        positions x heads x d_head.
        """
        x = self.layers[layer].given(self.layers[layer].projections[0])
        return biased(self.checkpoint.rows(kind, layer), x, bias).unflatten(1, (-1, self.checkpoint.shape.d_head))


@pytest.fixture(scope="module", params=LINES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """One line of the table, run."""
    name = request.param
    family, layout, _, _ = LINES[name]
    names = MODULES[layout]
    folder: Path = tmp_path_factory.mktemp("family") / "model"
    model = models.MAKERS[name](ROWS)
    models.save(folder, model, models.word_tokenizer(ROWS), seed=7)
    model = type(model).from_pretrained(folder, attn_implementation="eager").eval()
    seen: dict[Any, Any] = {}

    def hook(module: Any, args: Any, output: Any) -> None:
        given, gave = args[0] if args else None, output[0] if isinstance(output, tuple) else output
        # Copies: Falcon adds to outputs in place.
        seen[module] = tuple(x.clone() if isinstance(x, torch.Tensor) else None for x in (given, gave))

    hooks = [module.register_forward_hook(hook) for module in model.modules()]
    tokens = torch.tensor([[3, 17, 42, 8, 55, 30]])
    # Every token at position 0 is rotated by nothing: the offset-zero form that the matrix QK stands for.
    positions = {"position_ids": torch.zeros_like(tokens)} if families()[family].rotary(model.config) else {}
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        if names.no_alibi is not None:
            place, function = names.no_alibi.rsplit(".", 1)
            real = getattr(import_module(place), function)
            patch.setattr(names.no_alibi, lambda *args, **more: real(*args, **more) * 0)
        output = model(tokens, attention_mask=torch.ones_like(tokens), output_attentions=True, **positions)
    for each in hooks:
        each.remove()
    with Checkpoint.open(str(folder)) as checkpoint:
        assert checkpoint.family.name == family
        factor = attrgetter(names.factor)(model.base_model) if has(model.base_model, names.factor) else None
        result = Run(model, checkpoint, seen, [], factor, output.get("logits"))
        blocks = attrgetter(names.layers)(model.base_model)
        # Where blocks run more than once (ALBERT), hooks and patterns are those of the last time.
        times = len(output.attentions) // len(blocks)
        patterns = [pattern[0] for pattern in output.attentions[times - 1 :: times]]
        result.layers += [Layer(names, block, result, pattern) for block, pattern in zip(blocks, patterns, strict=True)]
        yield result


def has(model: Any, path: str | None) -> bool:
    """Whether there is a module at ``path``."""
    return path is not None and path in dict(model.named_modules())


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal within 1e-4 of the largest value expected."""
    assert found.shape == expected.shape
    error = float((found - expected).abs().max() / expected.abs().max())
    assert error < 1e-4, f"relative error {error:.2e}"


def biased(rows: torch.Tensor, x: torch.Tensor, bias: Any) -> torch.Tensor:
    """What the vectors ``rows`` read from ``x``, with the model's own bias."""
    return x @ rows.T + (0 if bias is None else bias)


@torch.no_grad()
def test_feed_forward_output_is_rebuilt(run: Run) -> None:
    for i, layer in enumerate(run.layers):
        x = layer.given(layer.ff_in)  # positions x d
        bias_in, bias_out = layer.ff_in.bias if hasattr(layer.ff_in, "bias") else None, layer.ff_out.bias
        hidden = biased(run.checkpoint.rows("ff_key", i), x, bias_in)
        if run.checkpoint.family.gated:
            assert bias_in is None, "the test knows no bias of a gate"
            hidden = hidden * layer.activation(x @ run.checkpoint.rows("ff_gate", i).T)
        else:
            hidden = layer.activation(hidden)
        assert_close(biased(run.checkpoint.rows("ff_value", i).T, hidden, bias_out), layer.gave(layer.ff_out))


@torch.no_grad()
def test_queries_and_keys_of_every_head(run: Run) -> None:
    """q, k, v before norms and rotation, and the scores q k^T that the matrix QK stands for."""
    shape = run.checkpoint.shape
    for i, layer in enumerate(run.layers):
        kinds = ("attn_query", "attn_key", "attn_value")
        ours = [run.read(kind, i, bias) for kind, bias in zip(kinds, layer.qkv_biases(), strict=True)]
        for mine, theirs in zip(ours, layer.qkv(), strict=True):
            assert_close(mine.flatten(1), theirs)
        n_heads = run.model.config.num_attention_heads
        q, k = (theirs.unflatten(1, (-1, shape.d_head)) for theirs in layer.qkv()[:2])
        k = k.repeat_interleave(n_heads // k.shape[1], dim=1)
        for head in range(n_heads):
            assert_close(ours[0][:, head] @ ours[1][:, shape.kv_head(head)].T, q[:, head] @ k[:, head].T)


@torch.no_grad()
def test_attention_pattern_without_positions(run: Run) -> None:
    """softmax(q k^T / sqrt(d_head)), norms and all, is the pattern that the model itself used where it looked at all.

    This takes nothing from the test's own view of how a fused projection falls into queries and keys.
    """
    shape = run.checkpoint.shape
    for i, layer in enumerate(run.layers):
        biases = layer.qkv_biases()
        q, k = run.read("attn_query", i, biases[0]), run.read("attn_key", i, biases[1])
        if layer.norms:  # of each head, of all heads together or of a matrix of heads
            q, k = (
                norm(x.reshape(len(x), -1, *norm.weight.shape)).reshape(x.shape)
                for norm, x in zip(layer.norms, (q, k), strict=True)
            )
        k = k[:, [shape.kv_head(head) for head in range(shape.n_heads)]]
        scores = torch.einsum("ihd,jhd->hij", q, k) * layer.scale()
        cap = getattr(run.model.config, "attn_logit_softcapping", None)
        if cap is not None:
            scores = torch.tanh(scores / cap) * cap
        looked = layer.pattern > 0
        assert (looked[:, -1].sum(-1) >= 3).all(), "too few positions in view to tell"
        assert_close(scores.masked_fill(~looked, -torch.inf).softmax(-1), layer.pattern)


@torch.no_grad()
def test_every_head_writes_what_it_wrote(run: Run) -> None:
    """Each head's part of the attention output, rebuilt from attn_value and attn_output and the model's own pattern."""
    shape = run.checkpoint.shape
    for i, layer in enumerate(run.layers):
        v = run.read("attn_value", i, layer.qkv_biases()[2])
        outputs = run.checkpoint.rows("attn_output", i).unflatten(0, (shape.n_heads, shape.d_head))
        mixed = layer.given(layer.out)
        bias = layer.out(torch.zeros_like(mixed))
        total = bias.clone()
        for head in range(shape.n_heads):
            only = torch.zeros_like(mixed)
            columns = slice(head * shape.d_head, (head + 1) * shape.d_head)
            only[..., columns] = mixed[..., columns]
            ours = layer.pattern[head] @ v[:, shape.kv_head(head)] @ outputs[head]
            assert_close(ours, layer.out(only) - bias)
            total += ours
        assert_close(total, layer.gave(layer.out))


def check_values(run: Run) -> None:
    """All that compares rows with what the model computed."""
    test_feed_forward_output_is_rebuilt(run)
    test_queries_and_keys_of_every_head(run)
    test_attention_pattern_without_positions(run)
    test_every_head_writes_what_it_wrote(run)


SWAPS = [("attn_query", "attn_key"), ("attn_key", "attn_value"), ("ff_gate", "ff_key"), ("ff_key", "ff_value")]


@pytest.mark.parametrize("swap", SWAPS, ids=" and ".join)
def test_swapped_kinds_are_noticed(run: Run, swap: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above fail where a family file has two kinds the wrong way round."""
    one, other = swap
    family = run.checkpoint.family
    if not set(swap) <= set(family.tensors):
        assert not family.gated
        return
    tensors = family.tensors | {one: family.tensors[other], other: family.tensors[one]}
    monkeypatch.setattr(run.checkpoint, "family", replace(family, tensors=tensors))
    with pytest.raises((AssertionError, RuntimeError, IndexError)):  # other values, or shapes that do not fit
        check_values(run)


@torch.no_grad()
def test_embedding_is_the_models(run: Run, request: pytest.FixtureRequest) -> None:
    """E, as the model's own modules have it; through the map to or from the residual stream where there is one."""
    _, _, which, tied = LINES[request.node.callspec.params["run"]]
    E, found_which, found_tied = run.checkpoint.embedding()
    assert (found_which, found_tied) == (which, tied)
    assert E.shape == (ROWS, run.checkpoint.shape.d_model)
    words = run.model.get_input_embeddings().weight
    if run.factor is None:
        head = run.model.get_output_embeddings()
        assert torch.equal(E, words if head is None else head.weight)
    elif which == "input":
        assert_close(E, run.factor(words) - run.factor(torch.zeros_like(words)))
    else:
        h, projected = (flat(x) for x in run.seen[run.factor])
        assert_close(h @ E.T, projected @ words.T if run.logits is None else run.logits[0])


def test_shape_is_the_models(run: Run) -> None:
    """Kinds, rows a layer and numbers of heads, from the model's own modules."""
    shape, layer = run.checkpoint.shape, run.layers[0]
    queries, keys, _ = layer.qkv()
    assert shape.n_heads * shape.d_head == queries.shape[-1] == layer.given(layer.out).shape[-1]
    assert shape.n_kv_heads * shape.d_head == keys.shape[-1]
    assert shape.n_heads == run.model.config.num_attention_heads == layer.pattern.shape[0]
    assert shape.d_ff == layer.given(layer.ff_out).shape[-1]
    assert shape.d_model == layer.given(layer.ff_in).shape[-1]
    assert shape.n_layers == len(run.layers)
    assert [shape.rows_per_layer(kind) for kind in shape.kinds] == [
        len(run.checkpoint.rows(kind, 0)) for kind in shape.kinds
    ]
    run.checkpoint.check_layers()


def test_rotary_is_the_models(run: Run) -> None:
    """A family says that positions rotate queries and keys where the model has something that does."""
    config = run.model.config
    rotates = any("Rotary" in type(module).__name__ for module in run.model.modules()) or hasattr(config, "rotary_dim")
    assert run.checkpoint.family.rotary(config) == (rotates and not getattr(config, "alibi", False))


def test_every_family_file_has_a_line_here() -> None:
    assert {family for family, _, _, _ in LINES.values()} == set(families())
    assert {layout for _, layout, _, _ in LINES.values()} == set(MODULES)
    assert set(LINES) == set(models.MAKERS)


def test_every_model_type_of_every_family_has_a_line_here() -> None:
    built = {models.MAKERS[name](ROWS).config.model_type for name in LINES}
    assert built == {model_type for family in families().values() for model_type in family.model_types}
