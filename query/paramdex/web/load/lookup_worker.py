"""The process that answers look-ups over whole models, and what the server asks it through.

    python -m paramdex.web.load.lookup_worker ATLAS

A question is a name of ``_QUESTIONS`` with its arguments; an answer is what its function gave or the error that it
raised. Both are pickled: they are this program's own on either side.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import paramdex
from paramdex import Atlas
from paramdex.web.cards import comparison as compare
from paramdex.web.cards import questions
from paramdex.web.cards.shapes import Comparison
from paramdex.web.load.processes import Crew, Process, read_message, write_message
from paramdex.web.load.shares import Share
from paramdex_schemas import ParamdexError, QueryError


@lru_cache(maxsize=64)
def _compared(atlas: Atlas, a: str, b: str) -> Comparison:
    return compare.comparison(atlas, a, b)


def align(atlas: Atlas, a: str, b: str, kind: str | None) -> Comparison:
    """The alignment of two models, of one kind where one is given."""
    whole = _compared(atlas, a, b)
    if kind is None:
        return whole
    if kind not in compare.comparable_kinds(atlas, a, b):
        return compare.comparison(atlas, a, b, kind)
    return whole.model_copy(update={"maps": [each for each in whole.maps if each.kind == kind]})


_QUESTIONS: dict[str, Callable[..., Any]] = {
    "find": questions.find,
    "search": questions.search,
    "similar": questions.similar,
    "align": align,
    "pairs": compare.layer_pairs,
}


class Lookups:
    """The door to look-ups: each is answered by a process, which is ended where it takes too long."""

    def __init__(self, atlas: Path, share: Share) -> None:
        self._atlas = atlas.resolve()
        self._share = share
        self._crew = Crew(lambda: Process("paramdex.web.load.lookup_worker", str(self._atlas)), share)
        self.warm = self._crew.warm
        self.close = self._crew.close

    async def ask(self, name: str, *values: Any, **choices: Any) -> Any:
        """The answer to a question. Raises what its function raises, BusyError, LateError; QueryError where it takes
        more memory than there is.
        """
        return await self._crew.ask(lambda process: self._answer(process, pickle.dumps((name, values, choices))))

    def _answer(self, process: Process, question: bytes) -> Any:
        message = process.exchange(question, self._share.seconds)
        if message is None:
            raise QueryError("this look-up ended before it was done; ask for less, in one model say")
        answer = pickle.loads(message)  # noqa: S301  # this program's own
        if isinstance(answer, BaseException):
            raise answer
        return answer


def _answered(atlas: Atlas, message: bytes) -> Any:
    name, values, choices = pickle.loads(message)  # noqa: S301  # this program's own
    try:
        return _QUESTIONS[name](atlas, *values, **choices)
    except ParamdexError as error:
        return error
    except MemoryError:
        return QueryError("this look-up takes more memory than there is; ask for less, in one model say")
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
