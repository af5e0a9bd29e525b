"""The files of an atlas: where they lie, and how they are checked.

NAME.atlas/
  atlas.json                        the models and their folders (``contents``)
  attach.sql                        for DuckDB's command line, run in this folder: all models, and the public views
  models/MODEL/
    manifest.json                   what the model is, and its files (``contents``)
    tables.duckdb                   all that SQL can see of the model; opens alone
    KIND.faiss                      normalized isometric coordinates, row i = the i-th parameter of that kind
    KIND.codes.*                    for a large kind, the same rows, one byte per number; see vector_files
    KIND.SPACE.faiss                of the vectors that are scored in another space, their coordinates there
    space.safetensors               the embedding, its column means, the root R of its Gram matrix
    SPACE.safetensors               the same of another space (entering, reading)
    maps.safetensors                what takes a reader of a place to its space, where that was fitted
    transfer.safetensors            from one of the model's spaces to another
  relations/A~B/                    two models, by their uids, whose neighbors and alignments are kept
    manifest.json, tables.duckdb    as above
    transfer.safetensors            from the spaces of A into those of B; of nearly the same vocabulary also the
                                    roots of both on the shared tokens
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from importlib import resources
from pathlib import Path

from paramdex_schemas.errors import AtlasError

FORMAT_VERSION = 8
"""Raised whenever a name or column of the tables is renamed or dropped, a stored number changes its meaning, or readers
come to need a column that older atlases lack.
"""
INDEX = "atlas.json"
MANIFEST = "manifest.json"
TABLES = "tables.duckdb"
ATTACH = "attach.sql"
OLD_DATABASE = "atlas.duckdb"
"""What atlases of formats before 8 had."""
SPACE = "space.safetensors"
MAPS = "maps.safetensors"
TRANSFER = "transfer.safetensors"
STORAGE_VERSION = "v1.2.0"
"""DuckDB's storage version: clients from 1.2 on can read the file."""


def models_folder(atlas: Path) -> Path:
    return atlas / "models"


def model_folder(atlas: Path, folder: str) -> Path:
    return models_folder(atlas) / folder


def relations_folder(atlas: Path) -> Path:
    return atlas / "relations"


def relation_folder(atlas: Path, a: str, b: str) -> Path:
    """That of the relation of two models, by their uids."""
    return relations_folder(atlas) / f"{a}~{b}"


def space(name: str | None = None) -> str:
    """The name of the file of a model's own embedding, or of another space."""
    return SPACE if name is None else f"{name}.safetensors"


def transfer(source: str, into: str) -> str:
    """The name of the tensor in ``TRANSFER`` from a space of a model into another of its own, or of a related one.

    >>> transfer("output", "reading")
    'output/reading'
    """
    return f"{source}/{into}"


def shared_root(side: str, space: str) -> str:
    """The name of the tensor in the ``TRANSFER`` of two models of nearly the same vocabulary that is the root of a
    space of one of them, side a or b, on the tokens whose text both have.

    >>> shared_root("a", "output")
    'root/a/output'
    """
    return f"root/{side}/{space}"


def map_name(kinds: Iterable[str], layer: int) -> str:
    """The name of the tensor in ``MAPS`` that the kinds of a layer share that read one state.

    >>> map_name(["ff_key", "ff_gate"], 3)
    'ff_key+ff_gate/3'
    """
    return f"{'+'.join(kinds)}/{layer}"


def maps_by_place(names: Iterable[str]) -> dict[tuple[str, int], str]:
    """(kind, layer) -> the name of its map, of all names of maps.

    >>> maps_by_place(["ff_key+ff_gate/3"])
    {('ff_key', 3): 'ff_key+ff_gate/3', ('ff_gate', 3): 'ff_key+ff_gate/3'}
    """
    split = [(name, *name.split("/")) for name in names]
    return {(kind, int(layer)): name for name, kinds, layer in split for kind in kinds.split("+")}


def size(atlas: Path) -> int:
    """The bytes of all files of an atlas."""
    return sum(file.stat().st_size for file in atlas.rglob("*") if file.is_file())


def sha256(*paths: Path) -> str:
    """The SHA-256, in hexadecimal, of the bytes of the files, one file after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def damaged(atlas: Path, path: str) -> str:
    """The message for a file that differs from what was recorded."""
    return f"{atlas} is damaged: {path} is not what was written; copy the atlas again or rebuild it"


def lacks(atlas: Path, path: str) -> str:
    """The message for a file that is not there."""
    return f"{atlas} is damaged: {path} is missing; copy the atlas again or rebuild it"


def check(atlas: Path, path: str, n_bytes: int, digest: str | None) -> Path:
    """The full path of a file of the atlas, after its size and SHA-256 (unless None) were compared with the record.

    Raises AtlasError if the file is missing or differs.
    """
    full = atlas / path
    try:
        if not full.is_file():
            raise AtlasError(lacks(atlas, path))
        same = full.stat().st_size == n_bytes and digest in (None, sha256(full) if digest else None)
    except OSError as error:
        raise AtlasError(f"{atlas} cannot be read: {path}: {error.strerror}") from error
    if not same:
        raise AtlasError(damaged(atlas, path))
    return full


def model_tables() -> list[str]:
    """The statements that make the empty tables of a model and their public views, in order."""
    return [_sql(name) for name in ("model", "views")]


def relation_tables() -> str:
    """The statements that make the empty tables of a relation."""
    return _sql("relation")


def shared_tokens(a: str, b: str) -> str:
    """The query for the tokens on which models of two vocabularies are compared, of two tables of tokens."""
    return _sql("shared_tokens").replace("$a", a).replace("$b", b)


@cache
def _sql(name: str) -> str:
    return (resources.files(__package__) / "sql" / f"{name}.sql").read_text("utf-8")
