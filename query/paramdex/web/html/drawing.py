"""What the templates need to draw: the pieces of a token, the places of bars and cells, the levels of colour."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from paramdex.web.cards.model import Grid
from paramdex.web.cards.parameter import ParameterCard
from paramdex.web.cards.shapes import Scored, Token

LEVELS = 10
"""Number of colours of a map: c0 to c9 in the style sheet."""
_WRAP = 64
"""Cells in a line, where a map has one row."""


@dataclass(frozen=True)
class TextPart:
    """A run of a token's text. Where it is not plain text, ``mark`` is its CSS class and ``title`` explains it."""

    text: str
    mark: str = ""
    title: str = ""


def pieces(token: Token | str) -> list[TextPart]:
    r"""A token's text, cut so that invisible characters can be shown.

    >>> [(piece.text, piece.mark) for piece in pieces(" a\n")]
    [('␣', 'space'), ('a', ''), ('\\n', 'control')]
    """
    text = token if isinstance(token, str) else token.text
    found: list[TextPart] = []
    if prefix := _prefix(token):
        found.append(TextPart(prefix, "continues", "goes on with a word"))
    ends = len(text) - len(text.lstrip(" ")), len(text.rstrip(" "))
    plain = ""
    for i, character in enumerate(text):
        at_end = character == " " and (i < ends[0] or i >= ends[1])
        if not at_end and (character == " " or character.isprintable()):
            plain += character
            continue
        if plain:
            found.append(TextPart(plain))
            plain = ""
        if at_end:
            found.append(TextPart("␣", "space", "a space"))
        else:
            code = character.encode("unicode_escape", "replace").decode("ascii")
            found.append(TextPart(code, "control", f"the character U+{ord(character):04X}"))
    if plain:
        found.append(TextPart(plain))
    return found or [TextPart("empty", "control", "no text")]


def _prefix(token: Token | str) -> str:
    """What a continuation is spelled with before its text (``##``); empty for other tokens."""
    if isinstance(token, str) or not token.token.endswith(token.text):
        return ""
    return token.token.removesuffix(token.text)


def ask_for(token: Token | str) -> str:
    """What to type into the search box for a token.

    >>> ask_for(" Canada"), ask_for("wine"), ask_for(' "b')
    ('" Canada"', 'wine', '" ""b"')
    """
    text = token if isinstance(token, str) else token.token if _prefix(token) else token.text
    plain = text and not any(character.isspace() for character in text) and not text.startswith('"')
    return text if plain else '"{}"'.format(text.replace('"', '""'))


def level(value: float | None, low: float, high: float) -> int:
    """The colour of a value, 0 to LEVELS - 1.

    >>> level(0.0, 0.0, 1.0), level(0.55, 0.0, 1.0), level(1.0, 0.0, 1.0)
    (0, 5, 9)
    """
    if value is None or not high > low:
        return 0
    return max(0, min(LEVELS - 1, int(LEVELS * (value - low) / (high - low))))


@dataclass(frozen=True)
class Scale:
    """From values to places on a line, 0 to 100."""

    low: float
    high: float

    def at(self, value: float) -> float:
        return round(100 * (value - self.low) / (self.high - self.low), 2) if self.high > self.low else 50.0

    def span(self, a: float, b: float) -> tuple[float, float]:
        """(start, width) of the bar between two values, which are clipped to the line."""
        low, high = sorted(self.at(max(self.low, min(self.high, v))) for v in (a, b))
        return low, round(max(high - low, 0.4), 2)


def score_scale(card: ParameterCard) -> Scale:
    """One scale for both sides of a card. It holds all scores shown, and three standard deviations either way."""
    scores = [token.score for token in (*card.top, *card.bottom)]
    ends = [*scores, card.mean - 3 * card.std, card.mean + 3 * card.std]
    margin = 0.02 * (max(ends) - min(ends))
    return Scale(min(ends) - margin, max(ends) + margin)


def norm_scale(card: ParameterCard) -> Scale:
    """From the norms of a layer to places on a line. The line leaves out outliers, but never the card's own norm."""
    first, _, third = card.standing.quartiles
    far = 4 * (third - first)
    return Scale(
        min(card.norm, max(card.standing.least, first - far)), max(card.norm, min(card.standing.most, third + far))
    )


def bar(scale: Scale, card: ParameterCard, token: Scored) -> tuple[float, float]:
    return scale.span(card.mean, token.score)


@dataclass(frozen=True)
class Map:
    """A map of many cells: its size, the margin for labels, the size of a cell, and (x, y, level, cell) of each."""

    width: int
    height: int
    margin: int
    cell: tuple[int, int]
    cells: list[tuple[int, int, int, Any]]
    labels: list[tuple[int, str, str]]
    """(y, place, address) of each row."""


def draw(grid: Grid) -> Map:
    """Lay out a grid: each row is a band of lines, with at most 128 cells in a line (64 where the grid has one row)."""
    most = max((len(row.cells) for row in grid.rows), default=1)
    one = len(grid.rows) == 1
    wrap = min(_WRAP if one else 2 * _WRAP, most)
    side = 8 if one or most > wrap else 6
    size = (side, side if one or most > wrap else 2 * side)
    cells, labels = [], []
    y = 0
    for row in grid.rows:
        if not one:
            labels.append((y, row.place, row.address))
        for n, cell in enumerate(row.cells):
            at = (size[0] * (n % wrap), y + size[1] * (n // wrap))
            cells.append((*at, level(cell.value, grid.low, grid.high), cell))
        y += size[1] * max(1, -(-len(row.cells) // wrap)) + 3
    margin = 0 if one else 8 + 5 * max(len(row.place) for row in grid.rows)
    return Map(size[0] * wrap, y - 3, margin, size, cells, labels)


def number(value: float | None) -> str:
    r"""A number for people: floats with four digits, thousands separated, a true minus sign.

    >>> number(0.123456), number(30522), number(-0.5) == "\N{MINUS SIGN}0.5"
    ('0.1235', '30,522', True)
    """
    if value is None:
        return "\N{EN DASH}"
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return text.replace("-", "\N{MINUS SIGN}")


@lru_cache(1 << 16)
def href(address: str) -> str:
    """The path of an address. It is cached: a map has hundreds."""
    return "/" + quote(address, safe="/")
