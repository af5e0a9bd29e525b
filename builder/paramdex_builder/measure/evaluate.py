"""``evaluate``: the measures of interpretability of one model on a text, by kind and layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from typing import Any

import pyarrow as pa
import torch

from paramdex_builder.measure import measures
from paramdex_builder.measure.measures import KEPT, Measured
from paramdex_builder.measure.reads import Way, vectors_of, ways_to_read
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.read.source import read_words
from paramdex_builder.read.tokenizer import special_ids
from paramdex_builder.read.vocabulary import read_vocabulary
from paramdex_builder.stream import own_text
from paramdex_builder.stream.forward import Runner, watched
from paramdex_builder.stream.space import READERS, taken, taps
from paramdex_builder.work.arguments import check_choices, given, source_text
from paramdex_builder.work.progress import Progress
from paramdex_schemas import BuildError, FamilyError
from paramdex_schemas.checks import check_text, whole_number
from paramdex_schemas.errors import quoted

_SPREAD = 4
"""How many tokens are run per token that is looked at, so that the latter come from many places of the text."""
_KEPT_VECTORS = 300
"""The most vectors of each sort that keep_k compares in pairs."""
_BATCH = 8
ACTIVE = {"ff_value": ("ff_key", "ff_gate", "ff_value"), "attn_output": ("attn_value", "attn_output")}
"""The kind whose module gets the coefficients of its vectors as input -> the kinds that are as active as it."""
PAIRS = (
    ("ff_key", "ff_value"),
    ("ff_gate", "ff_value"),
    ("attn_value", "attn_output"),
    ("attn_query", "attn_key"),
)
_SCHEMA = pa.schema(
    [
        ("model", pa.string()), ("fold_norm", pa.bool_()), ("space", pa.string()), ("measure", pa.string()),
        ("kind", pa.string()), ("reading", pa.string()), ("layer", pa.int16()), ("k", pa.int32()),
        ("value", pa.float32()),
        ("against", pa.string()), ("baseline", pa.float32()), ("deviation", pa.float32()), ("p_value", pa.float64()),
        ("draws", pa.int32()), ("n", pa.int32()),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class EvaluateOptions:
    """What is measured, and on how much."""

    space: str = "output"
    """output or input: the embedding whose rows the scores belong to"""
    fold_norm: bool = False
    """fold norms into the vectors beside them, and the final norm into the embedding: gains, and LayerNorm's means"""
    k: int = 50
    """strongest tokens of a state and of a parameter that are compared"""
    pair_k: int = 100
    """strongest tokens of each vector of a pair that are compared"""
    active: int = 5
    """most active parameters at a token"""
    samples: int = 1000
    """tokens looked at, and pairs of each kind and layer, at most"""
    texts: int = 96
    """texts of 128 tokens that a causal model writes itself, to fit what its layers read; 0 leaves that out"""
    draws: int = 40
    """draws per baseline; with d draws the smallest p-value is 1 / (d + 1)"""
    seed: int = 0
    """seed of all that is drawn at random"""

    def check(self) -> EvaluateOptions:
        """These options, numbers as Python's own. Raises BuildError for what cannot be met."""
        check_choices(self)
        least = {"k": 1, "pair_k": 1, "active": 1, "samples": 2, "texts": 0, "draws": 1}
        whole: dict[str, Any] = {
            name: whole_number(name, getattr(self, name), number, None, BuildError) for name, number in least.items()
        }
        return replace(self, seed=whole_number("seed", self.seed, 0, 2**63 - 1, BuildError), **whole)


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


def evaluate(
    source: str | PathLike[str],
    text: str | PathLike[str],
    options: EvaluateOptions | None = None,
    progress: Progress | None = None,
) -> pa.Table:
    """The paper's measures of one model: one row per measure, kind, layer, k and baseline.

    ``text`` is what the model is run on, or the path of a file of it (a Path, not text), plain or compressed with xz.

    Raises BuildError for a text of too few tokens or options that cannot be met, CheckpointError or FamilyError.
    """
    options, progress = given(options, EvaluateOptions).check(), given(progress, Progress)
    source = source_text(source)
    if isinstance(text, PathLike):
        text = read_words(text)
    text = check_text(text, BuildError(f"text is valid UTF-8 text, or the Path of a file, not {quoted(text)}"))
    checkpoint = Checkpoint.open(source, fold_norm=options.fold_norm)
    author = own_text.writer(checkpoint) if options.texts else None
    runner = Runner.open(checkpoint, None if author is None else author.base_model)
    E, which, tied = checkpoint.embedding(options.space)
    for note in checkpoint.notes(options.space):
        progress.say(f"{source}: {note}")
    vocabulary = read_vocabulary(source, checkpoint.folder, len(E))
    E = E[: len(vocabulary)].float()
    for name in ("k", "pair_k"):
        if getattr(options, name) > len(E):
            raise BuildError(f"{name} is {getattr(options, name)}, but {source} has only {len(E)} tokens")
    generator = torch.Generator().manual_seed(options.seed)
    seen = _look(runner, text, options, generator, progress)
    plain = Checkpoint.open(source) if options.fold_norm else checkpoint
    run = _Run(checkpoint, plain, E, seen, options, generator)
    ways = ways_to_read(runner, plain, E, author, options.texts, options.seed, progress)
    rows = _Rows({"model": source, "fold_norm": options.fold_norm, "space": which}, options.draws)
    # What the model itself reads out of a state is E norm(h), whatever is folded into the parameters.
    scoring = plain.embedding(options.space)[0][: len(vocabulary)].float()
    norm = runner.final_norm() if tied or which == "output" else None
    with progress.step("layers", len(runner.blocks)) as advance:
        for layer, states in enumerate(seen.states):
            with torch.no_grad():
                read = states if norm is None else norm(states)
            _measure_states(run, layer, measures.strongest(read, scoring, options.k), rows)
            _measure_pairs(run, layer, rows)
            _measure_reads(run, layer, ways, rows)
            advance(1)
    kept = [k for k in KEPT if k < len(E)] + [len(E)]
    with progress.step("keep_k", 3) as advance:
        for kind, X in _vectors(checkpoint, seen, options, generator):
            for k, measured in measures.robustness(X, E, kept).items():
                rows.add("keep_k", kind, None, k, "pseudo-inverse", measured, len(X))
            advance(1)
    return pa.Table.from_pylist(rows.found, schema=_SCHEMA)


