"""The shape of every error: the JSON that a program gets, and what the error page is filled with."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from paramdex.web.cards.shapes import Shape

Kind = Literal["address", "token", "query", "request", "busy", "atlas", "server"]


class Fault(Shape):
    """What was wrong, and the nearest things that exist."""

    status: int
    kind: Kind
    message: str
    nearest: list[str] = Field(default=[])
    """Addresses or words that exist, nearest first."""


class Problem(Shape):
    """The one shape of all errors."""

    error: Fault
