"""What layer 0 makes of a token, and what layers read, against transformers' own hidden states."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tokenizers import processors
from transformers import AutoModel

from paramdex_builder import Progress
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.stream.forward import Batch, Runner
from paramdex_builder.stream.space import READERS, Place, alone, normalized, taken, taps

FAMILIES = ["gpt2-a", "llama-gqa", "bert"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_states_of_a_token_alone(family: str, model_folders: dict[str, Path]) -> None:
    """They are the first two ``hidden_states`` of the model on that token, as its tokenizer puts it, normalized; the
    first as the mean over positions, which differ in two of the families.
    """
    folder = model_folders[family]
    runner = Runner.open(Checkpoint.open(str(folder)))
    if family == "bert":
        special = [("[CLS]", 2), ("[SEP]", 3)]
        template = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
        runner.tokenizer.backend_tokenizer.post_processor = template
        assert runner.around == ([2], [3])
    else:
        assert runner.around == ([], [])
    found = alone(runner, runner.n_rows, Progress())
    model = AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    for token in (0, 3, runner.n_rows - 1):
        with torch.no_grad():
            ids = torch.tensor([[2, token, 3]] if family == "bert" else [[token]])
            states = model(ids, output_hidden_states=True).hidden_states
            wanted = normalized(states[1][:, int(family == "bert")], runner.checkpoint.family.norm)[0]
            assert found["reading"][token].double().numpy() == pytest.approx(wanted.double().numpy(), abs=1e-5)
            before, after = ([2], [3]) if family == "bert" else ([], [])
            n = min(32, runner.longest - len(before) - len(after))
            states = model(torch.tensor([[*before, *[token] * n, *after]]), output_hidden_states=True).hidden_states
            mean = states[0][:, len(before) : len(before) + n].mean(1)
            wanted = normalized(mean, runner.checkpoint.family.norm)[0]
            assert found["entering"][token].double().numpy() == pytest.approx(wanted.double().numpy(), abs=1e-5)


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
    with taken(modules) as kept:
        runner.run(Batch(ids, torch.ones_like(ids)))
    given = kept.given
    for hook in hooks:
        hook.remove()
    assert set(given) == set(modules)
    assert {kind for kind, _ in given} >= {"ff_key", "attn_query", "attn_key", "attn_value"}
    for (kind, layer), output in made.items():
        module = modules[kind, layer]
        own = given[kind, layer] @ runner.checkpoint.layer_rows(kind, (None, layer)).float().T
        assert torch.allclose(own, output - (0 if module.bias is None else module.bias), atol=1e-5)


def test_each_thread_takes_its_own(model_folders: dict[str, Path]) -> None:
    runner = Runner.open(Checkpoint.open(str(model_folders["gpt2-a"])))
    modules = taps(runner, READERS)
    both = threading.Barrier(2, timeout=60)

    def given(token: int) -> dict[Place, torch.Tensor]:
        ids = torch.full((1, 3), token)
        runner.run(Batch(ids, torch.ones_like(ids)))
        both.wait()
        return dict(kept.given)

    with taken(modules) as kept, ThreadPoolExecutor(2) as pool:
        first, second = pool.map(given, (3, 7))
        assert kept.given == {}
    for token, found in ((3, first), (7, second)):
        with taken(modules) as kept:
            runner.run(Batch(torch.full((1, 3), token), torch.ones(1, 3, dtype=torch.int64)))
        assert all(torch.equal(found[place], states) for place, states in kept.given.items())
