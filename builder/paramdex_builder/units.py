"""Units: finished pieces of a build, kept in the staging folder so that a killed build resumes where it was.

A unit is a Parquet file of rows and, for parameters, the coordinates of their vectors; it counts as finished once it
stands under its final name, to which it is renamed whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import load_file, save_file

from paramdex_builder.pairs import HeadPairs, Words, frobenius, pair_moments, strongest_pairs
from paramdex_builder.project import moments, strongest_tokens
from paramdex_builder.space import Space
from paramdex_schemas import ModelShape, isometry
from paramdex_schemas.atlas_files import sha256

PARAMETERS = pa.schema(
    [
        ("row", pa.int64()), ("head", pa.int16()), ("kv_head", pa.int16()), ("idx", pa.int32()),
        ("norm", pa.float32()), ("mean", pa.float32()), ("std", pa.float32()), ("projected_norm", pa.float32()),
        ("top_tokens", pa.list_(pa.int32())), ("top_scores", pa.list_(pa.float32())),
        ("bottom_tokens", pa.list_(pa.int32())), ("bottom_scores", pa.list_(pa.float32())),
    ]
)  # fmt: skip
HEADS = pa.schema(
    [
        ("row", pa.int64()), ("head", pa.int16()), ("kv_head", pa.int16()),
        *((f"{matrix}_{number}", pa.float32()) for matrix in ("qk", "vo") for number in ("norm", "mean", "std")),
    ]
)  # fmt: skip
PAIRS = pa.schema(
    [
        ("row", pa.int64()), ("matrix", pa.string()), ("is_top", pa.bool_()), ("rank", pa.int16()),
        ("rank_distinct", pa.int16()), ("same_word", pa.bool_()), ("source_id", pa.int32()),
        ("target_id", pa.int32()), ("score", pa.float32()),
    ]
)  # fmt: skip


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that it stands under its name only when it is whole and on the disk."""
    part = path.with_name(path.name + ".part")
    write(part)
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)


_DIGEST = b"coordinates_sha256"


class Units:
    """The finished units of one model, in ``folder``, for one ``plan``; units of another plan are thrown away."""

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(plan, indent=1, sort_keys=True)
        file = folder / "plan.json"
        if not file.is_file() or file.read_text("utf-8") != text:
            for old in folder.iterdir():
                old.unlink()
            write_whole(file, lambda part: part.write_text(text, "utf-8"))

    def _path(self, name: str, layer: int, ending: str) -> Path:
        return self.folder / f"{name}-{layer:04d}.{ending}"

    def has(self, name: str, layer: int) -> bool:
        """Whether all files of the unit are there and whole; a damaged one is made again."""
        try:
            table = self.read(name, layer)
            if name == "heads":
                self.read("pairs", layer)
                return True
            recorded = (table.schema.metadata or {}).get(_DIGEST)
            return recorded == sha256(self._path(name, layer, "safetensors")).encode()
        except (OSError, pa.ArrowException):
            return False

    def write(self, name: str, layer: int, table: pa.Table) -> None:
        """Write the rows of a unit; of a kind after its coordinates, whose digest they carry."""
        path = self._path(name, layer, "parquet")
        beside = self._path(name, layer, "safetensors")
        if beside.is_file():
            table = table.replace_schema_metadata({_DIGEST: sha256(beside)})
        write_whole(path, lambda part: pq.write_table(table, part, write_page_checksum=True))

    def read(self, name: str, layer: int) -> pa.Table:
        return pq.read_table(self._path(name, layer, "parquet"), page_checksum_verification=True)

    def write_coordinates(self, kind: str, layer: int, rows: np.ndarray) -> None:
        path = self._path(kind, layer, "safetensors")
        write_whole(path, lambda part: save_file({"coordinates": rows}, part))

    def coordinates(self, kind: str, layer: int) -> np.ndarray:
        """Normalized coordinates of one kind and layer (n x r, float32)."""
        return load_file(self._path(kind, layer, "safetensors"))["coordinates"]


