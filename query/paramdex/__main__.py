"""``python -m paramdex``."""

from paramdex.cli import main

main()
