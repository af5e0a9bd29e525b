"""What an atlas holds, as its own small files say: which models and relations there are, and what each folder has.

    NAME.atlas/
      atlas.json                        the models, in the order in which they were added, each with its folder
      models/FOLDER/manifest.json       one model: its row of ``models``, its layout, its files with their SHA-256, and
                                        how many rows each of its tables has
      relations/A~B/manifest.json       two models, by their uids: on how many tokens they are compared, and the files

A model or a relation counts once it is complete: a model when atlas.json names its folder, a relation when its folder
has its name and atlas.json has both models. Folders that nothing names are what an interrupted command left. Each of
these files ends with the SHA-256 of what stands before it, so that damage is found whenever it is read.

Both packages read them here. ``param_id`` and ``head_id`` count within a model on the disk; in an open atlas the i-th
model's numbers begin at i * ``STRIDE``, so that they tell the models apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from paramdex_schemas import atlas_files
from paramdex_schemas.atlas_files import FORMAT_VERSION
from paramdex_schemas.errors import AtlasError
from paramdex_schemas.foreign import read_bytes, reading
from paramdex_schemas.layout import Layout, Run
from paramdex_schemas.model import Model

STRIDE = 1 << 32
"""More than any model has parameters."""
_SEAL = ',\n "sha256": "'
RUN_COLUMNS = ("kind", "stack", "layer", "owner", "n_owners", "size", "group", "first", "space")
"""What a manifest has of a run, as ``Run`` has it."""


@dataclass(frozen=True)
class Index:
    """The models of an atlas by name, each with its folder in ``models/``, in the order in which they were added."""

    models: Mapping[str, str] = field(default_factory=dict)

    def text(self, created_by: str) -> str:
        models = [{"model": name, "folder": folder} for name, folder in self.models.items()]
        return sealed({"format_version": FORMAT_VERSION, "created_by": created_by, "models": models})


@dataclass(frozen=True)
class Manifest:
    """One model: ``row`` has its columns of ``models``, ``layout`` where its parameters stand, ``files`` the size and
    SHA-256 of every file, ``tables`` the rows of every table. ``uid`` names it in relations, whatever it is called.
    """

    uid: str
    row: Mapping[str, Any]
    layout: Layout
    files: Mapping[str, tuple[int, str]]
    tables: Mapping[str, int]

    def text(self) -> str:
        row = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in self.row.items()}
        runs = [[getattr(run, name) for name in RUN_COLUMNS] for run in self.layout.runs]
        return sealed({"uid": self.uid} | _as_json(self) | {"layout": runs, "row": row})

    def model(self, number: int) -> Model:
        """The model as the one of this number in an open atlas."""
        row, first = self.row, number * STRIDE
        of_row = (row["model"], row["vocabulary"], row["vocabulary_size"])
        return Model(number, *of_row, first, first, self.layout, row["embedding"], row["reading"], row["top_k"])

    @classmethod
    def read(cls, folder: Path, where: str) -> Manifest:
        """That of a model's folder, which messages call ``where``. Raises AtlasError."""
        data = unsealed(folder / atlas_files.MANIFEST, where)
        row = data["row"] | {"built_at": datetime.fromisoformat(data["row"]["built_at"])}
        runs = tuple(Run(*values) for values in data["layout"])
        return cls(data["uid"], row, Layout(runs), *_from_json(data))


@dataclass(frozen=True)
class Relation:
    """Two models, by their uids, whose neighbors and alignments are kept: compared on ``n_tokens`` tokens, all of one
    vocabulary or, where ``shared``, those whose text two vocabularies have in common.
    """

    a: str
    b: str
    n_tokens: int
    shared: bool
    files: Mapping[str, tuple[int, str]]
    tables: Mapping[str, int]

    @property
    def folder(self) -> str:
        """Its name in ``relations/``."""
        return f"{self.a}~{self.b}"

    def text(self) -> str:
        return sealed({"a": self.a, "b": self.b, "n_tokens": self.n_tokens, "shared": self.shared} | _as_json(self))

    @classmethod
    def read(cls, folder: Path, where: str) -> Relation:
        """That of a relation's folder, which messages call ``where``. Raises AtlasError."""
        data = unsealed(folder / atlas_files.MANIFEST, where)
        return cls(data["a"], data["b"], data["n_tokens"], data["shared"], *_from_json(data))


