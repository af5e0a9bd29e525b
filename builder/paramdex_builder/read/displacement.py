"""Displacements: what fine-tuning moved, as a model of its own (the paper's fine-tuning vectors).

Every vector is the tuned model's less the base's. What is made of several weights is made in each model first: for a
bias that is carried through its head, the two carried biases are subtracted, and for a head's matrix the two matrices
(see ``head_rows``). Scores belong to the base's embedding. All sums are in float64, so that what hardly moved keeps its
digits and what did not move is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from paramdex_builder.read.adapter import AdaptedFiles
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.read.family import Family
from paramdex_builder.read.hub import ADAPTER_CONFIG
from paramdex_builder.read.source import locate
from paramdex_schemas import CheckpointError, Layout, Run
from paramdex_schemas.layout import Place

_LEFT = ("attn_query", "attn_value")
"""Kinds that are the left factor of a head's matrix."""


@dataclass
class Displacement:
    """A tuned model less its base, to be built in place of a checkpoint."""

    tuned: Checkpoint
    base: Checkpoint

    @classmethod
    def open(cls, source: str, base: str, *, fold_norm: bool = False) -> Displacement:
        """Open a tuned model, or a PEFT LoRA folder, and its base.

        Raises CheckpointError or FamilyError as ``Checkpoint.open``, and where the two are not of one architecture.
        """
        opened = Checkpoint.open(base, fold_norm=fold_norm, precision=torch.float64)
        origin = locate(source)
        if origin.has(ADAPTER_CONFIG):
            tuned = replace(
                opened,
                source=source,
                folder=origin.folder,
                revision=origin.revision,
                files=AdaptedFiles.open(origin, opened),
            )
        else:
            tuned = Checkpoint.open(source, fold_norm=fold_norm, precision=torch.float64)
        differs = _difference(tuned, opened)
        if differs:
            raise CheckpointError(f"{source} and its base {base} are not of one architecture: {differs}")
        return cls(tuned, opened)

    # ---- what the tuned model says

    @property
    def source(self) -> str:
        return self.tuned.source

    @property
    def revision(self) -> str | None:
        return self.tuned.revision

    def dtype(self) -> str:
        return self.tuned.dtype()

    def sha256(self) -> str:
        """The SHA-256 of the tuned model's weight files; of an adapter's weights and its config, which scales them."""
        return self.tuned.sha256()

    def base_sha256(self) -> str:
        """The SHA-256 of the base's weight files."""
        return self.base.sha256()

    # ---- what the base says: what kind of model it is, and what scores

    @property
    def folder(self) -> Path:
        return self.base.folder

    @property
    def family(self) -> Family:
        return self.base.family

    @property
    def inferred(self) -> bool:
        return self.base.inferred

    @property
    def model_type(self) -> str:
        return self.base.model_type

    @property
    def layout(self) -> Layout:
        return self.base.layout

    @property
    def d_model(self) -> int:
        return self.base.d_model

    @property
    def n_bytes(self) -> int:
        return self.base.n_bytes

    def numbers(self) -> dict[str, Any]:
        return self.base.numbers()

    def rotary(self) -> bool:
        return self.base.rotary()

    def left_out(self) -> dict[str, int]:
        return self.base.left_out()

    def embedding(self, space: str = "output") -> tuple[torch.Tensor, str, bool]:
        return self.base.embedding(space)

    def notes(self, space: str) -> Iterator[str]:
        return self.base.notes(space)

    @property
    def runs(self) -> Checkpoint:
        """The model whose layers are run: the base, so that what moved is read in its spaces."""
        return self.base.plain()

    # ---- what moved

    def plain(self) -> Displacement:
        """The same with no norms folded."""
        return Displacement(self.tuned.plain(), self.base.plain()) if self.base.fold_norm else self

    def rows(self, run: Run, owners: range | None = None) -> torch.Tensor:
        """How far each vector of a run moved (n x d_model, float64)."""
        return self.tuned.rows(run, owners).double() - self.base.rows(run, owners).double()

    def head_rows(self, kind: str, place: Place) -> list[torch.Tensor]:
        """As ``Checkpoint.head_rows`` (n x d_model each, float64), the two terms of

            P^T Q - P'^T Q' = (P - P')^T Q + P'^T (Q - Q')

        for tuned P, Q and base P', Q': sums of small things, where P^T Q and P'^T Q' would be large ones that cancel.
        """
        tuned = self.tuned.layer_rows(kind, place).double()
        base = self.base.layer_rows(kind, place).double()
        return [tuned - base, base] if kind in _LEFT else [tuned, tuned - base]

    @property
    def n_terms(self) -> int:
        return 2

    # ---- checks

    def check_unchanged(self) -> None:
        """Raises CheckpointError where a weight file of either model is no longer the one that was opened."""
        self.base.check_unchanged()
        self.tuned.check_unchanged()

    def check_layers(self, advance: Callable[[int], None] | None = None) -> None:
        """Read every layer of both models once. Raises as ``Checkpoint.check_layers``."""
        self.base.check_layers()
        self.tuned.check_layers(advance)


def _difference(tuned: Checkpoint, base: Checkpoint) -> str | None:
    """In what two models differ so that their vectors cannot be subtracted, with the numbers of both."""
    if tuned.family.name != base.family.name:
        return f"family {tuned.family.name} against {base.family.name}"
    mine, other = tuned.numbers(), base.numbers()
    differ = [f"{name} {mine[name]} against {other[name]}" for name in mine if mine[name] != other[name]]
    if differ:
        return ", ".join(differ)
    if tuned.layout == base.layout:
        return None
    runs = set(tuned.layout.runs) ^ set(base.layout.runs)
    return f"they have other parameters of kind {', '.join(sorted({run.kind for run in runs}))}"
