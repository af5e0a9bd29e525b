"""The errors a user can meet. Each message says what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Sequence
from operator import index

_LONGEST = 80
"""Characters of a value that a message shows."""
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = _LONGEST


class ParamdexError(Exception):
    """Base of every error that paramdex raises on purpose. The message is one line that can be printed, whatever a
    path, a model or a tensor is called; ``but`` are characters in it that stay as they are.

    ParamdexError
    ├── AtlasError          the folder is no atlas, is damaged, or is of a newer format
    ├── AddressError        no such model, layer, head, kind or parameter
    ├── TokenError          no such word or token in the vocabulary
    ├── QueryError          SQL or options that cannot be answered
    └── BuildError          an atlas cannot be built
        ├── FamilyError     the model's family is not known, or its tensors do not fit it
        └── CheckpointError the model's files are missing, damaged or hold bad numbers
    """

    def __init__(self, message: object = "", *, but: str = "") -> None:
        super().__init__(escaped(str(message), but))


class AtlasError(ParamdexError):
    """The folder is no atlas, is damaged, or is of a newer format."""


class AddressError(ParamdexError):
    """No such model, layer, head, kind or parameter."""


class TokenError(ParamdexError):
    """No such word or token in the vocabulary."""


class QueryError(ParamdexError):
    """SQL or options that cannot be answered."""


class BuildError(ParamdexError):
    """An atlas cannot be built."""


class FamilyError(BuildError):
    """The model's family is not known, or its tensors do not fit it."""


class CheckpointError(BuildError):
    """The model's files are missing, damaged or hold bad numbers."""


def quoted(value: object) -> str:
    """A value as messages name it: in one line, and no longer than is read, whatever its own ``repr`` does.

    >>> quoted("a\\nb"), quoted("a" * 500)[-5:], quoted([0] * 500)
    ("'a\\\\nb'", "a'...", '[0, 0, 0, 0, 0, 0, ...]')
    """
    try:
        if isinstance(value, str):
            return repr(str.__getitem__(value, slice(_LONGEST))) + ("..." if str.__len__(value) > _LONGEST else "")
        text = " ".join(_SHORT.repr(value).split())
    except Exception:  # noqa: BLE001  # the value's own
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 2 * _LONGEST else f"{text[: 2 * _LONGEST]}..."


def nearest(word: str, choices: Iterable[str], n: int = 3) -> str:
    """The end of an error message: the choices nearest to ``word``, whatever their case, or all where they are few.

    >>> nearest("FF_valu", ["ff_key", "ff_value", "attn_output"])
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


def escaped(text: str, but: str = "") -> str:
    r"""Text for a terminal, on which nothing that it holds can act: with escapes for what would not be seen as itself,
    ``but`` for these characters.

    >>> escaped("a\x1b[31mb\n"), escaped("two\nlines\x07", but="\n")
    ('a\\x1b[31mb\\n', 'two\nlines\\x07')
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in but else c.encode("unicode_escape").decode("ascii") for c in text)


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
