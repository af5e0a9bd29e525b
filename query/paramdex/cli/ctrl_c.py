"""Ctrl-C while the program starts.

Python raises KeyboardInterrupt wherever it is. While it imports DuckDB, pyarrow or torch, which takes most of the time
of a look-up, that is deep inside them: a traceback, or an error of a library that is half imported. Until there is
work that has to end in good order, the program has nothing to put away, and ends at once.

What comes before the first line of ``run`` is Python's own: its start (some 20 ms), the script, and this package's
first lines (1 ms). There, Ctrl-C prints Python's own traceback.
"""

from __future__ import annotations

import os
import signal

INTERRUPTED = 130
"""The exit code of a program that Ctrl-C ended, as shells have it: 128 and the signal's number."""


def _leave(*_: object) -> None:
    os._exit(INTERRUPTED)


def end_at_once() -> None:
    """Ctrl-C now ends the process silently, unless it is ignored, as in background jobs."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def raise_again() -> None:
    """From here on Ctrl-C raises KeyboardInterrupt again, for what has to end in good order."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
