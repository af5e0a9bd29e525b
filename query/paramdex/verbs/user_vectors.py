"""Vectors of the user, from a .npy or .safetensors file or an array, checked before any is used."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from paramdex_schemas import QueryError
from paramdex_schemas.arguments import given_path
from paramdex_schemas.checks import check_text, suggest, whole_number
from paramdex_schemas.errors import quoted
from paramdex_schemas.foreign import reading, reason
from paramdex_schemas.isometry import Array

ENDINGS = (".npy", ".safetensors")
_BEGINS = (b"\x93NUMPY", b"PK")
"""The first bytes of a file of NumPy's: of one array, or of several in a zip file."""


@dataclass(frozen=True)
class UserVectors:
    """Rows (n x d, float64), all finite. ``single`` says that they are one vector, given alone or as one row."""

    says: str
    """What titles and messages call them."""
    rows: Array
    numbers: list[int]
    """The number of each row in what was given."""
    single: bool


_SMALLEST, _LARGEST = 1e-30, 1e30
"""Entries of a size between these have scores and squared norms that are far from the limits of float32."""


def user_vectors(given: Any, width: int, model: str, row: int | None = None, name: str | None = None) -> UserVectors:
    """The vectors of ``given``, a path or anything that NumPy reads as an array: d numbers, or n x d.

    ``name`` chooses a tensor of a safetensors file, ``row`` one row of a matrix. Raises QueryError if a vector does not
    have the ``width`` of ``model``, has entries that are not finite, or is zero and was asked for alone.
    """
    if name is not None:
        name = check_text(name, QueryError(f"the name of a tensor is text, not {quoted(name)}"))
    if isinstance(given, (str, PathLike)):
        path = given_path(given, "the file of the vector", QueryError)
        values = _read(path, name)
        says = str(path) if name is None else f"{name} of {path}"
    elif name is not None:
        raise QueryError("a name chooses a tensor of a .safetensors file; an array has none")
    else:
        says, values = "the vector", _array(given)
    if values.dtype.kind not in "fiu":
        raise QueryError(f"{says} holds entries of type {values.dtype}; expected real numbers")
    shape = " x ".join(map(str, values.shape)) or "a single number"
    if values.ndim not in (1, 2):
        raise QueryError(f"{says} has the shape {shape}; expected {width} numbers, or rows of {width}")
    if values.shape[-1] != width:
        turned = values.ndim == 2 and values.shape[0] == width
        hint = "; its columns are that wide: transpose it" if turned else ""
        raise QueryError(f"{says} has the shape {shape}, and vectors of {model} have {width} numbers{hint}")
    if not len(values):
        raise QueryError(f"{says} has no rows")
    single = values.ndim == 1
    if row is not None:
        if single:
            raise QueryError(f"{says} is one vector; ask for it without a row")
        row = whole_number("row", row, 0)
        if row >= len(values):
            raise QueryError(f"{says} has no row {quoted(row)}; its rows are 0 to {len(values) - 1}")
    numbers = [0] if single else list(range(len(values))) if row is None else [row]
    rows = np.atleast_2d(values)[numbers].astype(np.float64)
    for number, vector in zip(numbers, rows, strict=True):
        what = says if single else f"row {number} of {says}"
        bad = int((~np.isfinite(vector)).sum())
        if bad:
            raise QueryError(f"{what} has {bad} of {width} entries that are NaN or infinite; expected finite numbers")
        if not vector.any() and (single or row is not None):
            raise QueryError(f"{what} is zero, and a zero vector says nothing")
        largest = float(np.abs(vector).max())
        if largest and not _SMALLEST <= largest <= _LARGEST:
            raise QueryError(
                f"{what} has entries of up to {largest:.3g}, and scores are float32; "
                f"multiply it so that they are between {_SMALLEST:g} and {_LARGEST:g}"
            )
    return UserVectors(says if row is None else f"row {row} of {says}", rows, numbers, single or row is not None)


