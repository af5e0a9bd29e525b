"""Building: models in, atlas out. Everything is checked before any work is done; finished work is kept and resumed."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import torch
from safetensors import SafetensorError

from paramdex_builder.files.units import Piece, Units, parameter_unit, parameters_held, pieces
from paramdex_builder.options import Options, given, source_text, source_texts
from paramdex_builder.project.block import forget
from paramdex_builder.project.finite import check_lengths, check_table
from paramdex_builder.project.head_rows import ATTENTION, Kept, head_units
from paramdex_builder.project.pairs import same_words
from paramdex_builder.project.space import make_space, pick_device, space_work
from paramdex_builder.project.tokens import projection_held
from paramdex_builder.publish.place import check_space, check_writable, estimate, find_place, staging_folder
from paramdex_builder.publish.publish import FinishedModel, database, publish
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.read.displacement import Displacement
from paramdex_builder.read.hub import own_name
from paramdex_builder.read.vocabulary import Vocabulary, read_vocabulary
from paramdex_builder.work import memory
from paramdex_builder.work.progress import Progress
from paramdex_builder.work.workers import Workers
from paramdex_schemas import FORMAT_VERSION, AtlasError, BuildError, CheckpointError, atlas_files
from paramdex_schemas.addresses import MODEL_NAME
from paramdex_schemas.arguments import given_path
from paramdex_schemas.errors import quoted
from paramdex_schemas.foreign import reason
from paramdex_schemas.layout import Place


def build(
    sources: str | Path | Sequence[str | Path],
    output: str | Path,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Path:
    """Build an atlas of ``sources`` at ``output``, or add them to the atlas that is there.

    A source is a local folder or a Hugging Face name, or ``NAME=SOURCE`` to name it; without a name, the last part of
    the source is its name, or TUNED-minus-BASE where ``options.base`` says that what moved is kept. Run again after an
    interruption, the build goes on where it was.

    Raises BuildError, CheckpointError, FamilyError or AtlasError; nothing is left behind for bad input.
    """
    options, progress = given(options, Options).check(), given(progress, Progress)
    device = pick_device(options.device)
    atlas = given_path(output, "an atlas", AtlasError)
    named = _names(source_texts(sources), options.base)
    if not named:
        raise BuildError("give at least one model to build")
    try:
        place = find_place(atlas)
        had = present = _present(atlas)
        if set(named) - set(had):
            check_writable(place)
        with _reading():
            checkpoints = {name: _open(source, options) for name, source in named.items()}
            plans = {name: _plan(name, checkpoint, options, progress) for name, checkpoint in checkpoints.items()}
        least = {
            name: memory.needed(checkpoints[name], len(vocabulary), stored, device)
            for name, (_, vocabulary, stored) in plans.items()
        }
        most = max(least, key=lambda name: least[name])
        allowed = memory.allowed(options.memory, least[most], most)
        new = [checkpoint for name, checkpoint in checkpoints.items() if name not in present]
        check_space(place, [estimate(checkpoint, options.top_k, options.pair_k) for checkpoint in new])
        with staging_folder(place, atlas) as staging:
            present = _present(atlas)  # another build may have ended since
            for name, checkpoint in checkpoints.items():
                plan, vocabulary, _ = plans[name]
                fingerprint = _fingerprint(plan)
                if name in present:
                    if present[name] != fingerprint:
                        raise BuildError(
                            f"{atlas} already has a model {name}, built from other weights or with other options; "
                            f"give this one another name: NEWNAME={checkpoint.source}"
                        )
                    shutil.rmtree(staging / name, ignore_errors=True)  # left by a build killed just after publishing
                    progress.say(f"{name}: already in {atlas}")
                    continue
                workers = Workers(device, max(0, allowed - least[name]))
                with _unchanged(checkpoint, staging / name):
                    model = _make(name, checkpoint, vocabulary, plan, options, staging, workers, progress)
                publish(model, place, staging, device, progress, memory.for_duckdb(allowed, least[name]))
                shutil.rmtree(model.units.folder)
                progress.say(f"{name}: {model.layout.n_parameters:,} parameters in {atlas}")
    except (OSError, SafetensorError, duckdb.Error) as error:
        raise BuildError(_reason(error, atlas)) from error
    peak = memory.peak()
    if peak is not None and set(named) - set(had):
        progress.say(f"peak memory {memory.gib(peak)} of {memory.gib(allowed)} allowed")
    return atlas


def _open(source: str, options: Options) -> Checkpoint | Displacement:
    if options.base is None:
        return Checkpoint.open(source, fold_norm=options.fold_norm)
    return Displacement.open(source, str(options.base), fold_norm=options.fold_norm)


def _names(sources: Sequence[str], base: str | PathLike[str] | None = None) -> dict[str, str]:
    """name -> source. What moved between two models is neither of them, and both may stand in the atlas beside it, so
    without a name it is called TUNED-minus-BASE. Raises BuildError for a name that cannot be or stands twice.
    """
    named: dict[str, str] = {}
    for text in sources:
        name, equals, source = text.partition("=")
        # a path, which may have = in it
        if not equals or ("/" in name and (name[0] in "./" or os.access(text, os.F_OK))):
            source, name = text, own_name(text)
            if base is not None:
                name += f"-minus-{own_name(str(base))}"
        source = source_text(source)
        if not MODEL_NAME.fullmatch(name):
            better = re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-._+") or "NAME"
            no_path = f" (and there is no folder {text})" if "/" in name else ""
            raise BuildError(
                f"{quoted(name)} cannot name a model, which letters, digits, . _ + and - can; "
                f"write {better}={source}{no_path}"
            )
        if name == "all":
            raise BuildError(f"a model cannot be called all, which stands for every model; write NAME={source}")
        if name in named:
            raise BuildError(f"two models would be called {name}; name one of them: OTHER={source}")
        named[name] = source
    return named


def _present(atlas: Path) -> dict[str, str]:
    """name -> plan hash of the models in the atlas. Raises AtlasError where the path holds something else."""
    if not atlas.exists():
        return {}
    file = atlas_files.database(atlas)
    if not file.is_file():
        raise AtlasError(f"{atlas} exists and is no atlas; give another path with -o")
    try:
        # Attached to a connection of its own: DuckDB gives every other one in this process the file as a reader that
        # opened it earlier still sees it, and refuses where that reader has other settings.
        with database(file, read_only=True) as connection:
            rows = connection.execute("SELECT format_version FROM store.atlas").fetchall()
            found = rows[0][0] if rows else "unknown"
            if found != FORMAT_VERSION:
                raise AtlasError(
                    f"{atlas} has format {found}, this paramdex writes format {FORMAT_VERSION}; build into a new atlas"
                )
            return dict(connection.execute("SELECT model, plan_sha256 FROM store.models").fetchall())
    except duckdb.Error as error:
        if "Permission denied" in str(error):
            raise AtlasError(f"{atlas} cannot be read: no permission to open {file.name}") from error
        raise AtlasError(f"{atlas} is no atlas or is damaged ({reason(error)})") from error


def _plan(
    name: str, checkpoint: Checkpoint | Displacement, options: Options, progress: Progress
) -> tuple[dict[str, Any], Vocabulary, torch.dtype]:
    """All that decides the numbers of a model, its vocabulary, and what E is held in; every tensor is checked on the
    way.
    """
    E, embedding, tied = checkpoint.embedding(options.space)
    check_lengths(E, f"{checkpoint.source}: {embedding} embedding")
    for note in checkpoint.embeddings.notes(options.space):
        progress.say(f"{name}: {note}")
    vocabulary = read_vocabulary(checkpoint.source, checkpoint.folder, len(E))
    if vocabulary.past_rows:
        n, some = len(vocabulary.past_rows), ", ".join(map(repr, vocabulary.past_rows[:5]))
        some += ", ..." if n > 5 else ""
        progress.say(f"{name}: left out, as the embedding has no rows for them: {n} added tokens ({some})")
    with progress.step(f"{name}: checking weights", len(checkpoint.layout.runs)) as advance:
        checkpoint.check_layers(advance)
    left_out = [f"{part} ({n} tensors)" for part, n in checkpoint.left_out().items()]
    if left_out:
        family = checkpoint.family.name
        progress.say(f"{name}: left out, as the family {family} does not know them: {', '.join(left_out)}")
    plan = {
        "format": FORMAT_VERSION,
        "weights_sha256": checkpoint.sha256(),
        "base_sha256": checkpoint.base_sha256(),
        "tokenizer_sha256": vocabulary.tokenizer_sha256,
        "vocabulary": vocabulary.name,
        "vocabulary_size": len(vocabulary),
        "family": checkpoint.family.name,
        "numbers": checkpoint.numbers(),
        "embedding": embedding,
        "tied": tied,
        "fold_norm": options.fold_norm,
        "top_k": options.top_k,
        "pair_k": options.pair_k,
        "neighbor_k": options.neighbor_k,
        "directions_k": options.directions_k,
    }
    return plan, vocabulary, E.dtype


def _fingerprint(plan: dict[str, Any]) -> str:
    import hashlib
    import json

    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


@contextmanager
def _reading() -> Iterator[None]:
    """Around the reading of models before anything is written. Raises CheckpointError for a file that cannot be read,
    where the system's error is not one of ours yet.
    """
    try:
        yield
    except OSError as error:
        what = error.filename or "a model's file"
        raise CheckpointError(f"{what} cannot be read ({reason(error)})") from error


@contextmanager
def _unchanged(checkpoint: Checkpoint | Displacement, units: Path) -> Iterator[None]:
    """Around the reading of weights whose checksum is known: files are opened anew for every tensor. Where they are
    others in the end, raises CheckpointError, whatever else went wrong. Drops the folder ``units`` then, and where
    anything else is wrong with the model's numbers.
    """
    try:
        try:
            yield
        finally:
            checkpoint.check_unchanged()
    except CheckpointError:
        shutil.rmtree(units, ignore_errors=True)
        raise


def _make(
    name: str,
    checkpoint: Checkpoint | Displacement,
    vocabulary: Vocabulary,
    plan: dict[str, Any],
    options: Options,
    staging: Path,
    workers: Workers,
    progress: Progress,
) -> FinishedModel:
    """Do the units of a model that are not done yet."""
    layout = checkpoint.layout
    units = Units(staging / name, plan | {"builder_version": version("paramdex")})
    E, embedding, tied = checkpoint.embedding(options.space)
    E = E[: len(vocabulary)]
    with progress.step(f"{name}: measuring the embedding", space_work(*E.shape)) as advance:
        space = make_space(E, workers.device, advance)
    del E
    words = same_words(vocabulary.words(), workers.device)

    def keep(name: str, number: int, table: pa.Table, place: Place) -> None:
        of = "" if place[1] is None else f" of {place[0] or ''} layer {place[1]}".replace("  ", " ")
        check_table(table, f"{checkpoint.source}: {name}{of}")
        units.write(name, number, table)

    def project(piece: Piece) -> int:
        kind, number = piece.run.kind, piece.number
        if not units.has(kind, number):
            # No name for the rows: they are gone before their coordinates are written.
            table, coordinates = parameter_unit(checkpoint.rows(piece.run, piece.owners), piece, space, options.top_k)
            units.write_coordinates(kind, number, coordinates)
            keep(kind, number, table, piece.run.place)
            del table, coordinates
            memory.release()
        return piece.n_rows

    every = [piece for kind in layout.kinds for piece in pieces(layout, kind)]
    each_held = parameters_held(every, checkpoint.d_model, checkpoint.n_terms) + projection_held(space.size)
    with progress.step(f"{name}: projecting parameters", layout.n_parameters) as advance:
        for n_rows in workers.map(project, every, each_held):
            advance(n_rows)
    forget(space)
    first, kept = 0, Kept(options.pair_k, options.directions_k)
    with progress.step(f"{name}: pairing tokens", 2 * layout.n_heads) as advance:
        for number, place in enumerate(layout.attention_places):
            run = layout.heads(place)
            if units.has("heads", number):
                advance(2 * run.n_owners)
            else:
                vectors = {kind: checkpoint.head_rows(kind, place) for kind in ATTENTION}
                heads, pairs, directions = head_units(vectors, run, first, space, words, kept, workers, advance)
                keep("pairs", number, pairs, place)
                keep("directions", number, directions, place)
                keep("heads", number, heads, place)  # last: it stands for the whole place
            first += run.n_owners
    row = {
        "source": checkpoint.source,
        "revision": checkpoint.revision,
        "family": checkpoint.family.name,
        "family_inferred": checkpoint.inferred,
        "model_type": checkpoint.config.model_type,
        **checkpoint.numbers(),
        "vocabulary": vocabulary.name,
        "vocabulary_size": len(vocabulary),
        "embedding": embedding,
        "tied": tied,
        "fold_norm": options.fold_norm,
        "embedding_rank": space.root.rank,
        "embedding_condition": space.root.condition,
        "rotary_left_out": checkpoint.rotary(),
        "dtype": checkpoint.dtype(),
        "top_k": options.top_k,
        "pair_k": options.pair_k,
        "neighbor_k": options.neighbor_k,
        "directions_k": options.directions_k,
        "n_parameters": layout.n_parameters,
        "base": options.base,
        "weights_sha256": plan["weights_sha256"],
        "base_sha256": plan["base_sha256"],
        "tokenizer_sha256": plan["tokenizer_sha256"],
        "plan_sha256": _fingerprint(plan),
        "builder_version": version("paramdex"),
    }
    return FinishedModel(name, row, layout, space, vocabulary, units)


def _reason(error: Exception, atlas: Path) -> str:
    """What a system's error, or the database's, means for the atlas: one line that says what to do."""
    number = getattr(error, "errno", None)
    where = Path(os.path.realpath(atlas)).parent
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "no space left" in str(error).lower():
        return f"no space left at {where}; free some and run the same command again: finished work is kept"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission to write at {getattr(error, 'filename', None) or where}; give another path with -o"
    return f"cannot write {atlas}: {reason(error)}"
