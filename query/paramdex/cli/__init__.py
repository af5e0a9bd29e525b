"""The command line: every verb as a command.

``cli`` is the group of all commands, ``main`` the program, ``run`` the program as a process of its own. The commands
are imported when one of these is used, so that ``run`` hears Ctrl-C before any slow import.
"""

from paramdex.cli.ctrl_c import end_at_once

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from paramdex.cli.program import cli, main

__all__ = ["cli", "main", "run"]


def run() -> "NoReturn":
    """``main`` as a process of its own, which ends when it does."""
    end_at_once()
    from paramdex.cli.program import run_process  # here because it is slow to import

    run_process()


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in ("cli", "main"):
            raise AttributeError(f"module 'paramdex.cli' has no attribute {name!r}")
        from paramdex.cli.program import cli, main

        return {"cli": cli, "main": main}[name]
