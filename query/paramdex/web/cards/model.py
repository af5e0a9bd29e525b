"""The models of an atlas side by side, and the card of one model: maps of layers x heads and layers x neurons."""

from __future__ import annotations

from typing import Any, Literal

from paramdex import Atlas
from paramdex.plain import short
from paramdex.store.head_matrices import rows_of_heads
from paramdex.store.moments import numbers
from paramdex.store.reading import reads_of_model
from paramdex.verbs.info import rows_of_models
from paramdex.web.cards.shapes import Cell, Shape
from paramdex.web.cards.sources import public_source
from paramdex_schemas import Address, QueryError, atlas_files
from paramdex_schemas.checks import suggest
from paramdex_schemas.layout import Place, place_name
from paramdex_schemas.model import Model

HEAD_COLUMNS = ["qk_norm", "vo_norm", "qk_std", "vo_std"]
VECTOR_COLUMNS = ["norm", "projected_norm", "mean", "std"]
_CELLS = 4096
"""A map of at most so many vectors has a cell for each; in a larger one a cell stands for several."""
_WIDTH = 128
"""Cells per layer, where a cell stands for several vectors."""


class ModelSummary(Shape):
    """A model as the home page shows it."""

    model: str
    family: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    neurons: int | None
    experts: int | None
    stacks: list[str] | None
    tokens: int
    parameters: int
    matrices: int
    embedding: str
    tied: bool
    fold_norm: bool
    reading: str
    reading_text: str | None
    reading_tokens: int | None
    rotary_left_out: bool
    dtype: str
    vocabulary: str
    source: str
    revision: str | None
    weights_sha256: str
    built_at: str
    builder_version: str


class Home(Shape):
    """The atlas: its models."""

    atlas: str
    megabytes: float
    models: list[ModelSummary]


class GridRow(Shape):
    place: str
    address: str
    cells: list[Cell]


class Grid(Shape):
    """Layers x heads, or layers x neurons."""

    of: Literal["heads", "vectors"]
    kind: str | None
    column: str
    columns: list[str]
    rows: list[GridRow]
    low: float
    high: float
    """The ends of the colours: a value beyond one has the colour at that end."""


class Reads(Shape):
    """How well the vectors of a kind tell what they read, in each layer that is known: the mean correlation of what is
    read with the score of the token, on held-out text.
    """

    kind: str
    layers: dict[str, float]


class ModelCard(Shape):
    """A model, or one place of it: a stack, a layer or an expert."""

    type: Literal["model"] = "model"
    address: str
    model: str
    summary: ModelSummary
    kinds: dict[str, int]
    """How many parameters each kind has."""
    places: list[str]
    """The addresses of its layers."""
    reads: list[Reads]
    grids: list[Grid]


def summaries(atlas: Atlas) -> list[ModelSummary]:
    found = []
    for row in rows_of_models(atlas).to_pylist():
        known = {name: row[name] for name in ModelSummary.model_fields if name not in ("built_at", "source")}
        found.append(
            ModelSummary(
                **known,
                source=public_source(row["source"]),
                built_at=f"{row['built_at']:%Y-%m-%d %H:%M}",
            )
        )
    return found


def home(atlas: Atlas) -> Home:
    size = atlas_files.size(atlas.path)
    return Home(atlas=atlas.path.name, megabytes=round(size / 2**20, 1), models=summaries(atlas))


