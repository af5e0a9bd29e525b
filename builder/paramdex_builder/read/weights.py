"""Weights: all that a build asks of a model (``Checkpoint``), or of what moved in one (``Displacement``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.read.family import Family
from paramdex_schemas import Layout, Run
from paramdex_schemas.layout import Place


class Weights(Protocol):
    """An opened model, or the difference of two. All reading raises CheckpointError or FamilyError."""

    @property
    def source(self) -> str:
        """What the user calls it: a folder, or a name on the hub."""

    @property
    def folder(self) -> Path:
        """Where its tokenizer is."""

    @property
    def revision(self) -> str | None:
        """Its commit on the hub."""

    @property
    def runs(self) -> Checkpoint:
        """The model whose layers are run, to find what they read; with no norms folded."""

    @property
    def family(self) -> Family: ...

    @property
    def inferred(self) -> bool:
        """Whether no family lists the model's type, and its tensors fit this family's layout."""

    @property
    def model_type(self) -> str:
        """What config.json calls the architecture."""

    @property
    def layout(self) -> Layout: ...

    @property
    def d_model(self) -> int:
        """The width of the residual stream."""

    @property
    def n_bytes(self) -> int:
        """The size of the weight files that E is in."""

    @property
    def n_terms(self) -> int:
        """The terms that a head's matrices are sums of; also the number of models that are read for each vector."""

    def numbers(self) -> dict[str, Any]:
        """The model's numbers for the table ``models``: layers, widths, heads."""

    def dtype(self) -> str:
        """The dtype of the embedding as stored."""

    def rotary(self) -> bool:
        """Whether positions rotate queries and keys, which QK leaves out."""

    def left_out(self) -> dict[str, int]:
        """Parts of layers with matrices that the family does not know -> how many."""

    def sha256(self) -> str:
        """The SHA-256 of the files that the vectors come from, without the base's."""

    def base_sha256(self) -> str | None:
        """The SHA-256 of the weights that are subtracted."""

    def embedding(self, space: str = "output") -> tuple[torch.Tensor, str, bool]:
        """(E, which, tied): E (rows x d_model), output or input, and whether the model ties the two."""

    def notes(self, space: str) -> Iterator[str]:
        """What a person should know of the embedding that scores."""

    def plain(self) -> Weights:
        """The same with no norms folded."""

    def rows(self, run: Run, owners: range | None = None) -> torch.Tensor:
        """The vectors of a run (n x d_model): all of them, or those of some of its ``owners``."""

    def head_rows(self, kind: str, place: Place) -> list[torch.Tensor]:
        """The vectors of a kind that are one factor of the heads' matrices (n x d_model), for each of ``n_terms``."""

    def check_layers(self, advance: Callable[[int], None] | None = None) -> None:
        """Read every layer once, so that a bad tensor is found before any work is done."""

    def check_unchanged(self) -> None:
        """Raises CheckpointError where a weight file is no longer the one that was opened."""
