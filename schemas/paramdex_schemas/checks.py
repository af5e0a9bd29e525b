"""The checks of what a caller gives, and what a message suggests in its place: numbers, texts, names from a list."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from operator import index

from paramdex_schemas.errors import ParamdexError, QueryError, quoted

_LONGEST = 80
"""Characters of a word that names are compared with."""


def whole_number(
    name: str, value: object, least: int, most: int | None = None, error: type[ParamdexError] = QueryError
) -> int:
    """``value`` as an int, be it Python's or NumPy's. Raises ``error`` for what is none, or is out of range."""
    number = as_whole(value)
    if number is None:
        raise error(f"{name} must be a whole number, not {quoted(value)}")
    if number < least or (most is not None and number > most):
        wanted = f"at least {least}" if most is None else f"from {least} to {most:,}"
        raise error(f"{name} must be {wanted}, not {quoted(number)}")
    return number


def as_whole(value: object) -> int | None:
    """A whole number as Python's int; None where ``value`` is none, which True and False are not either."""
    try:
        return None if isinstance(value, bool) else index(value)  # type: ignore[arg-type]  # answered with None
    except Exception:  # noqa: BLE001  # TypeError, or the value's own
        return None


def check_text(text: object, error: ParamdexError) -> str:
    """``text`` as Python's own str. Raises ``error`` unless it is one and UTF-8: of other bytes arguments and paths
    have lone surrogates.
    """
    if not isinstance(text, str):
        raise error
    try:
        text.encode()
    except UnicodeEncodeError as cause:
        raise error from cause
    return str.__str__(text)


def suggest(word: str, choices: Iterable[str], n: int = 3) -> str:
    """The end of an error message: the choices nearest to ``word``, whatever their case, or all where they are few.

    >>> suggest("FF_valu", ["ff_key", "ff_value", "attn_output"])
    'did you mean ff_value?'
    """
    names = list(dict.fromkeys(choices))
    by_reading = {name.casefold(): name for name in names}
    reads = word[:_LONGEST].casefold()  # more would take long, and no name is that long
    close = [by_reading[each] for each in difflib.get_close_matches(reads, by_reading, n=n, cutoff=0.6)]
    if close:
        return f"did you mean {' or '.join(close)}?"
    return listing(names)


def listing(names: Sequence[str]) -> str:
    """The end of an error message: the names that there are, or the first of them."""
    if len(names) <= 12:
        return f"there {'is' if len(names) == 1 else 'are'} {', '.join(names) or 'none'}"
    return f"there are {', '.join(names[:12])}, ..."