def model_card(
    atlas: Atlas, where: Address, *, heads: str = "vo_norm", kind: str | None = None, column: str = "norm"
) -> ModelCard:
    """A model, or the part of it that an address names: a stack, a layer, an expert.

    ``heads`` and ``column`` are the columns that colour the maps; ``kind`` says which vectors the second map shows.
    Raises QueryError where there is no such kind or column.
    """
    model = atlas.models[where.model]
    runs = [
        run
        for run in model.layout.runs
        if where.stack in (None, run.stack)
        and where.layer in (None, run.layer)
        and (where.expert is None or run.owner == "expert")
    ]
    kinds: dict[str, int] = {}
    for run in runs:
        share = 1 if where.expert is not None else run.n_owners
        kinds[run.kind] = kinds.get(run.kind, 0) + share * run.size
    places = list(dict.fromkeys(run.place for run in runs if run.layer is not None))
    places.sort(key=lambda place: (model.layout.stacks.index(place[0]) if place[0] else 0, place[1]))
    kind = kind or next((each for each in ("ff_value", *kinds) if each in kinds), None)
    if kind not in kinds:
        raise QueryError(f"{where} has no vectors of kind {kind!r}; {suggest(str(kind), kinds)}")
    grids = []
    if where.expert is None and any(place in model.layout.attention_places for place in places):
        grids.append(_head_grid(atlas, model, places, _chosen(heads, HEAD_COLUMNS)))
    grids.append(_vector_grid(atlas, model, where, kind, _chosen(column, VECTOR_COLUMNS)))
    (summary,) = (each for each in summaries(atlas) if each.model == model.name)
    return ModelCard(
        address=str(where),
        model=model.name,
        summary=summary,
        kinds=kinds,
        grids=grids,
        reads=_reads(atlas, model, places) if where.expert is None else [],
        places=[f"{model.name}/{place_name(place)}" for place in places],
    )


def _reads(atlas: Atlas, model: Model, places: list[Place]) -> list[Reads]:
    """What is known of some places of a model; kinds of which nothing is known are left out."""
    found = [
        Reads(
            kind=each.kind,
            layers={place_name(place): short(each.means[place]) for place in places if place in each.means},
        )
        for each in reads_of_model(atlas, model)
    ]
    return [each for each in found if each.layers]


def _chosen(column: str, columns: list[str]) -> str:
    if column not in columns:
        raise QueryError(f"there is no column {column!r} to colour by; {suggest(column, columns)}")
    return column


def _grid(what: dict[str, Any], rows_: list[GridRow]) -> Grid:
    """A grid with ``low`` and ``high``, the ends of its colours. In a large grid the outermost hundredths share the end
    colours: else one outlier would make all other cells look the same.
    """
    values = sorted(cell.value for row in rows_ for cell in row.cells)
    out = len(values) // 100
    return Grid(**what, rows=rows_, low=values[out], high=values[-1 - out])


def _head_grid(atlas: Atlas, model: Model, places: list[Place], column: str) -> Grid:
    lines: dict[Place, list[Cell]] = {place: [] for place in places if place in model.layout.attention_places}
    for head in rows_of_heads(atlas, model).select(["stack", "layer", "address", column]).to_pylist():
        place = head["stack"], head["layer"]
        if place in lines:
            lines[place].append(Cell(address=head["address"], value=short(head[column])))
    found = [
        GridRow(place=place_name(place), address=f"{model.name}/{place_name(place)}", cells=cells)
        for place, cells in lines.items()
    ]
    return _grid({"of": "heads", "kind": None, "column": column, "columns": HEAD_COLUMNS}, found)


def _vector_grid(atlas: Atlas, model: Model, where: Address, kind: str, column: str) -> Grid:
    """The vectors of a kind, one row per layer. Where there are many, a cell shows the largest of several."""
    spans = {
        place: model.ids(kind, place, where.expert)
        for place in model.layout.places(kind)
        if where.stack in (None, place[0]) and where.layer in (None, place[1])
    }
    total = sum(end - start for start, end in spans.values())
    lines = []
    for place, (start, end) in spans.items():
        each = 1 if total <= _CELLS else max(1, -(-(end - start) // _WIDTH))
        at = place_name(place)
        values = numbers(atlas.database, model, column, (start, end))
        cells = []
        for first in range(0, len(values), each):
            part = values[first : first + each]
            best = int(part.argmax())
            address = str(model.address(start + first + best))
            cells.append(Cell(address=address, value=short(part[best]), count=len(part)))
        lines.append(GridRow(place=at or kind, address=f"{model.name}/{at}" if at else model.name, cells=cells))
    return _grid({"of": "vectors", "kind": kind, "column": column, "columns": VECTOR_COLUMNS}, lines)
