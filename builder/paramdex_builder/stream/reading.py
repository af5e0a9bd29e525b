"""How the readers of a model's layers are read: by what, and pulled back how (``stream.space`` has the formulas).

A ``Reading`` is made once for a build. It has Z, one for layer 0 and one for those from 1 on, and takes each reader w
of a layer to the vector r whose scores are Z r. How well that says what w reads is measured on text that the fit never
saw.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.read.source import read_named_words
from paramdex_builder.read.weights import Weights
from paramdex_builder.stream import own_text
from paramdex_builder.stream.forward import Runner
from paramdex_builder.stream.maps import PART, Group, HeldOut, maps, summed
from paramdex_builder.stream.possible import EMBEDDING, obstacle
from paramdex_builder.stream.space import Tables, alone
from paramdex_builder.stream.texts import FITTED, HELD_OUT, LENGTH, Texts, own, windows
from paramdex_builder.work.workers import one_thread_each
from paramdex_schemas import KINDS, BuildError, CheckpointError, FamilyError, Run, atlas_files
from paramdex_schemas.progress import Progress

PRECISE = 1 << 25
"""A model of so many numbers at most is run in float64. In float32 two sorts of processors round otherwise, and write
other texts sooner or later.
"""
_READ_AS = {"attn_query_bias": "attn_key", "attn_key_bias": "attn_query"}
"""A bias carried through a head's other side reads what that side reads."""


@dataclass(frozen=True)
class Reading:
    """Z of each space, and what takes readers to vectors whose scores are Z r.

    ``maps`` has A (d x d, float32) by name, the kinds that share it and their layer: r = A w. There are none for
    ``effective``, where r is w with its norm's gain.
    """

    how: str
    tables: Tables
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
        name = self.name(run)
        if name is None:
            raise FamilyError(
                f"what {run.kind} of layer {run.layer} reads is not known; build with --reading effective"
            )
        return self.maps[name]

    def name(self, run: Run) -> str | None:
        """The name of the map of a run; None where there is none."""
        return None if run.layer is None else self._by_place.get((_READ_AS.get(run.kind, run.kind), run.layer))

    @cached_property
    def _by_place(self) -> dict[tuple[str, int], str]:
        return atlas_files.maps_by_place(self.maps)

    def save(self, path: Path) -> None:
        """Write all but the text; ``load`` reads it. Raises OSError."""
        tensors = {f"Z/{space}": Z for space, Z in self.tables.items()}
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
        return cls(about["how"], found["Z"], found["map"], found["reads"], text, n_tokens)


def run_name(run: Run) -> str:
    """The name of a run of a model of one stack.

    >>> run_name(Run("ff_key", None, 3, None, 1, 4, 1)), run_name(Run("ff_key", None, 3, "expert", 2, 4, 1))
    ('ff_key/3', 'ff_key/3/expert')
    """
    return "/".join(part for part in (run.kind, str(run.layer), run.owner if run.owner == "expert" else None) if part)


def reading_of(
    asked: str, checkpoint: Checkpoint, text: str | PathLike[str] | None = None, progress: Progress | None = None
) -> str:
    """The reading that ``asked`` (expected, effective, embedding or auto) means for a model. With auto it is expected
    for a causal one, and for others where there is a ``text`` to fit it on; else embedding, and ``progress`` is told
    why, where that is for something that the model lacks.

    Raises BuildError where the one that was asked for cannot be had.
    """
    if asked == "embedding":
        return asked
    how = "expected" if asked == "auto" else asked
    missing = obstacle(checkpoint, how, text is not None)
    if missing is None:
        return how
    if asked != "auto":
        raise BuildError(f"{checkpoint.source}: {missing.why}; {missing.instead}")
    if progress is not None and not missing.expected:
        progress.say(f"{checkpoint.source}: its readers are read by its embedding, because {missing.why}")
    return "embedding"


