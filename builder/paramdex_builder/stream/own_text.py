"""Text that a causal model writes itself, so that asking what its layers see takes no corpus.

Texts are written a batch at a time, each with a random generator of its own, seeded by the batch's number.
"""

from __future__ import annotations

from typing import Any

import torch

from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.stream.forward import load
from paramdex_builder.work.progress import Progress
from paramdex_schemas import CheckpointError

BATCH = 24
"""How many texts are written together."""


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
        return load(checkpoint, "AutoModelForCausalLM").eval()
    except CheckpointError:  # it was saved without its head
        return None


@torch.no_grad()
def write(
    model: Any, first: int | None, n_tokens: int, n: int, length: int, seed: int, progress: Progress
) -> torch.Tensor:
    """``n`` texts (n x length ids) that a causal model of transformers' writes at temperature 1.

    Each begins with the id ``first``; without one, with a token drawn at random. Ids below ``n_tokens`` may be drawn.
    A text goes on past an end of text, as those that the model was trained on do.
    """
    texts = []
    with progress.step("writing text", n * length) as advance:
        for number, start in enumerate(range(0, n, BATCH)):
            generator = torch.Generator().manual_seed(seed + number)
            some = min(BATCH, n - start)
            if first is None:
                text = torch.randint(n_tokens, (some, 1), generator=generator)
            else:
                text = torch.full((some, 1), first)
            cache = None
            while text.shape[1] < length:
                output = model(input_ids=text if cache is None else text[:, -1:], past_key_values=cache, use_cache=True)
                cache = getattr(output, "past_key_values", None)
                chances = output.logits[:, -1, :n_tokens].double().softmax(dim=-1)
                text = torch.cat([text, torch.multinomial(chances, 1, generator=generator)], dim=1)
                advance(some)
            texts.append(text)
            advance(some)
    return torch.cat(texts)
