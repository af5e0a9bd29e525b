"""The memory that a build may take: what it was given, what is free, and what it took.

A build works on blocks of a fixed size. They do not follow what was given: how a matrix product rounds depends on its
shape, and an atlas must not depend on the memory of the machine. Only DuckDB can sort with less memory, and so it gets
what the rest leaves. What a build needs is in ``estimates``.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from paramdex_schemas import BuildError
from paramdex_schemas.errors import quoted

LEAST_FOR_DUCKDB, MOST_FOR_DUCKDB = 512 << 20, 1 << 30
"""Bytes that DuckDB may hold; what it sorts beyond that goes to files."""
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([KMGT])(?:i?B)?", re.IGNORECASE)


def size_of(text: str) -> int:
    """The bytes of a size such as 8G, 1.5G or 800M. Raises BuildError where it is none."""
    # Not pydantic's ByteSize, to which 8G is 8 * 10^9 bytes: here K, M, G and T are powers of 1024.
    match = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    if not match:
        raise BuildError(f"memory must be a size such as 8G or 800M, not {quoted(text)}")
    return int(float(match[1]) * 1024 ** ("KMGT".index(match[2].upper()) + 1))


def free() -> int | None:
    """The bytes that are free now, where the system says: the less of what this machine and this container have."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        group = Path("/sys/fs/cgroup")
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # where there is no limit, it says "max"
        pass
    if not found and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    return max(0, min(found)) if found else None


def allowed(setting: str | None, least: int, name: str) -> int:
    """The bytes that a build of models that need ``least`` may take: the setting, or half of what is free; or,
    where that is less, what they need.

    Raises BuildError for a setting that is too little for the model ``name``, which needs the most.
    """
    if setting is None:
        return max((free() or 0) // 2, least)
    given = size_of(setting)
    if given < least:
        raise BuildError(
            f"memory {setting} is too little for {name}, which needs about {gib(least)}; "
            f"give --memory {-(-least * 10 // (1 << 30)) / 10:g}G or more"
        )
    return given


def for_duckdb(given: int, least: int) -> int:
    """The bytes that DuckDB may hold while a model that needs ``least`` is put into the database."""
    return min(MOST_FOR_DUCKDB, max(LEAST_FOR_DUCKDB, given - least + LEAST_FOR_DUCKDB))


def release() -> None:
    """Give free memory back to the system. The C library and Arrow keep it for later, in parts that are too small for
    the next large tensor; these would add up.
    """
    pa.default_memory_pool().release_unused()
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    """The function of glibc's name, where there is one."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # TypeError: on Windows
        return None


def peak() -> int | None:
    """The most bytes that this process has held, where the system says."""
    try:  # on Linux getrusage also counts what the parent program held
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f}".removesuffix(".0") + " GiB"
