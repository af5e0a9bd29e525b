"""``python -m paramdex``."""

from paramdex.cli import run

run()
