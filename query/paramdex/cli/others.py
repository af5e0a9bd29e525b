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
from paramdex.store import entries

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "paramdex.commands"


def installed() -> dict[str, list[EntryPoint]]:
    """Name -> the entry points of that name; several where packages disagree.

    Raises QueryError where the metadata of an installed package cannot be read.
    """
    return entries.installed(GROUP, "command")


def load(name: str) -> click.Command | None:
    """The command of this name; None where no package has one.

    Raises QueryError where it cannot be loaded, is not a ``click.Command``, or several packages have one.
    """
    found = entries.load(GROUP, "command", name)
    if found is None:
        return None
    command, place = found
    if not isinstance(command, click.Command):
        raise entries.unusable("command", name, place, command, "a click.Command")
    raise_again()
    return command
