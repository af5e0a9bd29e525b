"""Arguments of callers, read the same way everywhere: paths, sequences and flags."""

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
"""Types that have items, but are not meant as a sequence of them."""


def path_text(given: object, what: str, error: type[ParamdexError]) -> str:
    """A path as text. ``~`` and ``~user`` at its beginning become the home folder, as in a shell.

    Write ``./~`` for a file that is really called ``~``, and give it as text: a ``Path`` keeps only the ``~``. Such a
    path, and a ``~user`` that does not exist, come back as absolute paths, because DuckDB expands ``~`` too.
    Raises ``error``, whose message calls it ``what``, for anything that is not a path or that no file can have.
    """
    try:
        found: object = os.fspath(given)  # type: ignore[call-overload]  # refused here
    except Exception:  # noqa: BLE001  # TypeError, or the value's own
        found = None
    if not isinstance(found, str) or not found:
        raise error(f"{what} is text or a path, not {quoted(given)}")
    text = check_text(found, error(f"the path {quoted(found)} is not valid UTF-8 text; give another"))
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
    """The items of a sequence; those of Arrow become Python's own.

    Raises ``error`` for anything else (text, dictionaries and tables are not meant as sequences), and if reading fails.
    """
    try:
        if hasattr(given, "to_pylist"):
            given = given.to_pylist()
        if not isinstance(given, _NO_SEQUENCE) and not hasattr(given, "columns"):
            found: list[Any] = list(given)  # type: ignore[call-overload]  # refused here
            return found
    except Exception as cause:  # TypeError, or the iterator's own
        raise error from cause
    raise error


def yes_or_no(name: str, value: object, error: type[ParamdexError] = QueryError) -> bool:
    """``value`` as a bool; it may be Python's or NumPy's. Raises ``error`` for anything else."""
    if not isinstance(value, (bool, np.bool_)):
        raise error(f"{name} is True or False, not {quoted(value)}")
    return bool(value)
