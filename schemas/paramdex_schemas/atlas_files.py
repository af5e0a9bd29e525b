"""The files of an atlas: where they lie, and how they are checked.

    NAME.atlas/
      atlas.duckdb                      everything SQL can see
      models/MODEL/KIND.faiss           normalized isometric coordinates, row i = the i-th parameter of that kind
      models/MODEL/KIND.codes.*         for a large kind, the same rows, one byte per number; see vector_files
      models/MODEL/KIND.SPACE.faiss     of the vectors that are scored in another space, their coordinates there
      models/MODEL/space.safetensors    the embedding, its column means, the root R of its Gram matrix
      models/MODEL/SPACE.safetensors    the same of another space (entering, reading)
      models/MODEL/maps.safetensors     what takes a reader of a place to its space, where that was fitted
      models/MODEL/transfer.safetensors between this model's spaces, and from those of each earlier model of its
                                        vocabulary into them
      models/MODEL/shared.EARLIER.safetensors
                                        the same for a model of nearly the same vocabulary, on the shared tokens

DuckDB checks its own blocks when it reads them; the other files have their SHA-256 in the table ``store.files``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from importlib import resources
from pathlib import Path

from paramdex_schemas.errors import AtlasError

DATABASE = "atlas.duckdb"
SPACE = "space.safetensors"
MAPS = "maps.safetensors"
TRANSFER = "transfer.safetensors"
STORAGE_VERSION = "v1.2.0"
"""DuckDB's storage version: clients from 1.2 on can read the file."""


def database(atlas: Path) -> Path:
    return atlas / DATABASE


def models_folder(atlas: Path) -> Path:
    return atlas / "models"


def model_folder(atlas: Path, model: str) -> Path:
    return models_folder(atlas) / model


def space(name: str | None = None) -> str:
    """The name of the file of a model's own embedding, or of another space."""
    return SPACE if name is None else f"{name}.safetensors"


def transfer(source: str, into: str, model: str | None = None) -> str:
    """The name of the tensor in ``TRANSFER`` from a space of an earlier ``model``, or of the model itself, into one of
    its own.

    >>> transfer("output", "reading", "tiny-a"), transfer("output", "reading")
    ('tiny-a/output/reading', 'output/reading')
    """
    return "/".join((source, into) if model is None else (model, source, into))


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


def shared_space(earlier: str) -> str:
    """The name of a model's file about an earlier model whose vocabulary differs by few tokens.

    On the tokens whose text both have it holds the roots of the spaces of both (``earlier/SPACE``, ``later/SPACE``),
    and the transfers from the earlier model's to the later one's (``SPACE/SPACE``).
    """
    return f"shared.{earlier}.safetensors"


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


def check(atlas: Path, path: str, n_bytes: int, digest: str | None) -> Path:
    """The full path of a file of the atlas, after its size and SHA-256 (unless None) were compared with the record.

    Raises AtlasError if the file is missing or differs.
    """
    full = atlas / path
    try:
        if not full.is_file():
            raise AtlasError(f"{atlas} is damaged: {path} is missing; copy the atlas again or rebuild it")
        same = full.stat().st_size == n_bytes and digest in (None, sha256(full) if digest else None)
    except OSError as error:
        raise AtlasError(f"{atlas} cannot be read: {path}: {error.strerror}") from error
    if not same:
        raise AtlasError(damaged(atlas, path))
    return full


def ddl() -> list[str]:
    """The statements that make an empty atlas database, in order."""
    return [_sql(name) for name in ("store", "views")]


def shared_tokens() -> str:
    """The query for the tokens on which models of two vocabularies, $a and $b, are compared."""
    return _sql("shared_tokens")


@cache
def _sql(name: str) -> str:
    return (resources.files(__package__) / "sql" / f"{name}.sql").read_text("utf-8")
