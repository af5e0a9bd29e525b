"""Files that others wrote: whatever goes wrong while one is read becomes one line that names it."""

from __future__ import annotations

import json
from asyncio import CancelledError
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paramdex_schemas.errors import ParamdexError, escaped

_PASSING = (ParamdexError, KeyboardInterrupt, SystemExit, GeneratorExit, CancelledError)
"""What is raised on purpose, and no word on the file that is read."""
_LONGEST = 300
"""Characters of a library's message that are given at most."""
_SAYING: dict[type[BaseException], str] = {
    RecursionError: "it is nested too deeply",
    MemoryError: "it takes more memory than there is",
}
_CALLED = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
"""What JSON calls a value that is no object and no number."""


@contextmanager
def reading(
    what: str | Path, error: type[ParamdexError], says: str = "cannot be read", then: str | None = None
) -> Iterator[None]:
    """Around a reader of what others wrote: ``error`` with ``what`` (the file), what it ``says`` of it, the reader's
    own reason, and what to do ``then``.

    All errors are caught, since a damaged file makes libraries raise what they like: IndexError, AssertionError, and of
    libraries in Rust PanicException, which is no Exception. What has been raised on purpose passes.
    """
    try:
        yield
    except _PASSING:
        raise
    except BaseException as cause:
        raise error(f"{what} {says}: {reason(cause)}{f'; {then}' if then else ''}") from cause


def reason(error: BaseException) -> str:
    """Why something failed, in one line: what the system or the library says, or the name of the error."""
    for kind, saying in _SAYING.items():
        if isinstance(error, kind):
            return saying
    if isinstance(error, KeyError):
        return f"there is no {error}"
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    first, *more = said.strip().splitlines() or [type(error).__name__]
    line = escaped(f"{first} {more[0].strip()}" if more and first.endswith(":") else first)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def read_json(path: Path, what: str, error: type[ParamdexError], says: str = "is not a JSON object") -> dict[str, Any]:
    """The object of a JSON file, which messages call ``what``, with what they say of one that holds none. Raises
    ``error``.
    """
    with reading(path, error):
        raw = path.read_bytes()
    with reading(what, error, says, "fetch it again"):
        data = json.loads(raw)
        if not isinstance(data, dict):
            raise TypeError(f"it holds no object but {_CALLED.get(type(data), 'a number')}")
    return data
