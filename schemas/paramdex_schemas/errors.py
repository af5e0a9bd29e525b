"""The errors a user can meet. Each message says what was wrong, where, and what to do."""

from __future__ import annotations

import reprlib

_LONGEST = 80
"""Characters of a value that a message shows."""
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = _LONGEST


class ParamdexError(Exception):
    """Base of every error that paramdex raises on purpose. The message is one line that is safe to print, whatever the
    names of paths, models and tensors in it. Characters in ``but`` are not escaped.

    ParamdexError
    ├── AtlasError          the folder is not an atlas, is damaged, or is of another format
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
    """The folder is not an atlas, is damaged, or is of another format."""


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
    """A value as messages name it: on one line and short, whatever its own ``repr`` does.

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


def escaped(text: str, but: str = "") -> str:
    r"""Text that is safe to print on a terminal: characters that cannot be seen are escaped, except those in ``but``.

    >>> escaped("a\x1b[31mb\n"), escaped("two\nlines\x07", but="\n")
    ('a\\x1b[31mb\\n', 'two\nlines\\x07')
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in but else c.encode("unicode_escape").decode("ascii") for c in text)
