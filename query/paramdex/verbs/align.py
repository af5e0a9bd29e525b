"""``align``: which layers of two models are alike. The result prints one line per kind and draws heat maps.

A matrix of layer scores has a diagonality: the Pearson correlation of its entries with the nearness of the two layers
in depth, 1 - |i / (n - 1) - j / (m - 1)|. Its p-value is the share of orders of the deeper model's layers whose
diagonality is at least that large; of two equally deep models the larger of the two shares counts. All orders of up to
seven layers are tried, of more layers their own order and 9,999 random ones. So the p-value of four layers is at least
1/24, however well they align.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from math import factorial
from typing import Any

import numpy as np
import pyarrow as pa

from paramdex.picture import figure_class
from paramdex.result import Drawn, Result, table_of
from paramdex.store.common_space import common, shared_note
from paramdex.store.related import related_on
from paramdex.store.scope import Scope
from paramdex.store.store import Store
from paramdex_schemas import KINDS, QueryError, isometry
from paramdex_schemas.arguments import yes_or_no
from paramdex_schemas.checks import check_text, suggest
from paramdex_schemas.errors import quoted
from paramdex_schemas.isometry import Array
from paramdex_schemas.layout import place_name
from paramdex_schemas.model import Model

_ORDERS = 9999
"""Random orders of layers that are tried if there are more orders in all."""

_SCHEMA = pa.schema(
    [
        ("model_a", pa.string()),
        ("model_b", pa.string()),
        ("kind", pa.string()),
        ("stack_a", pa.string()),
        ("layer_a", pa.int16()),
        ("stack_b", pa.string()),
        ("layer_b", pa.int16()),
        ("score", pa.float32()),
        ("matched", pa.bool_()),
        ("feature_score", pa.float32()),
        ("feature_matched", pa.bool_()),
    ]
)


@dataclass(frozen=True, repr=False)
class Alignment(Drawn):
    """Rows of kind, layer_a, layer_b: ``score`` is the mean |Pearson| of the two layers' vectors, ``matched`` the
    Hungarian matching. ``feature_score`` and ``feature_matched`` are the same on the raw weights. ``summary`` has one
    row per kind: the matching, the mean scores of matched and of other layers, ``diagonality`` and its p-value.
    """

    summary: Result = field(default_factory=lambda: Result(pa.table({})), repr=False)

    def diagonality(self, kind: str, *, feature: bool = False) -> tuple[float, float]:
        """(correlation, p-value) of one kind's scores; see the module. Both are NaN for fewer than two layers, and for
        scores that are missing or all equal. Raises QueryError for a kind that is not in the table.
        """
        return diagonality(self.scores(kind, feature=feature))

    def scores(self, kind: str, *, feature: bool = False) -> np.ndarray:
        """The scores of one kind as a matrix: layers of the first model x layers of the second. Raises QueryError."""
        name = "feature_score" if yes_or_no("feature", feature) else "score"
        rows = self._of(kind)
        values = [np.nan if row[name] is None else row[name] for row in rows]
        return np.array(values).reshape(len(self.places(kind, "a")), -1)

    def places(self, kind: str, side: str) -> list[str]:
        """The names of one kind's layers in the model of ``side`` a or b: L0, or encoder/L0 if there are stacks.

        Raises QueryError.
        """
        if not isinstance(side, str) or side not in ("a", "b"):
            raise QueryError(f"side is a or b, the first model or the second, not {quoted(side)}")
        rows = self._of(kind)
        return list(dict.fromkeys(place_name((row[f"stack_{side}"], row[f"layer_{side}"])) for row in rows))

    def _of(self, kind: str) -> list[dict[str, Any]]:
        """The rows of one kind. Raises QueryError where there are none."""
        kind = check_text(kind, QueryError(f"kind is text, not {quoted(kind)}"))
        rows = [row for row in self.table.to_pylist() if row["kind"] == kind]
        if not rows:
            raise QueryError(f"this alignment has no kind {quoted(kind)}; {suggest(kind, self.kinds)}")
        return rows

    @property
    def kinds(self) -> list[str]:
        return list(dict.fromkeys(self.table["kind"].to_pylist()))

    def figure(self) -> Any:
        """Heat maps of all kinds, in which matched pairs are marked."""
        return alignment_figure(self)


def kinds_that_align(a: Model, b: Model) -> list[str]:
    """The kinds of weights that both models have."""
    both = [kind for kind in KINDS if kind in a.layout.kinds and kind in b.layout.kinds]
    return [kind for kind in both if KINDS[kind].form == "weight"]


def align(store: Store, scope: Scope) -> Alignment:
    """See ``Atlas.align``; ``scope`` has two models."""
    (a, b), kind, shared = scope.models, scope.kind, kinds_that_align(*scope.models)
    if kind is not None and KINDS[kind].form != "weight":
        raise QueryError(f"align compares the weights of layers, and {kind} is not a weight; {suggest(kind, shared)}")
    kinds = [each for each in shared if kind in (None, each)]
    if not kinds:
        raise QueryError(f"{a.name} and {b.name} have no kind of parameter in common")
    n_tokens = related_on(store.database, a, b)
    if n_tokens is not None:
        notes = [] if a.vocabulary == b.vocabulary else [shared_note(a, b, n_tokens)]
        return _alignment(a.name, b.name, _recorded(store, a, b, kinds), notes)
    both = common(store, a, b)
    rows: list[tuple[Any, ...]] = []
    for each in kinds:
        places = (a.layout.places(each), b.layout.places(each))
        in_a, in_b = both.rows(each)
        scores = isometry.layer_scores(
            [in_a[slice(*span)] for span in places[0].values()], [in_b[slice(*span)] for span in places[1].values()]
        )
        matched = isometry.match_layers(scores)
        rows += [
            (each, place_a, place_b, float(scores[i, j]), bool(matched[i, j]), None, None)
            for i, place_a in enumerate(places[0])
            for j, place_b in enumerate(places[1])
        ]
    return _alignment(a.name, b.name, rows, both.notes)


def _recorded(store: Store, a: Model, b: Model, kinds: list[str]) -> list[tuple[Any, ...]]:
    """The rows of two models that the builder has related, in the order in which they were asked for."""
    relation = store.database.relation(a, b)
    assert relation is not None
    found = relation.rows(
        "SELECT kind, stack_a, layer_a, stack_b, layer_b, score, matched, feature_score, feature_matched "
        "FROM store.layer_alignments"
    )
    rows = [(each, (sa, la), (sb, lb), *rest) for each, sa, la, sb, lb, *rest in found if each in kinds]
    if not store.database.contents.is_first(a.name, b.name):
        rows = [(each, in_b, in_a, *rest) for each, in_a, in_b, *rest in rows]
    order = {each: (list(a.layout.places(each)), list(b.layout.places(each))) for each in kinds}
    rows.sort(key=lambda row: (kinds.index(row[0]), *(order[row[0]][i].index(row[i + 1]) for i in (0, 1))))
    return rows


def diagonality(scores: Array) -> tuple[float, float]:
    """(correlation, p-value) of a matrix of layer scores (n x m); see the module.

    >>> correlation, p = diagonality(np.array([[3.0, 2, 1], [2, 3, 2], [1, 2, 3]]))
    >>> round(correlation, 9), p == 1 / 6
    (1.0, True)
    """
    scores = scores if scores.shape[0] <= scores.shape[1] else scores.T
    n, m = scores.shape
    if n < 2:
        return np.nan, np.nan
    depth = [np.arange(size) / (size - 1) for size in (n, m)]
    near = 1 - np.abs(depth[0][:, None] - depth[1])
    near -= near.mean()
    centred = scores - scores.mean()
    norm = float(np.linalg.norm(near) * np.linalg.norm(centred))
    if not norm > 1e-12 * np.abs(scores).max() * np.linalg.norm(near):  # NaN of scores that there are not, too
        return np.nan, np.nan
    # How well layer j fits the place of layer i, in the one model and in the other; the traces are one number.
    fits = [near.T @ centred] if n < m else [near.T @ centred, near @ centred.T]
    return float(np.trace(fits[0]) / norm), max(_p_value(fit, norm) for fit in fits)


def _p_value(fit: Array, norm: float) -> float:
    """The share of the orders of layers that fit at least as well as their own; ``norm`` bounds the rounding.

    ``scipy.stats.permutation_test`` gives the same for up to seven layers. From eight on its random orders are not
    these, so that its p-values may differ.
    """
    reached = tried = 0
    for orders in _orders(len(fit)):
        values = fit[np.arange(len(fit)), orders].sum(axis=1)
        reached += int((values >= np.trace(fit) - 1e-9 * norm).sum())
        tried += len(orders)
    return reached / tried


def _orders(m: int) -> Iterator[Array]:
    """Blocks of orders of m things, one order per row. The first row is their own order."""
    if factorial(m) <= _ORDERS:
        yield np.array(list(permutations(range(m))))
    else:
        draw = np.random.default_rng(0)
        yield np.concatenate([np.arange(m)[None], draw.permuted(np.tile(np.arange(m), (_ORDERS, 1)), axis=1)])


def _alignment(a: str, b: str, rows: list[tuple[Any, ...]], notes: Sequence[str] = ()) -> Alignment:
    """From rows of (kind, place a, place b, score, matched, feature_score, feature_matched), ordered."""
    flat = [(a, b, kind, *place_a, *place_b, *rest) for kind, place_a, place_b, *rest in rows]
    table = table_of([dict(zip(_SCHEMA.names, row, strict=True)) for row in flat], _SCHEMA)
    found = Alignment(table)
    lines, depths = [], set()
    for kind in found.kinds:
        ours = [row for row in rows if row[0] == kind]
        lines.append({"kind": kind, **_summary(found, ours, "")})
        if ours[0][5] is not None:
            lines[-1] |= _summary(found, ours, "raw ")
        if lines[-1]["p"] is not None:
            depths.add(max(len({row[side] for row in ours}) for side in (1, 2)))
    title = f"{a} and {b}: mean |correlation| of matched layers and of all others, in embedding space"
    if any("raw matched" in line for line in lines):
        title += ", and of raw weights"
    title += (
        "\ndiagonal: how much more alike layers at the same depth are (at most 1); p: the chance of a value this large"
    )
    title += "".join(f"\np of {m} layers is at least 1/{min(factorial(m), _ORDERS + 1):,}" for m in sorted(depths))
    summary = Result(pa.Table.from_pylist(lines), title, list(notes))
    few = summary.table.select([name for name in summary.columns if name != "raw diagonal"])
    return Alignment(table, title, list(notes), few, summary)


def _summary(alignment: Alignment, rows: list[tuple[Any, ...]], prefix: str) -> dict[str, Any]:
    """How one kind's layers match: the pairs, the mean score of matched pairs and of the others, the diagonality."""
    score, matched = (5, 6) if prefix else (3, 4)
    chosen = [row for row in rows if row[matched]]
    others = [row[score] for row in rows if not row[matched]]
    diagonal, p = alignment.diagonality(rows[0][0], feature=bool(prefix))
    names = [tuple(short_name(place_name(place)) for place in row[1:3]) for row in chosen]
    same = len(chosen) ** 2 == len(rows) and all(one == other for one, other in names)
    return {
        f"{prefix}layers": "identity" if same else " ".join(f"{one}-{other}" for one, other in names),
        f"{prefix}matched": float(np.mean([row[score] for row in chosen])),
        f"{prefix}others": float(np.mean(others)) if others else None,
        f"{prefix}diagonal": None if np.isnan(diagonal) else diagonal,
        f"{prefix}p": None if np.isnan(p) else p,
    }


