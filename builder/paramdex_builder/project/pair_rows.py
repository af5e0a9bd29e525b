"""The rows of a head's strongest pairs: those of two lists by two rankings, every pair once with its rank in each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from paramdex_builder.project.arithmetic import dot
from paramdex_builder.project.pair_sides import Side
from paramdex_builder.project.pairs import HeadPairs, Words

PAIRS = pa.schema(
    [
        ("row", pa.int64()),
        ("matrix", pa.string()),
        ("is_top", pa.bool_()),
        ("rank", pa.int16()),
        ("rank_distinct", pa.int16()),
        ("same_word", pa.bool_()),
        ("source_id", pa.int32()),
        ("target_id", pa.int32()),
        ("score", pa.float32()),
        ("token_z", pa.float32()),
        ("rank_token_z", pa.int16()),
        ("rank_distinct_token_z", pa.int16()),
    ]
)


@dataclass(frozen=True)
class Ranked:
    """The strongest pairs of A B^T by side."""

    A: Side
    B: Side
    found: dict[str, HeadPairs]

    def values(self, source: torch.Tensor, target: torch.Tensor) -> np.ndarray:
        """What is stored of some pairs (n, float32)."""
        stored: np.ndarray = (dot(self.A.take(source), self.B.take(target)).float() + 0.0).cpu().numpy()  # -0.0 is 0.0
        return stored


def pair_rows(lists: Ranked, unusual: Ranked | None, words: Words, row: int, matrix: str, side: str) -> pa.Table:
    """The rows of one side of a matrix of the head ``row``: of the ``lists`` by score, and of those by token_z."""
    names = ("rank", "rank_distinct", "rank_token_z", "rank_distinct_token_z")
    rankings = [lists] if unusual is None else [lists, unusual]
    every = [pairs for ranking in rankings for pairs in (ranking.found[side].all, ranking.found[side].distinct)]
    ranks: dict[tuple[int, int], list[int | None]] = {}
    for place, pairs in enumerate(every):
        for nth, pair in enumerate(zip(pairs.source.tolist(), pairs.target.tolist(), strict=True), start=1):
            ranks.setdefault(pair, [None] * len(names))[place] = nth
    ids = torch.tensor(list(ranks), dtype=torch.int64, device=lists.A.device).view(-1, 2)
    source, target = ids.T
    columns = {
        "row": np.full(len(ranks), row),
        "matrix": [matrix] * len(ranks),
        "is_top": np.full(len(ranks), side == "top"),
        "same_word": (words.number[source] == words.number[target]).cpu().numpy(),
        "source_id": source.cpu().numpy(),
        "target_id": target.cpu().numpy(),
        "score": lists.values(source, target),
        "token_z": pa.nulls(len(ranks), pa.float32()) if unusual is None else unusual.values(source, target),
    }
    columns |= {name: [own[place] for own in ranks.values()] for place, name in enumerate(names)}
    return pa.table([pa.array(columns[field.name], field.type) for field in PAIRS], schema=PAIRS)
