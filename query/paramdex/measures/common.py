"""What the summaries and pictures of measures share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def last_part(source: str) -> str:
    """The last part of a source, for places with little room.

    >>> last_part("data/models/tiny-a")
    'tiny-a'
    """
    return Path(source).name or source


def by(rows: list[dict[str, Any]], value: str, key: Callable[[dict[str, Any]], Any]) -> dict[Any, list[float]]:
    """A column's values in groups: key -> values, the keys in order."""
    found: dict[Any, list[float]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row[value])
    return dict(sorted(found.items()))
