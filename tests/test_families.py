"""Every family's vectors, by value, against the model's own forward pass in float32.

From the rows that the builder reads out of a checkpoint (and the biases and activations of the model itself) a layer's
feed-forward output, each head's queries, keys and attention pattern, and each head's part of the attention output are
put together again, and compared with what hooks saw in the running model. For rotary models queries and keys are
compared without rotation. A new family adds a row to LINES; a test says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import models
from paramdex_builder.checkpoint import Checkpoint
from paramdex_builder.family import families


@dataclass(frozen=True)
class Parts:
    """The modules of one layer whose inputs and outputs are compared, and the biases that the vectors leave out."""

    mlp_in: Any
    mlp_out: Any
    mlp_biases: tuple[Any, Any]
    activation: Callable[[torch.Tensor], torch.Tensor]
    attention: Any
    projections: Any
    """A function of the hook record: (q, k, v) as the modules gave them, positions x (heads * d_head)."""
    projection_biases: Callable[[], list[Any]]
    out: Any


def _gpt2(model: Any, layer: int) -> Parts:
    block = getattr(model, "transformer", model).h[layer]
    fused, width = block.attn.c_attn, model.config.n_embd
    return Parts(
        block.mlp.c_fc, block.mlp.c_proj, (block.mlp.c_fc.bias, block.mlp.c_proj.bias), block.mlp.act, block.attn,
        lambda seen: seen[fused][1][0].split(width, dim=-1), lambda: list(fused.bias.split(width)), block.attn.c_proj,
    )  # fmt: skip


def _bert(model: Any, layer: int) -> Parts:
    block = getattr(model, "bert", model).encoder.layer[layer]
    own, up, down = block.attention.self, block.intermediate.dense, block.output.dense
    modules = [own.query, own.key, own.value]
    return Parts(
        up, down, (up.bias, down.bias), block.intermediate.intermediate_act_fn, own,
        lambda seen: [seen[module][1][0] for module in modules], lambda: [module.bias for module in modules],
        block.attention.output.dense,
    )  # fmt: skip


def _llama(model: Any, layer: int) -> Parts:
    block = model.model.layers[layer]
    attention = block.self_attn
    modules = [attention.q_proj, attention.k_proj, attention.v_proj]
    return Parts(
        block.mlp, block.mlp, (None, None), block.mlp.act_fn, attention,
        lambda seen: [seen[module][1][0] for module in modules], lambda: [module.bias for module in modules],
        attention.o_proj,
    )  # fmt: skip


LINES = {
    "GPT2LMHeadModel": ("gpt2", _gpt2, "output", True),
    "GPT2LMHeadModel, n_inner given": ("gpt2", _gpt2, "output", True),
    "GPT2Model": ("gpt2", _gpt2, "output", True),
    "BertModel": ("bert", _bert, "output", True),
    "BertForMaskedLM": ("bert", _bert, "output", True),
    "LlamaForCausalLM": ("llama", _llama, "output", False),
    "LlamaForCausalLM, all heads their own": ("llama", _llama, "output", False),
    "MistralForCausalLM": ("llama", _llama, "output", False),
    "Qwen2ForCausalLM": ("llama", _llama, "output", True),
}
"""model class -> (family file, its modules, which embedding is read, whether it is tied)."""

ROWS = 60


@dataclass
class Run:
    """A model that has run once on a few tokens with hooks on, beside its opened checkpoint."""

    model: Any
    checkpoint: Checkpoint
    parts: list[Parts]
    seen: dict[Any, tuple[torch.Tensor, torch.Tensor]]
    attentions: tuple[torch.Tensor, ...]


@pytest.fixture(scope="module", params=LINES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One line of the table, run."""
    name = request.param
    family, modules, _, _ = LINES[name]
    folder: Path = tmp_path_factory.mktemp("family") / "model"
    models.save(folder, models.MAKERS[name](ROWS), models.word_tokenizer(ROWS), seed=7)
    model = models.MAKERS[name](ROWS)
    model = type(model).from_pretrained(folder, attn_implementation="eager").eval()
    parts = [modules(model, layer) for layer in range(model.config.num_hidden_layers)]
    seen: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}

    def hook(module: Any, args: Any, output: Any) -> None:
        seen[module] = (args[0] if args else None, output[0] if isinstance(output, tuple) else output)

    for module in model.modules():
        module.register_forward_hook(hook)
    tokens = torch.tensor([[3, 17, 42, 8, 55, 30]])
    # Every token at position 0 is rotated by nothing: the offset-zero form that the matrix QK stands for.
    positions = {"position_ids": torch.zeros_like(tokens)} if families()[family].rotary else {}
    with torch.no_grad():
        output = model(tokens, output_attentions=True, **positions)
    with Checkpoint.open(str(folder)) as checkpoint:
        assert checkpoint.family.name == family
        yield Run(model, checkpoint, parts, seen, output.attentions)


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
    for layer, parts in enumerate(run.parts):
        x = run.seen[parts.mlp_in][0][0]  # positions x d
        expected = run.seen[parts.mlp_out][1][0]
        hidden = biased(run.checkpoint.rows("ff_key", layer), x, parts.mlp_biases[0])
        if run.checkpoint.family.gated:
            hidden = hidden * parts.activation(x @ run.checkpoint.rows("ff_gate", layer).T)
        else:
            hidden = parts.activation(hidden)
        values = run.checkpoint.rows("ff_value", layer)
        assert_close(hidden @ values + (0 if parts.mlp_biases[1] is None else parts.mlp_biases[1]), expected)


