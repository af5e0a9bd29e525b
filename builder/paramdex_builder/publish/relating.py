"""Relating models: which pairs of them, and the folder of each pair.

Relating two models takes a product of all their vectors of a kind, for every kind. So a model that is added is related
to all others only where that takes less than a minute, or where a build says so; ``relate`` does the rest when asked.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import torch

from paramdex_builder.files.tables import counted, insert, new_tables
from paramdex_builder.project.space import pick_device
from paramdex_builder.relate.models import Pair, Related, pair_of
from paramdex_builder.relate.rows import passes, relation_rows
from paramdex_builder.relate.transfers import write_transfers
from paramdex_builder.work.arguments import given, source_text
from paramdex_builder.work.memory import MOST_FOR_DUCKDB
from paramdex_schemas import AddressError, AtlasError, BuildError, atlas_files
from paramdex_schemas.arguments import given_items, given_path
from paramdex_schemas.checks import suggest, whole_number
from paramdex_schemas.commit import changing, commit
from paramdex_schemas.contents import Contents, Relation, listed
from paramdex_schemas.errors import quoted
from paramdex_schemas.progress import Progress

MOST_SECONDS = 60.0
"""So long may relating a model take that is added, unless a build says otherwise."""
_PRODUCTS = {"cpu": 5e10, "cuda": 5e12}
"""Products of two numbers in a second, on two cores or a GPU: for estimates alone."""


def wanted(contents: Contents, mine: Related, relate: str, device: torch.device, progress: Progress) -> list[Pair]:
    """A new model with those of an atlas that it is to be related to: ``relate`` is all, none, names with commas
    between them, or auto: as many as take a minute, in the order of the atlas. ``progress`` is told which models are
    compared on shared tokens only, or not at all.
    """
    asked = named(relate)
    names = [name for name in contents.manifests if asked is None or name in asked]
    left = MOST_SECONDS if relate == "auto" else float("inf")
    found, apart, late = [], [], []
    for name in [] if relate == "none" else names:
        if left <= 0:
            late.append(name)
            continue
        pair = pair_of(_of(contents, name), mine)
        if pair is None:
            apart.append(name)
            continue
        left -= seconds(pair, device)
        if left <= 0:
            late.append(name)
            continue
        if pair.shared is not None:
            progress.say(f"{mine.name} with {name}: compared on the {pair.n_tokens:,} tokens whose text both have")
        found.append(pair)
    if apart:
        progress.say(
            f"{mine.name}: no neighbors or alignments are kept with {', '.join(apart)}: "
            "their vocabularies differ too much; similar and align compare them when asked"
        )
    if late:
        progress.say(
            f"{mine.name}: not related to {', '.join(late)}, which would take over a minute; do it with: "
            f"paramdex relate {contents.atlas} {mine.name} {' '.join(late)}"
        )
    return found


def named(relate: str) -> list[str] | None:
    """The names that ``relate`` has; None where it is no list of names."""
    if relate in ("auto", "all", "none"):
        return None
    return [name.strip() for name in relate.split(",") if name.strip()]


def check_relate(relate: str, models: Collection[str]) -> None:
    """Raises BuildError where ``relate`` names a model that is not among some."""
    for name in named(relate) or []:
        if name not in models:
            raise BuildError(f"there is no model {quoted(name)} to relate to; {suggest(name, models)}")


def seconds(pair: Pair, device: torch.device) -> float:
    """About how long relating two models takes."""
    products = 0.0
    for kind in pair.b.layout.kinds:
        if kind in pair.a.layout.kinds:
            n, m = (side.layout.blocks[kind].n_rows for side in (pair.a, pair.b))
            products += 2 * n * m * pair.b.width  # once by scores, once by features
    transfers = len(pair.a.model.spaces) * len(pair.b.model.spaces) * pair.n_tokens * pair.a.width * pair.b.width
    return (products + 2 * transfers) / _PRODUCTS["cpu" if device.type == "cpu" else "cuda"]


def relate(
    atlas: str | Path,
    models: Sequence[str],
    neighbor_k: int | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> None:
    """Relate every two of some models of an atlas, so that it keeps their neighbors and alignments; two that are
    related stay so. Without ``models`` all are. ``neighbor_k`` is how many neighbors are kept of a parameter, by
    default as many as a model was built with. What is done when it is interrupted is kept.

    Raises AtlasError, BuildError where the atlas cannot be written or a model is not found in it.
    """
    progress, chosen = given(progress, Progress), pick_device(device)
    path = given_path(atlas, "an atlas", AtlasError)
    models = [source_text(name) for name in given_items(models, BuildError(f"models are names, not {quoted(models)}"))]
    if neighbor_k is not None:
        neighbor_k = whole_number("neighbor_k", neighbor_k, 1, 1000, BuildError)
    done: list[tuple[str, str]] = []
    while (found := _relate_next(path, models, neighbor_k, chosen, progress, done)) is not None:
        done.append(found)


def _relate_next(
    atlas: Path,
    models: Sequence[str],
    k: int | None,
    device: torch.device,
    progress: Progress,
    done: Sequence[tuple[str, str]],
) -> tuple[str, str] | None:
    """Relate the next two of some models that are not related, and not ``done``; None where there are none."""
    with changing(atlas) as (contents, work):
        for a, b in _unrelated(contents, models):
            if (a, b) in done:
                continue
            pair = pair_of(_of(contents, a), _of(contents, b))
            if pair is None:
                progress.say(f"{a} and {b}: their vocabularies differ too much to keep anything of them")
            else:
                own = contents.manifests[b].row["neighbor_k"] if k is None else k
                made = write_relation(pair, work, device, progress, own)
                commit(replace(contents, related=(*contents.related, (made.a, made.b))), work)
                progress.say(f"{a} and {b}: related on {made.n_tokens:,} tokens")
            return a, b
    return None


def _unrelated(contents: Contents, models: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every two of some models, or of all, that are not related. Raises AddressError for a name that is not there."""
    for name in models:
        if name not in contents.manifests:
            raise AddressError(f"{contents.atlas} has no model {quoted(name)}; {suggest(name, contents.manifests)}")
    chosen = [name for name in contents.manifests if not models or name in models]
    if len(chosen) < 2:
        raise BuildError("relating takes two models at least")
    return (pair for pair in combinations(chosen, 2) if contents.relation(*pair) is None)


