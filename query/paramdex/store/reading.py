"""How vectors are read: what each space is, in words, and how well its scores tell what a vector reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from paramdex.store.store import Store
from paramdex_schemas import KINDS, MATRICES, Address
from paramdex_schemas.layout import Place, place_name
from paramdex_schemas.model import Model

SAYS = {
    "entering": "what enters layer 0 for each token",
    "reading": "what layer 0 makes of each token",
}
"""A space of readers -> what a row of it stands for."""
READS = "correlation of what is read with the score of the token, on held-out text"
"""What ``reads`` of a parameter means."""
_READABLE, _TELLING = 2.0, 0.5
"""Where a list has fewer standard deviations in common, and ``reads`` is less, it is said that nothing is readable."""
_OF_HEADS = [kind for kinds in MATRICES.values() for kind in kinds if KINDS[kind].role == "reads"]


def other_space(model: Model, kind: str, place: Place) -> str | None:
    """The space that scores the vectors of a kind in a place; None where it is the model's main space."""
    space = model.layout.space(kind, place)
    return None if space == model.embedding else space


def read_by(space: str | None) -> str | None:
    """What people are told of the space that scores a vector; None where ``other_space`` gives none.

    >>> read_by("entering")
    'read by what enters layer 0 for each token (space entering)'
    """
    return None if space is None else f"read by {SAYS[space]} (space {space})"


def readable_says(readable: Mapping[str, float | None], reads: float | None = None) -> str | None:
    """What people are told of the columns ``top_readable`` and ``bottom_readable`` (side -> number) beside ``reads``;
    None where they are NULL.

    >>> readable_says({"top": 4.3123, "bottom": -0.21})
    'readable top 4.3, bottom -0.2: how alike tokens are, in deviations from chance'
    >>> readable_says({"top": 1.04, "bottom": -0.21})
    'nothing readable here: tokens as alike as by chance (top 1.0, bottom -0.2)'
    """
    known = {side: number for side, number in readable.items() if number is not None}
    if not known:
        return None
    numbers = ", ".join(f"{side} {number:.1f}" for side, number in known.items())
    if max(known.values()) < _READABLE and (reads is None or reads < _TELLING):
        return f"nothing readable here: tokens as alike as by chance ({numbers})"
    return f"readable {numbers}: how alike tokens are, in deviations from chance"


def text_name(text: str) -> str:
    """What a text is called that layers were fitted on, without its checksum.

    >>> text_name("its own"), text_name("wiki.txt, SHA-256 9f86d0")
    ('its own', 'wiki.txt')
    """
    return text.rpartition(", SHA-256 ")[0] or text


@dataclass(frozen=True)
class KindReads:
    """The mean ``reads`` of the vectors of a kind in each place that has some."""

    kind: str
    means: dict[Place, float]

    @property
    def layers(self) -> str:
        """The places in few words.

        >>> KindReads("ff_key", {(None, layer): 0.5 for layer in (1, 2, 3)}).layers
        'L1 to L3'
        """
        numbers, names = [place[1] for place in self.means], list(map(place_name, self.means))
        first = numbers[0] or 0
        joined = len(names) > 2 and numbers == list(range(first, first + len(names)))
        return f"{names[0]} to {names[-1]}" if joined else ", ".join(names)

    @property
    def values(self) -> str:
        """The means, layer by layer."""
        return " ".join(f"{mean:.2f}" for mean in self.means.values())


def reads_of_layers(store: Store) -> dict[str, list[KindReads]]:
    """Model -> what is known of its kinds of weights; a model of which nothing is known is left out."""
    found = {name: reads_of_model(store, model) for name, model in store.models.items()}
    return {name: kinds for name, kinds in found.items() if kinds}


def reads_of_model(store: Store, model: Model) -> list[KindReads]:
    """What is known of the kinds of weights of one model."""
    if model.reading == "embedding":
        return []
    table = store.database.of(model).kept("SELECT stack, layer, kind, reads FROM readings ORDER BY stack, layer")
    found: dict[str, dict[Place, float]] = {}
    for stack, layer, kind, mean in zip(*(column.to_pylist() for column in table.columns), strict=True):
        found.setdefault(kind, {})[stack, layer] = mean
    return [KindReads(kind, found[kind]) for kind in KINDS if kind in found and KINDS[kind].form == "weight"]


def reads_of_head(store: Store, model: Model, where: Address) -> dict[str, float]:
    """Kind -> the mean ``reads`` of a head's vectors of it, those included that it shares with other heads."""
    found = {}
    for kind in _OF_HEADS:
        run = next(run for run in model.layout.of(kind) if run.place == (where.stack, where.layer))
        first = model.layout.row(replace(where, kind=kind, idx=0))
        ((mean,),) = store.database.of(model).rows(
            "SELECT avg(reads) FROM store.parameters WHERE param_id BETWEEN ? AND ?", [first, first + run.size - 1]
        )
        if mean is not None:
            found[kind] = mean
    return found
