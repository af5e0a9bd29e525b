"""Commands that other packages bring, each an entry point of the group ``paramdex.commands``.

A package names one in its pyproject.toml, and it is a ``click.Command`` there:

    [project.entry-points."paramdex.commands"]
    overlap = "their_package.commands:overlap"

``paramdex --help`` names what is installed. A command's code is loaded when it is asked for by its name and not before,
so that no package slows down or breaks the commands of another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from paramdex.cli.ctrl_c import raise_again
from paramdex_schemas import QueryError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "paramdex.commands"


def installed() -> dict[str, list[EntryPoint]]:
    """Name -> the entry points of that name; several where packages disagree.

    Raises QueryError where the metadata of an installed package cannot be read.
    """
    from importlib.metadata import entry_points  # here, as most commands need none of it

    found: dict[str, list[EntryPoint]] = {}
    try:
        for entry in entry_points(group=GROUP):
            found.setdefault(entry.name, []).append(entry)
    except Exception as error:  # whatever a damaged file of a package makes Python raise
        raise QueryError(
            f"commands of other packages cannot be listed, as the metadata of one is damaged: {_told(error)}"
        ) from error
    return {name: found[name] for name in sorted(found)}


def load(name: str) -> click.Command | None:
    """The command of this name; None where no package has one.

    Raises QueryError where it cannot be loaded, is no ``click.Command``, or several packages have one.
    """
    entries = installed().get(name, [])
    if not entries:
        return None
    places = " and ".join(entry.value for entry in entries)
    if len(entries) > 1:
        raise QueryError(f"several packages have a command {name}: {places}; uninstall all but one of them")
    try:
        command = entries[0].load()
    except (Exception, SystemExit) as error:  # whatever their code raises as it is imported
        raise QueryError(
            f"the command {name} cannot be loaded from {places}: {_told(error)}; "
            "mend or uninstall the package that brings it"
        ) from error
    if not isinstance(command, click.Command):
        raise QueryError(
            f"the command {name} cannot be used: {places} is of the type {type(command).__name__}, not a "
            "click.Command; mend or uninstall the package that brings it"
        )
    raise_again()
    return command


def _told(error: BaseException) -> str:
    """An error in a line."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
