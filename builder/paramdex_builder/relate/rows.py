"""The rows of the tables ``neighbors`` and ``layer_alignments``: how a new model relates to another, kind by kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import torch
from safetensors import safe_open

from paramdex_builder.files.vectors import open_rows, write_flat_index
from paramdex_builder.relate.models import Related
from paramdex_builder.relate.relations import Move, Nearest, Segment, feature_blocks, relate, restricted_blocks
from paramdex_builder.work.progress import Advance
from paramdex_schemas import KINDS, atlas_files, isometry
from paramdex_schemas.layout import Place


def passes(other: Related, mine: Related) -> int:
    """How many rows ``relation_rows`` reports: each row once, and twice in a kind whose layers are aligned."""
    kinds = [kind for kind in mine.layout.kinds if kind in other.layout.kinds]
    return sum(other.layout.blocks[kind].n_rows * (2 if KINDS[kind].form == "weight" else 1) for kind in kinds)


def relation_rows(
    other: Related, mine: Related, k: int, device: torch.device, advance: Advance
) -> Iterator[tuple[str, pa.Table]]:
    """(table, rows) of the tables ``neighbors``, both ways, and ``layer_alignments``, a kind at a time."""
    for kind in [kind for kind in mine.layout.kinds if kind in other.layout.kinds]:
        places = [list(side.layout.places(kind).values()) for side in (other, mine)]
        layers_other, layers_mine = places if KINDS[kind].form == "weight" else ([], [])
        with _scratch(mine) as scratch:
            a, b = (_comparable(side, kind, other, mine, Path(scratch), device) for side in (other, mine))
            found = relate(a, b, _move(other, mine), k, layers_other, layers_mine, device, advance)
        for nearest, of, among in ((found.of_a, other, mine), (found.of_b, mine, other)):
            yield "neighbors", _neighbor_rows(nearest, kind, of, among)
        if found.layers is not None:
            features = _feature_layers(other, mine, kind, places, device, advance)
            yield "layer_alignments", _alignment(other, mine, kind, found.layers, features)


def _move(other: Related, mine: Related) -> Move:
    """What takes the coordinates of a space of ``other`` into those of one of ``mine``."""
    if other.shared is None:
        file, model = atlas_files.TRANSFER, other.name
    else:
        file, model = atlas_files.shared_space(other.name), None

    def move(source: str, into: str) -> np.ndarray:
        with safe_open(mine.folder / file, framework="np") as opened:
            found: np.ndarray = opened.get_tensor(atlas_files.transfer(source, into, model))
        return found

    return move


def _comparable(
    side: Related, kind: str, other: Related, mine: Related, scratch: Path, device: torch.device
) -> list[Segment]:
    """The rows of a kind of one of the two models, on the tokens by which they are compared; rows that are made for it
    go to the folder ``scratch``.
    """
    segments = side.segments(kind)
    if other.shared is None:
        return segments
    file, which = mine.folder / atlas_files.shared_space(other.name), "earlier" if side is other else "later"
    found = []
    for number, (rows, first, space) in enumerate(segments):
        path, move = scratch / f"{which}-{number}.faiss", _restriction(side, space, file, which)
        write_flat_index(path, len(move), restricted_blocks(rows, move, device))
        del move  # before the next is made
        found.append(Segment(open_rows(path), first, space))
    return found


def _restriction(side: Related, space: str, file: Path, which: str) -> np.ndarray:
    """M from the coordinates of a space to those on shared tokens, whose roots are in ``file``."""
    with safe_open(file, framework="np") as opened:
        some = isometry.Root(opened.get_tensor(f"{which}/{space}"))
    return isometry.restriction(some, side.root(space))


def _scratch(mine: Related) -> TemporaryDirectory[str]:
    """A folder beside the model's own for files that are needed for a while."""
    return TemporaryDirectory(prefix="scratch-", dir=mine.folder.parent)


def _neighbor_rows(nearest: Nearest, kind: str, of: Related, among: Related) -> pa.Table:
    """The rows of ``neighbors`` for all parameters of a kind of one model and their nearest in another."""
    n, k = nearest.ids.shape
    return pa.table(
        {
            "param_id": np.repeat(np.arange(n) + of.model.first(kind), k),
            "neighbor_id": nearest.ids.ravel() + among.model.first(kind),
            "neighbor_model_id": pa.array(np.full(n * k, among.model.model_id), pa.int32()),
            "rank": pa.array(np.tile(np.arange(1, k + 1), n), pa.int16()),
            "similarity": nearest.scores.ravel(),
        }
    )


def _feature_layers(
    a: Related, b: Related, kind: str, places: list[list[tuple[int, int]]], device: torch.device, advance: Advance
) -> np.ndarray | None:
    """The layer scores of raw weights, or None where widths differ; ``advance`` is told of every row of ``a``.

    The weights are recovered from the coordinates, as far as ``feature_blocks`` compares features by them.
    """
    if a.width != b.width or not all(side.root().keeps_features for side in (a, b)):
        advance(a.layout.blocks[kind].n_rows)
        return None
    with _scratch(b) as scratch:
        rows_a, rows_b = (_feature_rows(side, kind, Path(scratch), device) for side in (a, b))
        return relate(rows_a, rows_b, None, 0, places[0], places[1], device, advance).layers


def _feature_rows(side: Related, kind: str, scratch: Path, device: torch.device) -> list[Segment]:
    path = scratch / f"features-{side.model.model_id}.faiss"
    write_flat_index(path, side.width, feature_blocks(side.rows(kind), side.root().inverse, device))
    return [Segment(open_rows(path), 0, "features")]


def _alignment(a: Related, b: Related, kind: str, scores: np.ndarray, feature_scores: np.ndarray | None) -> pa.Table:
    """The rows of ``layer_alignments`` of one kind."""
    places_a, places_b = (list(side.layout.places(kind)) for side in (a, b))
    in_a, in_b = (index.ravel() for index in np.indices(scores.shape))
    columns = {
        "model_a": [a.name] * scores.size,
        "model_b": [b.name] * scores.size,
        "kind": [kind] * scores.size,
        **_place_columns("a", places_a, in_a),
        **_place_columns("b", places_b, in_b),
        "score": pa.array(scores.ravel(), pa.float32()),
        "matched": isometry.match_layers(scores).ravel(),
    }
    if feature_scores is not None:
        columns["feature_score"] = pa.array(feature_scores.ravel(), pa.float32())
        columns["feature_matched"] = isometry.match_layers(feature_scores).ravel()
    return pa.table(columns)


def _place_columns(side: str, places: list[Place], which: np.ndarray) -> dict[str, pa.Array]:
    stacks, layers = zip(*(places[i] for i in which), strict=True)
    return {f"stack_{side}": pa.array(stacks, pa.string()), f"layer_{side}": pa.array(layers, pa.int16())}