def make_reading(weights: Weights, how: str, V: int, text: Path | None, progress: Progress) -> Reading:
    """The reading ``how`` (expected or effective) of a model whose vocabulary has V items, by running it, over a file
    of ``text`` where that is given. It is the same from any number of threads. A small model is run in float64, so that
    it is the same on every sort of processor, too, where the model's own code stays in that.

    ``reading_held`` says how much memory that takes. Raises CheckpointError, FamilyError or BuildError where the model
    cannot be run, or the text cannot be read or is too short.
    """
    checkpoint = weights.runs
    missing = obstacle(checkpoint, how, text is not None)
    if missing is not None:
        raise BuildError(f"{checkpoint.source}: {missing.why}; {missing.instead}")
    named = read_named_words(text) if how == "expected" and text is not None else None
    writes = how == "expected" and named is None
    dtype = precision(checkpoint)
    try:
        author = own_text.opened(checkpoint, dtype) if writes else None
        runner = Runner.open(checkpoint, None if author is None else author.base_model, dtype)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {EMBEDDING}") from error
    tables = alone(runner, V, progress)
    if not all(Z.isfinite().all() for Z in tables.values()):
        raise CheckpointError(f"{checkpoint.source}: layer 0 makes NaN or infinite values of some tokens; {EMBEDDING}")
    if how == "effective":
        return Reading(how, tables)
    n = FITTED + HELD_OUT
    texts = own(runner, author, V, n, 0, progress) if named is None else windows(runner, *named, n, 0)
    del author
    found = fitted(runner, tables, texts[:FITTED], progress)
    reads = _held_out(weights.plain(), runner, found, texts[FITTED:], progress)
    return replace(found, reads=reads)


def fitted(runner: Runner, tables: Tables, texts: Texts, progress: Progress) -> Reading:
    """The expected reading with maps fitted on texts, not measured yet. Raises CheckpointError."""
    sums = summed(runner, tables, texts, "fitting what layers read", progress, within=True, squares=False)
    found = {_name(group): A for group, A in maps(sums, progress)}
    return Reading("expected", tables, found, {}, texts.called, texts.n_tokens)


def _name(group: Group) -> str:
    """The name of a map: the kinds that share it, and their layer."""
    return atlas_files.map_name((kind for kind, _ in group), group[0][1])


def _held_out(
    weights: Weights, runner: Runner, reading: Reading, texts: Texts, progress: Progress
) -> dict[str, torch.Tensor]:
    """Name of a run -> the correlations of its vectors (see ``Reading.reads``) on texts that the fit never saw."""
    sums = summed(runner, reading.tables, texts, "measuring what layers read", progress, within=False, squares=True)
    readers = [run for run in weights.layout.runs if KINDS[run.kind].role == "reads" and run.layer is not None]
    of_map = {name: [run for run in readers if reading.name(run) == name] for name in reading.maps}

    def measured(group: Group) -> dict[str, torch.Tensor]:
        name = _name(group)
        held = HeldOut.of(sums, group, reading.maps[name])
        return {run_name(run): held.correlations(weights.rows(run)) for run in of_map[name]}

    with progress.step("measuring readers", len(sums.zx)) as advance:
        found: dict[str, torch.Tensor] = {}
        for some in one_thread_each(measured, sums.zx):
            found |= some
            advance(1)
    return found


def precision(checkpoint: Checkpoint) -> torch.dtype:
    """What a model is run in. PyTorch's products of experts are in float32 at most."""
    small = _n_numbers(checkpoint) <= PRECISE and all(run.owner != "expert" for run in checkpoint.layout.runs)
    return torch.float64 if small else torch.float32


def _n_numbers(checkpoint: Checkpoint) -> int:
    """About how many numbers a checkpoint's weights are."""
    return checkpoint.n_bytes // (4 if checkpoint.dtype() == "float32" else 2)


def reading_held(weights: Weights, V: int) -> int:
    """The bytes of memory, roughly, that ``make_reading`` takes at most: the whole model in float32; Z of both spaces
    twice; and the larger of what is held while texts are written and while maps are made.

    Writing holds for each thread the keys and values of a batch of texts, and its chances of each token. Making maps
    holds for each thread the states of a part of the texts, and for each of at most two places of a layer, before
    attention and before the feed-forward, a map (d x d float32) and two sums (d x d float64 each).
    """
    checkpoint, d = weights.runs, weights.d_model
    sizes = checkpoint.names.first_sizes
    n_layers, threads = sizes["n_layers"], torch.get_num_threads()
    model = _n_numbers(checkpoint) * precision(checkpoint).itemsize
    cached = 2 * n_layers * sizes["n_kv_heads"] * sizes["d_head"]
    writing = threads * own_text.BATCH * (4 * LENGTH * cached + 16 * V)
    fitting = 2 * n_layers * d * (20 * d + 4 * threads * PART * LENGTH)
    return model + 16 * V * d + max(writing, fitting)
