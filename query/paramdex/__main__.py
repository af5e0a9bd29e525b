"""``python -m paramdex``."""

from paramdex.cli import run

if __name__ == "__main__":
    run()
