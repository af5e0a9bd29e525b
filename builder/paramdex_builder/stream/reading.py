"""How the readers of a model's layers are read: by what, and pulled back how (``stream.space`` has the formulas).

A ``Reading`` is made once for a build. It has Z, for the layers from 1 on, and takes each reader w of a layer to the
vector r whose scores are Z r. How well that says what w reads is measured on text that the fit never saw.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.read.weights import Weights
from paramdex_builder.stream import own_text
from paramdex_builder.stream.forward import Runner
from paramdex_builder.stream.space import alone, fitted, normalized
from paramdex_builder.work.progress import Progress
from paramdex_schemas import KINDS, BuildError, FamilyError, Run

TEXTS, HELD_OUT, LENGTH = 96, 12, 128
"""Texts that a model writes: those that maps are fitted on, those that they are measured on, and the tokens of each."""
_READ_AS = {"attn_query_bias": "attn_key", "attn_key_bias": "attn_query"}
"""A bias carried through a head's other side reads what that side reads."""


@dataclass(frozen=True)
class Reading:
    """Z (V x d, float32), and what takes readers to vectors whose scores are Z r.

    ``maps`` has A (d x d, float32) by name, the kinds that share it and their layer: r = A w. There are none for
    ``effective``, where r is w with its norm's gain.
    """

    how: str
    Z: torch.Tensor
    maps: dict[str, torch.Tensor] = field(default_factory=dict)
    reads: dict[str, torch.Tensor] = field(default_factory=dict)
    """By name of a run: of each vector, the correlation of what it reads with its score of the token, on text that the
    fit never saw (n, float32; NaN where either does not vary).
    """
    text: str | None = None
    """What the maps were fitted on."""
    n_tokens: int | None = None

    def pulled(self, checkpoint: Checkpoint, run: Run, rows: torch.Tensor) -> torch.Tensor:
        """r (n x d, float64) of vectors w of a run (n x d, with no norm folded in)."""
        if self.how == "effective":
            return checkpoint.fold(rows.double(), checkpoint.norms.beside(run.kind, run.place), "reads")
        return rows.double() @ self.map(run).double().T

    def map(self, run: Run) -> torch.Tensor:
        """A of a run. Raises FamilyError where nothing that reads the state is known there."""
        kind = _READ_AS.get(run.kind, run.kind)
        for name, found in self.maps.items():
            kinds, _, layer = name.partition("/")
            if layer == str(run.layer) and ("router" if run.owner == "expert" else kind) in kinds.split("+"):
                return found
        raise FamilyError(f"what {run.kind} of layer {run.layer} reads is not known; build with --reading effective")

    def save(self, path: Path) -> None:
        """Write all but the text; ``load`` reads it. Raises OSError."""
        tensors = {"Z": self.Z}
        tensors |= {f"map/{name}": each for name, each in self.maps.items()}
        tensors |= {f"reads/{name}": each for name, each in self.reads.items()}
        about = {"how": self.how, "text": self.text or "", "n_tokens": str(self.n_tokens or 0)}
        save_file({name: each.contiguous() for name, each in tensors.items()}, path, about)

    @classmethod
    def load(cls, path: Path) -> Reading:
        """What ``save`` wrote. Raises OSError or SafetensorError."""
        found: dict[str, dict[str, torch.Tensor]] = {"Z": {}, "map": {}, "reads": {}}
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
            for name in file.keys():  # noqa: SIM118  # no mapping
                group, _, own = name.partition("/")
                found[group][own] = file.get_tensor(name)
        text, n_tokens = about["text"] or None, int(about["n_tokens"]) or None
        return cls(about["how"], found["Z"][""], found["map"], found["reads"], text, n_tokens)


def run_name(run: Run) -> str:
    """The name of a run of a model of one stack.

    >>> run_name(Run("ff_key", None, 3, None, 1, 4, 1)), run_name(Run("ff_key", None, 3, "expert", 2, 4, 1))
    ('ff_key/3', 'ff_key/3/expert')
    """
    return "/".join(part for part in (run.kind, str(run.layer), run.owner if run.owner == "expert" else None) if part)


def reading_of(asked: str, checkpoint: Checkpoint) -> str:
    """The reading that ``auto`` means for a model: expected for a causal one, embedding else. Raises BuildError where
    the one that was asked for cannot be.
    """
    stacks = bool(checkpoint.layout.stacks)
    if asked == "auto":
        return "expected" if own_text.is_causal(checkpoint) and not stacks else "embedding"
    if asked != "embedding" and stacks:
        raise BuildError(f"{checkpoint.source}: an encoder-decoder is read with --reading embedding, not {asked}")
    return asked


def make_reading(weights: Weights, how: str, V: int, text: Path | None, progress: Progress) -> Reading:
    """The reading ``how`` (expected or effective) of a model whose vocabulary has V items, by running it.

    Raises CheckpointError, FamilyError or BuildError where that cannot be.
    """
    checkpoint = weights.runs
    author = own_text.writer(checkpoint)
    runner = Runner.open(checkpoint, None if author is None else author.base_model)
    Z = normalized(alone(runner, V), checkpoint.family.norm)
    if how == "effective":
        return Reading(how, Z)
    if author is None:
        raise BuildError(f"{checkpoint.source} cannot write text; give some with --text FILE, or --reading effective")
    begin = runner.tokenizer.bos_token_id
    first = begin if begin is not None and begin < V else None
    length = min(LENGTH, runner.longest)
    texts = own_text.write(author, first, V, TEXTS + HELD_OUT, length, 0, progress)
    maps, reads = {}, {}
    for kinds, layer, A, held in fitted(runner, Z, texts, HELD_OUT, progress):
        if layer:
            maps[f"{'+'.join(kinds)}/{layer}"] = A
            found = Reading(how, Z, {f"{'+'.join(kinds)}/{layer}": A})
            for run in _read_there(weights, found, layer):
                reads[run_name(run)] = held.correlations(weights.rows(run), A)
    return Reading(how, Z, maps, reads, "its own", TEXTS * length)


def _read_there(weights: Weights, reading: Reading, layer: int) -> Iterator[Run]:
    """The runs of readers of a layer that a reading has a map for."""
    for run in weights.layout.runs:
        if run.layer == layer and KINDS[run.kind].role == "reads":
            try:
                reading.map(run)
            except FamilyError:
                continue
            yield run
