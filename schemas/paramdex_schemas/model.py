"""The models of an atlas: where each one's parameters and heads stand in the numbering that all of them share.

In an open atlas ``param_id`` and ``head_id`` tell the models apart: a model takes a contiguous part of both, and its
layout says what lies where in it. On the disk both count within the model (``contents``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from paramdex_schemas.addresses import Address
from paramdex_schemas.layout import Layout, Place

Ranking = Literal["score", "token_z"]
"""What the strongest tokens of a parameter, and the strongest pairs of a head, are the strongest by: the score, or how
unusual the score is for its token (see the view ``parameter_tokens``).
"""
RANKINGS: tuple[Ranking, ...] = get_args(Ranking)
Span = tuple[int, int]
"""A contiguous part of a numbering: [first, end)."""


@dataclass(frozen=True)
class Model:
    """A model of the atlas, with its place in the numbering."""

    model_id: int
    """its place among the models of the open atlas"""
    name: str
    vocabulary: str
    vocabulary_size: int
    first_param_id: int
    first_head_id: int
    layout: Layout
    embedding: str = "output"
    """the space of its own embedding, which has the coordinates of every vector (see ``vector_files``)"""
    reading: str = "embedding"
    """by what its layers are read: expected, effective or embedding"""
    top_k: int = 0
    """how many tokens each ranking of a parameter has on a side, where the vocabulary has as many"""

    @property
    def ranking(self) -> Ranking:
        """By what lists of its tokens and pairs are ranked unless somebody asks for another ranking.

        A model that is read as in the paper (arXiv 2209.02535) is ranked as there. Of others token_z reads better: on
        SmolLM2-135M it keeps or betters hits in five tables of six, its lists cohere more, and hubs take 12 to 38 %
        fewer places.
        """
        return "score" if self.reading == "embedding" else "token_z"

    @property
    def spaces(self) -> list[str]:
        """The spaces that the atlas has of the model, its own embedding first."""
        return [self.embedding, *(space for space in self.layout.spaces if space != self.embedding)]

    def param_id(self, address: Address) -> int:
        """The number of a parameter. Raises AddressError where the model has no such one."""
        return self.first_param_id + self.layout.row(address)

    def head_id(self, address: Address) -> int:
        """The number of a head. Raises AddressError where the model has no such one."""
        return self.first_head_id + self.layout.head_row(address)

    def address(self, param_id: int) -> Address:
        return self.layout.address(self.name, param_id - self.first_param_id)

    def first(self, kind: str) -> int:
        """The number of the first parameter of a kind: the i-th row of the kind's vectors is ``first(kind) + i``."""
        return self.first_param_id + self.layout.blocks[kind].first

    def ids(self, kind: str, place: Place | None = None, expert: int | None = None) -> Span:
        """The numbers [first, end) of the parameters of a kind, or of those in one place, or of one expert there.

        >>> from paramdex_schemas.layout import Run
        >>> layout = Layout.number([Run("ff_key", None, layer, None, 1, 4, 1) for layer in (0, 1)])
        >>> Model(0, "m", "v", 9, 100, 0, layout).ids("ff_key", (None, 1))
        (104, 108)
        """
        first = self.first(kind)
        if place is None:
            return first, first + self.layout.blocks[kind].n_rows
        if expert is None:
            start, end = self.layout.places(kind)[place]
            return first + start, first + end
        run = next(run for run in self.layout.of(kind) if run.place == place and run.owner == "expert")
        start = self.first_param_id + run.first + expert * run.size
        return start, start + run.size

    @property
    def span(self) -> Span:
        """The numbers [first, end) of all parameters of the model."""
        return self.first_param_id, self.first_param_id + self.layout.n_parameters

    def spans(self, kind: str | None, layer: int | None) -> list[Span]:
        """As ``span``, of one kind, one layer (in every stack) or both; touching spans are one."""
        if kind is None and layer is None:
            return [self.span]
        found: list[Span] = []
        for run in self.layout.runs:
            if kind in (None, run.kind) and layer in (None, run.layer):
                start = self.first_param_id + run.first
                joined = bool(found) and found[-1][1] == start
                first = found.pop()[0] if joined else start
                found.append((first, start + run.n_rows))
        return found
