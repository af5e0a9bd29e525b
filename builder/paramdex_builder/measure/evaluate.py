"""``evaluate``: the measures of interpretability of one model on a text, by kind and layer."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike

import pyarrow as pa
import torch

from paramdex_builder.measure import measures
from paramdex_builder.measure.coherence import word_vectors
from paramdex_builder.measure.heads import measure_pair_hubs, measure_writes
from paramdex_builder.measure.lists import measure_lists
from paramdex_builder.measure.look import ACTIVE, Subject, look
from paramdex_builder.measure.measures import KEPT
from paramdex_builder.measure.options import EvaluateOptions
from paramdex_builder.measure.reads import Way, rows_of, vectors_of, ways_to_read
from paramdex_builder.measure.table import About, Rows
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.read.source import read_words
from paramdex_builder.read.vocabulary import read_vocabulary
from paramdex_builder.stream import own_text
from paramdex_builder.stream.forward import Runner
from paramdex_builder.work.arguments import given, source_text
from paramdex_schemas import BuildError
from paramdex_schemas.checks import check_text
from paramdex_schemas.errors import quoted
from paramdex_schemas.progress import Progress

_KEPT_VECTORS = 300
"""The most vectors of each sort that keep_k compares in pairs."""
PAIRS = (
    ("ff_key", "ff_value"),
    ("ff_gate", "ff_value"),
    ("attn_value", "attn_output"),
    ("attn_query", "attn_key"),
)


def evaluate(
    source: str | PathLike[str],
    text: str | PathLike[str],
    options: EvaluateOptions | None = None,
    progress: Progress | None = None,
) -> pa.Table:
    """What one model's tables of tokens say: one row per measure, kind, layer, reading, ranking, k and baseline.

    ``text`` is what the model is run on, or the path of a file of it (a Path, not text), plain or compressed with xz.
    Take a domain that what is measured was not fitted on. The maps of the expected reading are fitted here on what the
    model writes itself, so any text is apart from them; what the model was trained on may still be nearer to it.

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
    other = None
    if options.other_model is not None and options.wants("coherence"):
        other = word_vectors(vocabulary.texts, options.other_model, progress)
    generator = torch.Generator().manual_seed(options.seed)
    seen = look(runner, text, options, generator, progress)
    run = Subject(checkpoint, checkpoint.plain(), E, seen, options, generator)
    rows = Rows({"model": source, "fold_norm": options.fold_norm, "space": which}, options.draws)
    ways = []
    if options.wants("reads", "hits", "coherence", "hubs", "writes"):
        ways = ways_to_read(runner, run.plain, E, author, options.texts, options.seed, progress)
    del author
    norm = runner.final_norm() if tied or which == "output" else None
    _measure_layers(run, norm, ways, rows, progress)
    if options.wants("hits", "coherence", "hubs"):
        measure_lists(run, ways, other, rows, progress)
    if options.wants("writes"):
        measure_writes(run, runner, text, ways, rows, progress)
    if options.wants("hubs") and options.heads:
        measure_pair_hubs(run, ways, vocabulary.words(), rows, progress)
    if options.wants("keep_k"):
        _measure_inverses(run, rows, progress)
    if not rows.found:
        raise BuildError(f"{source}: nothing that was asked for can be measured of it")
    return rows.table()


def _measure_layers(
    run: Subject, norm: torch.nn.Module | None, ways: list[Way], rows: Rows, progress: Progress
) -> None:
    """Add ``states``, ``pairs`` and ``reads`` of every layer. ``norm`` is the model's last, before its embedding."""
    options = run.options
    # What the model itself reads out of a state is E norm(h), whatever is folded into the parameters.
    scoring = run.plain.embedding(options.space)[0][: len(run.E)].float()
    with progress.step("layers", len(run.seen.states)) as advance:
        for layer, states in enumerate(run.seen.states):
            if options.wants("states"):
                with torch.no_grad():
                    read = states if norm is None else norm(states)
                _measure_states(run, layer, measures.strongest(read, scoring, options.k), rows)
            if options.wants("pairs"):
                _measure_pairs(run, layer, rows)
            if options.wants("reads"):
                _measure_reads(run, layer, ways, rows)
            advance(1)


def _measure_inverses(run: Subject, rows: Rows, progress: Progress) -> None:
    """Add ``keep_k`` of all sorts of vectors."""
    kept = [k for k in KEPT if k < len(run.E)] + [len(run.E)]
    with progress.step("keep_k", 3) as advance:
        for kind, X in _vectors(run):
            for k, measured in measures.robustness(X, run.E, kept).items():
                rows.add(About("keep_k", kind, k=k), "pseudo-inverse", measured, len(X))
            advance(1)


def _measure_states(run: Subject, layer: int, of_state: torch.Tensor, rows: Rows) -> None:
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
                rows.add(About("states", kind, layer, options.k), other, measured, len(active))


def _measure_pairs(run: Subject, layer: int, rows: Rows) -> None:
    """Add the measure ``pairs`` of one layer."""
    options = run.options
    for left, right in PAIRS:
        vectors, others = vectors_of(run.checkpoint, left, layer), vectors_of(run.checkpoint, right, layer)
        if vectors is None or others is None:
            continue
        chosen = torch.randperm(len(others), generator=run.generator)[: options.parameters]
        overlap = measures.pair_overlap(
            vectors[chosen], others[chosen], run.E, options.pair_k, options.draws, run.generator
        )
        rows.add(About("pairs", f"{left}, {right}", layer, options.pair_k), "shuffled", overlap, len(chosen))


def _measure_reads(run: Subject, layer: int, ways: list[Way], rows: Rows) -> None:
    """Add the measure ``reads`` of one layer, for every reading."""
    generator = torch.Generator().manual_seed(run.options.seed)
    for (kind, place), states in run.seen.inputs.items():
        vectors = rows_of(run.plain, kind, layer) if place == layer else None
        if vectors is None:
            continue
        active = states @ vectors.T
        for way in ways:
            scored = way.scored(kind, layer)
            if scored is None:
                continue
            table, read = scored
            found = measures.correlation(active, table[run.seen.tokens] @ read.T, run.options.draws, generator)
            rows.add(About("reads", kind, layer, reading=way.name), "shuffled", found, len(states))


def _vectors(run: Subject) -> Iterator[tuple[str, torch.Tensor]]:
    """The sorts of vectors whose projections are cut down: noise, what neurons write, states of all layers."""
    n = min(run.options.samples, _KEPT_VECTORS)

    def some(rows: torch.Tensor) -> torch.Tensor:
        return rows[torch.randperm(len(rows), generator=run.generator)[:n]]

    yield "normal distribution", torch.randn(n, run.checkpoint.d_model, generator=run.generator)
    written = [vectors_of(run.checkpoint, "ff_value", layer) for layer in range(len(run.seen.states))]
    if any(rows is not None for rows in written):
        yield "ff_value", some(torch.cat([rows for rows in written if rows is not None]))
    yield "states", some(torch.cat(run.seen.states))
