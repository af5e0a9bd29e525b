"""A model of an atlas: its place in the numbering, and its addresses."""

from __future__ import annotations

from dataclasses import dataclass

from paramdex_schemas import Address, Layout


@dataclass(frozen=True)
class Model:
    """A model of the atlas, with its place in the numbering."""

    model_id: int
    name: str
    vocabulary: str
    vocabulary_size: int
    first_param_id: int
    first_head_id: int
    layout: Layout

    def param_id(self, address: Address) -> int:
        return self.first_param_id + self.layout.row(address)

    def head_id(self, address: Address) -> int:
        return self.first_head_id + self.layout.head_row(address)

    def address(self, param_id: int) -> Address:
        return self.layout.address(self.name, param_id - self.first_param_id)

    @property
    def span(self) -> tuple[int, int]:
        """The model's parameters [first, end) by param_id."""
        return self.first_param_id, self.first_param_id + self.layout.n_parameters

    def spans(self, kind: str | None, layer: int | None) -> list[tuple[int, int]]:
        """As ``span``, of one kind, one layer (in every stack) or both; touching spans are one."""
        if kind is None and layer is None:
            return [self.span]
        found: list[tuple[int, int]] = []
        for run in self.layout.runs:
            if kind in (None, run.kind) and layer in (None, run.layer):
                start = self.first_param_id + run.first
                joined = bool(found) and found[-1][1] == start
                first = found.pop()[0] if joined else start
                found.append((first, start + run.n_rows))
        return found
