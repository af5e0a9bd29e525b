"""Every family's vectors, by value, against the model's own forward pass in float32.

From the rows that the builder reads out of a checkpoint (and the biases, norms and activations of the model itself) a
layer's feed-forward output, each head's queries, keys and attention pattern, and each head's part of the attention
output are put together again, and compared with what hooks saw in the running model. The model runs as though all
tokens stood at position 0 (no rotation, no ALiBi), which is what the matrix QK stands for. A new family adds a row to
MODULES and one to LINES; a test says so.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch

import models
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.read.families import families
from paramdex_schemas import KINDS, FamilyError

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
    """Where a stack of a model has what is compared: paths from its base model, and from there within one layer."""

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
    """The function whose positional biases are set to 0."""
    router: str = ""
    """Of a mixture of experts: its router, its experts, and the expert that all share with its gate."""
    experts: str = ""
    shared: tuple[str, str] | None = None
    patterns: str = "attentions"
    """What the model's output calls its attention patterns."""
    added: dict[str, str] = field(default_factory=dict)
    """position, token_type -> the module that gives them, from the base model."""


_SEPARATE = ("q_proj", "k_proj", "v_proj")
_NORMS = ("q_norm", "k_norm")
_LLAMA = Modules("layers", ("mlp.up_proj", "mlp.down_proj"), "mlp.act_fn", "self_attn", _SEPARATE, "o_proj")
_GPT2 = Modules(
    "h", ("mlp.c_fc", "mlp.c_proj"), "mlp.act", "attn", ("c_attn",), "c_proj", thirds, added={"position": "wpe"}
)
_BERT = Modules(
    "encoder.layer",
    ("intermediate.dense", "output.dense"),
    "intermediate.intermediate_act_fn",
    "attention",
    ("self.query", "self.key", "self.value"),
    "output.dense",
    added={"position": "embeddings.position_embeddings", "token_type": "embeddings.token_type_embeddings"},
)
_BLOOM = Modules("h", ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"), "mlp.gelu_impl", "self_attention",
                 ("query_key_value",), "dense", head_by_head,
                 no_alibi="transformers.models.bloom.modeling_bloom.build_alibi_tensor")  # fmt: skip
_NORMED = replace(_LLAMA, norms=_NORMS)
_T5 = Modules(
    "encoder.block",
    ("layer.1.DenseReluDense.wi", "layer.1.DenseReluDense.wo"),
    "layer.1.DenseReluDense.act",
    "layer.0.SelfAttention",
    ("q", "k", "v"),
    "o",
    scale=lambda _: 1.0,
    no_alibi="transformers.models.t5.modeling_t5.T5Attention.compute_bias",
    patterns="encoder_attentions",
)
_T5_STACKS = {
    "encoder": _T5,
    "decoder": replace(
        _T5,
        layers="decoder.block",
        patterns="decoder_attentions",
        ff=("layer.2.DenseReluDense.wi", "layer.2.DenseReluDense.wo"),
        activation="layer.2.DenseReluDense.act",
    ),
    "cross": replace(_T5, layers="decoder.block", attention="layer.1.EncDecAttention", patterns="cross_attentions"),
}
_BART = Modules("encoder.layers", ("fc1", "fc2"), "activation_fn", "self_attn", _SEPARATE, "out_proj",
                patterns="encoder_attentions", added={"position": "encoder.embed_positions"})  # fmt: skip
_BART_STACKS = {
    "encoder": _BART,
    "decoder": replace(
        _BART, layers="decoder.layers", patterns="decoder_attentions", added={"position": "decoder.embed_positions"}
    ),
    "cross": replace(_BART, layers="decoder.layers", attention="encoder_attn", patterns="cross_attentions", added={}),
}


def gated(stacks: dict[str, Modules]) -> dict[str | None, Modules]:
    """T5's stacks with a gate in the feed-forward part."""
    return {name: replace(stack, ff=(stack.ff[0] + "_1", stack.ff[1])) for name, stack in stacks.items()}


def query_scalar(config: Any) -> float:
    return float(config.query_pre_attn_scalar**-0.5)


