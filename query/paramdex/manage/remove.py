"""``remove``: take models out of an atlas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from paramdex_schemas import AddressError, AtlasError, QueryError
from paramdex_schemas.arguments import given_path
from paramdex_schemas.checks import suggest
from paramdex_schemas.commit import changing, commit, sweep
from paramdex_schemas.contents import Contents, Index
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
        left = {name: manifest for name, manifest in contents.manifests.items() if name not in models}
        if not left:
            raise QueryError(f"{path} has no other model; to remove all of it, delete the folder")
        uids = {manifest.uid for manifest in left.values()}
        index = Index({name: contents.index.models[name] for name in left})
        related = tuple(pair for pair in contents.related if uids.issuperset(pair))
        found = replace(contents, index=index, manifests=left, related=related)
        commit(found, work)
        sweep(found)


def known(contents: Contents, name: str) -> None:
    """Raises AddressError where an atlas has no model of a name."""
    if name not in contents.manifests:
        raise AddressError(f"{contents.atlas} has no model {quoted(name)}; {suggest(name, contents.manifests)}")
