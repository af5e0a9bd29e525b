"""The measures of heads: how many places hubs take among their strongest pairs of tokens, and whether they write what
VO says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch

from paramdex_builder.measure import hubs, measures
from paramdex_builder.measure.lists import WRITERS, writing
from paramdex_builder.measure.look import Subject
from paramdex_builder.measure.reads import Way, of_query_heads, run_of
from paramdex_builder.measure.table import About, Rows
from paramdex_builder.measure.writes import Attended, metric_roots, writes
from paramdex_builder.project import pairs
from paramdex_builder.project.pairs import Words, same_words
from paramdex_builder.project.space import Space, centred_gram, column_means, make_space
from paramdex_builder.project.usual_pairs import UsualPairs, squares_of, summed
from paramdex_builder.stream.forward import Batch, Runner
from paramdex_builder.stream.space import taken, taps
from paramdex_builder.stream.texts import LENGTH
from paramdex_builder.work.workers import one_thread_each
from paramdex_schemas import MATRICES
from paramdex_schemas.progress import Progress

_FEWEST = 3
"""With two positions, less their mean, each is the other's opposite."""


def measure_pair_hubs(
    subject: Subject, ways: Sequence[Way], word_numbers: np.ndarray, rows: Rows, progress: Progress
) -> None:
    """Add ``hubs`` of the strongest pairs of QK and VO, over heads of all layers: those of one layer are too few.

    ``word_numbers`` (V) are equal where two tokens are one word.
    """
    generator = torch.Generator().manual_seed(subject.options.seed)
    heads = _some_heads(subject, generator)
    words = same_words(word_numbers, torch.device("cpu"))
    uniform = hubs.Baseline(len(subject.E), subject.options.draws, generator)
    with progress.step("pairs of heads", len(heads) * len(MATRICES) * len(ways)) as advance:
        for matrix, way in product(MATRICES, ways):
            places: dict[str, list[torch.Tensor]] = {}
            rankings = _pair_rankings(subject, matrix, way)
            for found in one_thread_each(partial(_pair_places, subject, words, matrix, way, rankings), heads):
                for by, ids in found.items():
                    places.setdefault(by, []).append(ids.flatten())
                advance(1)
            for by, several in places.items():
                ids = torch.cat(several)
                measured = measures.beside(hubs.share(ids, uniform.V), uniform.shares(len(ids), 1))
                rows.add(About("hubs", matrix, None, hubs.PAIRS, way.name, by), "uniform", measured, len(heads))


def _pair_rankings(subject: Subject, matrix: str, way: Way) -> dict[str, hubs.PairRanking]:
    """Name -> the ranking, for all that rank the pairs of a matrix; the last is the default of a build."""
    rankings: dict[str, hubs.PairRanking] = {"score": lambda A, B: (A, B)}
    spaces: dict[int, Space] = {}

    def space(table: torch.Tensor) -> Space:
        if id(table) not in spaces:
            spaces[id(table)] = make_space(table, table.device)
        return spaces[id(table)]

    squares = (
        squares_of(P, Q, space(left), space(right)) for (left, P), (right, Q) in _all_heads(subject, matrix, way)
    )
    usual = UsualPairs.of(summed(squares))
    return rankings if usual is None else rankings | {"token_z": lambda A, B: usual.sides(A, B, B.table.mean(dim=0))}


Side = tuple[torch.Tensor, torch.Tensor]
"""A table of tokens (V x d), and a head's vectors (d_head x d)."""


def _all_heads(subject: Subject, matrix: str, way: Way) -> Iterator[tuple[Side, Side]]:
    """Both sides of a matrix of every head."""
    for layer in range(len(subject.seen.states)):
        left, right = _sides(subject, matrix, way, layer)
        if left is not None and right is not None:
            yield from (((left[0], P), (right[0], Q)) for P, Q in zip(left[1], right[1], strict=True))


def _sides(subject: Subject, matrix: str, way: Way, layer: int) -> list[tuple[torch.Tensor, torch.Tensor] | None]:
    """Of both sides of a matrix what ``of_heads`` gives of a layer."""
    writer = writing(subject)
    return [of_heads(subject, writer if kind in WRITERS else way, kind, layer) for kind in MATRICES[matrix]]


def _some_heads(subject: Subject, generator: torch.Generator) -> list[tuple[int, int]]:
    """(layer, number) of heads drawn at random from all layers."""
    every = []
    for layer in range(len(subject.seen.states)):
        run = run_of(subject.checkpoint, "attn_query", layer)
        every += [(layer, head) for head in range(run.n_owners if run else 0)]
    return [every[i] for i in sorted(torch.randperm(len(every), generator=generator)[: subject.options.heads].tolist())]


def _pair_places(
    subject: Subject,
    words: Words,
    matrix: str,
    way: Way,
    rankings: dict[str, hubs.PairRanking],
    at: tuple[int, int],
) -> dict[str, torch.Tensor]:
    """The places of the strongest pairs of the head ``at`` a layer and number, by ranking."""
    layer, head = at
    left, right = _sides(subject, matrix, way, layer)
    if left is None or right is None:
        return {}
    A, B = (pairs.factors(table, [vectors[head]])[0] for table, vectors in (left, right))
    return {by: hubs.pair_places(A, B, words, ranking) for by, ranking in rankings.items()}


