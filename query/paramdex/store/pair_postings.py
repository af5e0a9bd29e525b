"""Look-ups of heads by token: one query of one table, put together here, as in ``postings``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paramdex.store.database import Database
from paramdex.store.postings import edges
from paramdex.store.words import Wanted
from paramdex_schemas import MATRICES

_NO_RANK = 2**15 - 1


@dataclass(frozen=True)
class Asked:
    """Which pairs count: of a matrix, a layer, tokens that pass (V, bool); None is any of them."""

    matrix: str | None
    layer: int | None
    passing: npt.NDArray[np.bool_] | None
    identical: bool
    """Also pairs of a token with itself."""
    same_word: bool
    """Also pairs of one word."""


def holders(
    database: Database, wanted: Wanted, model_id: int, asked: Asked, k: int, shown: int = 3
) -> list[dict[str, Any]]:
    """The k (head, matrix, side) of a model with most of the wanted words in their strongest pairs; of as many words
    those with most pairs of two wanted words (``linked``), then those with the largest z.

    ``lists`` has the source and the target ids of the ``shown`` first of each one's pairs: the linked ones, then by z.
    """
    heads = database.kept("SELECT * FROM store.heads WHERE model_id = ? ORDER BY head_id", model_id)
    inside = heads if asked.layer is None else heads.filter(heads["layer"].to_numpy() == asked.layer)
    if not len(inside) or not wanted.ids:
        return []
    first_id = heads["head_id"][0].as_py()
    names = list(MATRICES)
    found = database.arrays(
        "SELECT head_id, matrix = $second AS is_second, is_top, coalesce(rank, $none) AS rank, same_word, "
        "source_id, target_id, score FROM store.pairs WHERE head_id BETWEEN $first AND $last "
        "AND (list_contains($ids, source_id) OR list_contains($ids, target_id))",
        {
            "second": names[1],
            "none": _NO_RANK,
            "ids": wanted.ids,
            "first": inside["head_id"][0].as_py(),
            "last": inside["head_id"][-1].as_py(),
        },
    )
    source, target, head_id = (found[name] for name in ("source_id", "target_id", "head_id"))
    counts = np.ones(len(source), bool)
    if asked.layer is not None:  # of several stacks, those between have ids between
        counts &= np.isin(head_id, inside["head_id"].to_numpy())
    if asked.matrix is not None:
        counts &= found["is_second"] == (asked.matrix == names[1])
    if asked.passing is not None:
        counts &= asked.passing[source] & asked.passing[target]
    if not asked.identical:
        counts &= source != target
    if not asked.same_word:
        counts &= ~found["same_word"]
    if not counts.any():
        return []
    source, target, head_id = source[counts], target[counts], head_id[counts]
    matrix, rank, score, is_top = (found[name][counts] for name in ("is_second", "rank", "score", "is_top"))
    matrix = matrix.astype(int)
    at = head_id - first_id
    mean, std = (
        np.stack([heads[f"{name.lower()}_{number}"].to_numpy() for name in names])[matrix, at]
        for number in ("mean", "std")
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(std > 0, np.where(is_top, score - mean, mean - score) / std, np.float32(np.nan))
    words = np.stack([_words(wanted, ids) for ids in (source, target)])
    linked = (words >= 0).all(axis=0) & (words[0] != words[1])
    lists = 4 * head_id + 2 * matrix + ~is_top

    order = np.lexsort((target, source, np.where(np.isnan(z), np.inf, -z), ~linked, lists))
    lists, source, target, rank, z, linked = (each[order] for each in (lists, source, target, rank, z, linked))
    words = words[:, order]
    edge = edges(lists)
    begin, n_pairs = edge[:-1], edge[1:] - edge[:-1]
    owners = lists[begin]
    best, largest = np.minimum.reduceat(rank, begin), np.fmax.reduceat(z, begin)
    n_linked = np.add.reduceat(linked.astype(int), begin)
    named = np.unique(np.stack([np.tile(lists, 2), words.ravel()])[:, words.ravel() >= 0], axis=1)
    n_words = np.unique(named[0], return_counts=True)[1]  # every list has a wanted word
    chosen = np.lexsort((owners, np.where(np.isnan(largest), np.inf, -largest), -n_linked, -n_words))[:k]
    rows = []
    for i in chosen.tolist():
        first = slice(begin[i], begin[i] + min(shown, int(n_pairs[i])))
        head, which = divmod(int(owners[i]), 4)
        rows.append(
            {
                "id": head,
                "address": heads["address"][head - first_id].as_py(),
                "kind": names[which // 2],
                "side": "bottom" if which % 2 else "top",
                "words": int(n_words[i]),
                "linked": int(n_linked[i]),
                "rank": None if best[i] == _NO_RANK else int(best[i]),
                "z": None if np.isnan(largest[i]) else float(largest[i]),
                "lists": [source[first].tolist(), target[first].tolist()],
            }
        )
    return rows


def _words(wanted: Wanted, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """The number of the word that each of ``ids`` was asked for by, the first of several; -1 for what was not."""
    numbers = {word: number for number, word in enumerate(dict.fromkeys(wanted.words))}
    by_id: dict[int, int] = {}
    for token_id, word in zip(wanted.ids, wanted.words, strict=True):
        by_id.setdefault(token_id, numbers[word])
    known = np.array(sorted(by_id), np.int64)
    place = np.searchsorted(known, ids).clip(max=len(known) - 1)
    return np.where(known[place] == ids, np.array([by_id[i] for i in known.tolist()])[place], -1)