@dataclass(frozen=True)
class Contents:
    """All that an atlas holds: its models by name, with their manifests and numbers, and the uids (a, b) of the models
    that are related, in the order of the models.
    """

    atlas: Path
    index: Index = Index()
    manifests: Mapping[str, Manifest] = field(default_factory=dict)
    related: tuple[tuple[str, str], ...] = ()

    @cached_property
    def models(self) -> dict[str, Model]:
        """The models by name, as they are numbered here."""
        return {name: manifest.model(number) for number, (name, manifest) in enumerate(self.manifests.items())}

    def free_folder(self, model: str) -> str:
        """A folder for a model of a name that no model here has: the name, where that is free."""
        taken = set(self.index.models.values())
        number, folder = 1, model
        while folder in taken:
            number += 1
            folder = f"{model}~{number}"
        return folder

    def without(self, models: Container[str]) -> Contents:
        """The same without some models, and without what relates them to others."""
        left = {name: manifest for name, manifest in self.manifests.items() if name not in models}
        uids = {manifest.uid for manifest in left.values()}
        index = Index({name: self.index.models[name] for name in left})
        return replace(
            self, index=index, manifests=left, related=tuple(pair for pair in self.related if uids.issuperset(pair))
        )

    @cached_property
    def numbered(self) -> list[Model]:
        """The models by their numbers."""
        return list(self.models.values())

    def folder(self, model: str) -> Path:
        """The folder of a model, within the atlas."""
        return atlas_files.model_folder(Path(), self.index.models[model])

    def relation(self, one: str, other: str) -> Path | None:
        """The folder of the relation of two models, within the atlas, whichever was first; None where there is none."""
        return self._relations.get(frozenset((one, other)))

    def tables(self, folder: str) -> tuple[int, str]:
        """The size and SHA-256 of the tables in a folder, within the atlas, of a model or a relation. Raises AtlasError
        for a damaged manifest.
        """
        if folder not in self._tables:
            a, b = Path(folder).name.split("~")
            names = self.names
            about = self.about(names[a], names[b])
            assert about is not None
            self._tables[folder] = about.files[atlas_files.TABLES]
        return self._tables[folder]

    @cached_property
    def _tables(self) -> dict[str, tuple[int, str]]:
        return {
            self.folder(name).as_posix(): manifest.files[atlas_files.TABLES]
            for name, manifest in self.manifests.items()
        }

    def is_first(self, one: str, other: str) -> bool:
        """Whether the first of two related models is a of their relation, and not b."""
        return (self.manifests[one].uid, self.manifests[other].uid) in self.related

    def about(self, one: str, other: str) -> Relation | None:
        """What is known of the relation of two models. Raises AtlasError where its manifest is damaged."""
        folder = self.relation(one, other)
        if folder is None:
            return None
        if folder not in self._read:
            self._read[folder] = Relation.read(self.atlas / folder, f"{folder.as_posix()}/{atlas_files.MANIFEST}")
        return self._read[folder]

    @cached_property
    def _read(self) -> dict[Path, Relation]:
        return {}

    @cached_property
    def _relations(self) -> dict[frozenset[str], Path]:
        names = self.names
        return {frozenset((names[a], names[b])): atlas_files.relation_folder(Path(), a, b) for a, b in self.related}

    @property
    def names(self) -> dict[str, str]:
        """uid -> the name of the model."""
        return {manifest.uid: name for name, manifest in self.manifests.items()}


def read_contents(atlas: Path) -> Contents:
    """What an atlas holds. Raises AtlasError where there is none, or it is of another format or damaged."""
    index = read_index(atlas)
    manifests = {}
    for name, folder in index.models.items():
        place = atlas_files.model_folder(Path(), folder)
        found = Manifest.read(atlas / place, f"{place.as_posix()}/{atlas_files.MANIFEST}")
        if found.row["model"] != name:
            raise AtlasError(atlas_files.damaged(atlas, (place / atlas_files.MANIFEST).as_posix()))
        manifests[name] = found
    return Contents(atlas, index, manifests, _related(atlas, [manifest.uid for manifest in manifests.values()]))


