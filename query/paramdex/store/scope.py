"""Where a question looks: in which models, of which kind, in which layer. Read and checked once for every verb.

The other numbers and words that several verbs take are checked here too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass

from paramdex_schemas import KINDS, MATRICES, AddressError, QueryError
from paramdex_schemas.checks import check_text, suggest, whole_number
from paramdex_schemas.errors import quoted
from paramdex_schemas.model import Model, Span

MOST = 2**31 - 1
"""A larger k means this one: it is more than an atlas has of anything, and all libraries take it."""


@dataclass(frozen=True)
class Scope:
    """Where a question looks. ``kind`` and ``layer`` are those asked for, None for any.

    ``named`` says that the question names its one model: if that cannot answer, the question fails. Of several models
    one that cannot answer is left out, with a note.
    """

    models: tuple[Model, ...]
    kind: str | None = None
    layer: int | None = None
    named: bool = False

    @property
    def model(self) -> Model:
        """The one model of a scope that has one."""
        (model,) = self.models
        return model

    @property
    def vocabularies(self) -> list[str]:
        """The vocabularies of the models, each once."""
        return list(dict.fromkeys(model.vocabulary for model in self.models))

    def of(self, vocabulary: str) -> list[Model]:
        """The models that have a vocabulary."""
        return [model for model in self.models if model.vocabulary == vocabulary]

    def kinds(self, model: Model) -> list[str]:
        """The kinds of parameters that are looked at in a model."""
        return [kind for kind in model.layout.kinds if self.kind in (None, kind)]

    def ids(self, model: Model) -> list[Span]:
        """The parameters that are looked at in a model, as spans of their numbers."""
        return model.spans(self.kind, self.layer)

    def rows(self, model: Model, kind: str) -> list[Span]:
        """The rows that are looked at of a kind's vectors."""
        if self.layer is None:
            return [(0, model.layout.blocks[kind].n_rows)]
        return list(model.layout.places(kind, self.layer).values())


def scope_of(
    models: Iterable[Model], kind: str | None, layer: int | None, *, matrices: bool = False, named: bool = False
) -> Scope:
    """The scope of a question: those of ``models`` that have the layer. With ``matrices``, QK and VO are kinds too.

    Raises QueryError for a kind that no model has, AddressError for a layer that no model has.
    """
    layer = layer_number(layer)
    found = with_layer(list(models), layer)
    check_kind(kind, found, layer, matrices=matrices)
    return Scope(tuple(found), kind, layer, named)


def with_layer(models: list[Model], layer: int | None) -> list[Model]:
    """The models that have this layer; all of them for None. Raises AddressError where none has it."""
    if layer is None:
        return models
    found = [model for model in models if 0 <= layer < model.layout.n_layers()]
    if not found:
        most = max(models, key=lambda model: model.layout.n_layers())
        last = most.layout.n_layers() - 1
        raise AddressError(f"there is no layer {quoted(layer)}; {most.name} has layers L0 to L{last}")
    return found


def check_kind(kind: str | None, models: list[Model], layer: int | None = None, *, matrices: bool = False) -> None:
    """Raises QueryError where no model has such a kind, or where a layer is asked for and the kind belongs to none."""
    if kind is None:
        return
    check_text(kind, QueryError(f"kind is text, not {quoted(kind)}"))
    known = [each for each in KINDS if any(each in model.layout.kinds for model in models)]
    known += MATRICES if matrices else []
    if kind not in known:
        where = f"{models[0].name} has no parameters of" if len(models) == 1 else "there is no"
        raise QueryError(f"{where} kind {quoted(kind)}; {suggest(kind, known)}")
    if kind in KINDS and KINDS[kind].owner == "model" and layer is not None:
        raise QueryError(f"{kind} belongs to no layer; ask without layer {layer}")


def how_many(k: object) -> int:
    """k, as a number that all libraries take. Raises QueryError unless it is a whole number of at least 1."""
    return min(whole_number("k", k, 1), MOST)


def layer_number(number: object) -> int | None:
    """The number of a layer, which need not exist, or None. Raises QueryError for anything else."""
    return None if number is None else whole_number("layer", number, -sys.maxsize)


def one_or_both(side: str) -> bool:
    """Whether the sign of a correlation counts (top), or only its size (both). Raises QueryError for other sides."""
    if not isinstance(side, str) or side not in ("top", "both"):
        raise QueryError(f"side is one of top, both, not {quoted(side)}")
    return side == "top"
