"""Pieces: the parameters of a kind cut into parts, each of which is projected and kept as one unit of finished work."""

from __future__ import annotations

from dataclasses import dataclass

from paramdex_schemas import Layout, Run

_PIECE_ROWS = 16_384


@dataclass(frozen=True)
class Piece:
    """The part of a kind that one unit holds: a run of its parameters, or the rows of some ``owners`` of a long run."""

    run: Run
    owners: range
    number: int
    """Its place among the pieces of the kind."""

    @property
    def first(self) -> int:
        return self.run.first + self.owners.start * self.run.size

    @property
    def n_rows(self) -> int:
        return len(self.owners) * self.run.size


def pieces(layout: Layout, kind: str) -> list[Piece]:
    """The pieces of a kind, in the order of its rows: of whole owners, of several only up to _PIECE_ROWS rows."""
    found: list[Piece] = []
    for run in layout.of(kind):
        step = max(1, _PIECE_ROWS // run.size) if run.owner == "expert" else run.n_owners
        for start in range(0, run.n_owners, step):
            found.append(Piece(run, range(start, min(start + step, run.n_owners)), len(found)))
    return found