def _array(given: Any) -> np.ndarray:
    """An array-like of any library as an array of NumPy. Raises QueryError."""
    try:
        values = np.asarray(_plain(given))
        if values.dtype.kind == "O":  # a column of lists or arrays, or of numbers that may be missing
            values = np.asarray(_plain(values.tolist()))
        numbers = values.dtype.kind == "V" and np.can_cast(values.dtype, np.float64)  # bfloat16 of ml_dtypes, say
        return values.astype(np.float64) if numbers else values
    except QueryError:
        raise
    except Exception as error:  # ragged lists; tensors without data; whatever the value itself raises
        raise QueryError(f"NumPy cannot read the vector ({reason(error)}); give an array of numbers") from error


def _plain(given: Any, levels: int = 2) -> Any:
    """An array, or a list of arrays, as one that NumPy reads. Tensors of PyTorch lose their gradient and come to the
    CPU; real ones become float64, because NumPy lacks types such as bfloat16.

    Raises QueryError for masked entries.
    """
    if isinstance(given, (int, float)):  # most items of a list
        return given
    if np.ma.isMaskedArray(given) and np.ma.is_masked(given):
        raise QueryError("the vector has masked entries; fill them first")
    if hasattr(given, "detach") and hasattr(given, "cpu"):
        tensor = given.detach().cpu()
        return (tensor.double() if tensor.is_floating_point() else tensor).numpy()
    if hasattr(given, "to_pylist") and not hasattr(given, "columns"):  # Arrow's, whose lists NumPy takes for objects
        given = given.to_pylist()
    if levels and isinstance(given, (list, tuple)):
        return [_plain(each, levels - 1) for each in given]
    return given


def _read(path: Path, name: str | None) -> np.ndarray:
    """The array of a file. Raises QueryError."""
    with reading(path, QueryError):
        if not path.is_file():
            what = f"{path} is a folder" if path.is_dir() else f"there is no file {path}"
            raise QueryError(f"{what}; give a .npy or .safetensors file")
    if path.suffix not in ENDINGS:
        raise QueryError(f"{path} is neither a .npy nor a .safetensors file; save the vector as one of these")
    if path.suffix == ".npy" and name is not None:
        raise QueryError(f"a name chooses a tensor of a .safetensors file; {path} has none")
    with reading(path, QueryError), warnings.catch_warnings():  # of headers that Python 2 wrote, or nobody
        warnings.simplefilter("ignore")
        return _read_array(path) if path.suffix == ".npy" else _read_tensor(path, name)


def _read_array(path: Path) -> np.ndarray:
    """The array of a .npy file."""
    with path.open("rb") as file:
        if not file.read(6).startswith(_BEGINS):  # NumPy would take it for a pickle, and say how to run that
            raise ValueError("it does not begin as a .npy file does")
        file.seek(0)
        array = np.load(file, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise QueryError(f"{path} is a .npz file, which holds several arrays; save the one that is meant as .npy")
    return array


def _read_tensor(path: Path, name: str | None) -> np.ndarray:
    """One tensor of a safetensors file. bfloat16, which NumPy lacks, becomes float32."""
    with safe_open(path, framework="np") as file:
        names = sorted(file.keys())
        if name is None:
            if len(names) != 1:
                raise QueryError(f"{path} has {len(names)} tensors; choose one by its name: {suggest('', names)}")
            name = names[0]
        if name not in names:
            raise QueryError(f"{path} has no tensor {quoted(name)}; {suggest(name, names)}")
        if file.get_slice(name).get_dtype() != "BF16":
            found: np.ndarray = file.get_tensor(name)
            return found
    with path.open("rb") as raw:
        size = int.from_bytes(raw.read(8), "little")
        entry = json.loads(raw.read(size))[name]
        start, end = entry["data_offsets"]
        raw.seek(8 + size + start)
        halves = np.frombuffer(raw.read(end - start), "<u2").astype(np.uint32)
    return (halves << 16).view(np.float32).reshape(entry["shape"])
