"""Vector files (``paramdex_schemas.vector_files``) written from a stream of rows, never held in memory as a whole.

FAISS itself writes an index only with all its rows in memory. Here the header is written first and the rows after it.
The result is byte for byte the file that FAISS writes. Before the first row is written, the installed FAISS has to show
that it reads such a file correctly.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import faiss
import numpy as np
from safetensors.numpy import save
from scipy.linalg import qr

from paramdex_schemas import BuildError
from paramdex_schemas.vector_files import ROWS, codes_name, flat_header, open_rows, scale_name

__all__ = ["open_rows", "rotation", "write_codes", "write_flat_index"]

_BLOCK = 1 << 20
"""Numbers of a block of rows that is turned into codes."""
_ROWS = 1024
"""Rows of a product of matrices at a time."""


def write_flat_index(path: Path, width: int, blocks: Iterable[np.ndarray]) -> int:
    """Write the rows of ``blocks`` (each n x width, float32) as an IndexFlatIP. Returns how many rows there were.

    Holds one block at a time. A write that fails raises OSError; what stands in the file then, as after a kill, is no
    index that ``open_rows`` accepts.
    """
    _check_faiss(flat_header(2, width), np.arange(2 * width, dtype=ROWS).reshape(2, width), faiss.IndexFlatIP)
    n_rows = 0
    with path.open("wb") as file:
        file.write(flat_header(0, width))
        for block in blocks:
            if block.shape != (len(block), width) or block.dtype != np.float32:
                raise ValueError(f"a block of {block.shape} {block.dtype} is not n x {width} float32")
            file.write(np.ascontiguousarray(block, ROWS).data)
            n_rows += len(block)
        file.seek(0)
        file.write(flat_header(n_rows, width))
    return n_rows


def rotation(width: int) -> tuple[np.ndarray, float]:
    """A random P (width x width, float32), whose rows are orthonormal but for rounding, and its error |I - P^T P|."""
    Q, _ = qr(np.random.default_rng(0).standard_normal((width, width)).T, overwrite_a=True, check_finite=False)
    P = Q.astype(np.float32, order="C")  # safetensors takes an array's bytes as they are
    Q[:] = P
    squares = 0.0
    for start in range(0, width, _ROWS):
        product = Q[:, start : start + _ROWS].T @ Q
        product[:, start : start + _ROWS] -= np.eye(len(product))
        squares += float(np.square(product).sum())
    return P, squares**0.5


def write_codes(folder: Path, kind: str, rows: np.ndarray, turned_by: tuple[np.ndarray, float]) -> None:
    """Write the two files of codes of a kind beside its index; ``rows`` (n x width, float32) may be memory-mapped, and
    ``turned_by`` is the ``rotation`` of their width.

    A step is 1/127 of a turned coordinate's largest size, so that no number is cut off. A row with such a number would
    lie far from its code, and searches rely on the largest distance between the two. With y = P x and y' = steps * c
    that is |x - P^T y'| <= |x - P^T P x| + |P^T (y - y')| <= o + sqrt(1 + o) |y - y'|, with o = |I - P^T P| for rows of
    norm 1.
    """
    n_rows, width = rows.shape
    P, off = turned_by
    turn = P.astype(np.float64).T
    largest = np.zeros(width)
    for block in _blocks(rows):
        np.maximum(largest, np.abs(block @ turn).max(axis=0), out=largest)
    steps = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    furthest, longest, checksums = 0.0, 0.0, []
    header = _codes_header(2, width)
    _check_faiss(header, np.arange(2 * width, dtype=np.uint8).reshape(2, width), faiss.IndexScalarQuantizer)
    with (folder / codes_name(kind)).open("wb") as file:
        file.write(_codes_header(n_rows, width))
        for block in _blocks(rows):
            turned = block @ turn
            codes = np.clip(np.rint(turned / steps), -127, 127)
            furthest = max(furthest, float(np.linalg.norm(turned - codes * steps, axis=1).max()))
            longest = max(longest, float(np.linalg.norm(codes, axis=1).max()))
            checksums += [zlib.crc32(row) for row in block]
            file.write((codes + 128).astype(np.uint8).data)
    error = (1 + 1e-6) * (off + (1 + off) ** 0.5 * furthest)  # the rows' norms are 1 but for float32's rounding
    scale = {
        "rotation": P,
        "steps": steps,
        "error": np.array([error]),
        "longest": np.array([longest]),
        "crc32": np.array(checksums, np.uint32),
    }
    (folder / scale_name(kind)).write_bytes(save(scale))


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    step = max(1, _BLOCK // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        yield np.array(rows[start : start + step], ROWS)


def _codes_header(n_rows: int, width: int) -> bytes:
    """What stands before the codes: FAISS's file of an empty index, whose count of rows is the second number of its
    header and whose last eight bytes are the count of codes.
    """
    quantizer = faiss.ScalarQuantizer.QT_8bit_direct_signed
    empty = faiss.serialize_index(faiss.IndexScalarQuantizer(width, quantizer, faiss.METRIC_INNER_PRODUCT)).tobytes()
    return empty[:8] + n_rows.to_bytes(8, "little") + empty[16:-8] + (n_rows * width).to_bytes(8, "little")


def _check_faiss(header: bytes, rows: np.ndarray, kind: type) -> None:
    """Refuse to write files that the installed FAISS would not read as the index they are meant to be."""
    expected = rows if rows.dtype == ROWS else rows.astype(np.float32) - 128
    try:
        index = faiss.deserialize_index(np.frombuffer(header + rows.tobytes(), np.uint8))
        same = isinstance(index, kind) and index.metric_type == faiss.METRIC_INNER_PRODUCT
        same = same and (index.ntotal, index.d) == rows.shape and np.array_equal(index.reconstruct_n(0, 2), expected)
    except RuntimeError:  # faiss raises no other error
        same = False
    if not same:
        raise BuildError(
            f"faiss {faiss.__version__} does not read the indexes that paramdex writes; "
            "install another: pip install 'faiss-cpu>=1.9'"
        )
