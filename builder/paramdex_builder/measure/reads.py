"""The ways to read what a parameter reads: by the embedding, or by what the layers before make of a token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.stream import own_text
from paramdex_builder.stream.forward import Runner
from paramdex_builder.stream.space import alone, fitted, normalized
from paramdex_builder.work.progress import Progress

_LENGTH = 128
"""The tokens of a text that a model writes itself."""


def vectors_of(checkpoint: Checkpoint, kind: str, layer: int) -> torch.Tensor | None:
    """The vectors of a kind in a layer (n x d), those of key/value heads once for each query head; None where there
    are none, or where experts hold them.
    """
    for run in checkpoint.layout.of(kind):
        if run.place == (None, layer) and run.owner != "expert":
            rows = checkpoint.rows(run).float()
            if run.owner == "kv_head" and run.group > 1:
                rows = rows.view(run.n_owners, run.size, -1).repeat_interleave(run.group, dim=0).flatten(0, 1)
            return rows
    return None


Scored = tuple[torch.Tensor, torch.Tensor]
"""A table (V x d) and vectors (m x d), whose products are the scores."""


@dataclass(frozen=True)
class Reading:
    """A way to read: for a kind and layer, what its scores are products of; None where its vectors lie elsewhere."""

    name: str
    scored: Callable[[str, int], Scored | None]


def readings(
    runner: Runner, plain: Checkpoint, E: torch.Tensor, author: Any, n_texts: int, seed: int, progress: Progress
) -> list[Reading]:
    """The ways to read a model: by the embedding; from layer 1 on by what layer 0 makes of a token; and by what each
    layer sees of that, where there is an ``author``, the causal language model, to write ``n_texts`` to fit it on.

    Layer 0 is always read by the embedding E (V x d). ``plain`` is the checkpoint with no norms folded.
    """
    checkpoint = runner.checkpoint
    Z = normalized(alone(runner, len(E)), checkpoint.family.norm)

    def embedding(kind: str, layer: int) -> Scored | None:
        rows = vectors_of(checkpoint, kind, layer)
        return None if rows is None else (E, rows)

    def effective(kind: str, layer: int) -> Scored | None:
        rows = vectors_of(plain, kind, layer)
        if rows is None or layer == 0:
            return embedding(kind, layer)
        return Z, plain.fold(rows, plain.norms.beside(kind, (None, layer)), "reads")

    found = [Reading("embedding", embedding), Reading("effective", effective)]
    if author is not None:
        begin = runner.tokenizer.bos_token_id
        first = begin if begin is not None and begin < len(E) else None
        length = min(_LENGTH, runner.longest)
        texts = own_text.write(author, first, len(E), n_texts, length, seed, progress)
        maps = {(kind, layer): A for kinds, layer, A, _ in fitted(runner, Z, texts, 1, progress) for kind in kinds}

        def by_map(kind: str, layer: int) -> Scored | None:
            rows = vectors_of(plain, kind, layer)
            if rows is None or layer == 0:
                return embedding(kind, layer)
            return Z, rows @ maps[kind, layer].T

        found.append(Reading("expected", by_map))
    return found
