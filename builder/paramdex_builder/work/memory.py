"""The memory that a build may take: what it was given, what it needs at the least, what it took.

A build works on blocks of a fixed size. (They do not follow what was given: how a matrix product rounds depends on its
shape, and an atlas must not depend on the memory of the machine.) What grows with the model is the embedding, a piece
of a layer, a head's factors over the vocabulary, and what DuckDB sorts: the last of these can be had with less, and
gets what the others leave. The steps come one after the other, so the largest of them counts.
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
import torch

from paramdex_builder.project.engines import precision_of
from paramdex_builder.project.head_rows import ATTENTION, matrix_held
from paramdex_builder.project.parameter_rows import parameters_held
from paramdex_builder.project.pieces import pieces
from paramdex_builder.project.tokens import projection_held, projection_shared
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.read.displacement import Displacement
from paramdex_schemas import BuildError
from paramdex_schemas.errors import quoted

LIBRARIES = 576 << 20
"""Bytes for the libraries, and for what is small."""
_DUCKDB = 512 << 20, 1 << 30
"""Least and most bytes that DuckDB may hold; what it sorts beyond that goes to files."""
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([KMGT])(?:i?B)?", re.IGNORECASE)


def parse(text: str) -> int:
    """The bytes of a size such as 8G, 1.5G or 800M. Raises BuildError where it is none."""
    match = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    if not match:
        raise BuildError(f"memory must be a size such as 8G or 800M, not {quoted(text)}")
    return int(float(match[1]) * 1024 ** ("KMGT".index(match[2].upper()) + 1))


def free() -> int | None:
    """The bytes that programs can have now, where the system says: of the machine, and of this container."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        group = Path("/sys/fs/cgroup")
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no limit is "max"
        pass
    if not found and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    return max(0, min(found)) if found else None


def needed(model: Checkpoint | Displacement, V: int, stored: torch.dtype, device: torch.device) -> int:
    """About how many bytes a model takes at the least: its embedding (V x d, held in the dtype ``stored``) and the root
    of its Gram matrix, and what the step adds that takes most: reading, projecting, pairing, sorting, or relating.

    What a GPU holds is not counted.
    """
    layout, d, n_terms = model.layout, model.d_model, model.n_terms
    root = 8 * d * d
    projecting = parameters_held([piece for kind in layout.kinds for piece in pieces(layout, kind)], d, n_terms)
    places = layout.attention_places
    vectors = [sum(len(range(*layout.places(kind).get(place, (0, 0)))) for kind in ATTENTION) for place in places]
    pairing = 4 * n_terms**2 * d * max(vectors, default=0)  # float64 for each of two terms
    if device.type == "cpu":
        projecting += projection_shared(V, d, stored, precision_of(device)) + projection_held(V)
        pairing += max((matrix_held(V, layout.heads(place).size * n_terms) for place in places), default=0)
    embedding, sorting = stored.itemsize * V * d, _DUCKDB[0]
    reading = embedding  # the file, mapped, beside what is copied from it
    relating = 4 * root  # to another model as wide: the transfer twice, a root and its inverse
    return LIBRARIES + embedding + root + max(reading, projecting, pairing, sorting, relating)


def allowed(setting: str | None, least: int, name: str) -> int:
    """The bytes that a build of models that need ``least`` may take: the setting, or half of what is free; or,
    where that is less, what they need.

    Raises BuildError for a setting that is too little for the model ``name``, which needs the most.
    """
    if setting is None:
        return max((free() or 0) // 2, least)
    given = parse(setting)
    if given < least:
        raise BuildError(
            f"memory {setting} is too little for {name}, which needs about {gib(least)}; "
            f"give --memory {-(-least * 10 // (1 << 30)) / 10:g}G or more"
        )
    return given


def for_duckdb(given: int, least: int) -> int:
    """The bytes that DuckDB may hold while a model that needs ``least`` is put into the database."""
    low, high = _DUCKDB
    return min(high, max(low, given - least + low))


def release() -> None:
    """Give memory that is free back to the system. The C library and Arrow keep it for what may come; in parts that the
    next large tensor does not fit in, it would add up.
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
    except (OSError, AttributeError, TypeError):  # TypeError: of Windows
        return None


def peak() -> int | None:
    """The most bytes that this process has held, where the system says."""
    try:  # on Linux getrusage counts what the program held that started this one
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
