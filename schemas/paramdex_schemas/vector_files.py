"""The vector files of an atlas: they are FAISS indexes, and their rows can be read in place.

    KIND.faiss               an IndexFlatIP: the normalized coordinates, float32, by the model's own embedding
    KIND.SPACE.faiss         the same of those vectors of the kind that are scored in another space (entering, reading)
    KIND.codes.faiss         of a large kind: an IndexScalarQuantizer of the same rows as signed bytes, to be searched
    KIND.codes.safetensors   how the bytes are meant: "rotation" P (r x r, float32), "steps" (r, float32), "error" and
                             "longest" (1 each, float64), "crc32" (n, uint32)

The code c of a row is its bytes less 128. The row is P^T (steps * c) up to ``error`` (Euclidean). P is a random
rotation: it spreads large coordinates over all of them, which makes the steps small. ``longest`` is the norm of the
longest c. ``crc32`` has a checksum of every row of KIND.faiss, so a few rows can be read and checked without reading
the file. Kinds of CODED_BYTES or more have codes; the model's manifest lists the files.

FAISS's file of an ``IndexFlatIP`` is a fixed header and the rows as they are (faiss/impl/index_write.cpp),
little-endian and without padding:

    "IxFI"   int32 width   int64 rows   int64 2^20   int64 2^20   bool trained   int32 metric   uint64 rows * width

(the two constants are placeholders of FAISS's own; metric 0 is the inner product).
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from paramdex_schemas.errors import AtlasError

CODED_BYTES = 64 << 20
"""A kind whose rows have this size or more has codes. Rows of 64 MiB are searched without codes in about 10 ms."""
ROWS = np.dtype("<f4")
_HEADER = struct.Struct("<4siqqq?iQ")
OFFSET = _HEADER.size
"""Where the rows of an IndexFlatIP's file begin."""


def stem(kind: str, space: str | None = None) -> str:
    """What the names of a kind's files begin with: of its vectors by the model's own embedding, or in another space.

    >>> stem("ff_key"), stem("ff_key", "reading")
    ('ff_key', 'ff_key.reading')
    """
    return kind if space is None else f"{kind}.{space}"


def index_name(stem: str) -> str:
    return f"{stem}.faiss"


def codes_name(stem: str) -> str:
    return f"{stem}.codes.faiss"


def scale_name(stem: str) -> str:
    return f"{stem}.codes.safetensors"


def flat_header(n_rows: int, width: int) -> bytes:
    return _HEADER.pack(b"IxFI", width, n_rows, 1 << 20, 1 << 20, True, 0, n_rows * width)


def flat_shape(path: Path) -> tuple[int, int]:
    """(rows, width) of an IndexFlatIP's file. Raises AtlasError if it is not a whole one."""
    with path.open("rb") as file:
        start = file.read(OFFSET)
    if len(start) == OFFSET:
        _, width, n_rows, *_ = _HEADER.unpack(start)
        size = OFFSET + n_rows * width * ROWS.itemsize
        if width >= 0 and n_rows >= 0 and start == flat_header(n_rows, width) and path.stat().st_size == size:
            return n_rows, width
    raise AtlasError(f"{path} is damaged: it is not a whole FAISS flat index; copy it again or rebuild it")


def open_rows(path: Path) -> npt.NDArray[np.float32]:
    """The rows (n x width, float32, read-only) of an IndexFlatIP's file, mapped into memory and read when used.

    A header of 45 bytes leaves the rows unaligned, which NumPy allows: give other libraries copies of blocks.
    Raises AtlasError if the file is not a whole index.
    """
    n_rows, width = flat_shape(path)
    if not n_rows * width:  # nothing that could be mapped
        return np.empty((n_rows, width), ROWS)
    return np.memmap(path, ROWS, mode="r", offset=OFFSET, shape=(n_rows, width))


def load_rows(path: Path) -> npt.NDArray[np.float32]:
    """As ``open_rows``, but in memory and aligned: products are several times faster on such rows."""
    n_rows, width = flat_shape(path)
    return np.fromfile(path, ROWS, offset=OFFSET).reshape(n_rows, width)
