"""All families: the files of ``paramdex_builder/families``, and those that other distributions bring.

A distribution brings families by an entry point of the group ``paramdex.families``, whose value is a package with JSON
files in it (a folder on Python's path is one). What is in its pyproject.toml then is

    [project.entry-points."paramdex.families"]
    mine = "my_package.families"

Such a file may be ``like`` one of ours, or like another beside it. It cannot take the place of another: two files with
one family name or model type are refused, whoever brings them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from importlib import resources
from importlib.metadata import EntryPoint, entry_points
from importlib.resources.abc import Traversable
from typing import Any

from paramdex_builder.read.family import Family, parse
from paramdex_schemas import FamilyError
from paramdex_schemas.checks import suggest
from paramdex_schemas.foreign import reading

GROUP = "paramdex.families"
Data = dict[str, Any]


@cache
def families() -> dict[str, Family]:
    """Every family, by name: ours, then those of other distributions.

    Raises FamilyError for a file or an entry point that is broken, with the name of its distribution, and for two
    files of one family or model type.
    """
    found: dict[str, Family] = {}
    files: dict[str, str] = {}
    for where, family in [*_ours(), *_of_others()]:
        for what, name in [("family", family.name), *(("model type", each) for each in family.model_types)]:
            other = files.setdefault(f"{what} {name}", where)
            if other != where:
                raise FamilyError(f"{where}: {other} is of the {what} {name!r} already; give another, or take it out")
        found[family.name] = family
    return found


def by_model_type() -> dict[str, Family]:
    """Model type -> the family that reads it. Raises as ``families``."""
    return {name: family for family in families().values() for name in family.model_types}


def _ours() -> Iterator[tuple[str, Family]]:
    """(where it is, family) for each of our files."""
    files = _read_ours()
    for name, data in files.items():
        yield f"{name}.json of paramdex", parse(inherit(data, files, f"{name}.json"), f"{name}.json")


def _of_others() -> Iterator[tuple[str, Family]]:
    """(where it is, family) for each file of another distribution, in the order of their names."""
    found = {entry: _distribution(entry) for entry in entry_points(group=GROUP)}
    for entry in sorted(found, key=lambda entry: (found[entry], entry.name)):
        folder = _folder(entry, found[entry])
        names = sorted(file.name for file in folder.iterdir() if file.name.endswith(".json"))
        if not names:
            raise FamilyError(f"{found[entry]}: {entry.value}, an entry point of {GROUP}, has no JSON files")
        files: dict[str, Data] = {}
        for name in names:
            with reading(f"{found[entry]}: {name}", FamilyError, "is not a family file"):
                files[name.removesuffix(".json")] = _read(folder / name)
        for name, data in files.items():
            where = f"{found[entry]}: {name}.json"
            with reading(where, FamilyError, "is not a family file"):
                family = parse(inherit(data, files | _read_ours(), where), where)
            yield where, replace(family, distribution=found[entry])


def _folder(entry: EntryPoint, distribution: str) -> Traversable:
    """The folder that an entry point means. Raises FamilyError where there is none."""
    what = f"{distribution}: {entry.value}, an entry point of {GROUP},"
    if entry.attr:
        raise FamilyError(f"{what} is something within a module; name a package, whose files are read")
    with reading(what, FamilyError, "is not a package whose files can be read"):
        folder = resources.files(entry.module)
        next(folder.iterdir(), None)
    return folder


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "a distribution without a name"


def _read_ours() -> dict[str, Data]:
    folder = resources.files("paramdex_builder") / "families"
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith(".json"))
    return {name.removesuffix(".json"): _read(folder / name) for name in names}


def _read(file: Traversable) -> Data:
    """The object of a JSON file. Raises TypeError where it holds something else."""
    data = json.loads(file.read_text("utf-8"))
    if not isinstance(data, dict):
        raise TypeError("it holds no object")
    return data


def inherit(data: Data, files: Mapping[str, Data], where: str, seen: tuple[str, ...] = ()) -> Data:
    """The data of a file with what it is ``like`` filled in; ``config`` and ``tensors`` are merged entry by entry.

    ``seen`` are the names of the files that led here. Raises FamilyError where there is no such file, or files are like
    each other in a circle.
    """
    if "like" not in data:
        return data
    like = data["like"]
    if like not in files:
        raise FamilyError(f"{where} is like {like!r}; {suggest(like, files)}")
    if like in seen:
        raise FamilyError(f"{where} is like {like!r}, which is like it in turn")
    base = inherit(files[like], files, where, (*seen, like))
    merged = {**base, **data}
    for key in ("config", "tensors", "norms", "added"):
        entries = {**base.get(key, {}), **data.get(key, {})}
        merged[key] = {name: value for name, value in entries.items() if value is not None}
    return merged