MODULES = {
    "gpt2": _GPT2,
    "openai-gpt": replace(_GPT2, added={"position": "positions_embed"}),
    "gpt_neo": replace(
        _GPT2, attention="attn.attention", qkv=_SEPARATE, split=None, out="out_proj", scale=lambda _: 1.0
    ),
    "gptj": replace(_GPT2, added={}, ff=("mlp.fc_in", "mlp.fc_out"), qkv=_SEPARATE, split=None, out="out_proj"),
    "gpt_neox": replace(_BLOOM, layers="layers", activation="mlp.act", attention="attention", no_alibi=None),
    "opt": Modules("decoder.layers", ("fc1", "fc2"), "activation_fn", "self_attn", _SEPARATE, "out_proj",
                   factor="decoder.project_out", added={"position": "decoder.embed_positions"}),
    "bloom": _BLOOM,
    "falcon": replace(_BLOOM, activation="mlp.act", split=group_by_group,
                      no_alibi="transformers.models.falcon.modeling_falcon.build_alibi_tensor"),
    "mpt": Modules("blocks", ("ffn.up_proj", "ffn.down_proj"), "ffn.act", "attn", ("Wqkv",), "out_proj", thirds,
                   no_alibi="transformers.models.mpt.modeling_mpt.build_mpt_alibi_tensor"),
    "llama": _LLAMA,
    "qwen3": _NORMED,
    "mixtral": replace(_LLAMA, router="mlp.gate", experts="mlp.experts"),
    "qwen2_moe": replace(_LLAMA, router="mlp.gate", experts="mlp.experts",
                         shared=("mlp.shared_expert", "mlp.shared_expert_gate")),
    "qwen3_moe": replace(_NORMED, router="mlp.gate", experts="mlp.experts"),
    "gpt_oss": replace(_LLAMA, router="mlp.router", experts="mlp.experts"),
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
                          ("q_lin", "k_lin", "v_lin"), "out_lin", added={"position": "embeddings.position_embeddings"}),
    "electra": replace(_BERT, factor="embeddings_project"),
    "albert": Modules("encoder.albert_layer_groups", ("albert_layers.0.ffn", "albert_layers.0.ffn_output"),
                      "albert_layers.0.activation", "albert_layers.0.attention", ("query", "key", "value"), "dense",
                      factor="encoder.embedding_hidden_mapping_in", added=_BERT.added),
    "modernbert": Modules("layers", ("mlp.Wi", "mlp.Wo"), "mlp.act", "attn", ("Wqkv",), "Wo", thirds),
    "t5": _T5_STACKS,
    "t5, gated": gated(_T5_STACKS),
    "t5, encoder only": {"encoder": replace(_T5, patterns="attentions")},
    "mt5": {
        name: replace(stack, no_alibi="transformers.models.mt5.modeling_mt5.MT5Attention.compute_bias")
        for name, stack in gated(_T5_STACKS).items()
    },
    "bart": _BART_STACKS,
    "bart, decoder only": {
        "decoder": replace(_BART_STACKS["decoder"], patterns="attentions"), "cross": _BART_STACKS["cross"]
    },
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
    "OPTForCausalLM, narrower embedding": ("opt", "opt", "output", False),
    "OPTModel, narrower embedding": ("opt", "opt", "output", False),
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
    "MixtralForCausalLM": ("mixtral", "mixtral", "output", False),
    "Qwen2MoeForCausalLM": ("qwen2_moe", "qwen2_moe", "output", False),
    "Qwen2MoeForCausalLM, every other layer sparse": ("qwen2_moe", "qwen2_moe", "output", False),
    "Qwen3MoeForCausalLM": ("qwen3_moe", "qwen3_moe", "output", False),
    "Qwen3MoeForCausalLM, all layers sparse": ("qwen3_moe", "qwen3_moe", "output", False),
    "GptOssForCausalLM": ("gpt_oss", "gpt_oss", "output", False),
    "GemmaForCausalLM": ("gemma", "gemma", "output", True),
    "Gemma2ForCausalLM": ("gemma2", "gemma2", "output", True),
    "Gemma3ForCausalLM": ("gemma2", "gemma3_text", "output", True),
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
    "RobertaModel, another id of padding": ("roberta", "bert", "output", True),
    "XLMRobertaForMaskedLM": ("roberta", "bert", "output", True),
    "CamembertModel": ("roberta", "bert", "output", True),
    "Data2VecTextForMaskedLM": ("roberta", "bert", "output", True),
    "RobertaPreLayerNormForMaskedLM": ("roberta-prelayernorm", "bert", "output", True),
    "RobertaPreLayerNormModel": ("roberta-prelayernorm", "bert", "output", True),
    "XLMRobertaXLForMaskedLM": ("xlm-roberta-xl", "bert", "output", True),
    "DistilBertForMaskedLM": ("distilbert", "distilbert", "output", True),
    "ElectraForMaskedLM": ("electra", "electra", "output", True),
    "ElectraForMaskedLM, narrower embedding": ("electra", "electra", "input", True),
    "ElectraForMaskedLM, narrower embedding, untied": ("electra", "electra", "input", False),
    "ElectraForPreTraining, narrower embedding": ("electra", "electra", "input", True),
    "AlbertForMaskedLM": ("albert", "albert", "input", True),
    "AlbertModel, two groups": ("albert", "albert", "input", True),
    "ModernBertForMaskedLM": ("modernbert", "modernbert", "output", True),
    "T5ForConditionalGeneration": ("t5", "t5", "output", True),
    "T5ForConditionalGeneration, gated": ("t5", "t5, gated", "output", True),
    "T5EncoderModel": ("t5", "t5, encoder only", "output", True),
    "MT5ForConditionalGeneration": ("t5", "mt5", "output", True),
    "BartForConditionalGeneration": ("bart", "bart", "output", True),
    "BartModel": ("bart", "bart", "output", True),
    "BartForCausalLM": ("bart", "bart, decoder only", "output", True),
}
"""model of models.MAKERS -> (family file, row of MODULES, which embedding is read, whether it is tied)."""

