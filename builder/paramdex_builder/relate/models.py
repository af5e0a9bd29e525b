"""How a new model relates to those in the atlas: the ways between their coordinates, nearest parameters, like layers.

Models of one vocabulary are compared by the scores of all its tokens. Where two vocabularies differ by few tokens, as
those of a base and a tuned model with tokens of its own do, models are compared in the same way by the scores of the
tokens whose text both have (``shared_tokens.sql``, whatever their ids), centred over those: with the embeddings'
rows of these tokens alone. Each model's coordinates c then become M c, normalized again (``isometry.restriction``).

Few is at most a tenth of the texts of either (``NEARLY``): the scores of the tokens in common then are nearly all that
the two models say, and a similarity on them is nearly one of whole vectors. Models whose vocabularies differ more are
compared when somebody asks, which says on how many tokens; that nothing of them is kept is said here and by ``info``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import torch
from safetensors import safe_open

from paramdex_builder.files.tensors import Blocks, write_tensors
from paramdex_builder.files.vectors import open_rows, write_flat_index
from paramdex_builder.project.space import Space, centred_gram, column_means, space_work
from paramdex_builder.relate.relations import Nearest, feature_blocks, relate, restricted_blocks
from paramdex_builder.work.progress import Advance, Progress
from paramdex_schemas import KINDS, Layout, Run, atlas_files, isometry, vector_files
from paramdex_schemas.layout import Place

NEARLY = 0.9
"""The share of either vocabulary's texts that two must have in common for their models to be related."""
_ROOT_ROWS = 1024
"""Rows of another model's R that are read at a time."""


@dataclass(frozen=True)
class Shared:
    """The tokens whose text two vocabularies have: their ids in that of the earlier model and in that of the new one
    (S each), in the order of the earlier one's.
    """

    earlier: torch.Tensor
    new: torch.Tensor

    def __len__(self) -> int:
        return len(self.earlier)


@dataclass(frozen=True)
class Related:
    """A model whose vectors are written: one in the atlas that the new one is related to, or the new one in its folder.

    ``shared`` are the tokens by which it is compared with the new one, None of one vocabulary, all ``n_tokens`` of it.
    """

    name: str
    model_id: int
    first_param_id: int
    layout: Layout
    folder: Path
    n_tokens: int
    shared: Shared | None = None

    def rows(self, kind: str) -> np.ndarray:
        """The normalized coordinates of a kind (n x r), mapped from the disk."""
        return open_rows(self.folder / vector_files.index_name(kind))

    @property
    def root_shape(self) -> tuple[int, int]:
        with safe_open(self.folder / atlas_files.SPACE, framework="np") as file:
            rank, d = file.get_slice("root").get_shape()
        return rank, d

    def root(self) -> isometry.Root:
        with safe_open(self.folder / atlas_files.SPACE, framework="np") as file:
            return isometry.Root(file.get_tensor("root"))


@dataclass(frozen=True)
class _Gathered:
    """Rows of E (S x d) by their ids: as slices of a tensor that is held, or of the file of a space, which is mapped
    anew for every slice, so that no more of it is held.
    """

    source: torch.Tensor | Path
    ids: torch.Tensor
    device: torch.device

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, part: slice) -> torch.Tensor:
        if isinstance(self.source, torch.Tensor):
            return self.source[self.ids[part].to(self.device)]
        with safe_open(self.source, framework="pt") as file:
            return file.get_tensor("embedding")[self.ids[part]].to(self.device)


def related(
    connection: duckdb.DuckDBPyConnection, atlas: Path, name: str, folder: Path, progress: Progress
) -> tuple[Related, list[Related]]:
    """The new model, whose rows of ``models``, ``layout`` and ``tokens`` are in the database and whose vectors are in
    ``folder``, and the earlier ones that it is related to. ``progress`` is told of what is not compared on all tokens.
    """
    rows = connection.execute(
        "SELECT model, model_id, first_param_id, vocabulary, vocabulary_size FROM store.models ORDER BY model_id"
    ).fetchall()
    *earlier, (_, number, first, own, size) = rows
    mine = Related(name, number, first, _layout(connection, number, first), folder, size)
    shared = {vocabulary: _shared(connection, vocabulary, own) for *_, vocabulary, _ in earlier if vocabulary != own}
    others, apart = [], []
    for other, number, first, vocabulary, _ in earlier:
        tokens = shared.get(vocabulary)
        if vocabulary != own and tokens is None:
            apart.append(other)
            continue
        if tokens is not None:
            progress.say(f"{name} with {other}: compared on the {len(tokens):,} tokens whose text both have")
        n_tokens = size if tokens is None else len(tokens)
        place = atlas_files.model_folder(atlas, other)
        others.append(Related(other, number, first, _layout(connection, number, first), place, n_tokens, tokens))
    if apart:
        progress.say(
            f"{name}: no neighbors and alignments are kept with {', '.join(apart)}: "
            "their vocabularies differ too much; similar and align compare them when asked"
        )
    return mine, others


