"""What layers read, against transformers' own hidden states; the tables of it, and the text that a model writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import processors
from transformers import AutoModel, AutoModelForCausalLM

from paramdex_builder import Progress
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.stream import own_text
from paramdex_builder.stream.forward import Batch, Runner
from paramdex_builder.stream.space import READERS, RIDGE, alone, expected, normalized, taken, taps

FAMILIES = ["gpt2-a", "llama-gqa", "bert"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_state_of_a_token_alone(family: str, model_folders: dict[str, Path]) -> None:
    """It is ``hidden_states[1]`` of the model on that token, as the tokenizer would put it."""
    folder = model_folders[family]
    runner = Runner.open(Checkpoint.open(str(folder)))
    if family == "bert":
        special = [("[CLS]", 2), ("[SEP]", 3)]
        template = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
        runner.tokenizer.backend_tokenizer.post_processor = template
        assert runner.around == ([2], [3])
    else:
        assert runner.around == ([], [])
    found = alone(runner, runner.n_rows)
    model = AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    for token in (0, 3, runner.n_rows - 1):
        with torch.no_grad():
            ids = torch.tensor([[2, token, 3]] if family == "bert" else [[token]])
            states = model(ids, output_hidden_states=True).hidden_states[1][0, int(family == "bert")]
        assert found[token].double().numpy() == pytest.approx(states.numpy(), abs=1e-5)


def test_normalized_rows_are_those_of_a_norm_without_gains() -> None:
    states = torch.randn(7, 48, generator=torch.Generator().manual_seed(0)) * 5 + 2
    layer = torch.nn.functional.layer_norm(states, (48,), eps=0)
    rms = torch.nn.functional.rms_norm(states, (48,), eps=1e-12)
    assert torch.allclose(normalized(states, "layer"), layer, atol=1e-5)
    assert torch.allclose(normalized(states, "rms"), rms, atol=1e-5)
    assert not normalized(torch.zeros(2, 5), "rms").any()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_taken_is_what_the_vectors_read(family: str, model_folders: dict[str, Path]) -> None:
    """A module's output is its input times the kind's vectors, and its bias."""
    runner = Runner.open(Checkpoint.open(str(model_folders[family])))
    modules, made = taps(runner, READERS), {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, place=place: made.__setitem__(place, output))
        for place, module in modules.items()
        if isinstance(module, torch.nn.Linear)
    ]
    ids = torch.randint(runner.n_rows, (2, 6), generator=torch.Generator().manual_seed(1))
    with taken(modules) as given:
        runner.run(Batch(ids, torch.ones_like(ids)))
    for hook in hooks:
        hook.remove()
    assert set(given) == set(modules)
    assert {kind for kind, _ in given} >= {"ff_key", "attn_query", "attn_key", "attn_value"}
    for (kind, layer), output in made.items():
        module = modules[kind, layer]
        own = given[kind, layer] @ runner.checkpoint.layer_rows(kind, (None, layer)).float().T
        assert torch.allclose(own, output - (0 if module.bias is None else module.bias), atol=1e-5)


def test_maps_are_the_regression_of_what_layers_read(model_folders: dict[str, Path]) -> None:
    """Against a plain ridge regression in float64 on transformers' own states, with the norm's gains put on by hand."""
    folder = model_folders["llama-gqa"]
    runner = Runner.open(Checkpoint.open(str(folder)))
    Z = normalized(alone(runner, runner.n_rows), "rms")
    texts = torch.randint(runner.n_rows, (20, 9), generator=torch.Generator().manual_seed(2))
    maps = expected(runner, Z, texts, Progress())
    model = AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.no_grad():
        states = model(texts, output_hidden_states=True).hidden_states[1].flatten(0, 1)
    norm = model.layers[1].input_layernorm
    Y = states / (states.square().mean(1, keepdim=True) + norm.variance_epsilon).sqrt() * norm.weight.detach()
    X = Z[texts.flatten()].double()
    Xc, Yc = X - X.mean(0), Y - Y.mean(0)
    G, C = Xc.T @ Xc, Xc.T @ Yc
    paid = RIDGE * G.diagonal().mean()
    wanted = torch.linalg.solve(G + paid * torch.eye(len(G)), C + paid * torch.diag(C.diagonal() / G.diagonal()))
    for kind in ("attn_query", "attn_key", "attn_value"):
        assert maps[kind, 1].double().numpy() == pytest.approx(wanted.numpy(), abs=1e-4)
    assert maps["attn_query", 1] is maps["attn_value", 1]
    assert maps["ff_key", 1] is maps["ff_gate", 1]


def test_text_is_drawn_from_what_the_model_says(model_folders: dict[str, Path]) -> None:
    checkpoint = Checkpoint.open(str(model_folders["gpt2-a"]))
    author = own_text.writer(checkpoint)
    texts = own_text.write(author, 0, 60, 30, 12, 5, Progress())
    assert texts.shape == (30, 12)
    assert not texts[:, 0].any()
    assert int(texts.max()) < 60
    assert torch.equal(texts, own_text.write(author, 0, 60, 30, 12, 5, Progress()))
    assert not torch.equal(texts, own_text.write(author, 0, 60, 30, 12, 6, Progress()))
    assert torch.equal(texts[: own_text.BATCH], own_text.write(author, 0, 60, own_text.BATCH, 12, 5, Progress()))
    many = own_text.write(author, 0, 60, 200, 12, 0, Progress())
    model = AutoModelForCausalLM.from_pretrained(model_folders["gpt2-a"], dtype=torch.float64).eval()
    with torch.no_grad():
        chances = model(many).logits[:, :-1, :60].softmax(-1)
    surprise = -chances.gather(2, many[:, 1:, None]).log().squeeze(2)
    entropy = -(chances * chances.log()).sum(-1)
    spread = float((surprise - entropy).std()) / surprise.numel() ** 0.5
    assert abs(float((surprise - entropy).mean())) < 5 * spread


def test_who_writes(model_folders: dict[str, Path]) -> None:
    """An encoder writes nothing."""
    assert own_text.writer(Checkpoint.open(str(model_folders["bert"]))) is None
    assert own_text.writer(Checkpoint.open(str(model_folders["llama-gqa"]))) is not None
