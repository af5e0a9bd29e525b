"""A process that answers as it is told, for tests of what becomes of those that do not: "echo X", "sleep X", "die"."""

from __future__ import annotations

import os
import sys
import time

from paramdex.web.load.processes import read_message, write_message


def main() -> None:
    write_message(sys.stdout.buffer, b"ready")
    while (message := read_message(sys.stdin.buffer)) is not None:
        what, _, value = message.decode().partition(" ")
        if what == "die":
            os._exit(1)
        if what == "sleep":
            time.sleep(float(value))
        write_message(sys.stdout.buffer, b"%d %s" % (os.getpid(), value.encode()))


if __name__ == "__main__":
    main()
