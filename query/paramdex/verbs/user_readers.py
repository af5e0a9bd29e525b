"""What a user's vector is: one that is written, or one that reads at some place, and how it is scored there."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from safetensors import safe_open

from paramdex.store.reading import read_by
from paramdex.store.store import Store
from paramdex_schemas import AddressError, QueryError, atlas_files, isometry
from paramdex_schemas.checks import check_text
from paramdex_schemas.errors import quoted
from paramdex_schemas.isometry import Array
from paramdex_schemas.model import Model

_PLACE = re.compile(r"L(\d{1,9})\.(attn|ff)", re.ASCII | re.IGNORECASE)
_KINDS = {"attn": ("attn_query", "attn_key", "attn_value"), "ff": ("ff_key", "ff_gate", "router")}
"""What a place is called -> the kinds that read there, all of them the same state."""


@dataclass(frozen=True)
class Meant:
    """How vectors w of a user are scored: as A w, where there is a ``map`` A (d x d, float64), in ``space``."""

    space: str
    place: str | None = None
    """Where they read; None for what is written."""
    map: Array | None = None
    notes: tuple[str, ...] = ()

    def pulled_back(self, rows: Array) -> Array:
        """A w of every row w (n x d, float64)."""
        if self.map is None:
            return rows
        return np.stack([isometry.times_vector(self.map, w) for w in rows])  # a row has the same numbers among others

    @property
    def where(self) -> str:
        """What a title says after the model."""
        return "" if self.place is None else f", reading at {self.place}"

    @property
    def read_by(self) -> str:
        """The last line of a title."""
        if self.place is None:
            return ""
        through = "" if self.map is None else f", through the map of {self.place}"
        return f"\n{read_by(self.space)}{through}"


def meant(store: Store, model: Model, reads: object) -> Meant:
    """How a vector of a model is scored that is written, for None, or that reads at a place: ``L3.attn`` or ``L3.ff``.

    Raises QueryError for any other place, and for a model whose readers are read by its embedding; AddressError for a
    layer that it lacks.
    """
    if reads is None:
        return Meant(model.embedding)
    wrong = QueryError(f"reads is a place where vectors read, such as L3.attn or L3.ff, not {quoted(reads)}")
    found = _PLACE.fullmatch(check_text(reads, wrong))
    if found is None:
        raise wrong
    layer, part = int(found[1]), found[2].lower()
    place = f"L{layer}.{part}"
    if model.reading == "embedding":
        else_build = "" if model.layout.stacks else ", or build the model with --reading expected"
        raise QueryError(
            f"{model.name} was built with the reading embedding: what reads is scored as what is written, and nothing "
            f"is kept of what {place} sees; ask without reads{else_build}"
        )
    if layer >= model.layout.n_layers():
        raise AddressError(f"there is no {place}; {model.name} has layers L0 to L{model.layout.n_layers() - 1}")
    kinds = [kind for kind in _KINDS[part] if (None, layer) in model.layout.places(kind)]
    if not kinds:
        raise QueryError(f"nothing reads at {place} in {model.name}")
    space = model.layout.space(kinds[0], (None, layer))
    if model.reading == "effective":
        note = f"no map is kept for the reading effective: the gain of the norm before {place} belongs in the vector"
        return Meant(space, place, notes=(note,))
    return Meant(space, place, _map(store, model, kinds, layer))


def _map(store: Store, model: Model, kinds: list[str], layer: int) -> Array:
    """The map of those of some kinds that a layer has. Raises QueryError where none was fitted."""
    with safe_open(store.vectors.file(model.name, atlas_files.MAPS), framework="np") as file:
        by_place = atlas_files.maps_by_place(file.keys())
        name = next((by_place[kind, layer] for kind in kinds if (kind, layer) in by_place), None)
        if name is not None:
            found: Array = file.get_tensor(name).astype(np.float64)
            return found
    raise QueryError(f"{model.name} has no map for {' and '.join(kinds)} in layer {layer}; ask without reads")
