"""A helper process for test_resume.py: builds atlases in forks of itself, which kill themselves where they are told.

It imports the heavy libraries once. Every line on standard input is a job, {"sources": [...], "output": ..., "kill":
[POINT, N] or null}; every line on standard output answers with how the fork ended (minus the signal, or an exit status)
and what it said. The kill is SIGKILL, so no clean-up of any kind runs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from paramdex_builder import Options, build
from paramdex_builder.files import units
from paramdex_builder.publish import publish, relating
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.read.vocabulary import read_vocabulary
from paramdex_schemas import commit

OPTIONS = Options(top_k=6, pair_k=8, neighbor_k=3, device="cpu", reading="embedding")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(owner: Any, name: str, n: int, *, after: bool = False, when: Callable[..., bool] = lambda *_: True) -> None:
    """Make the ``n``-th call of ``owner.name`` with arguments that ``when`` accepts the last thing the process does."""
    original = getattr(owner, name)
    left = [n]

    def deadly(*args: Any, **kwargs: Any) -> Any:
        left[0] -= when(*args)
        last = left[0] == 0 and when(*args)
        if last and not after:
            die()
        result = original(*args, **kwargs)
        if last:
            die()
        return result

    setattr(owner, name, deadly)


def arm_half_write(n: int) -> None:
    """Die with the ``n``-th unit file half-written under its temporary name."""
    original, left = Path.replace, [n]

    def replace(self: Path, target: Path) -> Any:
        left[0] -= 1
        if left[0] == 0:
            data = self.read_bytes()
            self.write_bytes(data[: len(data) // 2])
            die()
        return original(self, target)

    Path.replace = replace  # type: ignore[method-assign,assignment]


def arm_rename(name: str, n: int) -> None:
    """Die when a file of the atlas of this name is replaced for the ``n``-th time."""
    arm(Path, "replace", n, after=True, when=lambda _, target: Path(target).name == name)


def arm_group(group: str, n: int) -> None:
    """Die when the folders of one of the two groups, models or relations, are in their place for the ``n``-th time."""
    arm(commit, "_move_all", n, after=True, when=lambda source, _: source.name == group)


POINTS: dict[str, Callable[[int], None]] = {
    "before unit": lambda n: arm(units, "write_whole", n),
    "after unit": lambda n: arm(units, "write_whole", n, after=True),
    "half a unit": arm_half_write,
    "before publishing": lambda n: arm(publish, "write_vectors", n),
    "vectors written": lambda n: arm(publish, "write_vectors", n, after=True),
    "model row inserted": lambda n: arm(publish, "insert_model", n, after=True),
    "parameters inserted": lambda n: arm(publish, "insert_parameters", n, after=True),
    "model written": lambda n: arm(publish, "write_model", n, after=True),
    "neighbors inserted": lambda n: arm(relating, "insert", n, after=True),
    "relation written": lambda n: arm(publish, "write_relation", n, after=True),
    "before flushing": lambda n: arm(commit, "flush_tree", n),
    "before the first rename": lambda n: arm(commit, "flush_tree", n, after=True),
    "atlas made": lambda n: arm(Path, "rename", n, after=True, when=lambda _, target: target.suffix == ".atlas"),
    "relations in place": lambda n: arm_group("relations", n),
    "a model's folder in place": lambda n: arm(
        Path, "rename", n, after=True, when=lambda _, target: target.parent.name == "models"
    ),
    "models in place": lambda n: arm_group("models", n),
    "attach.sql in place": lambda n: arm_rename("attach.sql", n),
    "index in place": lambda n: arm_rename("atlas.json", n),
    "a leftover swept": lambda n: arm(
        shutil, "rmtree", n, after=True, when=lambda path, *_: Path(path).parent.parent.suffix == ".atlas"
    ),
    "after the renames": lambda n: arm(publish, "commit", n, after=True),
}


def run(job: dict[str, Any]) -> None:
    os.fsync = lambda _: None  # a killed process loses nothing that it wrote; a power cut cannot be tested here
    if job["kill"]:
        point, n = job["kill"]
        POINTS[point](n)
    build(job["sources"], job["output"], OPTIONS)


def warm_up(source: str) -> None:
    """Read one model, so that the forks need not import what reading takes."""
    checkpoint = Checkpoint.open(source)
    read_vocabulary(source, checkpoint.folder, len(checkpoint.embedding()[0]))


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        warm_up(json.loads(line)["sources"][0])
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                run(json.loads(line))
                os._exit(0)
            except BaseException as error:  # noqa: BLE001  a fork must not go on with its parent's work
                os.write(writer, f"{type(error).__name__}: {error}".encode())
                os._exit(1)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            said = pipe.read().decode()
        _, status = os.waitpid(child, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status), "said": said}), flush=True)


if __name__ == "__main__":
    main()