def _layout(connection: duckdb.DuckDBPyConnection, model_id: int, first_param_id: int) -> Layout:
    rows = connection.execute(
        "SELECT kind, stack, layer, owner, n_owners, size, group_size, first_param_id - ? FROM store.layout "
        "WHERE model_id = ? ORDER BY first_param_id",
        [first_param_id, model_id],
    ).fetchall()
    return Layout(tuple(Run(*row) for row in rows))


def _shared(connection: duckdb.DuckDBPyConnection, earlier: str, new: str) -> Shared | None:
    """The tokens that two vocabularies have in common, None where they are not nearly all of both."""
    found = connection.execute(atlas_files.shared_tokens(), {"a": earlier, "b": new}).fetchnumpy()
    a, b, texts_a, texts_b = (
        torch.from_numpy(np.ma.getdata(found[name]).astype(np.int64))
        for name in ("token_a", "token_b", "texts_a", "texts_b")
    )
    if len(a) < 2 or len(a) < NEARLY * max(int(texts_a[0]), int(texts_b[0])):
        return None
    return Shared(a, b)


def write_transfers(others: list[Related], space: Space, folder: Path, progress: Progress) -> None:
    """Write what takes coordinates of each other model into those of the new one, whose space is given."""
    same = [other for other in others if other.shared is None]
    if same:
        transfers = {
            other.name: Blocks((space.root.rank, other.root_shape[0]), "float64", _transfer(other, space))
            for other in same
        }
        write_tensors(folder / atlas_files.TRANSFER, transfers)
    for other in others:
        if other.shared is not None:
            widths = other.root_shape[1], space.embedding.shape[1]
            work = len(other.shared) + sum(space_work(len(other.shared), d) for d in widths)
            with progress.step(f"{folder.name} with {other.name}: measuring shared tokens", work) as advance:
                _write_shared(other, other.shared, space, folder / atlas_files.shared_space(other.name), advance)


def _transfer(other: Related, space: Space) -> Iterator[np.ndarray]:
    """The one transfer matrix, when it is asked for. The other's root, which may be the larger, is read in parts."""
    with safe_open(other.folder / atlas_files.SPACE, framework="pt") as file:
        other_E, other_means, rows = file.get_slice("embedding"), file.get_tensor("means"), file.get_slice("root")
        cross = centred_gram(space.embedding, space.means, other_E, other_means.to(space.means.device))
        half = isometry.half_transfer(cross, space.root)
        del cross
        T = _whole_transfer(half, rows, other.root_shape[0])
    yield T


def _whole_transfer(half: np.ndarray, rows: Any, rank: int) -> np.ndarray:
    """``half`` R^+ for the ``rows`` of a root R of a rank, some at a time, of an array or a safetensors file."""
    T = np.empty((len(half), rank))
    for start in range(0, rank, _ROOT_ROWS):
        part = slice(start, min(start + _ROOT_ROWS, rank))
        T[:, part] = half @ isometry.Root(np.asarray(rows[part])).inverse
    return T


def _write_shared(other: Related, shared: Shared, space: Space, file: Path, advance: Advance) -> None:
    """Write the roots of both on the shared tokens and the transfer between them. Four matrices of the models' width
    are held at most: both roots and what becomes the transfer, or one root and what the other Gram matrix is decomposed
    in.
    """
    device = space.embedding.device
    earlier = _Gathered(other.folder / atlas_files.SPACE, shared.earlier, device)
    new = _Gathered(space.embedding, shared.new, device)
    means = column_means(earlier), column_means(new)
    roots = []
    for rows, mean in zip((earlier, new), means, strict=True):
        roots.append(isometry.gram_root(centred_gram(rows, mean, rows, mean, advance), len(shared)))
        advance(space_work(0, len(mean)))
    cross = centred_gram(new, means[1], earlier, means[0], advance)
    half = isometry.half_transfer(cross, roots[1])
    del cross
    T = _whole_transfer(half, roots[0].root, roots[0].rank)
    blocks = {"earlier": roots[0].root, "later": roots[1].root, "transfer": T}
    write_tensors(file, {name: Blocks(each.shape, "float64", [each]) for name, each in blocks.items()})