def attention_input(run: Run, layer: int) -> torch.Tensor:
    """What layer ``layer``'s query projection was given: positions x d."""
    attention = run.parts[layer].attention
    module = next(getattr(attention, name) for name in ("c_attn", "query", "q_proj") if hasattr(attention, name))
    return run.seen[module][0][0]


@torch.no_grad()
def test_queries_and_keys_of_every_head(run: Run) -> None:
    """q, k before rotation, and the scores q k^T that the matrix QK stands for."""
    shape = run.checkpoint.shape
    for layer, parts in enumerate(run.parts):
        x = attention_input(run, layer)
        queries, keys, values = parts.projections(run.seen)
        q_bias, k_bias, v_bias = parts.projection_biases()
        q = biased(run.checkpoint.rows("attn_query", layer), x, q_bias).unflatten(1, (shape.n_heads, shape.d_head))
        k = biased(run.checkpoint.rows("attn_key", layer), x, k_bias).unflatten(1, (shape.n_kv_heads, shape.d_head))
        v = biased(run.checkpoint.rows("attn_value", layer), x, v_bias).unflatten(1, (shape.n_kv_heads, shape.d_head))
        their_q, their_k = queries.unflatten(1, (shape.n_heads, -1)), keys.unflatten(1, (shape.n_kv_heads, -1))
        assert_close(v.flatten(1), values)
        for head in range(shape.n_heads):
            theirs = their_q[:, head] @ their_k[:, head * shape.n_kv_heads // shape.n_heads].T
            assert_close(q[:, head] @ k[:, shape.kv_head(head)].T, theirs)


@torch.no_grad()
def test_attention_pattern_without_rotation(run: Run) -> None:
    """softmax(q k^T / sqrt(d_head)) is the pattern that the model itself used."""
    shape = run.checkpoint.shape
    for layer, parts in enumerate(run.parts):
        x = attention_input(run, layer)
        q_bias, k_bias, _ = parts.projection_biases()
        q = biased(run.checkpoint.rows("attn_query", layer), x, q_bias).unflatten(1, (shape.n_heads, shape.d_head))
        k = biased(run.checkpoint.rows("attn_key", layer), x, k_bias).unflatten(1, (shape.n_kv_heads, shape.d_head))
        k = k[:, [shape.kv_head(head) for head in range(shape.n_heads)]]
        scores = torch.einsum("ihd,jhd->hij", q, k) / shape.d_head**0.5
        if run.checkpoint.family.name != "bert":  # the others look back only
            scores += torch.full(scores.shape[1:], -torch.inf).triu(1)
        assert_close(scores.softmax(-1), run.attentions[layer][0])


@torch.no_grad()
def test_every_head_writes_what_it_wrote(run: Run) -> None:
    """Each head's part of the attention output, rebuilt from attn_value and attn_output and the model's own pattern."""
    shape = run.checkpoint.shape
    for layer, parts in enumerate(run.parts):
        x = attention_input(run, layer)
        v = biased(run.checkpoint.rows("attn_value", layer), x, parts.projection_biases()[2])
        v = v.unflatten(1, (shape.n_kv_heads, shape.d_head))
        outputs = run.checkpoint.rows("attn_output", layer).unflatten(0, (shape.n_heads, shape.d_head))
        mixed, whole = run.seen[parts.out]
        bias = parts.out(torch.zeros_like(mixed))
        total = bias[0].clone()
        for head in range(shape.n_heads):
            only = torch.zeros_like(mixed)
            columns = slice(head * shape.d_head, (head + 1) * shape.d_head)
            only[..., columns] = mixed[..., columns]
            theirs = (parts.out(only) - bias)[0]
            ours = run.attentions[layer][0, head] @ v[:, shape.kv_head(head)] @ outputs[head]
            assert_close(ours, theirs)
            total += ours
        assert_close(total, whole[0])


def test_embedding_is_the_output_embedding(run: Run, request: pytest.FixtureRequest) -> None:
    _, _, which, tied = LINES[request.node.callspec.params["run"]]
    head = run.model.get_output_embeddings() or run.model.get_input_embeddings()
    E, found_which, found_tied = run.checkpoint.embedding()
    assert (found_which, found_tied) == (which, tied)
    assert torch.equal(E, head.weight)


def test_shape_is_the_models(run: Run) -> None:
    """Kinds, rows a layer and numbers of heads, from the model's own modules."""
    shape, parts = run.checkpoint.shape, run.parts[0]
    queries, keys, _ = parts.projections(run.seen)
    assert shape.n_heads * shape.d_head == queries.shape[-1]
    assert shape.n_kv_heads * shape.d_head == keys.shape[-1]
    assert shape.n_heads == run.model.config.num_attention_heads == run.attentions[0].shape[1]
    assert shape.n_layers == len(run.parts)
    assert [shape.rows_per_layer(kind) for kind in shape.kinds] == [
        len(run.checkpoint.rows(kind, 0)) for kind in shape.kinds
    ]


def test_every_family_file_has_a_line_here() -> None:
    assert {family for family, _, _, _ in LINES.values()} == set(families())
    assert set(LINES) == set(models.MAKERS)


def test_every_model_type_of_every_family_has_a_line_here() -> None:
    built = {models.MAKERS[name](ROWS).config.model_type for name in LINES}
    assert built == {model_type for family in families().values() for model_type in family.model_types}
