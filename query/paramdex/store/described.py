"""How a list says what a parameter or a head is: a parameter by its strongest tokens, a head by its strongest pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from paramdex.store.filters import ALL, Sieve
from paramdex.store.pair_postings import ranks_of_pairs
from paramdex.store.postings import Postings, Strongest
from paramdex.store.store import Store
from paramdex.text import arrow
from paramdex_schemas import MATRICES
from paramdex_schemas.model import Model, Ranking

SHOWN_TOKENS = 5
"""Tokens of a side that describe a parameter in a list."""
SHOWN_PAIRS = 3
"""Pairs of tokens that describe a head's matrix in a list."""
Matrix = tuple[int, str]
"""One matrix of a head: (head_id, QK or VO)."""


@dataclass(frozen=True)
class ByTokens:
    """A parameter by its strongest tokens, strongest first: their ids and how they read, by side (top, bottom)."""

    address: str
    vocabulary: str
    ids: dict[str, list[int]]
    texts: dict[str, list[str]]

    @property
    def top(self) -> list[str]:
        return self.texts["top"]

    @property
    def bottom(self) -> list[str]:
        return self.texts["bottom"]


def by_tokens(store: Store, param_ids: list[int], sieve: Sieve, n: int = SHOWN_TOKENS) -> dict[int, ByTokens]:
    """param_id -> the parameter by its ``n`` strongest tokens on each side that pass a filter."""
    return passing(store, strongest(store, param_ids, sieve, n), sieve, n)


def strongest(store: Store, param_ids: list[int], sieve: Sieve, n: int = SHOWN_TOKENS) -> dict[int, Strongest]:
    """param_id -> as many of its strongest tokens as a filter may need to let ``n`` pass; for ``passing``."""
    return Postings(store, sieve.ranking).parameters(param_ids, ALL if sieve else n)


def passing(store: Store, found: Mapping[int, Strongest], sieve: Sieve, n: int = SHOWN_TOKENS) -> dict[int, ByTokens]:
    """param_id -> the parameter by the first ``n`` of its strongest tokens that pass a filter."""
    described = {}
    for param_id, one in found.items():
        model = store.owner(param_id)
        ids = {side: [own[place] for place in sieve.tokens(model, own, n)] for side, own in one.tokens.items()}
        texts = {side: store.database.texts(model.vocabulary, own) for side, own in ids.items()}
        described[param_id] = ByTokens(one.address, model.vocabulary, ids, texts)
    return described


def pairs_of(store: Store, model: Model, head_id: int, by: Ranking) -> pa.Table:
    """All pairs that the atlas keeps of a head: matrix, is_top, score, token_z (null where nothing is
    usual), same_word, source_id, target_id; and by a ranking rank and rank_distinct, each null where the pair is not in
    that list.
    """
    return store.database.of(model).table(
        f"SELECT matrix, is_top, score, token_z, {ranks_of_pairs(by)}, same_word, source_id, target_id "
        "FROM store.pairs WHERE head_id = ?",
        [head_id - model.first_head_id],
    )


def same_word_counts(pairs: Iterable[Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """Matrix -> how many of a head's top pairs are a word with itself, and how many there are; of rows of ``pairs_of``.

    A matrix without top pairs is left out.
    """
    top = [(row["matrix"], row["same_word"]) for row in pairs if row["is_top"] and row["rank"] is not None]
    counts = {matrix: [same for of, same in top if of == matrix] for matrix in MATRICES}
    return {matrix: (sum(own), len(own)) for matrix, own in counts.items() if own}


def by_pairs(
    store: Store, asked: Mapping[Matrix, Model], sieve: Sieve, sides: tuple[str, ...] = ("top",), n: int = SHOWN_PAIRS
) -> dict[Matrix, dict[str, list[str]]]:
    """Matrix of a head -> side -> its ``n`` strongest pairs of two words that pass a filter, as ``source → target``.

    ``asked`` has the model of each head.
    """
    found: dict[tuple[Matrix, str], list[dict[str, int]]] = {(of, side): [] for of in asked for side in sides}
    heads: dict[str, set[int]] = {}
    for (head_id, _), model in asked.items():
        heads.setdefault(model.name, set()).add(head_id - model.first_head_id)
    for name, rows in heads.items():
        model = store.models[name]
        for row, matrix, is_top, source_id, target_id in store.database.of(model).rows(
            "SELECT head_id, matrix, is_top, source_id, target_id "
            f"FROM (SELECT * REPLACE ({ranks_of_pairs(sieve.ranking(model))}) FROM store.pairs "
            "WHERE head_id IN (SELECT unnest($ids))) "
            "WHERE rank_distinct <= $shown ORDER BY rank_distinct",
            {"ids": list(rows), "shown": ALL if sieve else n},
        ):
            own = found.get(((model.first_head_id + row, matrix), "top" if is_top else "bottom"))
            if own is not None:
                own.append({"source_id": source_id, "target_id": target_id})
    described: dict[Matrix, dict[str, list[str]]] = {of: {} for of in asked}
    for (of, side), pairs in found.items():
        model = asked[of]
        chosen = [pairs[place] for place in sieve.pairs(model, pairs, n)]
        ends = [store.database.texts(model.vocabulary, [pair["source_id"], pair["target_id"]]) for pair in chosen]
        described[of][side] = [arrow(source, target) for source, target in ends]
    return described
