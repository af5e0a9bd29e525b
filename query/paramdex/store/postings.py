"""Look-ups by token and by parameter: queries on one table each, whose answers are put together here.

DuckDB takes about as long to plan a query as to read what a look-up needs, so it is fastest with one comparison in one
table. ``token_id = ?`` finds the few row groups of ``store.postings`` that have the token, because they are in order of
token within a model. ``param_id = ?`` uses an index. Several tokens are asked for one by one, because DuckDB skips row
groups for an equality but not for an ``IN``. Texts are read once per vocabulary, means and deviations once per model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from paramdex.store.database import Database
from paramdex.store.moments import moments
from paramdex.store.nearest import Ids
from paramdex.store.words import Wanted
from paramdex_schemas.model import Model, Span


def edges(*columns: Ids) -> Ids:
    """The places where a new row begins in columns (n each, n > 0) whose equal rows are adjacent, and n.

    >>> edges(np.array([7, 7, 7, 8]), np.array([1, 1, 2, 2])).tolist()
    [0, 2, 3, 4]
    """
    new = np.ones(len(columns[0]) + 1, bool)
    new[1:-1] = False
    for column in columns:
        new[1:-1] |= column[1:] != column[:-1]
    return np.flatnonzero(new)


@dataclass(frozen=True)
class Strongest:
    """The strongest tokens of a parameter, strongest first, by side."""

    address: str
    tokens: dict[str, list[int]]


@dataclass(frozen=True)
class ScoredTokens:
    """A parameter's strongest tokens with their scores, by side, the moments of all its V scores, and where it is known
    how well they tell what it reads.
    """

    norm: float
    mean: np.float32
    std: np.float32
    reads: float | None
    tokens: dict[str, list[int]]
    scores: dict[str, list[float]]


@dataclass(frozen=True)
class Postings:
    """The look-ups in one atlas."""

    database: Database

    def parameter(self, param_id: int, k: int) -> ScoredTokens:
        """A parameter with at most ``k`` tokens per side."""
        (row,) = self.database.rows(  # whole lists: to plan four slices takes longer than to read them
            "SELECT norm, mean, std, reads, top_tokens, bottom_tokens, top_scores, bottom_scores FROM store.parameters "
            "WHERE param_id = ?",
            [param_id],
        )
        top, bottom, top_scores, bottom_scores = (values[:k] for values in row[4:])
        return ScoredTokens(
            row[0],
            np.float32(row[1]),
            np.float32(row[2]),
            row[3],
            {"top": top, "bottom": bottom},
            {"top": top_scores, "bottom": bottom_scores},
        )

    def parameters(self, param_ids: list[int], k: int) -> dict[int, Strongest]:
        """param_id -> its strongest tokens, at most ``k`` per side."""
        rows = self.database.rows(
            "SELECT param_id, address, top_tokens, bottom_tokens FROM store.parameters "
            "WHERE param_id IN (SELECT unnest(?))",
            [param_ids],
        )
        return {i: Strongest(address, {"top": top[:k], "bottom": bottom[:k]}) for i, address, top, bottom in rows}

    def holders(self, wanted: Wanted, models: list[Model], spans: list[Span], k: int) -> list[dict[str, Any]]:
        """The k sides of parameters within ``spans`` that have the most wanted words among their strongest tokens;
        among equals those with the largest mean z first. ``spans`` are parameters [first, end) of ``models``.

        ``rank`` is the best rank of any wanted token. A word counts by its item of the best rank.
        """
        hits = [self._hits(token_id, spans) for token_id in wanted.ids]
        numbers = {word: number for number, word in enumerate(dict.fromkeys(wanted.words))}
        words = np.repeat([numbers[word] for word in wanted.words], [len(hit[0]) for hit in hits])
        tokens = np.repeat(wanted.ids, [len(hit[0]) for hit in hits])
        param_ids, is_top, rank, score = (np.concatenate(column) for column in zip(*hits, strict=True))
        if not len(param_ids):
            return []
        mean, std = self._moments_of(param_ids, models)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.where(std > 0, np.where(is_top, score - mean, mean - score) / std, np.float32(np.nan))

        # One key per side of a parameter (top first) and word; of a word's items the best rank and the largest z count.
        keys = (2 * param_ids + ~is_top) * len(numbers) + words
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        first = edges(keys)[:-1]
        owners, z = keys[first] // len(numbers), np.fmax.reduceat(z[order], first)
        items = np.minimum.reduceat((rank.astype(np.int64) << 32 | tokens)[order], first)

        edge = edges(owners)
        begin, n_words = edge[:-1], edge[1:] - edge[:-1]
        sides = owners[begin]
        mean_z = (np.add.reduceat(z.astype(np.float64), begin) / n_words).astype(np.float32)
        chosen = np.lexsort((sides, np.where(np.isnan(mean_z), np.inf, -mean_z), -n_words))[:k]
        rows = []
        for side, n, z, start in zip(*(each[chosen].tolist() for each in (sides, n_words, mean_z, begin)), strict=True):
            by_rank = sorted(items[start : start + n].tolist())
            rows.append(
                {
                    "id": side >> 1,
                    "side": "bottom" if side & 1 else "top",
                    "words": n,
                    "rank": by_rank[0] >> 32,
                    "z": None if math.isnan(z) else z,
                    "ids": [item & 0xFFFF_FFFF for item in by_rank],
                }
            )
        return rows

    def _hits(self, token_id: int, spans: list[Span]) -> tuple[np.ndarray, ...]:
        """param_id, is_top, rank and score of a token's postings within ``spans``.

        Models lie one after the other, so a query between the ends of all spans skips the row groups of other models.
        """
        found = self.database.arrays(
            "SELECT param_id, is_top, rank, score FROM store.postings WHERE token_id = ? AND param_id BETWEEN ? AND ?",
            [token_id, min(first for first, _ in spans), max(end for _, end in spans) - 1],
        )
        param_id, is_top, rank, score = (found[name] for name in ("param_id", "is_top", "rank", "score"))
        if len(spans) == 1:
            return param_id, is_top, rank, score
        inside = np.logical_or.reduce([(param_id >= first) & (param_id < end) for first, end in spans])
        return param_id[inside], is_top[inside], rank[inside], score[inside]

    def _moments_of(self, param_ids: Ids, models: list[Model]) -> tuple[np.ndarray, np.ndarray]:
        """mean and std (float32) of the scores of each of ``param_ids``."""
        mean, std = (np.empty(len(param_ids), np.float32) for _ in range(2))
        for model in models:
            first, end = model.span
            inside = (param_ids >= first) & (param_ids < end) if len(models) > 1 else slice(None)
            at = param_ids[inside] - first
            for to, column in zip((mean, std), moments(self.database, model), strict=True):
                to[inside] = column[at]
        return mean, std
