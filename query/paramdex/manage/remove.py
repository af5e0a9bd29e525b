"""``remove``: take models out of an atlas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from paramdex_schemas import AddressError, AtlasError, QueryError
from paramdex_schemas.arguments import given_path
from paramdex_schemas.checks import suggest
from paramdex_schemas.commit import changing, commit, sweep
from paramdex_schemas.contents import Contents
from paramdex_schemas.errors import quoted


def remove(atlas: str | Path, models: Sequence[str]) -> None:
    """Take models out of an atlas, with all that relates them to others. What is left does not change. One that was
    interrupted ends the same when it is run again.

    Raises AtlasError where there is no atlas, BuildError where it cannot be written, AddressError for a model that it
    lacks, QueryError where none would be left.
    """
    path = given_path(atlas, "an atlas", AtlasError)
    with changing(path) as (contents, work):
        for name in models:
            known(contents, name)
        found = contents.without(models)
        if not found.manifests:
            raise QueryError(f"{path} has no other model; to remove all of it, delete the folder")
        commit(found, work)
        sweep(found)


def known(contents: Contents, name: str) -> None:
    """Raises AddressError where an atlas has no model of a name."""
    if name not in contents.manifests:
        raise AddressError(f"{contents.atlas} has no model {quoted(name)}; {suggest(name, contents.manifests)}")
