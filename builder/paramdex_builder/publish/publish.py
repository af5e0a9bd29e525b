"""Publishing: the finished units of one model become rows of a copy of the database, which then replaces it.

Readers never see half a model: the model's own folder is moved into place first, where nothing refers to it yet, and
one atomic rename of the database makes it part of the atlas. Before that all is flushed to the disk, so that a power
cut loses nothing that is published.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import duckdb
import numpy as np
import torch

from paramdex_builder.files.tensors import Blocks, write_space, write_tensors
from paramdex_builder.files.vectors import open_rows, rotation, write_codes, write_flat_index
from paramdex_builder.project.pieces import pieces
from paramdex_builder.publish.database import database
from paramdex_builder.publish.rows import (
    FinishedModel,
    insert,
    insert_files,
    insert_heads,
    insert_model,
    insert_parameters,
)
from paramdex_builder.relate.models import Related, related
from paramdex_builder.relate.rows import passes, relation_rows
from paramdex_builder.relate.transfers import write_transfers
from paramdex_builder.work.memory import MOST_FOR_DUCKDB
from paramdex_builder.work.progress import Progress
from paramdex_schemas import FORMAT_VERSION, atlas_files, vector_files


def publish(
    model: FinishedModel,
    atlas: Path,
    staging: Path,
    device: torch.device,
    progress: Progress,
    memory: int = MOST_FOR_DUCKDB,
) -> None:
    """Add a finished model to ``atlas`` (made if it is not there), through the folder ``staging`` beside it; DuckDB may
    hold ``memory`` bytes.
    """
    work = staging / ".publish"  # no model can have this name
    shutil.rmtree(work, ignore_errors=True)
    folder = atlas_files.model_folder(work, model.name)
    folder.mkdir(parents=True)
    new = not atlas.exists()
    file = atlas_files.database(work)
    if not new:
        shutil.copyfile(atlas_files.database(atlas), file)
    with database(file, create=new, memory=memory) as connection:
        if new:
            for statements in atlas_files.ddl():
                connection.execute(statements)
            connection.execute(
                "INSERT INTO store.atlas VALUES (?, ?)", [FORMAT_VERSION, f"paramdex {model.row['builder_version']}"]
            )
        connection.execute("BEGIN")
        write_vectors(model, folder)
        for name, space in model.spaces.items():
            write_space(folder / atlas_files.space(None if space is model.space else name), space)
        if model.maps:
            maps = {name: Blocks(tuple(A.shape), "float32", [A.numpy()]) for name, A in model.maps.items()}
            write_tensors(folder / atlas_files.MAPS, maps)
        insert_model(connection, model)
        mine, others = related(connection, atlas, folder, progress)
        write_transfers(others, model.spaces, folder, progress)
        insert_parameters(connection, model, progress)
        insert_heads(connection, model)
        insert_relations(connection, mine, others, model.row["neighbor_k"], device, progress)
        insert_files(connection, model, work, folder)
        connection.execute("COMMIT")
    shutil.rmtree(work / "duckdb-temp", ignore_errors=True)
    flush_tree(work)
    if new:
        work.rename(atlas)
    else:
        place = atlas_files.model_folder(atlas, model.name)
        shutil.rmtree(place, ignore_errors=True)  # left by a build killed between these two steps
        place.parent.mkdir(exist_ok=True)
        folder.rename(place)
        flush(place.parent)  # before the database names what is there
        file.replace(atlas_files.database(atlas))
        shutil.rmtree(work)
    flush(atlas)
    flush(atlas.parent)


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


def insert_relations(
    connection: duckdb.DuckDBPyConnection,
    mine: Related,
    others: list[Related],
    k: int,
    device: torch.device,
    progress: Progress,
) -> None:
    """Insert neighbors both ways and layer alignments with every model that the new one is related to."""
    for other in others:
        row = [other.model.model_id, mine.model.model_id, other.n_tokens]
        connection.execute("INSERT INTO store.relations VALUES (?, ?, ?)", row)
        with progress.step(f"{mine.name} with {other.name}: neighbors and alignment", passes(other, mine)) as advance:
            for table, rows in relation_rows(other, mine, k, device, advance):
                insert(connection, f"INSERT INTO store.{table} BY NAME SELECT * FROM given", rows)


def flush(path: Path) -> None:
    """Flush a file or folder to the disk. Raises OSError, because what is not on the disk is not published; but not
    where the system or the file system has no such thing.
    """
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(handle)


def flush_tree(root: Path) -> None:
    """Flush a folder and all that is in it to the disk."""
    for path in [*root.rglob("*"), root]:
        flush(path)
