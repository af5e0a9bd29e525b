"""Progress of long steps: a bar with rate and time left in a terminal; elsewhere a line per step and per minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

from paramdex_schemas.errors import escaped

Advance = Callable[[int], None]
_SILENCE = 60.0
"""Seconds after which a step without a bar says how far it is."""


class Progress:
    """Says nothing; the base of the others."""

    @contextmanager
    def step(self, what: str, total: int) -> Iterator[Advance]:
        """A step of ``total`` units; the caller reports finished units to what it gets."""
        del what, total
        yield lambda _: None

    def say(self, line: str) -> None:
        """A line about something finished."""


class TerminalProgress(Progress):
    """Bars on standard error where it is a terminal. Elsewhere, as in a log, one line per step that took over two
    seconds, and one per minute while it runs.
    """

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False, soft_wrap=True)

    @contextmanager
    def step(self, what: str, total: int) -> Iterator[Advance]:
        started = time.monotonic()
        if sys.stderr.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
            )
            with Bars(*columns, console=self._console, transient=True) as bars:
                task = bars.add_task(escaped(what), total=total, rate="")

                def advance(n: int) -> None:
                    done = bars.tasks[0].completed + n
                    bars.update(task, advance=n, rate=_rate(done, time.monotonic() - started))

                yield advance
        else:
            done, told = 0, started

            def advance(n: int) -> None:
                nonlocal done, told
                done += n
                now = time.monotonic()
                if now - told >= _SILENCE and 0 < done < total:
                    told = now
                    left = timedelta(seconds=round((now - started) * (total - done) / done))
                    self.say(f"  {what}: {done:,} of {total:,}, {left} left")

            yield advance
        seconds = time.monotonic() - started
        if seconds > 2:
            self.say(f"  {what}: {total:,} in {seconds:.0f} s ({_rate(total, seconds)})")

    def say(self, line: str) -> None:
        from rich.text import Text  # so that no bracket in a name is markup

        with suppress(OSError):  # if nobody can read it, the build goes on
            self._console.print(Text(escaped(line)))


def _rate(n: float, seconds: float) -> str:
    """A rate per second, as people read it.

    >>> _rate(106_496, 903), _rate(128, 1737)
    ('118/s', '0.074/s')
    """
    rate = n / max(seconds, 1e-3)
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"
