"""``diff``: what training moved most, read from a displacement of the atlas.

A displacement is a model of the atlas that was built with ``--base``. Its vectors are those of a tuned model minus
those of its base. So training moved a parameter toward the tokens on its top side and away from those at the bottom.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from paramdex.picture import figure_class
from paramdex.result import Drawn, table_of
from paramdex.store.described import by_pairs, by_tokens
from paramdex.store.filters import Sieve
from paramdex.store.store import Store
from paramdex.store.token_filter import TokenFilter
from paramdex.text import visible
from paramdex_schemas import KINDS, MATRICES, AddressError, QueryError
from paramdex_schemas.arguments import path_text
from paramdex_schemas.checks import suggest
from paramdex_schemas.errors import quoted
from paramdex_schemas.layout import Run
from paramdex_schemas.model import Model

NEURON_KINDS = ("ff_key", "ff_gate", "ff_value")
"""Kinds that are shown, beside the heads' matrices, if none is asked for."""
_OF_PARAMETERS = ("parameters", "param_id", "norm")
"""A table, its column of numbers, and that of the norms."""
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
        """Bars of the norms, labelled with the tokens."""
        return moved_figure(self)


@dataclass(frozen=True)
class _Row:
    """The columns of the table ``models`` by which a displacement is found."""

    model: str
    source: str
    base: str | None
    weights_sha256: str
    base_sha256: str | None
    fold_norm: bool
    """Whether the gains of norms are multiplied into its vectors, and so count in their norms."""


