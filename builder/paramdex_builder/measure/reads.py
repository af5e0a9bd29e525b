"""The ways to read what a parameter reads: by the embedding, or by what the layers before make of a token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.stream.forward import Runner
from paramdex_builder.stream.reading import Reading, fitted
from paramdex_builder.stream.space import alone, space_of
from paramdex_builder.stream.texts import own
from paramdex_schemas import Run
from paramdex_schemas.progress import Progress


def run_of(checkpoint: Checkpoint, kind: str, layer: int) -> Run | None:
    """The run of a kind in a layer; None where there is none, or where experts hold its vectors."""
    runs = (run for run in checkpoint.layout.of(kind) if run.place == (None, layer) and run.owner != "expert")
    return next(runs, None)


def rows_of(checkpoint: Checkpoint, kind: str, layer: int) -> torch.Tensor | None:
    """The vectors of a kind in a layer (n x d); None where ``run_of`` is."""
    run = run_of(checkpoint, kind, layer)
    return None if run is None else checkpoint.rows(run).float()


def of_query_heads(run: Run, rows: torch.Tensor) -> torch.Tensor:
    """The rows of a run (n x d); those of key/value heads once for each query head."""
    if run.owner != "kv_head" or run.group == 1:
        return rows
    return rows.view(run.n_owners, run.size, -1).repeat_interleave(run.group, dim=0).flatten(0, 1)


def vectors_of(checkpoint: Checkpoint, kind: str, layer: int) -> torch.Tensor | None:
    """As ``rows_of``, those of key/value heads once for each query head."""
    run = run_of(checkpoint, kind, layer)
    return None if run is None else of_query_heads(run, checkpoint.rows(run).float())


Scored = tuple[torch.Tensor, torch.Tensor]
"""A table (V x d) and vectors (m x d), whose products are the scores."""


@dataclass(frozen=True)
class Way:
    """A way to read: for a kind and layer, what its scores are products of; None where its vectors lie elsewhere."""

    name: str | None
    """None for what writes, which there is one way to read"""
    scored: Callable[[str, int], Scored | None]


def ways_to_read(
    runner: Runner, plain: Checkpoint, E: torch.Tensor, author: Any, n_texts: int, seed: int, progress: Progress
) -> list[Way]:
    """The ways to read a model: by the embedding E (V x d); by what enters layer 0 for a token, and from layer 1 on by
    what it makes of that; and by what each layer sees of these, where there is an ``author``, the causal language
    model, to write ``n_texts`` to fit it on.

    ``plain`` is the checkpoint with no norms folded.
    """
    tables = alone(runner, len(E), progress)

    def by_embedding(kind: str, layer: int) -> Scored | None:
        rows = rows_of(runner.checkpoint, kind, layer)
        return None if rows is None else (E, rows)

    def by(reading: Reading) -> Way:
        def scored(kind: str, layer: int) -> Scored | None:
            run, rows = run_of(plain, kind, layer), rows_of(plain, kind, layer)
            if run is None or rows is None:
                return None
            return reading.tables[space_of(layer)], reading.pulled(plain, run, rows).float()

        return Way(reading.how, scored)

    found = [Way("embedding", by_embedding), by(Reading("effective", tables))]
    if author is not None:
        found.append(by(fitted(runner, tables, own(runner, author, len(E), n_texts, seed, progress), progress)))
    return found
