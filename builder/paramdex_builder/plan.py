"""The plan of a build: what is built, and all that decides the numbers that it makes."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

import torch

from paramdex_builder.options import Options
from paramdex_builder.project.finite import check_lengths
from paramdex_builder.project.scoring import scored_layout
from paramdex_builder.read.hub import own_name
from paramdex_builder.read.source import read_named_words
from paramdex_builder.read.vocabulary import Vocabulary, read_vocabulary
from paramdex_builder.read.weights import Weights
from paramdex_builder.stream.reading import reading_of
from paramdex_builder.work.arguments import source_text
from paramdex_schemas import FORMAT_VERSION, BuildError, Layout
from paramdex_schemas.addresses import MODEL_NAME
from paramdex_schemas.errors import quoted
from paramdex_schemas.progress import Progress


@dataclass(frozen=True)
class Plan:
    """All that decides the numbers of a model. Two builds of one plan make the same rows.

    All fields except ``format`` and ``numbers`` are columns of ``store.models``. A field that is added, dropped or
    renamed changes every fingerprint, and so discards the finished units of interrupted builds.
    """

    weights_sha256: str
    base_sha256: str | None
    tokenizer_sha256: str
    vocabulary: str
    vocabulary_size: int
    family: str
    numbers: dict[str, Any]
    """layers, widths, heads: more columns of ``store.models``"""
    embedding: str
    """output or input: the one that scores"""
    tied: bool
    fold_norm: bool
    reading: str
    """expected, effective or embedding"""
    reading_text: str | None
    """what the maps of an expected reading are fitted on"""
    top_k: int
    pair_k: int
    neighbor_k: int
    directions_k: int
    format: int = FORMAT_VERSION

    def entries(self) -> dict[str, Any]:
        """The plan as JSON can hold it."""
        return asdict(self)

    def fingerprint(self) -> str:
        """The SHA-256 of the plan (64 hexadecimal digits)."""
        return hashlib.sha256(json.dumps(self.entries(), sort_keys=True).encode()).hexdigest()

    def row(self) -> dict[str, Any]:
        """The columns of ``store.models`` that the plan decides."""
        columns = self.entries()
        del columns["format"], columns["numbers"]
        return columns | self.numbers | {"plan_sha256": self.fingerprint()}


@dataclass(frozen=True)
class Planned:
    """A model that was read and checked, and is to be built."""

    name: str
    weights: Weights
    vocabulary: Vocabulary
    layout: Layout
    """which says in which space each of its vectors is scored"""
    plan: Plan
    stored: torch.dtype
    """what its embedding is held in"""


def plan_model(name: str, weights: Weights, options: Options, progress: Progress) -> Planned:
    """The plan of one model. Every tensor is checked on the way, and ``progress`` is told what is left out.

    Raises CheckpointError, FamilyError or BuildError where the model cannot be built.
    """
    E, embedding, tied = weights.embedding(options.space)
    check_lengths(E, f"{weights.source}: {embedding} embedding")
    for note in weights.notes(options.space):
        progress.say(f"{name}: {note}")
    vocabulary = read_vocabulary(weights.source, weights.folder, len(E))
    if vocabulary.past_rows:
        n, some = len(vocabulary.past_rows), ", ".join(map(repr, vocabulary.past_rows[:5]))
        some += ", ..." if n > 5 else ""
        progress.say(f"{name}: left out {n} added tokens, because the embedding has no rows for them: {some}")
    with progress.step(f"{name}: checking weights", len(weights.layout.runs)) as advance:
        weights.check_layers(advance)
    reading = reading_of(options.reading, weights.runs, options.text, progress)
    left_out = [f"{part} ({n} tensors)" for part, n in weights.left_out().items()]
    if left_out:
        family = weights.family.name
        progress.say(f"{name}: left out what the family {family} does not know: {', '.join(left_out)}")
    plan = Plan(
        weights_sha256=weights.sha256(),
        base_sha256=weights.base_sha256(),
        tokenizer_sha256=vocabulary.tokenizer_sha256,
        vocabulary=vocabulary.name,
        vocabulary_size=len(vocabulary),
        family=weights.family.name,
        numbers=weights.numbers(),
        embedding=embedding,
        tied=tied,
        fold_norm=options.fold_norm,
        reading=reading,
        reading_text=_text_of(reading, options),
        top_k=options.top_k,
        pair_k=options.pair_k,
        neighbor_k=options.neighbor_k,
        directions_k=options.directions_k,
    )
    layout = scored_layout(weights.layout, embedding, reading)
    return Planned(name, weights, vocabulary, layout, plan, E.dtype)


def _text_of(reading: str, options: Options) -> str | None:
    """What maps are fitted on. Raises BuildError where a text that was given cannot be read."""
    if reading != "expected":
        return None
    return "its own" if options.text is None else read_named_words(options.text)[1]


def named_sources(sources: Sequence[str], base: str | PathLike[str] | None = None) -> dict[str, str]:
    """name -> source. A source without a name is called by its last part. What moved between two models is called
    TUNED-minus-BASE, since both models may stand in the atlas beside it.

    Raises BuildError for a name that cannot be, or stands twice.
    """
    named: dict[str, str] = {}
    for text in sources:
        name, equals, source = text.partition("=")
        # it is a path, which may have = in it
        if not equals or ("/" in name and (name[0] in "./" or os.access(text, os.F_OK))):
            source, name = text, own_name(text)
            if base is not None:
                name += f"-minus-{own_name(str(base))}"
        source = source_text(source)
        if not MODEL_NAME.fullmatch(name):
            better = re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-._+") or "NAME"
            no_path = f" (and there is no folder {text})" if "/" in name else ""
            raise BuildError(
                f"{quoted(name)} cannot name a model; use letters, digits, . _ + and -; "
                f"write {better}={source}{no_path}"
            )
        if name == "all":
            raise BuildError(f"a model cannot be called all, which stands for every model; write NAME={source}")
        if name in named:
            raise BuildError(f"two models would be called {name}; name one of them: OTHER={source}")
        named[name] = source
    return named
