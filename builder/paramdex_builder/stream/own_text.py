"""Text that a causal model writes itself, so that asking what its layers see takes no corpus.

Texts are written a batch at a time, each batch by one thread with a random generator of its own. Those generators are
seeded from one, in order: the text is the same however many threads there are, and no two seeds share a batch.
"""

from __future__ import annotations

import inspect
from threading import Lock
from typing import Any

import torch

from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.stream.forward import load
from paramdex_builder.work.workers import one_thread_each, stop_if_unwanted
from paramdex_schemas import CheckpointError
from paramdex_schemas.progress import Advance, Progress

BATCH = 39
"""How many texts are written together: a quarter of those that a build asks for."""


def is_causal(checkpoint: Checkpoint) -> bool:
    """Whether transformers has a causal language model of a checkpoint's type, and it is no encoder."""
    from transformers.models.auto import modeling_auto

    causal = checkpoint.model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return causal and checkpoint.model_type not in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES


def writer(checkpoint: Checkpoint) -> Any:
    """The causal language model of a checkpoint, as transformers has it; None where it is none, such as an encoder."""
    if not is_causal(checkpoint):
        return None
    try:
        return opened(checkpoint)
    except CheckpointError:  # it was saved without its head
        return None


def opened(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Any:
    """The causal language model of a checkpoint. Raises CheckpointError where transformers cannot load it."""
    return load(checkpoint, "AutoModelForCausalLM", dtype).eval()


def write(
    model: Any, first: int | None, n_tokens: int, n: int, length: int, seed: int, progress: Progress
) -> torch.Tensor:
    """``n`` texts (n x length ids) that a causal model of transformers' writes at temperature 1.

    Each begins with the id ``first``; without one, with a token drawn at random. Ids below ``n_tokens`` may be drawn.
    A text goes on past an end of text, as those that the model was trained on do.
    """
    sizes = [min(BATCH, n - start) for start in range(0, n, BATCH)]
    master = torch.Generator().manual_seed(seed)
    generators = [
        torch.Generator().manual_seed(own) for own in torch.randint(2**32, (len(sizes),), generator=master).tolist()
    ]
    lock = Lock()

    with progress.step("writing text", n * length) as advance:

        def advance_alone(some: int) -> None:
            with lock:
                advance(some)

        def batch(number: int) -> torch.Tensor:
            size, generator = sizes[number], generators[number]
            if first is None:
                begun = torch.randint(n_tokens, (size, 1), generator=generator)
            else:
                begun = torch.full((size, 1), first)
            return _continued(model, begun, n_tokens, length, generator, advance_alone)

        return torch.cat(list(one_thread_each(batch, range(len(sizes)))))


@torch.no_grad()
def _continued(
    model: Any, text: torch.Tensor, n_tokens: int, length: int, generator: torch.Generator, advance: Advance
) -> torch.Tensor:
    """Texts (n x length) that begin as ``text`` (n x 1)."""
    # A model without a cache reads all of a text anew, but need not score it all.
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    cache = None
    advance(len(text))
    while text.shape[1] < length:
        stop_if_unwanted()
        ids = text if cache is None else text[:, -1:]
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, **last)
        cache = getattr(output, "past_key_values", None)
        text = torch.cat([text, drawn(output.logits[:, -1, :n_tokens], generator)], dim=1)
        advance(len(text))
    return text


def drawn(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One id for each row of logits (n x V), each with its chance (n x 1): where a point drawn from [0, 1) falls among
    the summed chances. (PyTorch's own draw takes a random number for each of V tokens, and ten times as long.)
    """
    reached = logits.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    point = torch.rand(len(logits), 1, dtype=torch.float64, generator=generator) * reached[:, -1:]
    return torch.searchsorted(reached, point, right=True).clamp_max(logits.shape[1] - 1)
