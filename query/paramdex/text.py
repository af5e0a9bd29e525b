"""How tokens are printed: every character can be seen, and none acts on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from paramdex_schemas.errors import escaped


def visible(text: str) -> str:
    r"""Text as it is printed: a space at either end as ␣, characters that would not be seen as themselves escaped.

    >>> visible(" Canada"), visible("a\nb")
    ('␣Canada', 'a\\nb')
    """
    inner = text.strip(" ")
    if inner != text:
        start = len(text) - len(text.lstrip(" "))
        text = "␣" * start + inner + "␣" * (len(text) - start - len(inner))
    return escaped(text)


def arrow(source: str, target: str) -> str:
    """A pair of tokens as it is printed.

    >>> arrow("paris", " france")
    'paris → ␣france'
    """
    return f"{visible(source)} → {visible(target)}"


def some(names: Sequence[str], most: int, between: str = ", ") -> str:
    """The first ``most`` names for a note, and how many more there are.

    >>> some(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return between.join(names[:most]) + more
