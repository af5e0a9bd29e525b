"""Building: models in, atlas out. Everything is checked before any work is done; finished work is kept and resumed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import duckdb
import pyarrow as pa
import torch
from safetensors import SafetensorError

from paramdex_builder.estimates import disk_needed, memory_needed
from paramdex_builder.files.units import Units
from paramdex_builder.options import Options
from paramdex_builder.plan import Planned, named_sources, plan_model
from paramdex_builder.project.block import forget
from paramdex_builder.project.finite import check_table
from paramdex_builder.project.head_rows import Kept, head_rows, head_squares, squares_held
from paramdex_builder.project.lists import Unusual
from paramdex_builder.project.pair_scan import Words
from paramdex_builder.project.pairs import same_words
from paramdex_builder.project.parameter_rows import parameter_rows, parameters_held
from paramdex_builder.project.pieces import Piece, pieces
from paramdex_builder.project.readable import Readable, by_chance
from paramdex_builder.project.scoring import Scoring
from paramdex_builder.project.space import Space, make_space, pick_device, space_work
from paramdex_builder.project.tokens import projection_held
from paramdex_builder.project.usual import LEAST, Moments, Usual, merged, moments
from paramdex_builder.project.usual_pairs import Squares, UsualPairs, load_usual, save_usual, summed
from paramdex_builder.publish.publish import publish
from paramdex_builder.publish.relating import check_relate
from paramdex_builder.publish.rows import FinishedModel
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.read.displacement import Displacement
from paramdex_builder.read.weights import Weights
from paramdex_builder.stream.reading import Reading, make_reading
from paramdex_builder.work import memory
from paramdex_builder.work.arguments import given, source_texts
from paramdex_builder.work.workers import Workers
from paramdex_schemas import (
    MATRICES,
    AtlasError,
    BuildError,
    CheckpointError,
    ParamdexError,
    Run,
    atlas_files,
    vector_files,
)
from paramdex_schemas.arguments import given_path
from paramdex_schemas.commit import contents_of
from paramdex_schemas.foreign import reason
from paramdex_schemas.layout import OF_STATES, Place
from paramdex_schemas.place import check_space, check_writable, find_place, staging_folder
from paramdex_schemas.progress import Advance, Progress

_MEASURED = {"entering": "what enters layer 0 for tokens", "reading": "what layer 0 makes of tokens"}
"""A space of states -> what its step is called."""


def build(
    sources: str | Path | Sequence[str | Path],
    output: str | Path,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Path:
    """Build an atlas of ``sources`` at ``output``, or add them to the atlas that is there.

    A source is a local folder or a Hugging Face name, or ``NAME=SOURCE`` to name it. Without a name it is called by its
    last part, or TUNED-minus-BASE where ``options.base`` says that what moved is kept. A build that was interrupted
    continues when run again.

    Raises BuildError, CheckpointError, FamilyError or AtlasError; nothing is left behind for bad input.
    """
    options, progress = given(options, Options).check(), given(progress, Progress)
    device = pick_device(options.device)
    atlas = given_path(output, "an atlas", AtlasError)
    named = named_sources(source_texts(sources), options.base)
    if not named:
        raise BuildError("give at least one model to build")
    try:
        place = find_place(atlas)
        had = present = _present(atlas)
        check_relate(options.relate, [*had, *named])
        if set(named) - set(had) or options.replace:
            check_writable(place)
        with _reading():
            opened = {name: _open(source, options) for name, source in named.items()}
            models = [plan_model(name, weights, options, progress) for name, weights in opened.items()]
        least = {
            each.name: memory_needed(each.weights, each.layout, len(each.vocabulary), each.stored, device)
            for each in models
        }
        most = max(least, key=lambda name: least[name])
        allowed = memory.allowed(options.memory, least[most], most)
        new = [each for each in models if present.get(each.name) != each.plan.fingerprint()]
        check_space(
            place,
            [
                disk_needed(each.weights, each.layout, len(each.vocabulary), options.top_k, options.pair_k)
                for each in new
            ],
        )
        with staging_folder(place, atlas) as staging:
            present = _present(atlas)  # another build may have ended since
            for each in models:
                name = each.name
                same = present.get(name) == each.plan.fingerprint()
                if name in present and not same and not options.replace:
                    raise BuildError(
                        f"{atlas} already has a model {name}, built from other weights or with other options; give "
                        f"this one another name: NEWNAME={each.weights.source}, or replace that one with --replace"
                    )
                if same:
                    shutil.rmtree(staging / name, ignore_errors=True)  # left by a build killed just after publishing
                    progress.say(f"{name}: already in {atlas}")
                    continue
                workers = Workers(device, max(0, allowed - least[name]))
                with _unchanged(each.weights, staging / name):
                    model = _make(each, options, staging, workers, progress)
                held = memory.for_duckdb(allowed, least[name])
                publish(model, place, staging, device, progress, options.relate, held)
                shutil.rmtree(model.units.folder)
                progress.say(f"{name}: {model.layout.n_parameters:,} parameters in {atlas}")
    except (OSError, SafetensorError, duckdb.Error) as error:
        raise BuildError(_reason(error, atlas)) from error
    peak = memory.peak()
    if peak is not None and new:
        progress.say(f"peak memory {memory.gib(peak)} of {memory.gib(allowed)} allowed")
    return atlas


def _open(source: str, options: Options) -> Weights:
    if options.base is None:
        return Checkpoint.open(source, fold_norm=options.fold_norm)
    return Displacement.open(source, str(options.base), fold_norm=options.fold_norm)


def _present(atlas: Path) -> dict[str, str]:
    """name -> plan hash of the models in the atlas. Raises AtlasError where the path holds something else."""
    if atlas.exists() and not (atlas / atlas_files.INDEX).is_file():
        old = (atlas / atlas_files.OLD_DATABASE).is_file()
        what = (
            "has an older format; build into a new atlas"
            if old
            else "exists and is not an atlas; give another path with -o"
        )
        raise AtlasError(f"{atlas} {what}")
    return {name: manifest.row["plan_sha256"] for name, manifest in contents_of(atlas).manifests.items()}


@contextmanager
def _reading() -> Iterator[None]:
    """While models are read, before anything is written: turns an OSError into a CheckpointError that names the
    file.
    """
    try:
        yield
    except OSError as error:
        what = error.filename or "a model's file"
        raise CheckpointError(f"{what} cannot be read ({reason(error)})") from error


@contextmanager
def _unchanged(weights: Weights, units: Path) -> Iterator[None]:
    """Guards the reading of weights whose checksum is known, since files are opened anew for every tensor. Raises
    CheckpointError if a file has changed meanwhile, whatever else went wrong. Then, and where anything else is wrong
    with what was given, the model's numbers or a text, the folder ``units`` is removed.
    """
    try:
        try:
            yield
        finally:
            weights.check_unchanged()
    except ParamdexError:
        shutil.rmtree(units, ignore_errors=True)
        raise


def _make(planned: Planned, options: Options, staging: Path, workers: Workers, progress: Progress) -> FinishedModel:
    """Do the units of a model that are not done yet."""
    name, weights, vocabulary, plan = planned.name, planned.weights, planned.vocabulary, planned.plan
    built_by = {"builder_version": version("paramdex")}
    units = Units(staging / name, plan.entries() | built_by)
    scoring = _scoring(planned, options, units, workers, progress)
    words = same_words(vocabulary.words(), workers.device)
    _project_parameters(planned, scoring, units, workers, progress)
    for each in scoring.spaces.values():
        forget(each)
    _pair_tokens(planned, scoring, words, units, workers, progress)
    space, reading = scoring.main, scoring.reading
    row = {
        "model": name,
        "source": weights.source,
        "revision": weights.revision,
        "base": options.base,
        "family_inferred": weights.inferred,
        "model_type": weights.model_type,
        "rotary_left_out": weights.rotary(),
        "dtype": weights.dtype(),
        "reading_tokens": None if reading is None else reading.n_tokens,
        "embedding_rank": space.root.rank,
        "embedding_condition": space.root.condition,
        "n_parameters": weights.layout.n_parameters,
    }
    maps = {} if reading is None else reading.maps
    return FinishedModel(plan.row() | row | built_by, planned.layout, scoring.spaces, maps, vocabulary, units)


def _scoring(planned: Planned, options: Options, units: Units, workers: Workers, progress: Progress) -> Scoring:
    """The spaces of a model, its own embedding first. What comes of running it is a unit of its own."""
    name, weights, layout, plan = planned.name, planned.weights, planned.layout, planned.plan
    V = len(planned.vocabulary)

    def space(E: torch.Tensor, what: str) -> Space:
        with progress.step(f"{name}: measuring {what}", space_work(*E.shape)) as advance:
            return make_space(E, workers.device, advance)

    spaces = {plan.embedding: space(weights.embedding(options.space)[0][:V], "the embedding")}
    of_states = [name for name in layout.spaces if name in OF_STATES]
    if not of_states:
        return Scoring(layout, weights, spaces)
    text = None if options.text is None else Path(options.text)

    def write(path: Path) -> None:
        make_reading(weights, plan.reading, V, text, progress).save(path)

    reading = Reading.load(units.file("reading.safetensors", write))
    spaces |= {name: space(reading.tables[name], _MEASURED[name]) for name in of_states}
    return Scoring(layout, weights, spaces, reading)


def _project_parameters(planned: Planned, scoring: Scoring, units: Units, workers: Workers, progress: Progress) -> None:
    """Make the units of parameters that are not there yet, those of one kind and space after the other."""
    layout = planned.layout
    every = [piece for kind in layout.kinds for piece in pieces(layout, kind)]
    groups: dict[tuple[str, str], list[Piece]] = {}
    for piece in every:
        groups.setdefault((piece.run.kind, piece.run.space), []).append(piece)
    done = {piece: units.has(piece.run.kind, piece.number) for piece in every}
    missing = [some for some in groups.values() if not all(done[piece] for piece in some)]
    _measure_usual(planned, scoring, missing, units, workers, progress)
    with progress.step(f"{planned.name}: projecting parameters", layout.n_parameters) as advance:
        advance(sum(_n_rows(some) for some in groups.values() if some not in missing))
        for some in missing:
            _project_group(planned, scoring, [(piece, done[piece]) for piece in some], units, workers, advance)


def _group_held(planned: Planned, scoring: Scoring, some: list[Piece]) -> int:
    """About how many bytes work on a piece of a group takes."""
    weights = planned.weights
    return parameters_held(some, weights.d_model, weights.n_terms) + projection_held(scoring.main.size)


def _project_group(
    planned: Planned,
    scoring: Scoring,
    every: list[tuple[Piece, bool]],
    units: Units,
    workers: Workers,
    advance: Advance,
) -> None:
    """Make the units of all pieces of a kind that one space scores; each comes with whether it is done."""
    weights, top_k = planned.weights, planned.plan.top_k
    some = [piece for piece, _ in every]
    unusual = _unusual(scoring, some, units)

    def project(item: tuple[Piece, bool]) -> int:
        piece, is_done = item
        kind, number = piece.run.kind, piece.number
        if not is_done:
            # The rows get no name, so that they are freed before their coordinates are written.
            own = weights.rows(piece.run, piece.owners)
            table, coordinates = parameter_rows(own, piece, scoring, unusual, top_k)
            del own
            for stem, rows in coordinates.items():
                units.write_coordinates(stem, number, rows)
            _keep(units, weights.source, kind, number, table, piece.run.place, list(coordinates))
            del table, coordinates
            memory.release()
        return piece.n_rows

    for n_rows in workers.map(project, every, _group_held(planned, scoring, some)):
        advance(n_rows)
    if unusual is not None:
        forget(unusual.rows)


def _measure_usual(
    planned: Planned,
    scoring: Scoring,
    groups: list[list[Piece]],
    units: Units,
    workers: Workers,
    progress: Progress,
) -> None:
    """Make a unit of what is usual for all pieces of each group: of a kind that one space scores."""
    groups = [some for some in groups if _n_rows(some) >= LEAST]
    V, alike = scoring.main.size, _alike(scoring)

    def of_piece(piece: Piece) -> Moments:
        own = scoring.weights.rows(piece.run, piece.owners)
        return moments(scoring.rows(piece.run, own, piece.owners).to(alike.device))

    def write(some: list[Piece], advance: Advance, path: Path) -> None:
        held = _group_held(planned, scoring, some) + 8 * planned.weights.d_model**2
        space, every = scoring.space(some[0].run), []
        for piece, found in zip(some, workers.map(of_piece, some, held), strict=True):
            every.append(found)
            advance(piece.n_rows)
        found = merged(every)
        usual = Usual.of(space, found)
        rows = usual.rows(space)
        replace(usual, chance=by_chance(found, rows, alike, planned.plan.top_k)).save(path)
        forget(rows)
        advance(V)

    total = sum(_n_rows(some) + V for some in groups)
    with progress.step(f"{planned.name}: measuring what is usual", total) as advance:
        for some in groups:
            units.file(_usual_file(some), partial(write, some, advance))


def _n_rows(some: list[Piece]) -> int:
    return sum(piece.n_rows for piece in some)


def _alike(scoring: Scoring) -> Space:
    """The rows that say how alike tokens are (``readable``)."""
    return scoring.spaces.get("reading", scoring.main)


def _usual_file(some: list[Piece]) -> str:
    run = some[0].run
    return f"{vector_files.stem(run.kind, run.space)}.usual.safetensors"


def _unusual(scoring: Scoring, some: list[Piece], units: Units) -> Unusual | None:
    """What was measured of a group by ``_measure_usual``; None where it has too few vectors."""
    if _n_rows(some) < LEAST:
        return None
    space = scoring.space(some[0].run)
    usual = Usual.load(units.finished(_usual_file(some)), space.device)
    return Unusual(usual, usual.rows(space), Readable(_alike(scoring), *usual.chance))


def _pair_tokens(
    planned: Planned, scoring: Scoring, words: Words, units: Units, workers: Workers, progress: Progress
) -> None:
    """Make the units of heads, their pairs and their directions that are not there yet."""
    weights, layout = planned.weights, planned.layout
    kept = Kept(planned.plan.pair_k, planned.plan.directions_k)
    runs = [layout.heads(place) for place in layout.attention_places]
    done = [units.has("heads", number) for number in range(len(runs))]
    usual = {} if all(done) else _usual_pairs(planned.name, scoring, runs, units, workers, progress)
    first = 0
    with progress.step(f"{planned.name}: pairing tokens", 2 * layout.n_heads) as advance:
        for number, run in enumerate(runs):
            if done[number]:
                advance(2 * run.n_owners)
            else:
                heads, pairs, directions = head_rows(run, first, scoring, usual, words, kept, workers, advance)
                _keep(units, weights.source, "pairs", number, pairs, run.place)
                _keep(units, weights.source, "directions", number, directions, run.place)
                _keep(units, weights.source, "heads", number, heads, run.place)  # last: it says that the place is done
            first += run.n_owners


def _usual_pairs(
    name: str, scoring: Scoring, runs: list[Run], units: Units, workers: Workers, progress: Progress
) -> dict[str, UsualPairs]:
    """Matrix -> what is usual for pairs, all in a unit of its own; without a matrix that has too few heads."""

    def of_place(run: Run) -> dict[str, Squares]:
        return head_squares(run, scoring)

    def write(path: Path) -> None:
        every: list[dict[str, Squares]] = []
        with progress.step(f"{name}: measuring what is usual for pairs", len(runs)) as advance:
            for found in workers.map(of_place, runs, squares_held(scoring, runs)):
                every.append(found)
                advance(1)
        usual = {matrix: UsualPairs.of(summed(found[matrix] for found in every)) for matrix in MATRICES}
        save_usual(path, usual)

    return load_usual(units.file("pairs.usual.safetensors", write), scoring.main.device)


def _keep(
    units: Units, source: str, name: str, number: int, table: pa.Table, place: Place, stems: Sequence[str] = ()
) -> None:
    """Write the rows of a unit once all their numbers are finite. Raises CheckpointError where one is not."""
    of = "" if place[1] is None else f" of {place[0] or ''} layer {place[1]}".replace("  ", " ")
    check_table(table, f"{source}: {name}{of}")
    units.write(name, number, table, stems)


def _reason(error: Exception, atlas: Path) -> str:
    """What a system's error, or the database's, means for the atlas: one line that says what to do."""
    number = getattr(error, "errno", None)
    where = Path(os.path.realpath(atlas)).parent
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "no space left" in str(error).lower():
        return f"no space left at {where}; free some and run the same command again: finished work is kept"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission to write at {getattr(error, 'filename', None) or where}; give another path with -o"
    return f"cannot write {atlas}: {reason(error)}"
