"""Pieces: the parameters of a kind cut into parts, each of which is projected and kept as one unit of finished work."""

from __future__ import annotations

from dataclasses import dataclass

from paramdex_schemas import Layout, Run

_PIECE_ROWS = 16_384


@dataclass(frozen=True)
class Piece:
    """What one unit holds of a kind: a run of its parameters, or of a long one the rows of some of its ``owners``."""

    run: Run
    owners: range
    number: int
    """Counts the pieces of a kind."""

    @property
    def first(self) -> int:
        return self.run.first + self.owners.start * self.run.size

    @property
    def n_rows(self) -> int:
        return len(self.owners) * self.run.size


def pieces(layout: Layout, kind: str) -> list[Piece]:
    """The pieces of a kind, in order of its rows; each of whole owners, and of more than one only up to _PIECE_ROWS."""
    found: list[Piece] = []
    for run in layout.of(kind):
        step = max(1, _PIECE_ROWS // run.size) if run.owner == "expert" else run.n_owners
        for start in range(0, run.n_owners, step):
            found.append(Piece(run, range(start, min(start + step, run.n_owners)), len(found)))
    return found
