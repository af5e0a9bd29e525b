"""The files of a model: in a local folder, or of a revision on the hub, where each file is fetched when first read."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from paramdex_schemas import CheckpointError
from paramdex_schemas.foreign import reading, reason

_REPOSITORY = re.compile(r"(?P<repo>\w[\w.-]*(/\w[\w.-]*)?)(@(?P<revision>\w[\w.+-]*(/[\w.+-]+)*))?")
ADAPTER_CONFIG = "adapter_config.json"
"""What a folder of PEFT's holds in place of a model's config."""
_FIRST = ("config.json", ADAPTER_CONFIG)
"""Fetched first; they decide whether the rest is."""
_SECONDS = 20
"""The longest that the hub may be silent."""
_MOST = 10_000
"""The most names of a local folder that are looked at; it may not be a model's."""


@dataclass(frozen=True)
class Origin:
    """Where the files of a model are: in its ``folder``. A model on the hub has a ``repo`` and a ``revision`` (a
    commit) too, and the folder holds what has been fetched of it.
    """

    source: str
    folder: Path
    repo: str | None = None
    revision: str | None = None
    listed: frozenset[str] | None = None
    """The files that the hub has; None where the folder is all that there is."""
    unlisted: str | None = None
    """Why the hub did not say what it has; then the folder, its cache, is all that there is."""

    @cached_property
    def names(self) -> list[str]:
        """The names of the files, and of those in folders below, one level down, in order."""
        if self.listed is not None:
            return sorted(name for name in self.listed if name.count("/") < 2)
        return sorted(islice(_within(self.folder), _MOST))

    def has(self, name: str) -> bool:
        """Whether there is a file of this name, here or on the hub."""
        with reading(f"{self.source}: {name}", CheckpointError):
            return (self.folder / name).is_file() if self.listed is None else name in self.listed

    def path(self, name: str) -> Path:
        """A file in the folder, fetched where it has to be. Raises CheckpointError."""
        self.fetch([name])
        return self.folder / name

    def fetch(self, names: Iterable[str]) -> None:
        """Have these files in the folder. Raises CheckpointError where they cannot be fetched."""
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing and self.repo is not None and self.listed is not None:
            from huggingface_hub import snapshot_download

            what = f"{self.source}: {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            then = "run the same command again: what has been fetched is kept"
            with reading(what, CheckpointError, "cannot be fetched from the hub", then), _in_time():
                patterns = [glob.escape(name) for name in missing]
                snapshot_download(self.repo, revision=self.revision, allow_patterns=patterns)


@contextmanager
def _in_time() -> Iterator[None]:
    """While this is open, requests to the hub time out; huggingface_hub sets no limit for most of them."""
    from huggingface_hub import get_session

    def limit(request: Any) -> None:
        given = request.extensions["timeout"]
        request.extensions["timeout"] = {what: _SECONDS if most is None else most for what, most in given.items()}

    before_each = get_session().event_hooks["request"]
    before_each.append(limit)
    try:
        yield
    finally:
        before_each.remove(limit)


def _within(folder: Path) -> Iterable[str]:
    """The names of files in a folder, and one level further down."""
    for root, folders, files in os.walk(folder):
        below = os.path.relpath(root, folder)
        yield from (name if below == "." else f"{below}/{name}" for name in files)
        folders[:] = sorted(folders) if below == "." else []


def on_hub(source: str) -> Origin | None:
    """A model on the hub or in its cache, by NAME or NAME@REVISION (a branch, tag or commit); None where that is no
    such name. Only config.json is fetched. Raises CheckpointError where there is no such model.
    """
    match = _REPOSITORY.fullmatch(source)
    if match is None:
        return None
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError

    named = f"a model of that name{' and revision' if match['revision'] else ''}"
    says = f"and {named} was not found in the hub's cache or on the hub"
    with reading(f"there is no folder {source},", CheckpointError, says), _in_time():
        try:
            folder = Path(snapshot_download(match["repo"], revision=match["revision"], allow_patterns=list(_FIRST)))
        except GatedRepoError as error:
            page = f"{constants.ENDPOINT}/{match['repo']}"
            raise CheckpointError(
                f"{source} is gated: ask for access at {page}, and log in with: hf auth login"
            ) from error
    try:
        with _in_time():
            listed = frozenset(HfApi().list_repo_files(match["repo"], revision=folder.name))
    except Exception as error:  # noqa: BLE001  # offline, or the hub is down: the cache has what it has
        return Origin(source, folder, match["repo"], folder.name, None, reason(error))
    return Origin(source, folder, match["repo"], folder.name, listed)


def own_name(source: str) -> str:
    """The default name of a model: the last part of its source, with its revision on the hub."""
    match = None if os.path.isdir(source) else _REPOSITORY.fullmatch(source)  # noqa: PTH112  # Path's own raises
    if match is None or match["revision"] is None:
        return Path(source.rstrip("/")).name.replace("@", "-")
    return "-".join([Path(match["repo"]).name, *match["revision"].split("/")])
