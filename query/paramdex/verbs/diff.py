"""What training moved: the displacements of an atlas, found by their two models, and what in them moved most.

A displacement is a model of the atlas, built with ``--base``; its vectors are a tuned model's less its base's, so the
tokens on their top side are those that training moved a parameter toward, at the bottom those it moved away from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from paramdex.result import Drawn, arrow, table_of
from paramdex.store.filters import ALL, Sieve, TokenFilter
from paramdex.verbs.hits import tokens_of
from paramdex_schemas import KINDS, MATRICES, AddressError, QueryError
from paramdex_schemas.arguments import path_text
from paramdex_schemas.checks import suggest
from paramdex_schemas.errors import quoted

if TYPE_CHECKING:
    from paramdex.atlas import Atlas
    from paramdex_schemas.model import Model

NEURON_KINDS = ("ff_key", "ff_gate", "ff_value")
"""Kinds that are shown, beside the heads' matrices, where none is asked for."""
_SHOWN_PAIRS = 3
"""Token pairs by which a head is described in a list."""
_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("rank", pa.int32()),
        ("address", pa.string()),
        ("norm", pa.float32()),
        ("relative", pa.float32()),
        ("top", pa.list_(pa.string())),
        ("bottom", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True, repr=False)
class Moved(Drawn):
    """Rows of kind, rank, address, norm, top, bottom: what training moved most, with the tokens it moved toward (top)
    and away from (bottom).
    """

    def figure(self) -> Any:
        """Bars of the norms, with the tokens."""
        from paramdex.picture import moved_figure

        return moved_figure(self)


@dataclass(frozen=True)
class _Row:
    """What the table ``models`` says of a model that a displacement is found by."""

    model: str
    source: str
    base: str | None
    weights_sha256: str
    base_sha256: str | None
    fold_norm: bool
    """Whether its vectors, and so their norms, hold the gains of norms."""


def diff(
    atlas: Atlas,
    base: str,
    tuned: str | None,
    k: int,
    kind: str | None,
    layer: int | None,
    filter: TokenFilter | None = None,
) -> Moved:
    """See ``Atlas.diff``."""
    base = path_text(base, "a model's name or source", AddressError)
    tuned = None if tuned is None else path_text(tuned, "a model's name or source", AddressError)
    rows = _models(atlas)
    row = _displacement(atlas, rows, base, tuned)
    (model,) = atlas._with_layer([atlas.models[row.model]], layer)  # noqa: SLF001
    atlas._check_kind(kind, [model], layer, matrices=True)  # noqa: SLF001
    kinds = [*(each for each in NEURON_KINDS if each in model.layout.kinds), *MATRICES] if kind is None else [kind]
    same = [r.model for r in rows if (r.base, r.weights_sha256, r.fold_norm) == (None, row.base_sha256, row.fold_norm)]
    origin = next((atlas.models[name] for name in same if atlas.models[name].layout == model.layout), None)
    found: list[dict[str, Any]] = []
    notes: list[str] = []
    sieve = Sieve(atlas.database, filter)
    for each_kind in kinds:
        values = {"model": row.model, "kind": each_kind, "layer": layer, "k": k}
        if each_kind in MATRICES:
            shift = None if origin is None else origin.first_head_id - model.first_head_id
            shown = ALL if sieve else _SHOWN_PAIRS
            moved = atlas.database.named_rows("diff_heads", values | {"shift": shift, "shown": shown})
            lists = [{side: each[side] or [] for side in ("top", "bottom")} for each in moved]
            texts = [{side: _shown(sieve, model, pairs) for side, pairs in each.items()} for each in lists]
        else:
            shift = None if origin is None else origin.first_param_id - model.first_param_id
            moved = atlas.database.named_rows("diff_parameters", values | {"shift": shift})
            tokens = tokens_of(atlas, [each["id"] for each in moved], sieve)
            texts = [dict(zip(("top", "bottom"), tokens[each["id"]][1:], strict=True)) for each in moved]
        for rank, (each, sides) in enumerate(zip(moved, texts, strict=True), start=1):
            numbers = {name: each[name] for name in ("address", "norm", "relative")}
            found.append({"kind": each_kind, "rank": rank} | numbers | sides)
        if not moved:
            notes.append(f"{each_kind}: nothing moved")
    if origin is None:
        notes.append(f"relative is to the base's norm, and {row.base} with these options is not in {atlas.path}")
    table = table_of(found, _SCHEMA)
    start = row.base if origin is None else origin.name
    title = f"{row.model}: what moved from {start} to {row.source}{_by_layer(atlas, row.model)}"
    names = ["kind", "rank", "address", "norm", "relative", "toward (top)", "away from (bottom)"]
    return Moved(table, title, [*notes, *sieve.notes()], table.rename_columns(names))


