"""``match``: for each parameter of one model the parameter of another that does its job, nearest and one to one.

Similarity is the Pearson correlation of V scores, or its absolute value if the sign does not matter (``side`` both).
Two parameters are mutual if each is the nearest of the other: one vector may be the nearest of many, but it is mutual
with only one. Partners are the one-to-one matching, within a pair of layers, with the largest sum of similarities
(Hungarian method).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from paramdex.result import Result, table_of
from paramdex.store.common_space import common
from paramdex.store.described import by_tokens
from paramdex.store.filters import Sieve
from paramdex.store.scope import Scope, one_or_both
from paramdex.store.store import Store
from paramdex.store.token_filter import TokenFilter
from paramdex.text import visible
from paramdex.verbs.align import align
from paramdex_schemas import KINDS, QueryError
from paramdex_schemas.checks import check_text
from paramdex_schemas.errors import quoted
from paramdex_schemas.isometry import Array
from paramdex_schemas.layout import Place, place_name
from paramdex_schemas.model import Model, Span

MOST_ASSIGNED = 6144
"""The most parameters of a layer that are matched one to one: the time grows with the cube of their number."""
_BLOCK = 1 << 24
"""Similarities that are in memory at a time."""
_SHOWN_TOKENS = 3
_SCHEMA = pa.schema(
    [
        ("address", pa.string()),
        ("nearest", pa.string()),
        ("similarity", pa.float32()),
        ("mutual", pa.bool_()),
        ("partner", pa.string()),
        ("partner_similarity", pa.float32()),
    ]
)


@dataclass(frozen=True)
class Counterparts:
    """For every row of one side the nearest ``row`` (int64) of the other, and their similarity (float32, signed)."""

    row: npt.NDArray[np.int64]
    similarity: Array


def both_nearest(left: Array, right: Array, *, signed: bool) -> tuple[Counterparts, Counterparts]:
    """The nearest row of ``right`` (m x r) of every row of ``left`` (n x r) by inner product, and the other way round.

    By absolute value unless ``signed``. Of equally near rows the first counts.
    """
    n, m = len(left), len(right)
    there = Counterparts(np.zeros(n, np.int64), np.zeros(n, np.float32))
    back = Counterparts(np.zeros(m, np.int64), np.zeros(m, np.float32))
    best = np.full(m, -np.inf, np.float32)
    step = max(1, _BLOCK // max(m, 1))
    for start in range(0, n, step):
        scores = left[start : start + step] @ right.T
        strength = scores if signed else np.abs(scores)
        here = np.arange(len(scores))
        there.row[start : start + step] = column = strength.argmax(axis=1)
        there.similarity[start : start + step] = scores[here, column]
        row = strength.argmax(axis=0)
        columns = np.flatnonzero(strength[row, np.arange(m)] > best)
        best[columns] = strength[row[columns], columns]
        back.row[columns], back.similarity[columns] = start + row[columns], scores[row[columns], columns]
    return there, back


def one_to_one(left: Array, right: Array, *, signed: bool) -> list[tuple[int, int, float]]:
    """(row of ``left``, row of ``right``, similarity) of the matching with the largest sum of similarities."""
    from scipy.optimize import linear_sum_assignment

    scores = left @ right.T
    rows, columns = linear_sum_assignment(scores if signed else np.abs(scores), maximize=True)
    return list(zip(rows.tolist(), columns.tolist(), scores[rows, columns].tolist(), strict=True))


def match(store: Store, scopes: tuple[Scope, Scope], k: int, side: str, filter: TokenFilter | None) -> Result:
    """See ``Atlas.match``; each scope has one model, and both have one kind."""
    a, b = (scope.model for scope in scopes)
    signed = one_or_both(side)
    kind = check_text(scopes[0].kind, QueryError(f"kind is text, not {quoted(scopes[0].kind)}"))
    both = common(store, a, b)
    places = [_places(scope, kind) for scope in scopes]
    left, right = both.rows(kind, *([*own.values()] for own in places))
    there, back = both_nearest(left, right, signed=signed)
    mutual = back.row[there.row] == np.arange(len(left))
    addresses = [_addresses(model, kind, own) for model, own in zip((a, b), places, strict=True)]
    partners: dict[int, tuple[int, float]] = {}
    notes = list(both.notes)
    starts = [_starts(own) for own in places]
    pairs = _matched_places(store, a, b, kind, places)
    for place_a, place_b in pairs:
        (i, n), (j, m) = starts[0][place_a], starts[1][place_b]
        if max(n, m) > MOST_ASSIGNED:
            notes.append(f"layers of more than {MOST_ASSIGNED:,} parameters are not matched one to one")
            break
        matched = one_to_one(left[i : i + n], right[j : j + m], signed=signed)
        partners |= {i + row: (j + column, similarity) for row, column, similarity in matched}
    found = [
        {
            "address": address,
            "nearest": addresses[1][there.row[i]],
            "similarity": float(there.similarity[i]),
            "mutual": bool(mutual[i]),
            "partner": addresses[1][partners[i][0]] if i in partners else None,
            "partner_similarity": partners[i][1] if i in partners else None,
        }
        for i, address in enumerate(addresses[0])
    ]
    table = table_of(found, _SCHEMA)
    strength = there.similarity if signed else np.abs(there.similarity)
    order = np.lexsort((np.arange(len(strength)), -strength))[:k]
    where = " and ".join(_name(scope) for scope in scopes)
    title = f"{where}: {KINDS[kind].name}, each with the nearest of the other model"
    notes = [*_summary(there, mutual, partners, starts, pairs), *notes]
    sieve = Sieve(store.database, filter)
    shown = _shown(store, table, order, sieve)
    return Result(table, title, [*notes, *sieve.notes()], shown)


def _places(scope: Scope, kind: str) -> dict[Place, Span]:
    """The rows of a kind in each place; with a layer only in the places of that layer, one per stack."""
    found = scope.model.layout.places(kind, scope.layer)
    if not found:
        raise QueryError(f"{_name(scope)} has no parameters of kind {kind!r}")
    return found


def _matched_places(
    store: Store, a: Model, b: Model, kind: str, places: list[dict[Place, Span]]
) -> list[tuple[Place, Place]]:
    """The pairs of layers whose parameters are matched one to one: those asked for, or else those that align. Kinds
    that are not weights do not align, so only the layers asked for are matched.
    """
    if all(len(own) == 1 for own in places):
        return list(zip(*places, strict=True))
    if KINDS[kind].form != "weight":
        return []
    rows = align(store, Scope((a, b), kind)).to_rows()
    pairs = [((row["stack_a"], row["layer_a"]), (row["stack_b"], row["layer_b"])) for row in rows if row["matched"]]
    return [pair for pair in pairs if pair[0] in places[0] and pair[1] in places[1]]


def _starts(places: dict[Place, Span]) -> dict[Place, Span]:
    """Place -> where its rows begin among those of all ``places`` in order, and how many they are."""
    found, start = {}, 0
    for place, (first, end) in places.items():
        found[place] = (start, end - first)
        start += end - first
    return found


def _addresses(model: Model, kind: str, places: dict[Place, Span]) -> list[str]:
    first = model.first(kind)
    return [str(model.address(first + row)) for span in places.values() for row in range(*span)]


def _name(scope: Scope) -> str:
    return scope.model.name if scope.layer is None else f"{scope.model.name}/L{scope.layer}"


def _summary(
    there: Counterparts,
    mutual: npt.NDArray[np.bool_],
    partners: dict[int, tuple[int, float]],
    starts: list[dict[Place, Span]],
    pairs: list[tuple[Place, Place]],
) -> list[str]:
    """Notes: how many are mutual, the share of those in matched layers, and how similar partners are."""
    n, m = (sum(size for _, size in own.values()) for own in starts)
    of_a, of_b = (np.repeat(np.arange(len(own)), [size for _, size in own.values()]) for own in starts)
    note = f"{int(mutual.sum()):,} of {n:,} are mutual"
    if pairs and max(len(own) for own in starts) > 1:
        together = np.zeros([len(own) for own in starts], dtype=bool)
        for pair in pairs:
            together[tuple(list(own).index(place) for own, place in zip(starts, pair, strict=True))] = True
        chance = sum(starts[0][one][1] * starts[1][other][1] for one, other in pairs) / (n * m)
        share = together[of_a[mutual], of_b[there.row[mutual]]].mean() if mutual.any() else 0.0
        note += f", {share:.0%} of them between layers that align (by chance {chance:.0%})"
    if not partners:
        return [note]
    mean = float(np.mean([abs(similarity) for _, similarity in partners.values()]))
    layers = ", ".join(f"{place_name(one)} and {place_name(other)}" for one, other in pairs)
    return [note, f"partners, one to one in {layers}: mean |similarity| {mean:.3f}"]


def _shown(store: Store, table: pa.Table, order: npt.NDArray[np.int64], sieve: Sieve) -> pa.Table:
    """The rows of ``order`` with the strongest tokens of both that pass a filter."""
    rows = [table.slice(int(i), 1).to_pylist()[0] for i in order]
    names = [row[column] for row in rows for column in ("address", "nearest")]
    ids = {name: store.models[name.partition("/")[0]].param_id(store.address(name)) for name in names}
    tokens = by_tokens(store, list(dict.fromkeys(ids.values())), sieve)

    def says(name: str) -> str:
        return ", ".join(visible(text) for text in tokens[ids[name]].top[:_SHOWN_TOKENS])

    columns = ("similarity", "mutual", "address", "top", "nearest", "its top")
    lines = [
        (
            row["similarity"],
            "yes" if row["mutual"] else "",
            row["address"],
            says(row["address"]),
            row["nearest"],
            says(row["nearest"]),
        )
        for row in rows
    ]
    return pa.Table.from_pylist([dict(zip(columns, line, strict=True)) for line in lines])
