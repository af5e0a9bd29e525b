"""What questions of one sort may take of the server, and the errors of those that would take more."""

from __future__ import annotations

from dataclasses import dataclass

from paramdex_schemas import QueryError


@dataclass(frozen=True)
class Share:
    """What questions of one sort may take of the server."""

    running: int
    """answered at a time"""
    waiting: int
    """waiting for them before others are turned away"""
    seconds: float
    """seconds that one may take once it has its turn"""


class BusyError(QueryError):
    """Enough questions are being answered, and enough wait."""


class LateError(QueryError):
    """A question took longer than it may."""


class EndingError(QueryError):
    """The server ends before the question is answered."""

    def __init__(self) -> None:
        super().__init__("this server is ending")
