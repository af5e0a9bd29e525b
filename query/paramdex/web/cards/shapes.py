"""The shapes that several answers are made of, and the shape of every error.

An answer's own shape stands beside the function that makes it. The JSON address gives it as it is, and the template is
filled with it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Side = Literal["top", "bottom"]
Sides = Literal["top", "bottom", "both"]
FaultKind = Literal["address", "token", "query", "request", "busy", "atlas", "server"]


class Shape(BaseModel):
    model_config = ConfigDict(frozen=True)


class Token(Shape):
    """A vocabulary item: ``text`` is how it reads, ``token`` is the tokenizer's own spelling."""

    token_id: int
    token: str
    text: str


class Scored(Token):
    """A token with its raw score (its logit, in the logit lens); z, the standard deviations from the mean of the
    vector's scores; and token_z, those from the mean of the token's.
    """

    score: float
    z: float | None
    token_z: float | None


class Cell(Shape):
    address: str
    value: float
    count: int = 1
    """How many vectors the cell stands for; the address is that of the one with the largest value."""


class Named(Shape):
    """A parameter in a list, with its strongest tokens."""

    address: str
    kind: str
    top: list[Token]
    bottom: list[Token]


class Near(Named):
    rank: int
    similarity: float


class Standing(Shape):
    """Where a norm stands among those of the same kind and place."""

    larger: int
    """How many are larger."""
    of: int
    least: float
    quartiles: list[float]
    most: float


class Fault(Shape):
    """What was wrong, and the nearest things that exist."""

    status: int
    kind: FaultKind
    message: str
    nearest: list[str] = Field(default=[])
    """Addresses or words that exist, nearest first."""


class Problem(Shape):
    """The one shape of all errors."""

    error: Fault
