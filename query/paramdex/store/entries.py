"""What other packages bring: the entry points of a group, listed and loaded by name.

Only metadata is read until one is asked for by its name, so that no package slows down or breaks what another brings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paramdex_schemas import QueryError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


def installed(group: str, what: str) -> dict[str, list[EntryPoint]]:
    """Name -> the entry points of that name in a group; several where packages disagree. ``what`` each is called.

    Raises QueryError where the metadata of an installed package cannot be read.
    """
    from importlib.metadata import entry_points  # here, as most commands need none of it

    found: dict[str, list[EntryPoint]] = {}
    try:
        for entry in entry_points(group=group):
            found.setdefault(entry.name, []).append(entry)
    except Exception as error:  # whatever a damaged file of a package makes Python raise
        raise QueryError(
            f"{what}s of other packages cannot be listed, as the metadata of one is damaged: {_told(error)}"
        ) from error
    return {name: found[name] for name in sorted(found)}


def load(group: str, what: str, name: str) -> tuple[Any, str] | None:
    """What a package brings under a name, and the place it was loaded from; None where no package has one.

    Raises QueryError where it cannot be loaded, or several packages have one.
    """
    entries = installed(group, what).get(name, [])
    if not entries:
        return None
    places = " and ".join(entry.value for entry in entries)
    if len(entries) > 1:
        raise QueryError(f"several packages have a {what} {name}: {places}; uninstall all but one of them")
    try:
        return entries[0].load(), places
    except (Exception, SystemExit) as error:  # whatever their code raises as it is imported
        raise QueryError(
            f"the {what} {name} cannot be loaded from {places}: {_told(error)}; "
            "mend or uninstall the package that brings it"
        ) from error


def unusable(what: str, name: str, place: str, found: object, wanted: str) -> QueryError:
    """The error where what was loaded is not of the type ``wanted``, which is told with its article."""
    return QueryError(
        f"the {what} {name} cannot be used: {place} is of the type {type(found).__name__}, not {wanted}; "
        "mend or uninstall the package that brings it"
    )


def _told(error: BaseException) -> str:
    """An error in a line."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