ROWS = 60
INTO_STREAM = ("project_in", "embeddings_project", "embedding_hidden_mapping_in")
"""Modules that map an embedding of another width to the residual stream."""


def flat(x: torch.Tensor) -> torch.Tensor:
    """Without the batch of one: positions x width."""
    return x.reshape(-1, x.shape[-1])


class Layer:
    """One layer of a stack that has run: its modules and what they were given and gave."""

    def __init__(self, names: Modules, place: tuple[str | None, int], block: Any, run: Run, pattern: Any) -> None:
        self._names, self._run, self.place = names, run, place
        of_block = lambda path: attrgetter(path)(block) if path and has(block, path) else None  # noqa: E731
        self.ff_in, self.ff_out = (of_block(path) for path in names.ff)
        self.activation = of_block(names.activation)
        self.router, self.experts = of_block(names.router), of_block(names.experts)
        self.shared = [of_block(path) for path in names.shared or ()]
        self.attention = attrgetter(names.attention)(block)
        self.out = attrgetter(names.out)(self.attention)
        self.projections = [attrgetter(path)(self.attention) for path in names.qkv]
        self.norms = [attrgetter(path)(self.attention) for path in names.norms or ()]
        self.pattern = pattern
        """The attention pattern that the model used: heads x positions x positions."""

    @property
    def is_cross(self) -> bool:
        return self.place[0] == "cross"

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

    def inputs(self) -> list[torch.Tensor]:
        """What queries, keys and values read: the same but for cross attention."""
        return [self.given(self.projections[min(i, len(self.projections) - 1)]) for i in range(3)]

    @property
    def n_heads(self) -> int:
        return self.pattern.shape[0]

    @property
    def d_head(self) -> int:
        return self.given(self.out).shape[-1] // self.n_heads

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        """Of each position one row a query head, those of shared heads repeated: positions x heads x d_head."""
        x = x.unflatten(-1, (-1, self.d_head))
        return x.repeat_interleave(self.n_heads // x.shape[-2], dim=-2)

    def scale(self) -> float:
        """What the scores are multiplied with."""
        if self._names.scale is not None:
            return self._names.scale(self._run.model.config)
        return float(self.d_head**-0.5)

    def beside(self) -> dict[str, tuple[torch.Tensor, int | None]]:
        """kind -> what its vectors read, or what was written by them; with the expert that is looked at, if any."""
        found = {f"attn_{name}": (x, None) for name, x in zip(("query", "key", "value"), self.inputs(), strict=True)}
        found |= dict.fromkeys(("attn_output", "attn_bias"), (self.gave(self.out), None))
        if self.is_cross:
            return found
        into, expert = (self.ff_in, None) if self.experts is None else (self.router, 1)
        found |= dict.fromkeys(("ff_key", "ff_gate", "router"), (self.given(into), expert))
        return found | dict.fromkeys(("ff_value", "ff_bias"), (self.gave(self.experts or self.ff_out), expert))

    def rows(self, kind: str, expert: int | None = None, checkpoint: Checkpoint | None = None) -> torch.Tensor:
        """The vectors of a kind as the builder reads them, of the layer itself or of one expert; none is no rows."""
        checkpoint = checkpoint or self._run.checkpoint
        for run in checkpoint.layout.of(kind):
            if run.place == self.place and (run.owner == "expert") == (expert is not None):
                return checkpoint.rows(run, None if expert is None else range(expert, expert + 1))
        return torch.empty(0, checkpoint.d_model)

    def read(self, kind: str, bias: Any = None) -> torch.Tensor:
        """What the vectors of an attention kind read from what the layer's projections were given, with ``bias``:
        positions x heads x d_head.
        """
        x = self.inputs()[("attn_query", "attn_key", "attn_value").index(kind)]
        return self.heads(biased(self.rows(kind), x, bias))


@dataclass
class Run:
    """A model that has run once on a few tokens with hooks on, beside its opened checkpoint."""

    model: Any
    checkpoint: Checkpoint
    folder: Path
    names: dict[str | None, Modules]
    seen: dict[Any, Any]
    """module -> (what it was given, what it gave)."""
    whole: dict[Any, Any]
    """module -> all that it was given, and all that it gave."""
    layers: list[Layer]
    factor: Any
    logits: Any


@pytest.fixture(scope="module", params=LINES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One line of the table, run."""
    name = request.param
    family, layout, _, _ = LINES[name]
    stacks = MODULES[layout] if isinstance(MODULES[layout], dict) else {None: MODULES[layout]}
    folder: Path = tmp_path_factory.mktemp("family") / "model"
    model = models.MAKERS[name](ROWS)
    models.save(folder, model, models.word_tokenizer(ROWS), seed=7)
    model = type(model).from_pretrained(folder, attn_implementation="eager").eval()
    seen: dict[Any, Any] = {}
    whole: dict[Any, Any] = {}

    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        first = args[0] if args else kwargs.get("hidden_states")
        given, gave = first, output[0] if isinstance(output, tuple) else output
        # Copies: Falcon adds to outputs in place.
        seen[module] = tuple(x.clone() if isinstance(x, torch.Tensor) else None for x in (given, gave))
        whole[module] = (args, output)

    hooks = [module.register_forward_hook(hook, with_kwargs=True) for module in model.modules()]
    tokens = torch.tensor([[3, 17, 42, 8, 55, 30, 12, 5, 27, 33, 48, 9]])
    # Every token at position 0 is rotated by nothing: the offset-zero form that the matrix QK stands for.
    more = {"position_ids": torch.zeros_like(tokens)} if families()[family].rotary(model.config) else {}
    if "cross" in stacks:
        others = torch.tensor([[9, 4, 21, 50]])
        more = (
            {"decoder_input_ids": others}
            if "encoder" in stacks
            else {"encoder_hidden_states": torch.randn(1, 4, 24, generator=torch.manual_seed(1)), "use_cache": False}
        )
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        for path in {stack.no_alibi for stack in stacks.values()} - {None}:
            real = resolve_name(path)
            patch.setattr(path, lambda *args, real=real, **kwargs: real(*args, **kwargs) * 0)
        output = model(tokens, attention_mask=torch.ones_like(tokens), output_attentions=True, **more)
    for each in hooks:
        each.remove()
    checkpoint = Checkpoint.open(str(folder))
    assert checkpoint.family.name == family
    path = next(iter(stacks.values())).factor
    factor = attrgetter(path)(model.base_model) if has(model.base_model, path) else None
    result = Run(model, checkpoint, folder, stacks, seen, whole, [], factor, output.get("logits"))
    for stack, names in stacks.items():
        blocks = attrgetter(names.layers)(model.base_model)
        # Where blocks run more than once (ALBERT), hooks and patterns are those of the last time.
        patterns = output[names.patterns]
        times = len(patterns) // len(blocks)
        for i, (block, pattern) in enumerate(zip(blocks, patterns[times - 1 :: times], strict=True)):
            result.layers.append(Layer(names, (stack, i), block, result, pattern[0]))
    return result


def has(model: Any, path: str | None) -> bool:
    """Whether there is a module at ``path``."""
    return path is not None and path in dict(model.named_modules())


def assert_close(found: torch.Tensor, expected: torch.Tensor, size: torch.Tensor | None = None) -> None:
    """Equal within 1e-4 of the largest value expected, or of ``size``, from which what is expected was subtracted."""
    assert found.shape == expected.shape
    error = float((found - expected).abs().max() / (expected if size is None else size).abs().max())
    assert error < 1e-4, f"relative error {error:.2e}"


def biased(rows: torch.Tensor, x: torch.Tensor, bias: Any) -> torch.Tensor:
    """What the vectors ``rows`` read from ``x``, with the model's own bias."""
    return x @ rows.T + (0 if bias is None else bias)


@torch.no_grad()
def test_feed_forward_output_is_rebuilt(run: Run) -> None:
    for layer in run.layers:
        if layer.is_cross or layer.experts is not None:
            continue
        x = layer.given(layer.ff_in)  # positions x d
        bias_in = layer.ff_in.bias if hasattr(layer.ff_in, "bias") else None
        hidden = biased(layer.rows("ff_key"), x, bias_in)
        if len(layer.rows("ff_gate")):
            assert bias_in is None, "the test knows no bias of a gate"
            hidden = hidden * layer.activation(x @ layer.rows("ff_gate").T)
        else:
            hidden = layer.activation(hidden)
        ours = hidden @ layer.rows("ff_value") + layer.rows("ff_bias").sum(0)
        assert_close(ours, layer.gave(layer.ff_out))
        assert len(layer.rows("ff_bias")) == (layer.ff_out.bias is not None)


@torch.no_grad()
def test_experts_output_is_rebuilt(run: Run) -> None:
    """The router's scores, what each token's experts write weighted by them, and what the shared expert writes."""
    for layer in run.layers:
        if layer.experts is None:
            continue
        (x, chosen, weights), written = run.whole[layer.experts]
        bias = getattr(layer.router, "bias", 0)
        routers = torch.cat([layer.rows("router", e) for e in range(layer.experts.num_experts)])
        assert_close(x @ routers.T + bias, run.whole[layer.router][1][0])
        ours = torch.zeros_like(x)
        assert len(chosen.unique()) == layer.experts.num_experts, "an expert that no token called cannot be checked"
        for token, (experts, shares) in enumerate(zip(chosen, weights, strict=True)):
            for expert, share in zip(experts.tolist(), shares, strict=True):
                up, gate = (x[token] @ layer.rows(kind, expert).T for kind in ("ff_key", "ff_gate"))
                if hasattr(layer.experts, "gate_up_proj_bias"):
                    both = torch.stack([gate, up], -1).flatten() + layer.experts.gate_up_proj_bias[expert]
                    hidden = layer.experts._apply_gate(both)
                else:
                    hidden = up * layer.experts.act_fn(gate)
                out = hidden @ layer.rows("ff_value", expert) + layer.rows("ff_bias", expert).sum(0)
                ours[token] += share * out
        assert_close(ours, written)
        assert len(layer.rows("ff_value")) == (0 if not layer.shared else layer.shared[0].down_proj.in_features)
        if layer.shared:
            shared, gate = layer.shared
            y = layer.given(shared)
            hidden = (y @ layer.rows("ff_key").T) * shared.act_fn(y @ layer.rows("ff_gate").T)
            assert_close(hidden @ layer.rows("ff_value"), layer.gave(shared))
            assert_close(y @ layer.rows("router").T, layer.gave(gate))


@torch.no_grad()
def test_queries_and_keys_of_every_head(run: Run) -> None:
    """q, k, v before norms and rotation, and the scores q k^T that the matrix QK stands for."""
    for layer in run.layers:
        kinds = ("attn_query", "attn_key", "attn_value")
        ours = [layer.read(kind, bias) for kind, bias in zip(kinds, layer.qkv_biases(), strict=True)]
        theirs = [layer.heads(x) for x in layer.qkv()]
        for mine, its in zip(ours, theirs, strict=True):
            assert_close(mine, its)
        for head in range(layer.n_heads):
            assert_close(ours[0][:, head] @ ours[1][:, head].T, theirs[0][:, head] @ theirs[1][:, head].T)


@torch.no_grad()
def test_attention_pattern_without_positions(run: Run) -> None:
    """softmax(q k^T / sqrt(d_head)), norms and all, is the pattern that the model itself used where it looked at all.

    This takes nothing from the test's own view of how a fused projection falls into queries and keys.
    """
    for layer in run.layers:
        biases = layer.qkv_biases()
        q, k = layer.read("attn_query", biases[0]), layer.read("attn_key", biases[1])
        if layer.norms:  # of each head, of all heads together or of a matrix of heads
            q, k = layer.read("attn_query", biases[0]), biased(layer.rows("attn_key"), layer.inputs()[1], biases[1])
            q, k = (
                norm(x.reshape(len(x), -1, *norm.weight.shape)).reshape(len(x), -1)
                for norm, x in zip(layer.norms, (q, k), strict=True)
            )
            q, k = layer.heads(q), layer.heads(k)
        scores = torch.einsum("ihd,jhd->hij", q, k) * layer.scale()
        cap = getattr(run.model.config, "attn_logit_softcapping", None)
        if cap is not None:
            scores = torch.tanh(scores / cap) * cap
        looked = layer.pattern > 0
        assert (looked[:, -1].sum(-1) >= 3).all(), "too few positions in view to tell"
        scores = scores.masked_fill(~looked, -torch.inf)
        if hasattr(layer.attention, "sinks"):  # a score of no position's, whose share goes nowhere
            scores = torch.cat([scores, layer.attention.sinks[:, None, None].expand(-1, scores.shape[1], 1)], dim=-1)
        assert_close(scores.softmax(-1)[..., : looked.shape[-1]], layer.pattern)


@torch.no_grad()
def test_every_head_writes_what_it_wrote(run: Run) -> None:
    """Each head's part of the attention output, rebuilt from attn_value and attn_output and the model's own pattern."""
    for layer in run.layers:
        v = layer.read("attn_value", layer.qkv_biases()[2])
        outputs = layer.rows("attn_output").unflatten(0, (layer.n_heads, layer.d_head))
        mixed = layer.given(layer.out)
        bias = layer.out(torch.zeros_like(mixed))
        total = layer.rows("attn_bias").sum(0).expand_as(bias).clone()
        assert torch.equal(total, bias)
        assert len(layer.rows("attn_bias")) == (layer.out.bias is not None)
        for head in range(layer.n_heads):
            ours = layer.pattern[head] @ v[:, head] @ outputs[head]
            assert_close(ours, layer.out(of_head(mixed, head, layer)) - bias)
            total += ours
        assert_close(total, layer.gave(layer.out))


def of_head(mixed: torch.Tensor, head: int, layer: Layer) -> torch.Tensor:
    """What one head mixed from the values, that of the other heads set to 0 (positions x (heads * d_head))."""
    only = torch.zeros_like(mixed)
    columns = slice(head * layer.d_head, (head + 1) * layer.d_head)
    only[..., columns] = mixed[..., columns]
    return only


@torch.no_grad()
def test_biases_of_heads_are_carried_to_the_stream(run: Run) -> None:
    """<b_Q, k> of every key, <q, b_K> of every query, and what a head writes of b_V alone, without the other biases."""
    for layer in run.layers:
        biases = layer.qkv_biases()
        kinds = ("attn_query_bias", "attn_key_bias", "attn_value_bias")
        rows = [layer.rows(kind) for kind in kinds]
        assert [len(each) for each in rows] == [0 if bias is None else layer.n_heads for bias in biases]
        x_q, x_k, _ = layer.inputs()
        q, k, _ = (layer.heads(x) for x in layer.qkv())
        b_q, b_k, b_v = (None if bias is None else layer.heads(bias[None])[0] for bias in biases)
        for head in range(layer.n_heads):
            if b_q is not None:
                with_bias = k[:, head] @ b_q[head]
                assert_close(x_k @ rows[0][head], with_bias - (0 if b_k is None else b_k[head] @ b_q[head]), with_bias)
            if b_k is not None:
                with_bias = q[:, head] @ b_k[head]
                assert_close(x_q @ rows[1][head], with_bias - (0 if b_q is None else b_q[head] @ b_k[head]), with_bias)
            if b_v is not None:
                mixed = b_v.reshape(1, -1)
                written = layer.out(of_head(mixed, head, layer)) - layer.out(torch.zeros_like(mixed))
                assert_close(rows[2][head], written[0])


@torch.no_grad()
def test_positions_and_token_types_are_what_the_model_adds(run: Run) -> None:
    added = [each for each in run.checkpoint.layout.runs if each.layer is None]
    assert {(each.kind, each.stack) for each in added} == {
        (kind, stack) for stack, names in run.names.items() for kind in names.added
    }
    inward = run.factor if run.checkpoint.embeddings.way() == "inward" else None
    for each in added:
        rows = run.checkpoint.rows(each)
        module = attrgetter(run.names[each.stack].added[each.kind])(run.model.base_model)
        gave = flat(run.seen[module][1])
        if inward is not None:
            gave = inward(gave) - inward(torch.zeros_like(gave))
        # The model ran on the first positions, all of type 0.
        assert_close(rows[: len(gave)] if each.kind == "position" else rows[:1].expand_as(gave), gave)
        (first,) = (module.weight == flat(run.seen[module][1])[0]).all(1).nonzero()
        assert len(rows) == module.weight.shape[0] - (first if each.kind == "position" else 0)


def norm_of(run: Run, name: str) -> Any:
    """The module that holds a gains tensor of the checkpoint."""
    path = name.removesuffix(".weight")
    return (run.model if has(run.model, path) else run.model.base_model).get_submodule(path)


def map_of(norm: Any) -> torch.Tensor:
    """What a norm does to a state but for its length (d x d, float64), measured by autodiff: at an x of as many entries
    1 as -1, times 1000, its Jacobian is that over 1000, without its part along x.
    """
    norm = deepcopy(norm).double().requires_grad_(False)
    d = norm.weight.numel()
    x = (1.0 - 2.0 * (torch.arange(d) % 2))[torch.randperm(d, generator=torch.Generator().manual_seed(d))].double()
    jacobian: Any = torch.autograd.functional.jacobian(lambda x: norm(x[None])[0], 1000 * x)
    return 1000 * jacobian + torch.outer(norm(1000 * x[None])[0] - norm(-1000 * x[None])[0], x) / (2 * d)


def test_folded_norms_are_those_that_the_vectors_read(run: Run) -> None:
    """With folded norms each reading vector is that of the state that the norm was given, whose output the model gave
    it; each writing one what comes out of the norm that it went through; the embedding reads through the last norm.
    """
    if run.checkpoint.family.final_norm is None:
        with pytest.raises(FamilyError, match="norms cannot be folded"):
            Checkpoint.open(str(run.folder), fold_norm=True)
        return
    norms = [module for module in run.model.modules() if "Norm" in type(module).__name__ and module in run.seen]
    folded = Checkpoint.open(str(run.folder), fold_norm=True)
    folded.check_layers()
    for layer in run.layers:
        for kind, (stream, expert) in layer.beside().items():
            plain = layer.rows(kind, expert)
            mine = layer.rows(kind, expert, folded)
            reads = KINDS[kind].role == "reads"
            near = [norm for norm in norms if same(run.seen[norm][1 if reads else 0], stream)]
            name = folded.norms.beside(kind, layer.place)
            if name is None:
                assert torch.equal(mine, plain)
                assert not near or not reads, f"{kind} reads the output of a norm that is not folded"
            elif len(plain):
                assert any(norm is norm_of(run, name) for norm in near)
                through = map_of(norm_of(run, name))
                assert_close(mine.double(), plain.double() @ (through if reads else through.T))
    E, which, tied = run.checkpoint.embedding()
    name = folded.norms.final()
    mine, _, _ = folded.embedding()
    if name is None or not (tied or which == "output"):
        assert torch.equal(mine, E)
        return
    norm = norm_of(run, name)
    base = run.model.base_model
    last = run.whole[getattr(base, "decoder", base)][1]
    stream = run.seen[run.factor][0] if run.checkpoint.embeddings.way() == "outward" else last[0]
    assert same(run.seen[norm][1], flat(stream))
    assert_close(mine.double(), E.double() @ map_of(norm))


def same(one: Any, other: torch.Tensor) -> bool:
    """Whether two tensors are equal, but for a batch of one."""
    return one is not None and one.numel() == other.numel() and bool(torch.equal(flat(one), flat(other)))


def check_values(run: Run) -> None:
    """All that compares rows with what the model computed."""
    test_feed_forward_output_is_rebuilt(run)
    test_experts_output_is_rebuilt(run)
    test_queries_and_keys_of_every_head(run)
    test_attention_pattern_without_positions(run)
    test_every_head_writes_what_it_wrote(run)


SWAPS = [("attn_query", "attn_key"), ("attn_key", "attn_value"), ("ff_gate", "ff_key"), ("ff_key", "ff_value")]


@pytest.mark.parametrize("swap", SWAPS, ids=" and ".join)
def test_swapped_kinds_are_noticed(run: Run, swap: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above fail where a family file has two kinds the wrong way round."""
    names = {swap[0]: swap[1], swap[1]: swap[0]}
    own = run.checkpoint.names
    specs = {(kind, place): spec for (kind, place, _), spec in own.specs.items()}
    if not set(swap) <= {kind for kind, _ in specs}:
        assert "ff_gate" not in run.checkpoint.layout.kinds
        return
    swapped = {key: specs.get((names.get(key[0], key[0]), key[1]), spec) for key, spec in own.specs.items()}
    monkeypatch.setattr(run.checkpoint, "names", replace(own, specs=swapped))
    # other values, or shapes that do not fit
    with pytest.raises((AssertionError, RuntimeError, IndexError, FamilyError)):
        check_values(run)


@torch.no_grad()
def test_embedding_is_the_models(run: Run, request: pytest.FixtureRequest) -> None:
    """E, as the model's own modules have it; through the map to or from the residual stream where there is one."""
    _, _, which, tied = LINES[request.node.callspec.params["run"]]
    E, found_which, found_tied = run.checkpoint.embedding()
    assert (found_which, found_tied) == (which, tied)
    assert E.shape == (ROWS, run.checkpoint.d_model)
    words = run.model.get_input_embeddings().weight
    if run.factor is None:
        head = run.model.get_output_embeddings()
        assert torch.equal(E, words if head is None else head.weight)
    elif which == "input":
        assert_close(E, run.factor(words) - run.factor(torch.zeros_like(words)))
    else:
        h, projected = (flat(x) for x in run.seen[run.factor])
        assert_close(h @ E.T, projected @ words.T if run.logits is None else run.logits[0])


@torch.no_grad()
def test_input_embedding_is_what_enters_the_stream(run: Run) -> None:
    """Of ``space`` input: the model's own table, through the model's own map into the stream where there is one."""
    E, which, _ = run.checkpoint.embedding("input")
    assert which == "input"
    into = [module for path, module in run.model.named_modules() if path.endswith(INTO_STREAM)]
    words = run.model.get_input_embeddings().weight
    if into:
        words = into[0](words) - into[0](torch.zeros_like(words))
    assert_close(E, words)


def test_layout_is_the_models(run: Run) -> None:
    """Kinds, numbers of heads and rows of every layer, from the model's own modules."""
    layout = run.checkpoint.layout
    assert layout.attention_places == [layer.place for layer in run.layers]
    for layer in run.layers:
        rows = {
            (each.kind, each.owner): (each.n_owners, each.size) for each in layout.runs if each.place == layer.place
        }
        queries, keys, values = (x.shape[-1] // layer.d_head for x in layer.qkv())
        assert rows["attn_query", "head"] == rows["attn_output", "head"] == (layer.n_heads, layer.d_head)
        assert rows["attn_key", "kv_head"] == rows["attn_value", "kv_head"] == (keys, layer.d_head)
        assert (queries, values) == (layer.n_heads, keys)
        assert layout.heads(layer.place).group == layer.n_heads // keys
        if layer.experts is not None:
            n, neurons = layer.experts.num_experts, layer.experts.down_proj.numel()
            assert rows["ff_value", "expert"] == (n, neurons // n // run.checkpoint.d_model)
            assert rows["router", "expert"] == (n, 1)
        elif not layer.is_cross:
            assert rows["ff_value", None] == rows["ff_key", None] == (1, layer.given(layer.ff_out).shape[-1])
        else:
            assert not any(kind.startswith("ff_") for kind, _ in rows)
    for each in layout.runs:
        assert len(run.checkpoint.rows(each)) == each.n_rows
    assert run.checkpoint.d_model == run.layers[0].inputs()[0].shape[-1]
    run.checkpoint.check_layers()


def test_no_matrix_of_a_layer_is_left_out(run: Run) -> None:
    assert run.checkpoint.left_out() == {}


def test_rotary_is_the_models(run: Run) -> None:
    """A family says that positions rotate queries and keys where the model has something that does."""
    config = run.model.config
    rotates = any("Rotary" in type(module).__name__ for module in run.model.modules()) or hasattr(config, "rotary_dim")
    assert run.checkpoint.rotary() == (rotates and not getattr(config, "alibi", False))


def test_every_family_file_has_a_line_here() -> None:
    assert {family for family, _, _, _ in LINES.values()} == set(families())
    assert {layout for _, layout, _, _ in LINES.values()} == set(MODULES)
    assert set(LINES) == set(models.MAKERS)


def test_every_model_type_of_every_family_has_a_line_here() -> None:
    built = {models.MAKERS[name](ROWS).config.model_type for name in LINES}
    assert built == {model_type for family in families().values() for model_type in family.model_types}
