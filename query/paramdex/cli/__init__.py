"""The command line: every verb as a command."""

from paramdex.cli.program import cli, main, run

__all__ = ["cli", "main", "run"]
