"""What a model does on a text: it is run over windows of it, and what it did at some tokens is kept."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from paramdex_builder.measure.options import EvaluateOptions
from paramdex_builder.measure.reads import vectors_of
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.read.tokenizer import special_ids
from paramdex_builder.stream.forward import Runner, watched
from paramdex_builder.stream.space import READERS, taken, taps
from paramdex_schemas import BuildError, FamilyError
from paramdex_schemas.progress import Progress

_SPREAD = 4
"""How many tokens are run per token that is looked at, so that the latter come from many places of the text."""
_BATCH = 2
ACTIVE = {"ff_value": ("ff_key", "ff_gate", "ff_value"), "attn_output": ("attn_value", "attn_output")}
"""The kind whose module gets the coefficients of its vectors as input -> the kinds that are as active as it."""


@dataclass
class Seen:
    """What a model did at the sampled tokens."""

    states: list[torch.Tensor]
    """after every layer (n x d each)"""
    coefficients: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)
    """(kind of ACTIVE, layer) -> what its vectors are multiplied with (n x m)"""
    tokens: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """the tokens' ids (n)"""
    inputs: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)
    """(kind of READERS, layer) -> what its vectors read (n x d)"""


@dataclass(frozen=True)
class Subject:
    """A model, the same with no norms folded, the embedding that scores (V x d), and what the model did."""

    checkpoint: Checkpoint
    plain: Checkpoint
    E: torch.Tensor
    seen: Seen
    options: EvaluateOptions
    generator: torch.Generator


def look(runner: Runner, text: str, options: EvaluateOptions, generator: torch.Generator, progress: Progress) -> Seen:
    """Run the model over windows of the text, drawn at random, and keep what it did at ``samples`` of their tokens.

    Raises BuildError where the text is too short to say anything.
    """
    longest = runner.longest
    windows = runner.encode(text, max_length=longest, return_overflowing_tokens=True, verbose=False)
    n_windows = -(-_SPREAD * options.samples // longest)
    whole = [windows[i] for i in torch.randperm(len(windows), generator=generator)[:n_windows].tolist()]
    special = torch.tensor(sorted(special_ids(runner.tokenizer)) or [-1])
    ordinary = [~torch.isin(torch.tensor(each), special) for each in whole]
    n = int(sum(each.sum() for each in ordinary))
    if n < 2:
        raise BuildError(f"the text has {n} tokens that the vocabulary knows; give one of some hundred words or more")
    wanted = torch.zeros(n, dtype=torch.bool)
    wanted[torch.randperm(n, generator=generator)[: options.samples]] = True
    states: list[list[torch.Tensor]] = [[] for _ in runner.blocks]
    coefficients: dict[tuple[str, int], list[torch.Tensor]] = {}
    tokens: list[torch.Tensor] = []
    inputs: dict[tuple[str, int], list[torch.Tensor]] = {}
    givers, readers = taps(runner, ACTIVE), taps(runner, READERS)
    done = 0
    with progress.step("text", len(whole)) as advance:
        for start in range(0, len(whole), _BATCH):
            here = slice(start, start + _BATCH)
            batch = runner.batch(whole[here])
            keep = torch.zeros(batch.ids.shape, dtype=torch.bool)
            for row, each in enumerate(ordinary[here]):
                count = int(each.sum())
                places = each.nonzero().flatten()
                keep[row, places[wanted[done : done + count]]] = True
                done += count
            with watched(runner.blocks) as before, taken(givers) as given, taken(readers) as read:
                runner.run(batch)
            tokens.append(batch.ids[keep])
            for layer, state in enumerate(before[1:]):
                states[layer].append(state[keep])
            for found, kept in ((given, coefficients), (read, inputs)):
                for key, value in found.given.items():
                    kept.setdefault(key, []).append(value.reshape(*batch.ids.shape, -1)[keep])
            advance(len(batch))
    seen = Seen(
        [torch.cat(each) for each in states],
        {key: torch.cat(each) for key, each in coefficients.items()},
        torch.cat(tokens),
        {key: torch.cat(each) for key, each in inputs.items()},
    )
    _check(runner, seen)
    return seen


def _check(runner: Runner, seen: Seen) -> None:
    """Raises FamilyError where a module's input has not one number for each vector of its kind."""
    for (kind, layer), found in seen.coefficients.items():
        vectors = vectors_of(runner.checkpoint, kind, layer)
        if vectors is None or len(vectors) != found.shape[1]:
            raise FamilyError(
                f"{runner.checkpoint.source}: the module of {kind} in layer {layer} takes {found.shape[1]} numbers, "
                f"expected one for each of its {0 if vectors is None else len(vectors)} vectors"
            )
