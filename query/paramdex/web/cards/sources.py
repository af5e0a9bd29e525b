"""Where a model came from, without any path of the machine that built or serves it."""

from __future__ import annotations

from pathlib import PureWindowsPath


def public_source(source: str) -> str:
    """A source as it was given to ``paramdex build``. A path that is absolute, or leads out of the folder it was given
    in, is cut to its last two names, or to the last one if the other might name a person (one of the path's first two).

    >>> public_source("gpt2"), public_source("data/models/tiny-a"), public_source("/srv/share/models/llama")
    ('gpt2', 'data/models/tiny-a', '…/models/llama')
    >>> public_source("/home/ann/llama"), public_source("../llama"), public_source(r"C:\\Users\\ann\\models\\llama")
    ('…/llama', '…/llama', '…/models/llama')
    """
    path = PureWindowsPath(source)  # has both kinds of slashes for separators, and drives
    if not path.anchor and not source.startswith("~") and ".." not in path.parts:
        return source
    names = [part for part in path.parts if part not in (path.anchor, "..", "~")]
    return "/".join(["…", *(names[max(2, len(names) - 2) :] or names[-1:])])
