"""Publishing: the finished units of one model become its folder, beside what relates it to other models."""

from __future__ import annotations

import secrets
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from paramdex_builder.files.tables import counted, new_tables
from paramdex_builder.files.tensors import Blocks, write_space, write_tensors
from paramdex_builder.files.vectors import open_rows, rotation, write_codes, write_flat_index
from paramdex_builder.project.pieces import pieces
from paramdex_builder.publish.relating import wanted, write_relation
from paramdex_builder.publish.rows import FinishedModel, insert_heads, insert_model, insert_parameters
from paramdex_builder.relate.models import Related
from paramdex_builder.relate.transfers import write_own_transfers
from paramdex_builder.work.memory import MOST_FOR_DUCKDB
from paramdex_schemas import atlas_files, vector_files
from paramdex_schemas.commit import commit, contents_of, sweep
from paramdex_schemas.contents import Contents, Index, Manifest, listed
from paramdex_schemas.progress import Progress


def publish(
    model: FinishedModel,
    atlas: Path,
    staging: Path,
    device: torch.device,
    progress: Progress,
    relate: str = "auto",
    memory: int = MOST_FOR_DUCKDB,
) -> None:
    """Add a finished model to ``atlas`` (made if it is not there), through the folder ``staging`` beside it, in place
    of one of its name if there is one. It is related to the models that ``relate`` says (``relating``). DuckDB may hold
    ``memory`` bytes.
    """
    work = staging / ".publish"  # no model can have this name
    shutil.rmtree(work, ignore_errors=True)
    contents = contents_of(atlas)
    sweep(contents)
    others = contents.without({model.name})
    folder = contents.free_folder(model.name)
    manifest = write_model(model, atlas_files.model_folder(work, folder), progress, memory)
    mine = Related(manifest.uid, manifest.model(len(others.manifests)), atlas_files.model_folder(work, folder))
    pairs = wanted(others, mine, relate, device, progress)
    made = [write_relation(pair, work, device, progress, model.row["neighbor_k"], memory) for pair in pairs]
    found = Contents(
        atlas,
        Index({**contents.index.models, model.name: folder}),  # in the place of the one that it replaces
        {**contents.manifests, model.name: manifest},
        (*others.related, *((each.a, each.b) for each in made)),
    )
    commit(found, work)
    shutil.rmtree(work, ignore_errors=True)
    sweep(found)


def write_model(model: FinishedModel, folder: Path, progress: Progress, memory: int) -> Manifest:
    """Write all files of a finished model into its folder, which is made."""
    folder.mkdir(parents=True)
    write_vectors(model, folder)
    for name, space in model.spaces.items():
        write_space(folder / atlas_files.space(None if space is model.space else name), space)
    if model.maps:
        maps = {name: Blocks(tuple(A.shape), "float32", [A.numpy()]) for name, A in model.maps.items()}
        write_tensors(folder / atlas_files.MAPS, maps)
    write_own_transfers(model.name, model.spaces, folder, progress)
    built_at = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
    model = replace(model, row=model.row | {"built_at": built_at})
    with new_tables(folder / atlas_files.TABLES, memory) as connection:
        for statements in atlas_files.model_tables():
            connection.execute(statements)
        insert_model(connection, model)
        insert_parameters(connection, model, progress)
        insert_heads(connection, model)
        tables = counted(connection)
    shutil.rmtree(folder / "duckdb-temp", ignore_errors=True)
    files = listed(folder, [file.name for file in folder.iterdir()])
    manifest = Manifest(secrets.token_hex(8), model.row, model.layout, files, tables)
    (folder / atlas_files.MANIFEST).write_text(manifest.text(), "utf-8")
    return manifest


def write_vectors(model: FinishedModel, folder: Path) -> None:
    """Write the vector index of every kind by the model's own embedding, those of what is scored in other spaces, and
    the codes of large ones.
    """
    rotations: dict[int, tuple[np.ndarray, float]] = {}
    for kind in model.layout.kinds:
        every = pieces(model.layout, kind)
        for name, space in model.spaces.items():
            own = space is model.space
            some = every if own else [piece for piece in every if piece.run.space == name]
            if not some:
                continue
            stem = vector_files.stem(kind, None if own else name)
            path = folder / vector_files.index_name(stem)
            write_flat_index(path, space.root.rank, (model.units.coordinates(stem, piece.number) for piece in some))
            if path.stat().st_size >= vector_files.CODED_BYTES:
                if space.root.rank not in rotations:
                    rotations[space.root.rank] = rotation(space.root.rank)
                turn = rotations[space.root.rank]
                write_codes(folder, stem, open_rows(path), turn)
