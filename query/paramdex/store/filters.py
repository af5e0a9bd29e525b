"""Filters at work: which of an atlas's tokens and pairs a ``TokenFilter`` lets pass.

A filter works on what an atlas keeps, the strongest tokens and pairs of each side. Where it makes a list shorter than
was asked for, a note says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from paramdex.store.database import Database
from paramdex.store.token_filter import TOKEN_RULES, Rule, TokenFilter
from paramdex.store.words import Wanted, bare, check_words, continuation, is_marked
from paramdex_schemas import QueryError
from paramdex_schemas.errors import quoted
from paramdex_schemas.model import Model, Ranking

Mask = npt.NDArray[np.bool_]
ALL = 10_000
"""More tokens, or pairs, than an atlas keeps per side."""
_OPTIONS = {"tokens": "--top-k", "pairs": "--pair-k"}
"""What a list holds -> the option of a build that sets how many of them are kept."""


@dataclass
class Sieve:
    """A filter at work on one answer. It keeps a mask per model, and counts the lists that were made too short."""

    database: Database
    filter: TokenFilter | None
    _masks: dict[int, Mask | None] = field(default_factory=dict)
    _short: dict[str, list[int]] = field(default_factory=dict)
    """What the lists are of -> [short ones, all, entries asked for]."""
    _notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.filter is not None and not isinstance(self.filter, TokenFilter):
            raise QueryError(f"filter is a paramdex.TokenFilter, not {quoted(self.filter)}")

    def __bool__(self) -> bool:
        return bool(self.filter)

    def ranking(self, model: Model) -> Ranking:
        """By what the lists of a model are ranked: as the filter says, or else by the model's own ranking."""
        asked = None if self.filter is None else self.filter.by
        return asked or model.ranking

    def mask(self, model: Model) -> Mask | None:
        """Which tokens of a model pass (V); None where all do."""
        if model.model_id not in self._masks:
            self._masks[model.model_id] = self._make(model)
        return self._masks[model.model_id]

    def tokens(self, model: Model, ids: Sequence[int], k: int) -> list[int]:
        """The places in ``ids``, a parameter's strongest tokens on one side, of the first k that pass."""
        return self._first((i for i, each in enumerate(ids) if self._passes(model, each)), len(ids), k, "tokens")

    def pairs(self, model: Model, pairs: Sequence[dict[str, Any]], k: int) -> list[int]:
        """As ``tokens``, for a head's strongest pairs: rows with source_id, target_id and perhaps same_word."""
        return self._first((i for i, pair in enumerate(pairs) if self.passes(model, pair)), len(pairs), k, "pairs")

    def passes(self, model: Model, pair: dict[str, Any]) -> bool:
        """Whether a pair does; both of its tokens must."""
        of = self.filter or TokenFilter()
        source, target = pair["source_id"], pair["target_id"]
        if (of.no_identical and source == target) or (of.no_same_word and pair.get("same_word")):
            return False
        return self._passes(model, source) and self._passes(model, target)

    def directions(self, model: Model, ids: Sequence[int], k: int) -> list[int]:
        """As ``tokens``, for the few tokens of a direction: the places of all that pass. k of them are printed."""
        passing = [i for i, each in enumerate(ids) if self._passes(model, each)]
        self._first(iter(passing), len(ids), k, "tokens of a direction")
        return passing

    def _passes(self, model: Model, token_id: int) -> bool:
        mask = self.mask(model)
        return mask is None or bool(mask[token_id])

    def wanted(self, model: Model, item: Wanted) -> Wanted:
        """The wanted items that pass in a model."""
        mask = self.mask(model)
        left = [(i, word) for i, word in zip(item.ids, item.words, strict=True) if mask is None or mask[i]]
        return replace(item, ids=[i for i, _ in left], words=[word for _, word in left])

    def notes(self) -> list[str]:
        """Notes on the lists that were shown: which the filter made shorter than was asked for."""
        found = list(self._notes)
        for what, (short, total, k) in self._short.items():
            if short:
                lists = f"{short} of {total} lists {'has' if short == 1 else 'have'}" if total > 1 else "the list has"
                more = f" (build with a larger {_OPTIONS[what]} to keep more)" if what in _OPTIONS else ""
                found.append(
                    f"filtered: {lists} fewer than {k} {what}, because the atlas keeps no more that pass{more}"
                )
        return found

    def _first(self, passing: Iterator[int], n: int, k: int, what: str) -> list[int]:
        found = list(itertools.islice(passing, k))
        counts = self._short.setdefault(what, [0, 0, 0])
        counts[0] += bool(self) and len(found) < min(k, n)
        counts[1] += 1
        counts[2] = max(counts[2], k)
        return found

    def _make(self, model: Model) -> Mask | None:
        if not self.filter:
            return None
        asked = [rule for name, rule in TOKEN_RULES.items() if getattr(self.filter, name)]
        masks = [mask for mask in (self._of_rule(model, rule) for rule in asked) if mask is not None]
        if self.filter.word_list is not None:
            masks.append(_of_words(self.database, model.vocabulary, self.filter.word_list))
        return np.logical_and.reduce(masks) if masks else None

    def _of_rule(self, model: Model, rule: Rule) -> Mask | None:
        """Which tokens of a model a rule lets pass (V); None where its vocabulary does not say."""
        if not says(self.database, model, rule):
            self._notes.append(
                f"the vocabulary of {model.name} does not say {rule.unsaid}, so no token is left out for that"
            )
            return None
        if rule.table == "token_embeddings":
            sql = f"SELECT {rule.passes} AS passes FROM store.token_embeddings ORDER BY token_id"
            found: Mask = self.database.of(model).kept(sql)["passes"].to_numpy()
            return found
        import pyarrow.compute as pc  # here, as it takes longer to import than an atlas to open

        passing = pc.fill_null(self.database.tokens(model.vocabulary, rule.passes), fill_value=False)
        mask: Mask = passing.to_numpy(zero_copy_only=False)
        return mask


def says(database: Database, model: Model, rule: Rule) -> bool:
    """Whether a model's vocabulary says of its tokens what a rule asks."""
    if not rule.unsaid:
        return True
    import pyarrow.compute as pc

    return bool(pc.any(database.tokens(model.vocabulary, rule.passes)).as_py())


def _of_words(database: Database, vocabulary: str, words: list[str]) -> Mask:
    """Which items of a vocabulary (V) the words stand for. A bare word stands for all items that read like it, or if
    there are none for those spelled like it or continuing a word with it. A marked word stands for one item.
    """
    import pyarrow.compute as pc

    check_words(words)
    known = set(database.tokens(vocabulary, "folded").to_pylist())
    marked = [word for word in words if is_marked(word)]
    alike = {word: bare(word) for word in words if not is_marked(word)}
    others = [word for word, reads in alike.items() if reads not in known]
    folded = [*alike.values(), *map(continuation, others)]
    spaces = [text for text in map(bare, marked) if text.isspace()]  # markers stand for spaces
    columns = [("folded", folded), ("token", marked + others), ("text", marked + spaces)]
    found = [pc.is_in(database.tokens(vocabulary, name), pa.array(values, pa.string())) for name, values in columns]
    mask: Mask = np.logical_or.reduce([each.to_numpy(zero_copy_only=False) for each in found])
    return mask