def short_name(place: str) -> str:
    """The short name of a layer: its number, after the first letter of its stack if it has one.

    >>> short_name("L3"), short_name("encoder/L0")
    ('3', 'e0')
    """
    stack, _, layer = place.rpartition("/")
    return f"{stack[:1]}{layer.removeprefix('L')}"


def alignment_figure(alignment: Alignment) -> Any:
    """Heat maps of an alignment: one column per kind, embedding space above, raw weights below if they are known."""
    Figure = figure_class()
    kinds = alignment.kinds
    known = not np.isnan(alignment.scores(kinds[0], feature=True)).all()
    a, b = (alignment.table[name][0].as_py() for name in ("model_a", "model_b"))
    rows = 2 if known else 1
    figure = Figure(figsize=(2.3 * len(kinds) + 1.2, 2.5 * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, len(kinds), squeeze=False)
    for line, feature in enumerate([False, True][:rows]):
        for column, kind in enumerate(kinds):
            axis = axes[line, column]
            scores = alignment.scores(kind, feature=feature)
            places = (alignment.places(kind, "a"), alignment.places(kind, "b"))
            picture = axis.imshow(scores, cmap="viridis", origin="lower")
            matched = "feature_matched" if feature else "matched"
            for entry in alignment.table.to_pylist():
                if entry["kind"] == kind and entry[matched]:
                    row_a, row_b = (
                        names.index(place_name((entry[f"stack_{side}"], entry[f"layer_{side}"])))
                        for side, names in zip("ab", places, strict=True)
                    )
                    axis.plot(row_b, row_a, "o", color="white", markeredgecolor="black")
            for names, ticks in ((places[0], axis.set_yticks), (places[1], axis.set_xticks)):
                ticks(_ticks(len(names)), [short_name(names[i]) for i in _ticks(len(names))])
            if line == 0:
                axis.set_title(kind)
            if line == rows - 1:
                axis.set_xlabel(f"layer of {b}")
            if column == 0:
                axis.set_ylabel(f"{'raw weights' if feature else 'embedding space'}\nlayer of {a}")
            bar = figure.colorbar(picture, ax=axis, shrink=0.75)
            bar.ax.tick_params(labelsize=7)
    figure.suptitle(f"{a} and {b}: mean |correlation| of the layers' vectors (dots: best one-to-one matching)")
    return figure


def _ticks(n: int) -> list[int]:
    return list(range(0, n, max(1, -(-n // 8))))