def _of(contents: Contents, name: str) -> Related:
    """A model of an atlas."""
    return Related(contents.manifests[name].uid, contents.models[name], contents.atlas / contents.folder(name))


def write_relation(
    pair: Pair, work: Path, device: torch.device, progress: Progress, k: int, memory: int = MOST_FOR_DUCKDB
) -> Relation:
    """Write the folder of a relation: the transfers between the spaces of the two models, the ``k`` neighbors of every
    parameter both ways, and the alignments of their layers. DuckDB may hold ``memory`` bytes.
    """
    folder = atlas_files.relation_folder(work, pair.a.uid, pair.b.uid)
    folder.mkdir(parents=True)
    write_transfers(pair, folder, device, progress)
    with new_tables(folder / atlas_files.TABLES, memory) as connection:
        connection.execute(atlas_files.relation_tables())
        with progress.step(f"{pair.b.name} with {pair.a.name}: neighbors and alignment", passes(pair)) as advance:
            for table, rows in relation_rows(pair, folder, k, device, advance):
                insert(connection, f"INSERT INTO store.{table} BY NAME SELECT * FROM given", rows)
        tables = counted(connection)
    shutil.rmtree(folder / "duckdb-temp", ignore_errors=True)
    files = listed(folder, [file.name for file in folder.iterdir()])
    relation = Relation(pair.a.uid, pair.b.uid, pair.n_tokens, pair.shared is not None, files, tables)
    (folder / atlas_files.MANIFEST).write_text(relation.text(), "utf-8")
    return relation