def passes(other: Related, mine: Related) -> int:
    """The rows that ``relation_rows`` reports: of kinds whose layers are aligned each twice."""
    kinds = [kind for kind in mine.layout.kinds if kind in other.layout.kinds]
    return sum(other.layout.blocks[kind].n_rows * (2 if KINDS[kind].form == "weight" else 1) for kind in kinds)


def relation_rows(
    other: Related, mine: Related, k: int, device: torch.device, advance: Advance
) -> Iterator[tuple[str, pa.Table]]:
    """(table, rows) of the tables ``neighbors``, both ways, and ``layer_alignments``, a kind at a time."""
    for kind in [kind for kind in mine.layout.kinds if kind in other.layout.kinds]:
        places = [list(side.layout.places(kind).values()) for side in (other, mine)]
        layers_other, layers_mine = places if KINDS[kind].form == "weight" else ([], [])
        a, b, transfer, scratch = _comparable(other, mine, kind, device)
        found = relate(a, b, transfer, k, layers_other, layers_mine, device, advance)
        del a, b
        _remove(scratch)
        for nearest, of, among in ((found.of_a, other, mine), (found.of_b, mine, other)):
            yield "neighbors", _neighbor_rows(nearest, kind, of, among)
        if found.layers is not None:
            features = _feature_layers(other, mine, kind, places, device, advance)
            yield "layer_alignments", _alignment(other, mine, kind, found.layers, features)


def _comparable(
    other: Related, mine: Related, kind: str, device: torch.device
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, list[Path]]:
    """The rows of a kind of both models, what takes the first's into the second's coordinates (None: nothing has to),
    and the files that were made for it.
    """
    if other.shared is None:
        with safe_open(mine.folder / atlas_files.TRANSFER, framework="np") as file:
            return other.rows(kind), mine.rows(kind), file.get_tensor(other.name), []
    scratch = [_scratch(mine, side) for side in "ab"]
    with safe_open(mine.folder / atlas_files.shared_space(other.name), framework="np") as file:
        transfer = file.get_tensor("transfer")
        for path, side, name, T in zip(scratch, (other, mine), ("earlier", "later"), (transfer, None), strict=True):
            move = isometry.restriction(isometry.Root(file.get_tensor(name)), side.root())
            write_flat_index(path, len(transfer), restricted_blocks(side.rows(kind), move, T, device))
    rows = [open_rows(path) for path in scratch]
    return rows[0], rows[1], None, scratch


def _scratch(mine: Related, side: str) -> Path:
    return mine.folder.parent / f"scratch-{side}.faiss"


def _remove(files: list[Path]) -> None:
    for file in files:
        file.unlink()


def _neighbor_rows(nearest: Nearest, kind: str, of: Related, among: Related) -> pa.Table:
    """The rows of ``neighbors`` for all parameters of a kind of one model and their nearest in another."""
    n, k = nearest.ids.shape
    return pa.table(
        {
            "param_id": np.repeat(np.arange(n) + of.first_param_id + of.layout.blocks[kind].first, k),
            "neighbor_id": nearest.ids.ravel() + among.first_param_id + among.layout.blocks[kind].first,
            "neighbor_model_id": pa.array(np.full(n * k, among.model_id), pa.int32()),
            "rank": pa.array(np.tile(np.arange(1, k + 1), n), pa.int16()),
            "similarity": nearest.scores.ravel(),
        }
    )


def _feature_layers(
    a: Related, b: Related, kind: str, places: list[list[tuple[int, int]]], device: torch.device, advance: Advance
) -> np.ndarray | None:
    """The layer scores of raw weights, or None where widths differ; ``advance`` is told of every row of ``a``.

    Weights are had back from coordinates, as far as features are compared by them (``isometry.feature_rows``).
    """
    d = a.root_shape[1]
    if b.root_shape[1] != d or not all(side.root().keeps_features for side in (a, b)):
        advance(a.layout.blocks[kind].n_rows)
        return None
    scratch = [_scratch(b, side) for side in "ab"]
    for file, side in zip(scratch, (a, b), strict=True):
        write_flat_index(file, d, feature_blocks(side.rows(kind), side.root().inverse, device))
    rows_a, rows_b = (open_rows(file) for file in scratch)
    found = relate(rows_a, rows_b, None, 0, places[0], places[1], device, advance)
    _remove(scratch)
    return found.layers


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