def diff(
    store: Store,
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
    rows = _models(store)
    row = _displacement(store, rows, base, tuned)
    scope = store.scope(row.model, kind, layer, matrices=True)
    model, layer = scope.model, scope.layer
    kinds = [*(each for each in NEURON_KINDS if each in model.layout.kinds), *MATRICES] if kind is None else [kind]
    same = [r.model for r in rows if (r.base, r.weights_sha256, r.fold_norm) == (None, row.base_sha256, row.fold_norm)]
    origin = next((store.models[name] for name in same if _shape(store.models[name]) == _shape(model)), None)
    found: list[dict[str, Any]] = []
    notes: list[str] = []
    sieve = Sieve(store.database, filter)
    for each_kind in kinds:
        moved = _moved_most(store, model, origin, each_kind, layer, k)
        if each_kind in MATRICES:
            of = {(model.first_head_id + each["row"], each_kind): model for each in moved}
            texts = [*by_pairs(store, of, sieve, ("top", "bottom")).values()]
        else:
            ids = [model.first_param_id + each["row"] for each in moved]
            tokens = by_tokens(store, ids, sieve)
            texts = [tokens[i].texts for i in ids]
        for rank, (each, sides) in enumerate(zip(moved, texts, strict=True), start=1):
            numbers = {name: each[name] for name in ("address", "norm", "relative")}
            found.append({"kind": each_kind, "rank": rank} | numbers | sides)
        if not moved:
            notes.append(f"{each_kind}: nothing moved")
    if origin is None:
        notes.append(f"relative needs the base's norms, and {row.base} with these options is not in {store.path}")
    table = table_of(found, _SCHEMA)
    start = row.base if origin is None else origin.name
    title = f"{row.model}: what moved from {start} to {row.source}{_by_layer(store, row.model)}"
    names = ["kind", "rank", "address", "norm", "relative", "toward (top)", "away from (bottom)"]
    return Moved(table, title, [*notes, *sieve.notes()], table.rename_columns(names))


def _moved_most(
    store: Store, model: Model, origin: Model | None, kind: str, layer: int | None, k: int
) -> list[dict[str, Any]]:
    """What moved most of a kind, or of the matrices QK or VO of heads: row (its number within the model), address,
    norm, and relative to the norm of the same in ``origin``, None where that is not known or 0.
    """
    query = "diff_heads" if kind in MATRICES else "diff_parameters"
    moved = store.database.of(model).named_rows(query, {"kind": kind, "layer": layer, "k": k})
    norms: dict[int, float] = {}
    if origin is not None:
        table, number, norm = ("heads", "head_id", f"{kind.lower()}_norm") if kind in MATRICES else _OF_PARAMETERS
        norms = dict(
            store.database.of(origin).rows(
                f"SELECT {number}, {norm} FROM store.{table} WHERE {number} IN (SELECT unnest(?))",
                [[each["row"] for each in moved]],
            )
        )
    for each in moved:
        own = norms.get(each["row"])
        each["relative"] = np.float32(each["norm"]) / np.float32(own) if own else None
    return moved


def _shape(model: Model) -> list[Run]:
    """What the model has and in which order. The spaces that score it do not count: no norm depends on them."""
    return [replace(run, space="") for run in model.layout.runs]


def _models(store: Store) -> list[_Row]:
    """Every model, in the order of the atlas."""
    names = ("model", "source", "base", "weights_sha256", "base_sha256", "fold_norm")
    return [_Row(*(each.row[name] for name in names)) for each in store.database.contents.manifests.values()]


def _displacement(store: Store, rows: list[_Row], base: str, tuned: str | None) -> _Row:
    """The displacement that is meant: by its own name alone, or by its two models, each by its name in the atlas or by
    the source that it was built from. Raises AddressError or QueryError and says how to build it.
    """
    moved = [row for row in rows if row.base is not None]
    have = f"; it has {', '.join(row.model for row in moved)}" if moved else ""
    if tuned is None:
        named = [row for row in rows if row.model == base]
        if not named:
            say = suggest(base, [row.model for row in moved]) if moved else _how("BASE", "TUNED", "ATLAS")
            raise AddressError(f"{store.path} has no displacement {quoted(base)}; {say}")
        if named[0].base is None:
            raise QueryError(
                f"{base} is not a displacement; give two models, BASE TUNED, or the name of a displacement{have}"
            )
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
        raise QueryError(
            f"{store.path} has several displacements of {tuned} from {base}; give the name of one alone: {names}"
        )
    source, target = (by_name[each].source if each in by_name else each for each in (base, tuned))
    say = _how(source, target, str(store.path))
    raise QueryError(f"{store.path} has no displacement of {tuned} from {base}{have}; {say}")


def _is(row: _Row | None, given: str, digest: str | None, source: str | None) -> bool:
    """Whether ``given`` means the model of these weights: by name (``row`` is the model so named) or by source."""
    if row is not None and row.base is None and row.weights_sha256 == digest:
        return True
    return source is not None and Path(given).resolve() == Path(source).resolve()


def _how(base: str, tuned: str, atlas: str) -> str:
    return f"make it with: paramdex build --base {base} {tuned} -o {atlas}"


def _by_layer(store: Store, model: str) -> str:
    """The layers that moved most, with their shares of the squared norm of all that moved; empty if nothing moved."""
    weights = [kind for kind in KINDS if KINDS[kind].form == "weight"]
    tables = store.database.of(store.models[model])
    rows = tables.named_rows("diff_layers", {"kinds": weights, "k": 5})
    shares = [f"{'/'.join(filter(None, [r['stack'], 'L' + str(r['layer'])]))} {r['share']:.0%}" for r in rows]
    return f"\nmoved most, by squared norm: {', '.join(shares)}" if shares else ""


def moved_figure(moved: Moved) -> Any:
    """The norms of what moved most, one panel per kind, with the tokens that it moved toward and away from."""
    rows = moved.to_rows()
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    heights = [1 + sum(row["kind"] == kind for row in rows) for kind in kinds] or [1]
    figure = figure_class()(figsize=(10, 0.42 * sum(heights) + 1), layout="constrained")
    axes = figure.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0]
    for axis, kind in zip(axes, kinds, strict=False):
        own = [row for row in rows if row["kind"] == kind]
        axis.barh(range(len(own)), [row["norm"] for row in own], color="0.85")
        for n, row in enumerate(own):
            for column, color, x in (("top", "C0", 0.01), ("bottom", "C3", 0.5)):
                text = ", ".join(visible(each) for each in row[column][:4])
                axis.text(
                    x,
                    n,
                    text,
                    color=color,
                    fontsize=8,
                    va="center",
                    transform=axis.get_yaxis_transform(),
                    parse_math=False,
                    clip_on=True,
                )
        axis.set_yticks(range(len(own)), [row["address"].partition("/")[2] for row in own], fontsize=8)
        axis.invert_yaxis()
        axis.set_title(f"{kind}: toward (blue) and away from (red)", fontsize=9, loc="left")
    axes[-1].set_xlabel("norm of what moved")
    figure.suptitle((moved.title or "").partition("\n")[0], fontsize=9)
    return figure
