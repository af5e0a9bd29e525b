"""Files that others wrote: whatever goes wrong while one is read becomes one line that names it."""

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
"""What is raised on purpose, and no word on the file that is read."""
MOST_BYTES = 1 << 30
"""Bytes of a file that is read as a whole: many times more than any config, tokenizer, list of words or text has."""
_BLOCK = 1 << 20
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
    """All that ``read``, called with a number of bytes, has to give. Raises ValueError for more than anybody means: a
    device has no end, a sparse file is of any size, and a few bytes unpack to many.
    """
    found = bytearray()
    while block := read(_BLOCK):
        found += block
        if len(found) > MOST_BYTES:
            raise ValueError(f"it holds more than {MOST_BYTES >> 20} MiB")
    return bytes(found)


def read_json(path: Path, what: str, error: type[ParamdexError], says: str = "is not a JSON object") -> dict[str, Any]:
    """The object of a JSON file, which messages call ``what``, with what they say of one that holds none. Raises
    ``error``.
    """
    with reading(path, error):
        raw = read_bytes(path)
    with reading(what, error, says, "fetch it again"):
        data = json.loads(raw)
        if not isinstance(data, dict):
            raise TypeError(f"it holds no object but {_CALLED.get(type(data), 'a number')}")
    return data
