"""The measures of lists, for every kind, layer and reading, ranked either way: whether a parameter fires on the tokens
of its own, whether their words belong together, and how many places hubs take.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from paramdex_builder.measure import coherence, hubs, measures
from paramdex_builder.measure.coherence import WordVectors
from paramdex_builder.measure.look import Subject
from paramdex_builder.measure.reads import Scored, Way, rows_of
from paramdex_builder.measure.table import About, Rows
from paramdex_builder.project.space import TokenRows
from paramdex_builder.project.usual import Usual, merged, moments
from paramdex_builder.stream.space import READERS
from paramdex_schemas.progress import Advance, Progress

WRITERS = ("ff_value", "attn_output")


@dataclass(frozen=True)
class _To:
    """What lists are measured with, and where it goes."""

    subject: Subject
    other: WordVectors | None
    uniform: hubs.Baseline
    generator: torch.Generator
    rows: Rows


def measure_lists(
    subject: Subject, ways: Sequence[Way], other: WordVectors | None, rows: Rows, progress: Progress
) -> None:
    """Add ``hits``, ``hubs`` and, where there are another model's word vectors, ``coherence``."""
    options = subject.options
    generator = torch.Generator().manual_seed(options.seed)
    to = _To(subject, other, hubs.Baseline(len(subject.E), options.draws, generator), generator, rows)
    todo = [(kind, way) for kind in READERS if subject.checkpoint.layout.of(kind) for way in ways]
    todo += [(kind, writing(subject)) for kind in WRITERS]
    with progress.step("lists", len(todo) * len(subject.seen.states)) as advance:
        for kind, way in todo:
            _measure_kind(to, kind, way, advance)


def writing(subject: Subject) -> Way:
    """The only way to read what writes: by the embedding."""

    def scored(kind: str, layer: int) -> Scored | None:
        rows = rows_of(subject.checkpoint, kind, layer)
        return None if rows is None else (subject.E, rows)

    return Way(None, scored)


def _measure_kind(to: _To, kind: str, way: Way, advance: Advance) -> None:
    """Measure all layers of a kind, each alone and, for hubs, all together."""
    options, layers = to.subject.options, range(len(to.subject.seen.states))
    scored = {layer: found for layer in layers if (found := way.scored(kind, layer)) is not None}
    usual = usual_of(scored.values())
    places: dict[str, list[torch.Tensor]] = {}
    for layer in layers:
        if layer in scored:
            table, vectors = scored[layer]
            seeded = torch.Generator().manual_seed(options.seed)  # the same parameters for every way to read them
            some = torch.randperm(len(vectors), generator=seeded)[: options.parameters]
            about = About("", kind, layer, reading=way.name)
            for by, ids in _measure_layer(to, about, (table, vectors[some]), some, usual[id(table)]).items():
                places.setdefault(by, []).append(ids)
        advance(1)
    for by, several in places.items():
        _add_hubs(to, About("hubs", kind, None, hubs.PLACES, way.name, by), torch.cat(several))


def usual_of(scored: Iterable[Scored]) -> dict[int, Usual]:
    """For each table among them, by its ``id``, what is usual for its tokens over all vectors that it scores."""
    tables: dict[int, torch.Tensor] = {}
    vectors: dict[int, list[torch.Tensor]] = {}
    for table, rows in scored:
        tables[id(table)] = table
        vectors.setdefault(id(table), []).append(rows)
    return {
        key: Usual.of(TokenRows(table, torch.zeros(1), 0.0), merged(map(moments, vectors[key])))
        for key, table in tables.items()
    }


def ranked(scores: torch.Tensor, table: torch.Tensor, usual: Usual) -> dict[str, torch.Tensor]:
    """What tokens are ranked by, score and token_z, for the ``scores`` (n x V) that vectors have by a table (V x d). A
    token whose scores are all equal has the token_z 0.
    """
    deviations = usual.deviations
    z = (scores - (table.double() @ usual.mean).float()) / torch.where(deviations > 0, deviations, torch.inf)
    return {"score": scores, "token_z": z}


def _measure_layer(to: _To, about: About, scored: Scored, some: torch.Tensor, usual: Usual) -> dict[str, torch.Tensor]:
    """Measure the lists of ``some`` parameters of a layer. Returns the tokens of their first places, by ranking."""
    table, vectors = scored
    assert about.layer is not None
    options = to.subject.options
    states, own = to.subject.seen.inputs.get((about.kind, about.layer)), None
    if states is not None and options.wants("hits"):
        plain = rows_of(to.subject.plain, about.kind, about.layer)
        own = None if plain is None else states @ plain[some].T
    tokens = to.subject.seen.tokens
    n_top, V = max(1, round(measures.TOP * len(table))), len(table)
    found = {}
    for by, strength in ranked(vectors @ table.T, table, usual).items():
        here = replace(about, ranking=by)
        top = strength.topk(min(V, max(n_top if own is not None else 0, coherence.TOKENS)), dim=1)
        if own is not None:
            least = top.values[:, n_top - 1]
            hits = measures.hits(own, strength[:, tokens].T, least, options.draws, to.generator)
            to.rows.add(replace(here, measure="hits"), "shuffled", hits, len(tokens))
        if to.other is not None:
            lists = top.indices[:, : coherence.TOKENS]
            measured = coherence.coherence(lists, to.other, options.draws, to.generator)
            if measured is not None:
                about_words = replace(here, measure="coherence", k=coherence.TOKENS)
                to.rows.add(about_words, "dealt anew", measured, coherence.telling(lists, to.other))
        found[by] = top.indices[:, : hubs.PLACES]
        _add_hubs(to, replace(here, measure="hubs", k=hubs.PLACES), found[by])
    return found


def _add_hubs(to: _To, about: About, ids: torch.Tensor) -> None:
    """Add the share of hubs among the places ``ids`` (n lists x k), where that is asked for."""
    if not to.subject.options.wants("hubs"):
        return
    found = measures.beside(hubs.share(ids, to.uniform.V), to.uniform.shares(*ids.shape))
    to.rows.add(about, "uniform", found, len(ids))
