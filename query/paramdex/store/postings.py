"""Look-ups by token and by parameter: queries on one table each, whose answers are put together here.

DuckDB takes about as long to plan a query as to read what a look-up needs, so it is fastest with one comparison in one
table. ``token_id = ?`` finds the few row groups of ``store.postings`` that have the token, because they are in order of
token within a model. ``param_id = ?`` uses an index. Several tokens are asked for one by one, because DuckDB skips row
groups for an equality but not for an ``IN``. Texts are read once per vocabulary, means and deviations once per model.

Lists are ranked by score or by token_z. The tables hold the tokens of both rankings; a look-up takes those of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paramdex.store.database import Database
from paramdex.store.moments import moments
from paramdex.store.nearest import Ids
from paramdex.store.store import Store
from paramdex.store.words import Wanted
from paramdex_schemas.model import Model, Ranking, Span

SIDES = {"top": 1, "bottom": -1}
"""Side -> the sign by which its strongest scores are the largest."""
_LISTS = ", ".join(f"{side}_{column}" for side in SIDES for column in ("tokens", "scores", "token_z"))
Rankings = Callable[[Model], Ranking]
"""By what the lists of a model are ranked."""


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
class Side:
    """The strongest tokens of a side of a parameter: ``ids`` strongest first by one of two rankings, with the scores.

    ``token_z`` is how many standard deviations each score lies from the mean of its token's scores over all vectors of
    the kind, in the space that scores the parameter; None where they are too few to say.
    """

    ids: list[int]
    scores: list[float]
    token_z: list[float] | None

    def ranked(self, by: Ranking, sign: int, top_k: int) -> Side:
        """The ``top_k`` strongest by a ranking, of the tokens that an atlas keeps, which are in order of score and have
        the strongest by both. What has no token_z is ranked by score.
        """
        if by == "score" or self.token_z is None:
            return self._at(range(min(top_k, len(self.ids))))
        z, ids = self.token_z, self.ids
        return self._at(sorted(range(len(ids)), key=lambda i: (-sign * z[i], ids[i]))[:top_k])

    def _at(self, places: Sequence[int]) -> Side:
        z = None if self.token_z is None else [self.token_z[i] for i in places]
        return Side([self.ids[i] for i in places], [self.scores[i] for i in places], z)


@dataclass(frozen=True)
class Strongest:
    """The strongest tokens of a parameter, strongest first, by side."""

    address: str
    tokens: dict[str, list[int]]


@dataclass(frozen=True)
class ScoredTokens:
    """A parameter's strongest tokens, by side, the moments of all its V scores, and where it is known how well they
    tell what it reads, and how readable each side is.
    """

    norm: float
    mean: np.float32
    std: np.float32
    reads: float | None
    readable: dict[str, float | None]
    sides: dict[str, Side]

    @property
    def has_token_z(self) -> bool:
        return self.sides["top"].token_z is not None


@dataclass(frozen=True)
class Postings:
    """The look-ups in one atlas, by the ranking that each model's lists shall have."""

    store: Store
    ranking: Rankings

    @property
    def database(self) -> Database:
        return self.store.database

    def parameter(self, model: Model, param_id: int) -> ScoredTokens:
        """A parameter of a model with all tokens that the ranking has."""
        (row,) = self.database.of(model).rows(
            f"SELECT norm, mean, std, reads, top_readable, bottom_readable, {_LISTS} FROM store.parameters "
            "WHERE param_id = ?",
            [param_id - model.first_param_id],
        )
        norm, mean, std, reads, top, bottom, *lists = row
        readable = {"top": top, "bottom": bottom}
        return ScoredTokens(norm, np.float32(mean), np.float32(std), reads, readable, self._sides(model, lists))

    def parameters(self, param_ids: list[int], k: int) -> dict[int, Strongest]:
        """param_id -> its strongest tokens, at most ``k`` per side."""
        by_model: dict[str, list[int]] = {}
        for param_id in param_ids:
            by_model.setdefault(self.store.owner(param_id).name, []).append(param_id)
        found = {}
        for name, ids in by_model.items():
            model = self.store.models[name]
            rows = self.database.of(model).rows(
                f"SELECT param_id, {_LISTS} FROM store.parameters WHERE param_id IN (SELECT unnest(?))",
                [[each - model.first_param_id for each in ids]],
            )
            for row, *lists in rows:
                param_id, sides = model.first_param_id + row, self._sides(model, lists)
                strongest = {side: own.ids[:k] for side, own in sides.items()}
                found[param_id] = Strongest(str(model.address(param_id)), strongest)
        return found

    def _sides(self, model: Model, lists: Sequence[Any]) -> dict[str, Side]:
        """Both sides of a parameter from the columns _LISTS, ranked."""
        by, n = self.ranking(model), len(lists) // 2
        both = zip(SIDES.items(), (lists[:n], lists[n:]), strict=True)
        return {side: Side(*own).ranked(by, sign, model.top_k) for (side, sign), own in both}

    def holders(self, wanted: Wanted, models: list[Model], spans: list[Span], k: int) -> list[dict[str, Any]]:
        """The k sides of parameters within ``spans`` that have the most wanted words among their strongest tokens;
        among equals those with the largest mean z first, or token_z where that ranks their tokens. ``spans`` are
        parameters [first, end) of ``models``.

        ``rank`` is the best rank of any wanted token. A word counts by its item of the best rank. ``z`` and ``token_z``
        are towards the side, ``strength`` is the one that ranks.
        """
        hits = [self._hits(token_id, models, spans) for token_id in wanted.ids]
        numbers = {word: number for number, word in enumerate(dict.fromkeys(wanted.words))}
        words = np.repeat([numbers[word] for word in wanted.words], [len(hit[0]) for hit in hits])
        tokens = np.repeat(wanted.ids, [len(hit[0]) for hit in hits])
        param_ids, is_top, rank, score, token_z, by_z = (np.concatenate(each) for each in zip(*hits, strict=True))
        if not len(param_ids):
            return []
        mean, std = self._moments_of(param_ids, models)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.where(std > 0, np.where(is_top, score - mean, mean - score) / std, np.float32(np.nan))
        token_z = np.where(is_top, token_z, -token_z)

        # One key per side of a parameter (top first) and word; of a word's items the best rank and largest z's count.
        keys = (2 * param_ids + ~is_top) * len(numbers) + words
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        first = edges(keys)[:-1]
        owners, by_z = keys[first] // len(numbers), by_z[order][first]
        z, token_z = (np.fmax.reduceat(each[order], first) for each in (z, token_z))
        items = np.minimum.reduceat((rank.astype(np.int64) << 32 | tokens)[order], first)

        edge = edges(owners)
        begin, n_words = edge[:-1], edge[1:] - edge[:-1]
        sides = owners[begin]
        z, token_z = (
            (np.add.reduceat(each.astype(np.float64), begin) / n_words).astype(np.float32) for each in (z, token_z)
        )
        strength = np.where(by_z[begin], token_z, z)
        chosen = np.lexsort((sides, np.where(np.isnan(strength), np.inf, -strength), -n_words))[:k]
        rows = []
        found = {"z": z, "token_z": token_z, "strength": strength}
        columns = (each[chosen].tolist() for each in (sides, n_words, begin, *found.values()))
        for side, n, start, *values in zip(*columns, strict=True):
            by_rank = sorted(items[start : start + n].tolist())
            rows.append(
                {
                    "id": side >> 1,
                    "side": "bottom" if side & 1 else "top",
                    "words": n,
                    "rank": by_rank[0] >> 32,
                    "ids": [item & 0xFFFF_FFFF for item in by_rank],
                    **{name: None if math.isnan(v) else v for name, v in zip(found, values, strict=True)},
                }
            )
        return rows

    def _hits(self, token_id: int, models: list[Model], spans: list[Span]) -> tuple[np.ndarray, ...]:
        """param_id, is_top, rank, score, token_z (NaN where there is none) and whether that ranks it, of a token's
        postings within ``spans``.
        """
        found = [self._hits_in(model, token_id, spans) for model in models]
        return tuple(np.concatenate(column) for column in zip(*found, strict=True))

    def _hits_in(self, model: Model, token_id: int, spans: list[Span]) -> tuple[np.ndarray, ...]:
        """As ``_hits``, in one model; a query between the ends of its spans skips row groups beyond."""
        start, stop = model.span
        own = [(first - start, end - start) for first, end in spans if start <= first < stop]
        least, most = min((first for first, _ in own), default=0), max((end for _, end in own), default=0)
        found = self.database.of(model).arrays(
            "SELECT param_id, is_top, score, coalesce(token_z, 'nan'::FLOAT) AS token_z, coalesce(rank, 0) AS rank, "
            "coalesce(rank_token_z, 0) AS rank_token_z FROM store.postings "
            "WHERE token_id = ? AND param_id BETWEEN ? AND ?",
            [token_id, least, most - 1],
        )
        param_id = found["param_id"]
        by_z = ~np.isnan(found["token_z"]) if self.ranking(model) == "token_z" else np.zeros(len(param_id), bool)
        rank = np.where(by_z, found["rank_token_z"], found["rank"])
        counts = rank > 0
        if len(own) > 1:
            counts &= _within(param_id, own)
        columns = (param_id + start, found["is_top"], rank, found["score"], found["token_z"], by_z)
        return tuple(column[counts] for column in columns)

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


def _within(ids: Ids, spans: list[Span]) -> np.ndarray:
    """Which of ``ids`` lie in one of the spans (n, bool)."""
    found = np.zeros(len(ids), bool)
    for first, end in spans:
        found |= (ids >= first) & (ids < end)
    return found