def parameter_unit(
    rows: torch.Tensor, kind: str, layer: int, shape: ModelShape, space: Space, top_k: int
) -> tuple[pa.Table, np.ndarray]:
    """The table rows and normalized coordinates (n x r, float32) of the vectors ``rows`` (n x d) of a layer."""
    rows = rows.to(space.embedding.device)
    tokens = strongest_tokens(rows, space, top_k)
    mean, std = moments(rows, space)
    norm = rows.double().norm(dim=1)
    projected = (space.size * (mean**2 + std**2)).sqrt()
    block = shape.blocks[kind]
    first = block.first + layer * block.rows_per_layer
    heads, kv_heads, indexes = zip(*shape.rows(kind), strict=True)
    columns: dict[str, Any] = {
        "row": range(first, first + len(rows)),
        "head": heads,
        "kv_head": kv_heads,
        "idx": indexes,
        "norm": norm.float().cpu().numpy(),
        "mean": mean.float().cpu().numpy(),
        "std": std.float().cpu().numpy(),
        "projected_norm": projected.float().cpu().numpy(),
    }
    for side, found in tokens.items():
        columns[f"{side}_tokens"] = _lists(found.ids.int())
        columns[f"{side}_scores"] = _lists(found.scores)
    table = pa.table([pa.array(columns[field.name], field.type) for field in PARAMETERS], schema=PARAMETERS)
    return table, isometry.normalize(space.coordinates(rows).cpu().numpy()).astype(np.float32)


def _lists(values: torch.Tensor) -> pa.ListArray:
    """A matrix (n x k) as n lists of k."""
    n, k = values.shape
    return pa.ListArray.from_arrays(np.arange(0, n * k + 1, k, dtype=np.int32), values.cpu().numpy().ravel())


def head_units(
    vectors: dict[str, torch.Tensor], layer: int, shape: ModelShape, space: Space, words: Words, pair_k: int,
    advance: Callable[[int], None],
) -> tuple[pa.Table, pa.Table]:  # fmt: skip
    """The rows of ``heads`` and ``pairs`` of one layer, from its vectors by kind (n x d each)."""
    E = space.embedding
    heads: list[dict[str, Any]] = []
    pairs: list[pa.Table] = []
    for head in range(shape.n_heads):
        kv_head = shape.kv_head(head)
        row = layer * shape.n_heads + head
        entry: dict[str, Any] = {"row": row, "head": head, "kv_head": kv_head}
        for matrix, left, right in (("QK", "attn_query", "attn_key"), ("VO", "attn_value", "attn_output")):
            P, Q = (
                vectors[kind][number * shape.d_head : (number + 1) * shape.d_head].to(E.device)
                for kind, number in (
                    (left, head if left == "attn_query" else kv_head),
                    (right, head if right == "attn_output" else kv_head),
                )
            )
            A, B = _scores(E, P), _scores(E, Q)
            for side, found in strongest_pairs(A, B, words, pair_k).items():
                pairs.append(_pair_rows(found, words, row, matrix, is_top=side == "top"))
            mean, std = pair_moments(A, B)
            name = matrix.lower()
            entry |= {f"{name}_norm": frobenius(P, Q), f"{name}_mean": mean, f"{name}_std": std}
            advance(1)
        heads.append(entry)
    return pa.Table.from_pylist(heads, schema=HEADS), pa.concat_tables(pairs)


def _scores(E: torch.Tensor, P: torch.Tensor) -> torch.Tensor:
    """E P^T (V x d_head, float64), a block of E at a time."""
    return torch.cat([chunk.double() @ P.double().T for chunk in E.split(8192)])


def _pair_rows(found: HeadPairs, words: Words, row: int, matrix: str, *, is_top: bool) -> pa.Table:
    """The rows of one side: every pair of either list once, with its rank in each."""
    ranks: dict[tuple[int, int], list[Any]] = {}
    for place, pairs in enumerate((found.all, found.distinct)):
        entries = zip(pairs.source.tolist(), pairs.target.tolist(), pairs.score.tolist(), strict=True)
        for nth, (source_id, target_id, score) in enumerate(entries, start=1):
            ranks.setdefault((source_id, target_id), [None, None, score])[place] = nth
    source = np.array([pair[0] for pair in ranks], dtype=np.int32)
    target = np.array([pair[1] for pair in ranks], dtype=np.int32)
    number = words.number.cpu().numpy()
    columns = {
        "row": np.full(len(ranks), row),
        "matrix": [matrix] * len(ranks),
        "is_top": np.full(len(ranks), is_top),
        "rank": [entry[0] for entry in ranks.values()],
        "rank_distinct": [entry[1] for entry in ranks.values()],
        "same_word": number[source] == number[target],
        "source_id": source,
        "target_id": target,
        "score": np.array([entry[2] for entry in ranks.values()], dtype=np.float32),
    }
    return pa.table([pa.array(columns[field.name], field.type) for field in PAIRS], schema=PAIRS)
