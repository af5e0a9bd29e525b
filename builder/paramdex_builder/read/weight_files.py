"""Which files hold a model's weights: the one that transformers would read, or the shards that its index names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from paramdex_builder.read.contents import without_weights
from paramdex_builder.read.hub import Origin
from paramdex_schemas import CheckpointError
from paramdex_schemas.foreign import read_json, reading

STEMS = ("model.safetensors", "pytorch_model.bin")
"""The names under which transformers saves weights. The first that is there is read, a whole file before shards."""
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{1,6})-of-(?P<count>\d{1,6})\.(?P<ending>safetensors|bin)")


@dataclass(frozen=True)
class WeightFiles:
    """The files to read, in order of their names, and where the index says that each tensor is (none: no index)."""

    names: list[str]
    index: Mapping[str, str] = field(default_factory=dict)


def choose(origin: Origin, stems: Sequence[str] = STEMS) -> WeightFiles:
    """The weight files of a model, sharded or not. Of a model on the hub only the index is fetched for that.

    Shards without an index are taken where all are there that their own names count. Raises CheckpointError where
    there are none, one is missing, or the index is damaged or leads out of the folder.
    """
    for stem in stems:
        if origin.has(stem):  # before its shards, as in transformers
            return WeightFiles([stem])
        index = f"{stem}.index.json"
        if origin.has(index):
            where = read_index(origin, index)
            return WeightFiles(sorted(set(where.values())), where)
    for stem in stems:
        names = _numbered(origin, stem)
        if names:
            return WeightFiles(names)
    raise CheckpointError(f"{origin.source} has no {stems[0]}; {without_weights(origin, stems)}")


def read_index(origin: Origin, name: str) -> dict[str, str]:
    """Tensor -> the shard that holds it, of a ``*.index.json``. Raises CheckpointError where it is damaged, or a shard
    is missing, or lies outside the model's folder, by its name or by links.
    """
    what = f"{origin.source}: {name}"
    where = read_json(origin.path(name), what, CheckpointError).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise CheckpointError(f"{what} is damaged: it has no weight_map of tensors and shards; fetch it again")
    for tensor, shard in where.items():
        if not isinstance(shard, str) or not shard:
            raise CheckpointError(f"{what} is damaged: it says that {tensor} is in {shard!r}; fetch it again")
    for shard in sorted(set(where.values())):
        with reading(what, CheckpointError, "is damaged", "fetch it again"):  # it may not be the name of any file
            if not _inside(origin.folder, shard):
                raise CheckpointError(f"{what} leads out of the folder, to {shard}; it may only name files in it")
            if not origin.has(shard):
                raise CheckpointError(f"{origin.source}: the shard {shard} is missing; fetch it again")
    return where


def _inside(folder: Path, name: str) -> bool:
    """Whether a name leads to a file within ``folder``, or, through the link that the hub's cache makes of every file
    of a snapshot, to a blob of the same model.
    """
    if "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name:
        return False
    root, file = folder.resolve(), folder / name
    if not file.parent.resolve().is_relative_to(root):
        return False
    if not file.is_symlink():
        return True
    if file.resolve().is_relative_to(root):
        return True
    # A blob may in turn be a link, to a file that several models share: only this step is looked at.
    blobs = root.parent.parent / "blobs"
    target = Path(os.path.normpath(file.parent.resolve() / file.readlink()))
    return root.parent.name == "snapshots" and target.parent == blobs


def _numbered(origin: Origin, stem: str) -> list[str]:
    """The shards of a file that are there without an index; none where there are none. Raises CheckpointError where
    not all are there that they say there are.
    """
    base, _, ending = stem.rpartition(".")
    matches = [match for match in map(_SHARD.fullmatch, origin.names) if match and origin.has(match[0])]
    found = [match for match in matches if (match["stem"], match["ending"]) == (base, ending)]
    if not found:
        return []
    counts = {int(match["count"]) for match in found}
    numbers = [int(match["number"]) for match in found]
    if len(counts) > 1:
        raise CheckpointError(
            f"{origin.source} holds shards of two models, {found[0][0]} and {found[-1][0]}, and no {stem}.index.json"
        )
    (count,) = counts
    if len(numbers) != count or set(numbers) != set(range(1, count + 1)):
        missing = next((number for number in range(1, count + 1) if number not in numbers), 0)
        raise CheckpointError(
            f"{origin.source} holds {len(found)} of {count} shards of {stem}, and not number {missing}; fetch it again"
        )
    return sorted(match[0] for match in found)