def of_heads(subject: Subject, way: Way, kind: str, layer: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The table (V x d) and each query head's vectors of a kind in a layer (H x d_head x d), as ``way`` reads them;
    None where there are none.
    """
    run, scored = run_of(subject.checkpoint, kind, layer), way.scored(kind, layer)
    if run is None or scored is None:
        return None
    table, vectors = scored
    return table, of_query_heads(run, vectors).view(-1, run.size, vectors.shape[1])


def measure_writes(
    subject: Subject, runner: Runner, text: str, ways: Sequence[Way], rows: Rows, progress: Progress
) -> None:
    """Add ``writes`` for every layer and reading, on windows of the text; ``progress`` is told where the model gives no
    attention weights, or the text is too short.
    """
    seen = _attended(runner, text, subject.options.samples, subject.options.seed, progress)
    if not seen:
        return
    means = column_means(subject.E)
    gram = torch.from_numpy(centred_gram(subject.E, means, subject.E, means))
    generator = torch.Generator().manual_seed(subject.options.seed)
    with progress.step("what heads write", len(seen)) as advance:
        for layer, here in seen.items():
            written = of_heads(subject, writing(subject), "attn_output", layer)
            if written is None or here.outputs.shape[2:] != written[1].shape[:2]:
                continue
            roots = metric_roots(written[1], gram)
            for way in ways:
                read = of_heads(subject, way, "attn_value", layer)
                if read is None:
                    continue
                table, vectors = read
                values = torch.einsum("wpd,hkd->wphk", table[here.tokens], vectors)
                found = writes(here, values, roots, subject.options.draws, generator)
                rows.add(About("writes", "VO", layer, reading=way.name), "shuffled", found, int(here.real.sum()))
            advance(1)


def _attended(runner: Runner, text: str, samples: int, seed: int, progress: Progress) -> dict[int, Attended]:
    """By layer, what heads did at about ``samples`` positions of a text; nothing where that cannot be had, and
    ``progress`` is told why.
    """
    before, after = max(1, len(runner.around[0])), len(runner.around[1])
    length = min(LENGTH, runner.longest)
    windows = runner.encode(text, max_length=length, return_overflowing_tokens=True, verbose=False)
    windows = [ids for ids in windows if len(ids) - before - after >= _FEWEST]
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    some = [windows[i] for i in order[: max(2, samples // length)].tolist()]
    source = runner.checkpoint.source
    if not some:
        progress.say(f"{source}: what heads write is left out, because the text is too short")
        return {}
    found: dict[int, list[_Window]] = {}
    with _eager(runner.model) as is_eager, progress.step("attention", len(some)) as advance:
        for ids in some if is_eager else []:
            here = slice(before, len(ids) - after)
            for layer, window in _run_window(runner, ids, here).items():
                found.setdefault(layer, []).append(window)
            advance(1)
    if not found:
        progress.say(f"{source}: what heads write is left out, because transformers gives no attention weights of it")
    return {layer: _stacked(several) for layer, several in found.items()}


_Window = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Of one window and layer the ids (P), the attention (H x P x P) and what the output projection is given (P x H x
d_head).
"""


def _run_window(runner: Runner, ids: list[int], here: slice) -> dict[int, _Window]:
    """What each layer's heads did at the positions ``here`` of a window; nothing where transformers does not say."""
    tokens = torch.tensor([ids])
    with torch.no_grad(), taken(taps(runner, ("attn_output",))) as kept:
        output = runner.model(**Batch(tokens, torch.ones_like(tokens)).inputs, output_attentions=True)
    attentions: Any = getattr(output, "attentions", None)
    if attentions is None or len(attentions) != len(runner.blocks):
        return {}
    found = {}
    for (_, layer), given in kept.given.items():
        weights = attentions[layer]
        n = len(ids)
        if weights is None or weights.shape[2:] != (n, n) or given.numel() % (n * weights.shape[1]):
            continue
        outputs = given.reshape(n, weights.shape[1], -1)[here]
        found[layer] = tokens[0, here], weights[0, :, here, here].float().clone(), outputs.float().clone()
    return found


def _stacked(windows: list[_Window]) -> Attended:
    """Windows of a layer, one after the other; shorter ones end in places that are none."""
    longest = max(len(ids) for ids, _, _ in windows)

    def padded(x: torch.Tensor, *axes: int) -> torch.Tensor:
        shape = [longest if axis in axes else size for axis, size in enumerate(x.shape)]
        out = x.new_zeros(shape)
        out[tuple(slice(size) for size in x.shape)] = x
        return out

    return Attended(
        torch.stack([padded(ids, 0) for ids, _, _ in windows]),
        torch.stack([padded(torch.ones_like(ids, dtype=torch.bool), 0) for ids, _, _ in windows]),
        torch.stack([padded(weights, 1, 2) for _, weights, _ in windows]),
        torch.stack([padded(outputs, 0) for _, _, outputs in windows]),
    )


@contextmanager
def _eager(model: Any) -> Iterator[bool]:
    """While it is open, a model of transformers has the attention that gives its weights. Gives whether it has."""
    before = model.config._attn_implementation  # noqa: SLF001  # transformers has no public name for it
    try:
        model.set_attn_implementation("eager")
    except (ValueError, AttributeError):  # of a model that has none
        yield False
        return
    try:
        yield True
    finally:
        model.set_attn_implementation(before)
