"""Look-ups of heads by token: one query on one table, whose answer is put together here, as in ``postings``.

``store.pairs`` has the pairs of two rankings, as it is with tokens; a look-up takes those of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from paramdex.store.database import Tables
from paramdex.store.head_matrices import rows_of_heads
from paramdex.store.postings import edges
from paramdex.store.store import Store
from paramdex.store.words import Wanted
from paramdex_schemas import MATRICES
from paramdex_schemas.model import Model, Ranking

_NO_RANK = 2**15 - 1
_NAMES = list(MATRICES)
Columns = dict[str, npt.NDArray[Any]]
"""Columns of pairs by name (n each)."""


@dataclass(frozen=True)
class PairsAsked:
    """Which pairs count: those of a matrix, in a layer, of tokens that pass (V, bool). None stands for any."""

    matrix: str | None
    layer: int | None
    passing: npt.NDArray[np.bool_] | None
    identical: bool
    """Pairs of a token with itself count too."""
    same_word: bool
    """Pairs of one word count too."""
    by: Ranking
    """The ranking whose pairs count."""


def ranks_of_pairs(by: Ranking) -> str:
    """SQL for the columns rank and rank_distinct of ``store.pairs`` in a ranking; pairs without a token_z are ranked by
    score.
    """
    if by == "score":
        return "rank AS rank, rank_distinct AS rank_distinct"
    names = ("rank", "rank_distinct")
    return ", ".join(f"CASE WHEN token_z IS NULL THEN {name} ELSE {name}_token_z END AS {name}" for name in names)


def holders(
    store: Store, model: Model, wanted: Wanted, asked: PairsAsked, k: int, shown: int = 3
) -> list[dict[str, Any]]:
    """The k (head, matrix, side) of a model with the most wanted words in their strongest pairs; among equals those
    with the most pairs of two wanted words (``linked``), then those with the largest z, or token_z where that ranks
    the pairs. Both are towards the side, and of the pair that has the largest.

    ``lists`` has the source ids and the target ids of the first ``shown`` pairs of each: the linked ones, then by the
    same z.
    """
    of_heads = rows_of_heads(store, model)
    found = _pairs_with(store.database.of(model), model.first_head_id, of_heads, wanted, asked)
    if not len(found.get("score", ())):
        return []
    z, token_z = _z(of_heads, found), np.where(found["is_top"], found["token_z"], -found["token_z"])
    strength = z if asked.by == "score" else np.where(np.isnan(token_z), z, token_z)
    words = np.stack([_words(wanted, found[end]) for end in ("source_id", "target_id")])
    linked = (words >= 0).all(axis=0) & (words[0] != words[1])
    lists = 4 * found["head_id"] + 2 * found["is_second"] + ~found["is_top"]

    order = np.lexsort((found["target_id"], found["source_id"], _descending(strength), ~linked, lists))
    lists, linked, words = lists[order], linked[order], words[:, order]
    source, target, rank = (found[name][order] for name in ("source_id", "target_id", "rank"))
    edge = edges(lists)
    begin, end = edge[:-1], edge[1:]
    owners = lists[begin]
    best = np.minimum.reduceat(rank, begin)
    z, token_z, largest = (np.fmax.reduceat(each[order], begin) for each in (z, token_z, strength))
    n_linked = np.add.reduceat(linked.astype(int), begin)
    named = np.unique(np.stack([np.tile(lists, 2), words.ravel()])[:, words.ravel() >= 0], axis=1)
    n_words = np.unique(named[0], return_counts=True)[1]  # every list has a wanted word
    rows = []
    for i in np.lexsort((owners, _descending(largest), -n_linked, -n_words))[:k].tolist():
        first = slice(begin[i], min(begin[i] + shown, end[i]))
        head, which = divmod(int(owners[i]), 4)
        rows.append(
            {
                "id": head,
                "address": of_heads["address"][head - model.first_head_id].as_py(),
                "kind": _NAMES[which // 2],
                "side": "bottom" if which % 2 else "top",
                "words": int(n_words[i]),
                "linked": int(n_linked[i]),
                "rank": None if best[i] == _NO_RANK else int(best[i]),
                "z": None if np.isnan(z[i]) else float(z[i]),
                "token_z": None if np.isnan(token_z[i]) else float(token_z[i]),
                "strength": None if np.isnan(largest[i]) else float(largest[i]),
                "lists": [source[first].tolist(), target[first].tolist()],
            }
        )
    return rows


def _pairs_with(tables: Tables, at: int, heads: pa.Table, wanted: Wanted, asked: PairsAsked) -> Columns:
    """The pairs of some heads of a model, whose numbers begin ``at``, that count and have a wanted token; no columns if
    the layer has no heads.
    """
    inside = heads if asked.layer is None else heads.filter(heads["layer"].to_numpy() == asked.layer)
    if not len(inside) or not wanted.ids:
        return {}
    found = tables.arrays(
        "SELECT head_id + $at AS head_id, matrix = $second AS is_second, is_top, coalesce(rank, $none) AS rank, "
        "same_word, source_id, target_id, score, coalesce(token_z, 'nan'::FLOAT) AS token_z "
        f"FROM (SELECT * REPLACE ({ranks_of_pairs(asked.by)}) FROM store.pairs "
        "WHERE head_id BETWEEN $first AND $last "
        "AND (list_contains($ids, source_id) OR list_contains($ids, target_id))) "
        "WHERE rank IS NOT NULL OR rank_distinct IS NOT NULL",
        {
            "second": _NAMES[1],
            "none": _NO_RANK,
            "at": at,
            "ids": wanted.ids,
            "first": inside["head_id"][0].as_py() - at,
            "last": inside["head_id"][-1].as_py() - at,
        },
    )
    source, target = found["source_id"], found["target_id"]
    counts = np.ones(len(source), bool)
    if asked.layer is not None:  # of several stacks, those between have ids between
        counts &= np.isin(found["head_id"], inside["head_id"].to_numpy())
    if asked.matrix is not None:
        counts &= found["is_second"] == (asked.matrix == _NAMES[1])
    if asked.passing is not None:
        counts &= asked.passing[source] & asked.passing[target]
    if not asked.identical:
        counts &= source != target
    if not asked.same_word:
        counts &= ~found["same_word"]
    return {name: column[counts] for name, column in found.items()}


def _z(heads: pa.Table, found: Columns) -> npt.NDArray[np.float32]:
    """How many standard deviations of its matrix's scores each pair lies from their mean, towards its side (n); NaN
    where the scores do not vary.
    """
    at = found["head_id"] - heads["head_id"][0].as_py()
    mean, std = (
        np.stack([heads[f"{name.lower()}_{number}"].to_numpy() for name in _NAMES])[found["is_second"].astype(int), at]
        for number in ("mean", "std")
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        over = np.where(found["is_top"], found["score"] - mean, mean - found["score"])
        return np.where(std > 0, over / std, np.float32(np.nan))


def _descending(z: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Keys that sort z from the largest down, NaN last."""
    return np.where(np.isnan(z), np.inf, -z)


def _words(wanted: Wanted, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """The number of the wanted word that each of ``ids`` stands for, the first of several; -1 for no wanted word."""
    numbers = {word: number for number, word in enumerate(dict.fromkeys(wanted.words))}
    by_id: dict[int, int] = {}
    for token_id, word in zip(wanted.ids, wanted.words, strict=True):
        by_id.setdefault(token_id, numbers[word])
    known = np.array(sorted(by_id), np.int64)
    place = np.searchsorted(known, ids).clip(max=len(known) - 1)
    return np.where(known[place] == ids, np.array([by_id[i] for i in known.tolist()])[place], -1)
