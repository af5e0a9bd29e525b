"""What a caller gives, read in one way wherever it is given: paths, sequences, and whether or not."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from paramdex_schemas.checks import check_text
from paramdex_schemas.errors import ParamdexError, QueryError, quoted

_NO_SEQUENCE = (str, bytes, bytearray, memoryview, Mapping)
"""What has items that no one means when they give it for a sequence."""


def path_text(given: object, what: str, error: type[ParamdexError]) -> str:
    """A path as text, ``~`` and ``~user`` at its beginning as the folder that they stand for in a shell.

    A file that is really called ``~`` is ``./~``, of which a ``Path`` keeps no more than ``~``: give it as text. That,
    and ``~`` with a name that no user has, comes back with the current folder before it, for DuckDB reads ``~`` too.
    Raises ``error``, which calls it ``what``, for what is no path, and for one that no file can have.
    """
    try:
        text: Any = os.fspath(given)  # type: ignore[call-overload]  # refused here
    except Exception:  # noqa: BLE001  # TypeError, or the value's own
        text = None
    if not isinstance(text, str) or not text:
        raise error(f"{what} is text or a path, not {quoted(given)}")
    text = check_text(text, error(f"the path {quoted(text)} is not valid UTF-8 text; give another"))
    if "\0" in text:
        raise error(f"the path {quoted(text)} has a null character in it; give another")
    text = os.path.expanduser(text)  # noqa: PTH111  # Path's own fails for an unknown user
    if os.path.normpath(text).startswith("~"):
        text = os.path.abspath(text)  # noqa: PTH100
    try:
        os.lstat(text)
    except OSError as cause:
        if cause.errno == errno.ENAMETOOLONG:
            raise error(f"the path {quoted(text)} is longer than a path can be") from cause
    return text


def given_path(given: object, what: str, error: type[ParamdexError]) -> Path:
    """As ``path_text``, ready for use."""
    return Path(path_text(given, what, error))


def given_items(given: object, error: ParamdexError) -> list[Any]:
    """The items of a sequence, those of Arrow as Python's own. Raises ``error`` for what is none (a text, a dictionary
    and a table of columns are not meant as one), and where it fails on the way.
    """
    try:
        if hasattr(given, "to_pylist"):
            given = given.to_pylist()
        if not isinstance(given, _NO_SEQUENCE) and not hasattr(given, "columns"):
            return list(given)  # type: ignore[call-overload]  # refused here
    except Exception as cause:  # TypeError, or the iterator's own
        raise error from cause
    raise error


def yes_or_no(name: str, value: object, error: type[ParamdexError] = QueryError) -> bool:
    """``value`` as a bool, be it Python's or NumPy's. Raises ``error`` for anything else."""
    if not isinstance(value, (bool, np.bool_)):
        raise error(f"{name} is True or False, not {quoted(value)}")
    return bool(value)
