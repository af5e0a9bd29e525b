"""Flushing what was written to the disk, so that a power cut loses nothing that is published."""

from __future__ import annotations

import os
from pathlib import Path


def flush(path: Path) -> None:
    """Flush a file or folder to the disk, where the system can."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def flush_tree(root: Path) -> None:
    for path in [*root.rglob("*"), root]:
        flush(path)
