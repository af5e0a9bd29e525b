"""The process that answers questions over whole models, and the server's side of it, ``Lookups``.

    python -m paramdex.web.lookup_worker ATLAS

A question is a function of an open atlas, with its other arguments. An answer is what the function returned, or the
error that it raised. Both are pickled, a function by its name: this program is on both sides.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import paramdex
from paramdex import Atlas
from paramdex.web.cards import comparison, questions  # noqa: F401  # loaded before the first question
from paramdex.web.load.processes import Crew, Process, read_message, write_message
from paramdex.web.load.shares import Share
from paramdex_schemas import ParamdexError, QueryError

P = ParamSpec("P")
T = TypeVar("T")


class Lookups:
    """Questions over whole models, each answered by a process that is killed where it takes too long."""

    def __init__(self, atlas: Path, share: Share) -> None:
        self._atlas = atlas.resolve()
        self._share = share
        self._crew = Crew(lambda: Process("paramdex.web.lookup_worker", str(self._atlas)), share)
        self.warm = self._crew.warm
        self.close = self._crew.close

    async def ask(self, question: Callable[Concatenate[Atlas, P], T], *values: P.args, **choices: P.kwargs) -> T:
        """What ``question``, a function of a module, returns for the atlas. Raises what it raises; BusyError, LateError
        and EndingError; QueryError where there is not enough memory.
        """
        message = pickle.dumps((question, values, choices))
        answer: T = await self._crew.ask(lambda process: self._answer(process, message))
        return answer

    def _answer(self, process: Process, question: bytes) -> Any:
        message = process.exchange(question, self._share.seconds)
        if message is None:
            raise QueryError("this was cut short; ask for less, say of one model")
        answer = pickle.loads(message)  # noqa: S301  # this program's own
        if isinstance(answer, BaseException):
            raise answer
        return answer


def _answered(atlas: Atlas, message: bytes) -> Any:
    question, values, choices = pickle.loads(message)  # noqa: S301  # this program's own
    try:
        return question(atlas, *values, **choices)
    except ParamdexError as error:
        return error
    except MemoryError:
        return QueryError("this takes more memory than there is; ask for less, say of one model")
    except Exception as error:  # noqa: BLE001  # the server says that it is a fault of its own
        return RuntimeError(f"{type(error).__name__}: {error}")


def main() -> None:
    with suppress(AttributeError):  # of Windows
        os.nice(5)  # pages come before look-ups, and look-ups before SQL
    atlas = paramdex.open(sys.argv[1])
    write_message(sys.stdout.buffer, b"ready")
    while (message := read_message(sys.stdin.buffer)) is not None:
        write_message(sys.stdout.buffer, pickle.dumps(_answered(atlas, message)))


if __name__ == "__main__":
    main()