def _related(atlas: Path, uids: list[str]) -> tuple[tuple[str, str], ...]:
    """The uids of the models that are related, in the order of ``uids``, those of all models."""
    order = {uid: number for number, uid in enumerate(uids)}
    try:
        there = [folder.name.split("~") for folder in atlas_files.relations_folder(atlas).iterdir()]
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise AtlasError(f"{atlas} cannot be read: relations: {error.strerror}") from error
    known = [(pair[0], pair[1]) for pair in there if len(pair) == 2 and all(uid in order for uid in pair)]
    return tuple(sorted(known, key=lambda pair: sorted((order[uid] for uid in pair), reverse=True)))


def read_index(atlas: Path) -> Index:
    """The index of an atlas. Raises AtlasError as ``read_contents`` does."""
    file = atlas / atlas_files.INDEX
    with reading(atlas, AtlasError):
        if not file.is_file():
            if (atlas / atlas_files.OLD_DATABASE).is_file():
                raise AtlasError(
                    f"{atlas} has an older format, this paramdex reads format {FORMAT_VERSION}; build it again"
                )
            if atlas.exists() and not atlas.is_dir():
                raise AtlasError(
                    f"{atlas} is not an atlas: it is a file; give the folder that holds {atlas_files.INDEX}"
                )
            what = "there is no such folder" if not atlas.exists() else f"it holds no {atlas_files.INDEX}"
            raise AtlasError(f"{atlas} is not an atlas: {what}; make one with: paramdex build MODEL -o {atlas}")
    data = unsealed(file, atlas_files.INDEX)
    found = data.get("format_version")
    if found != FORMAT_VERSION:
        older = isinstance(found, int) and found < FORMAT_VERSION
        what = "build it again" if older else "install a newer one with: pip install -U paramdex"
        raise AtlasError(f"{atlas} has format {found}, this paramdex reads format {FORMAT_VERSION}; {what}")
    return Index({each["model"]: each["folder"] for each in data["models"]})


def listed(folder: Path, names: Iterable[str]) -> dict[str, tuple[int, str]]:
    """File -> its size and SHA-256, of some files of a folder. Raises OSError."""
    return {name: ((folder / name).stat().st_size, atlas_files.sha256(folder / name)) for name in sorted(names)}


def sealed(data: Mapping[str, Any]) -> str:
    """JSON that ends with the SHA-256 of what stands before it."""
    text = json.dumps(data, indent=1, ensure_ascii=False).removesuffix("\n}")
    return f'{text}{_SEAL}{hashlib.sha256(text.encode()).hexdigest()}"\n}}\n'


def unsealed(file: Path, where: str) -> dict[str, Any]:
    """What ``sealed`` made. Raises AtlasError where the file, which messages call ``where``, is not whole."""
    atlas = file.parents[where.count("/")]
    try:
        raw = read_bytes(file)
    except FileNotFoundError as error:
        raise AtlasError(atlas_files.lacks(atlas, where)) from error
    except OSError as error:
        raise AtlasError(f"{atlas} cannot be read: {where}: {error.strerror}") from error
    text, seal, end = raw.rpartition(_SEAL.encode())
    if not seal or end != f'{hashlib.sha256(text).hexdigest()}"\n}}\n'.encode():
        raise AtlasError(atlas_files.damaged(atlas, where))
    found: dict[str, Any] = json.loads(text + b"\n}")
    return found


def _as_json(of: Manifest | Relation) -> dict[str, Any]:
    files = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in of.files.items()}
    return {"files": files, "tables": dict(of.tables)}


def _from_json(data: dict[str, Any]) -> tuple[dict[str, tuple[int, str]], dict[str, int]]:
    return {name: (each["bytes"], each["sha256"]) for name, each in data["files"].items()}, data["tables"]
