"""By what the vectors of a model are scored: which space each of them belongs to, and what is scored there.

What writes is scored by the model's own embedding. What reads in a layer is pulled back and scored by Z, which is one
for layer 0 and another for those from 1 on (``stream.reading``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from paramdex_builder.project.space import Space
from paramdex_builder.read.weights import Weights
from paramdex_builder.stream.reading import Reading, run_name
from paramdex_builder.stream.space import space_of
from paramdex_schemas import KINDS, Layout, Run
from paramdex_schemas.layout import OF_STATES, Place


def scored_layout(layout: Layout, main: str, reading: str) -> Layout:
    """A layout whose runs say in which space they are scored. ``main`` is the model's own embedding, output or
    input.
    """

    def space(run: Run) -> str:
        if reading == "embedding" or run.layer is None or KINDS[run.kind].role == "writes":
            return main
        return space_of(run.layer)

    return Layout(tuple(replace(run, space=space(run)) for run in layout.runs))


@dataclass(frozen=True)
class Scoring:
    """The spaces of a model by name, its own embedding first, and how its readers are pulled back."""

    layout: Layout
    weights: Weights
    spaces: dict[str, Space]
    reading: Reading | None = None

    @property
    def main(self) -> Space:
        return next(iter(self.spaces.values()))

    def space(self, run: Run) -> Space:
        return self.spaces[run.space]

    def rows(self, run: Run, own: torch.Tensor, owners: range | None = None) -> torch.Tensor:
        """What is scored (n x d) of the vectors ``own`` of a run, or of some of its ``owners``: the vectors themselves,
        or what they are pulled back to.
        """
        if self.reading is None or run.space not in OF_STATES:
            return own
        plain = self.weights.plain()
        return self._pulled(run, own if plain is self.weights else plain.rows(run, owners))

    def head_rows(self, kind: str, place: Place, own: list[torch.Tensor]) -> list[torch.Tensor]:
        """As ``rows``, for each term of the vectors of a kind that are one factor of the heads' matrices."""
        run = next(run for run in self.layout.of(kind) if run.place == place)
        if self.reading is None or run.space not in OF_STATES:
            return own
        plain = self.weights.plain()
        terms = own if plain is self.weights else plain.head_rows(kind, place)
        return [self._pulled(run, rows) for rows in terms]

    def head_space(self, kind: str, place: Place) -> Space:
        return self.spaces[self.layout.space(kind, place)]

    def reads(self, run: Run, owners: range) -> torch.Tensor | None:
        """``Reading.reads`` of the vectors of some owners of a run; None where nothing is known."""
        found = None if self.reading is None else self.reading.reads.get(run_name(run))
        return None if found is None else found[owners.start * run.size : owners.stop * run.size]

    def _pulled(self, run: Run, rows: torch.Tensor) -> torch.Tensor:
        assert self.reading is not None
        return self.reading.pulled(self.weights.runs, run, rows)
