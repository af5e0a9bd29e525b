"""Reading files that others wrote: any failure becomes an error of one line that names the file."""

from __future__ import annotations

import json
import os
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paramdex_schemas.errors import ParamdexError, escaped

_PASSING = (ParamdexError, KeyboardInterrupt, SystemExit, GeneratorExit, CancelledError)
"""Raised on purpose: these say nothing about the file."""
MOST_BYTES = 1 << 30
"""The most bytes of a file that is read as a whole: many times the size of any config, tokenizer or text."""
_BLOCK = 1 << 20
_LONGEST = 300
"""Characters of a library's message that are shown at most."""
_SAYING: dict[type[BaseException], str] = {
    RecursionError: "it is nested too deeply",
    MemoryError: "it takes more memory than there is",
}
_CALLED = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
"""What to call a JSON value that is neither an object nor a number."""


@contextmanager
def reading(
    what: str | Path, error: type[ParamdexError], says: str = "cannot be read", then: str | None = None
) -> Iterator[None]:
    """A context in which a file of others is read. A failure becomes ``error``: ``what`` (the file), what it ``says``,
    the reader's own reason, and what to do ``then``.

    All errors are caught, because libraries raise anything for a damaged file: IndexError, AssertionError, and from
    Rust PanicException, which is not an Exception. Errors of paramdex and interrupts pass unchanged.
    """
    try:
        yield
    except _PASSING:
        raise
    except BaseException as cause:
        raise error(f"{what} {says}: {reason(cause)}{f'; {then}' if then else ''}") from cause


def reason(error: BaseException) -> str:
    """Why something failed, on one line: what the system or the library says, or the name of the error."""
    for kind, saying in _SAYING.items():
        if isinstance(error, kind):
            return saying
    if isinstance(error, KeyError):
        return f"there is no {error}"
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    first, *more = said.strip().splitlines() or [type(error).__name__]
    line = escaped(f"{first} {more[0].strip()}" if more and first.endswith(":") else first)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def read_bytes(path: Path) -> bytes:
    """All of a file, or of a pipe, within ``reading``. Raises OSError, and as ``all_of``."""

    def opened(name: str, flags: int) -> int:
        # To open a pipe that nobody writes to would wait for somebody; opened so, it is empty.
        handle = os.open(name, flags | os.O_NONBLOCK)
        os.set_blocking(handle, True)
        return handle

    with open(path, "rb", opener=opened) as file:  # Path's own takes no opener
        return all_of(file.read)


def all_of(read: Callable[[int], bytes]) -> bytes:
    """Everything that ``read``, called with a number of bytes, returns. Raises ValueError for more than MOST_BYTES: a
    device has no end, a sparse file any size, and a few compressed bytes unpack to many.
    """
    found = bytearray()
    while block := read(_BLOCK):
        found += block
        if len(found) > MOST_BYTES:
            raise ValueError(f"it holds more than {MOST_BYTES >> 20} MiB")
    return bytes(found)


def read_json(path: Path, what: str, error: type[ParamdexError], says: str = "is not a JSON object") -> dict[str, Any]:
    """The object in a JSON file. Messages call the file ``what``, and ``says`` tells of one without an object.

    Raises ``error``.
    """
    with reading(path, error):
        raw = read_bytes(path)
    with reading(what, error, says, "fetch it again"):
        data = json.loads(raw)
        if not isinstance(data, dict):
            raise TypeError(f"it holds {_CALLED.get(type(data), 'a number')}, not an object")
    return data
