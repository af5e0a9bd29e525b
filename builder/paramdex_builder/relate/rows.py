"""The rows of the tables ``neighbors`` and ``layer_alignments``: how two models relate, kind by kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import torch
from safetensors import safe_open

from paramdex_builder.files.vectors import open_rows, write_flat_index
from paramdex_builder.relate.models import Pair, Related
from paramdex_builder.relate.relations import Move, Nearest, Segment, feature_blocks, relate, restricted_blocks
from paramdex_schemas import KINDS, atlas_files, isometry
from paramdex_schemas.layout import Place
from paramdex_schemas.progress import Advance


def passes(pair: Pair) -> int:
    """How many rows ``relation_rows`` reports: each row once, and twice in a kind whose layers are aligned."""
    return sum(pair.a.layout.blocks[kind].n_rows * (2 if KINDS[kind].form == "weight" else 1) for kind in _kinds(pair))


def relation_rows(
    pair: Pair, folder: Path, k: int, device: torch.device, advance: Advance
) -> Iterator[tuple[str, pa.Table]]:
    """(table, rows) of the tables ``neighbors``, both ways, and ``layer_alignments``, a kind at a time. ``folder`` is
    that of the relation, which has the transfers.
    """
    a, b = pair.a, pair.b
    for kind in _kinds(pair):
        places = [list(side.layout.places(kind).values()) for side in (a, b)]
        layers_a, layers_b = places if KINDS[kind].form == "weight" else ([], [])
        with _scratch(folder) as scratch:
            rows_a, rows_b = (_comparable(pair, side, kind, folder, Path(scratch), device) for side in pair.sides)
            found = relate(rows_a, rows_b, _move(folder), k, layers_a, layers_b, device, advance)
        yield "neighbors", _neighbor_rows(found.of_a, kind, a, b, of_a=True)
        yield "neighbors", _neighbor_rows(found.of_b, kind, b, a, of_a=False)
        if found.layers is not None:
            features = _feature_layers(pair, kind, places, folder, device, advance)
            yield "layer_alignments", _alignment(a, b, kind, found.layers, features)


def _kinds(pair: Pair) -> list[str]:
    return [kind for kind in pair.b.layout.kinds if kind in pair.a.layout.kinds]


def _move(folder: Path) -> Move:
    """What takes the coordinates of a space of a into those of one of b."""

    def move(source: str, into: str) -> np.ndarray:
        with safe_open(folder / atlas_files.TRANSFER, framework="np") as opened:
            found: np.ndarray = opened.get_tensor(atlas_files.transfer(source, into))
        return found

    return move


def _comparable(pair: Pair, side: str, kind: str, folder: Path, scratch: Path, device: torch.device) -> list[Segment]:
    """The rows of a kind of one of the two models, on the tokens by which they are compared; rows that are made for it
    go to the folder ``scratch``.
    """
    model = pair.sides[side]
    segments = model.segments(kind)
    if pair.shared is None:
        return segments
    found = []
    for number, (rows, first, space) in enumerate(segments):
        path, move = scratch / f"{side}-{number}.faiss", _restriction(model, space, folder, side)
        write_flat_index(path, len(move), restricted_blocks(rows, move, device))
        del move  # before the next is made
        found.append(Segment(open_rows(path), first, space))
    return found


def _restriction(model: Related, space: str, folder: Path, side: str) -> np.ndarray:
    """M from the coordinates of a space to those on shared tokens."""
    with safe_open(folder / atlas_files.TRANSFER, framework="np") as opened:
        some = isometry.Root(opened.get_tensor(atlas_files.shared_root(side, space)))
    return isometry.restriction(some, model.root(space))


def _scratch(folder: Path) -> TemporaryDirectory[str]:
    """A folder within that of the relation, for files that are needed for a while."""
    return TemporaryDirectory(prefix="scratch-", dir=folder)


def _neighbor_rows(nearest: Nearest, kind: str, of: Related, among: Related, *, of_a: bool) -> pa.Table:
    """The rows of ``neighbors`` for all parameters of a kind of one model and their nearest in another."""
    n, k = nearest.ids.shape
    return pa.table(
        {
            "of_a": np.full(n * k, of_a),
            "param_id": np.repeat(np.arange(n) + of.layout.blocks[kind].first, k),
            "neighbor_id": nearest.ids.ravel() + among.layout.blocks[kind].first,
            "rank": pa.array(np.tile(np.arange(1, k + 1), n), pa.int16()),
            "similarity": nearest.scores.ravel(),
        }
    )


def _feature_layers(
    pair: Pair,
    kind: str,
    places: list[list[tuple[int, int]]],
    folder: Path,
    device: torch.device,
    advance: Advance,
) -> np.ndarray | None:
    """The layer scores of raw weights, or None where widths differ; ``advance`` is told of every row of a.

    The weights are recovered from the coordinates, as far as ``feature_blocks`` compares features by them.
    """
    a, b = pair.a, pair.b
    if a.width != b.width or not all(side.root().keeps_features for side in (a, b)):
        advance(a.layout.blocks[kind].n_rows)
        return None
    with _scratch(folder) as scratch:
        rows_a, rows_b = (_feature_rows(pair, side, kind, Path(scratch), device) for side in pair.sides)
        return relate(rows_a, rows_b, None, 0, places[0], places[1], device, advance).layers


def _feature_rows(pair: Pair, side: str, kind: str, scratch: Path, device: torch.device) -> list[Segment]:
    path, model = scratch / f"features-{side}.faiss", pair.sides[side]
    write_flat_index(path, model.width, feature_blocks(model.rows(kind), model.root().inverse, device))
    return [Segment(open_rows(path), 0, "features")]


def _alignment(a: Related, b: Related, kind: str, scores: np.ndarray, feature_scores: np.ndarray | None) -> pa.Table:
    """The rows of ``layer_alignments`` of one kind."""
    places_a, places_b = (list(side.layout.places(kind)) for side in (a, b))
    in_a, in_b = (index.ravel() for index in np.indices(scores.shape))
    columns = {
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
