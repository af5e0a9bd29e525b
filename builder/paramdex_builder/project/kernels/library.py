"""The compiled kernels of this folder as libraries of functions: each lies beside its source and is named for it."""

from __future__ import annotations

import ctypes
import hashlib
from pathlib import Path


def loaded(source: Path) -> ctypes.CDLL | None:
    """The functions of a C source; None where the installation could not compile it, or another version of it."""
    try:
        number = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
        return ctypes.CDLL(str(source.with_name(f"{source.stem}-{number}.so")))
    except OSError:
        return None