def _models(atlas: Atlas) -> list[_Row]:
    """Every model, in the order of the atlas."""
    rows = atlas.database.rows("SELECT model, source, base, weights_sha256, base_sha256, fold_norm FROM models")
    order = list(atlas.models)
    return sorted((_Row(*row) for row in rows), key=lambda row: order.index(row.model))


def _displacement(atlas: Atlas, rows: list[_Row], base: str, tuned: str | None) -> _Row:
    """The displacement that is meant: by its own name alone, or by its two models, each as a name in the atlas or as
    the source that it was built from. Raises AddressError or QueryError, saying how to make it.
    """
    moved = [row for row in rows if row.base is not None]
    have = f"; it has {', '.join(row.model for row in moved)}" if moved else ""
    if tuned is None:
        named = [row for row in rows if row.model == base]
        if not named:
            say = suggest(base, [row.model for row in moved]) if moved else _how("BASE", "TUNED", "ATLAS")
            raise AddressError(f"{atlas.path} has no displacement {quoted(base)}; {say}")
        if named[0].base is None:
            raise QueryError(f"{base} is a model as it is; give two, BASE TUNED, or a displacement's name{have}")
        return named[0]
    by_name = {row.model: row for row in rows}
    found = [
        row
        for row in moved
        if _is(by_name.get(base), base, row.base_sha256, row.base)
        and (tuned == row.model or _is(by_name.get(tuned), tuned, row.weights_sha256, row.source))
    ]
    if len(found) == 1:
        return found[0]
    if found:
        names = " or ".join(row.model for row in found)
        raise QueryError(f"{atlas.path} has several of {tuned} less {base}; give the name of one alone: {names}")
    source, target = (by_name[each].source if each in by_name else each for each in (base, tuned))
    say = _how(source, target, str(atlas.path))
    raise QueryError(f"{atlas.path} has no displacement of {tuned} from {base}{have}; {say}")


def _is(row: _Row | None, given: str, digest: str | None, source: str | None) -> bool:
    """Whether ``given`` is the model of these weights: a name in the atlas (then ``row`` is its own) or its source."""
    if row is not None and row.base is None and row.weights_sha256 == digest:
        return True
    return source is not None and Path(given).resolve() == Path(source).resolve()


def _how(base: str, tuned: str, atlas: str) -> str:
    return f"make it with: paramdex build --base {base} {tuned} -o {atlas}"


def _by_layer(atlas: Atlas, model: str) -> str:
    """Which layers moved most, in shares of the sum of all squared weights that were added; empty if none moved."""
    weights = [kind for kind in KINDS if KINDS[kind].form == "weight"]
    rows = atlas.database.named_rows("diff_layers", {"model": model, "kinds": weights, "k": 5})
    shares = [f"{'/'.join(filter(None, [r['stack'], 'L' + str(r['layer'])]))} {r['share']:.0%}" for r in rows]
    return f"\nmoved most, by squared norm: {', '.join(shares)}" if shares else ""


def _shown(sieve: Sieve, model: Model, pairs: list[dict[str, Any]]) -> list[str]:
    """The pairs of one side by which a head is described."""
    return [arrow(pairs[place]["source"], pairs[place]["target"]) for place in sieve.pairs(model, pairs, _SHOWN_PAIRS)]
