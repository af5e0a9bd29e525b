"""How much of the server each sort of question may use, and the errors when one would exceed it."""

from __future__ import annotations

from dataclasses import dataclass

from paramdex_schemas import QueryError


@dataclass(frozen=True)
class Share:
    """How much of the server the questions of one sort may use."""

    running: int
    """how many are answered at a time"""
    waiting: int
    """how many may wait before the next is turned away"""
    seconds: float
    """how many seconds one may take, once it has its turn"""


class BusyError(QueryError):
    """The queue is full."""


class LateError(QueryError):
    """A question took longer than it may."""


class EndingError(QueryError):
    """The server shuts down before the question is answered."""

    def __init__(self) -> None:
        super().__init__("this server is shutting down")