@dataclass
class _Rows:
    """The rows found so far; ``same`` holds the columns equal in all rows."""

    same: dict[str, Any]
    draws: int
    found: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        measure: str,
        kind: str,
        layer: int | None,
        k: int | None,
        other: str,
        found: Measured,
        n: int,
        reading: str | None = None,
    ) -> None:
        """Add what was found of ``n`` tokens, pairs or vectors, against the baseline ``other``."""
        drawn = None if found.p_value is None else self.draws
        about = {"measure": measure, "kind": kind, "reading": reading, "layer": layer, "k": k, "against": other}
        about |= {"draws": drawn, "n": n}
        self.found.append(self.same | about | asdict(found))


@dataclass(frozen=True)
class _Run:
    """A model, the same with no norms folded, the embedding that scores (V x d), and what the model did."""

    checkpoint: Checkpoint
    plain: Checkpoint
    E: torch.Tensor
    seen: Seen
    options: EvaluateOptions
    generator: torch.Generator


def _measure_states(run: _Run, layer: int, of_state: torch.Tensor, rows: _Rows) -> None:
    """Add the measure ``states`` of one layer, for the strongest ids of each token's state (n x k)."""
    options = run.options
    for giver, kinds in ACTIVE.items():
        coefficients = run.seen.coefficients.get((giver, layer))
        if coefficients is None:
            continue
        active = coefficients.topk(min(options.active, coefficients.shape[1])).indices
        for kind in kinds:
            vectors = vectors_of(run.checkpoint, kind, layer)
            if vectors is None:
                continue
            found = measures.state_overlap(active, vectors, of_state, run.E, options.k, options.draws, run.generator)
            for other, measured in found.items():
                rows.add("states", kind, layer, options.k, other, measured, len(active))


def _measure_pairs(run: _Run, layer: int, rows: _Rows) -> None:
    """Add the measure ``pairs`` of one layer."""
    options = run.options
    for left, right in PAIRS:
        vectors, others = vectors_of(run.checkpoint, left, layer), vectors_of(run.checkpoint, right, layer)
        if vectors is None or others is None:
            continue
        chosen = torch.randperm(len(others), generator=run.generator)[: options.samples]
        overlap = measures.pair_overlap(
            vectors[chosen], others[chosen], run.E, options.pair_k, options.draws, run.generator
        )
        rows.add("pairs", f"{left}, {right}", layer, options.pair_k, "shuffled", overlap, len(chosen))


def _measure_reads(run: _Run, layer: int, ways: list[Way], rows: _Rows) -> None:
    """Add the measures ``reads`` and ``hits`` of one layer, for every reading."""
    options, seen = run.options, run.seen
    generator = torch.Generator().manual_seed(options.seed)
    for (kind, place), states in seen.inputs.items():
        vectors = vectors_of(run.plain, kind, layer) if place == layer else None
        if vectors is None:
            continue
        active = states @ vectors.T
        some = torch.randperm(len(vectors), generator=generator)[: measures.PARAMETERS]
        for way in ways:
            scored = way.scored(kind, layer)
            if scored is None:
                continue
            table, read = scored
            scores = table[seen.tokens] @ read.T
            found = measures.correlation(active, scores, options.draws, generator)
            rows.add("reads", kind, layer, None, "shuffled", found, len(states), way.name)
            least = measures.least_of_top(read[some], table)
            found = measures.hits(active[:, some], scores[:, some], least, options.draws, generator)
            rows.add("hits", kind, layer, None, "shuffled", found, len(states), way.name)


def _look(runner: Runner, text: str, options: EvaluateOptions, generator: torch.Generator, progress: Progress) -> Seen:
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


def _vectors(
    checkpoint: Checkpoint, seen: Seen, options: EvaluateOptions, generator: torch.Generator
) -> Iterator[tuple[str, torch.Tensor]]:
    """The sorts of vectors whose projections are cut down: noise, what neurons write, states of all layers."""
    n = min(options.samples, _KEPT_VECTORS)

    def some(rows: torch.Tensor) -> torch.Tensor:
        return rows[torch.randperm(len(rows), generator=generator)[:n]]

    yield "normal distribution", torch.randn(n, checkpoint.d_model, generator=generator)
    written = [vectors_of(checkpoint, "ff_value", layer) for layer in range(len(seen.states))]
    if any(rows is not None for rows in written):
        yield "ff_value", some(torch.cat([rows for rows in written if rows is not None]))
    yield "states", some(torch.cat(seen.states))
