"""Filters: which tokens and pairs are shown, as the notebooks of the paper have them, and without under-trained tokens.

A filter works on what an atlas keeps, the strongest tokens and pairs of each side. A list that is shorter for it than
was asked for is said so in a note.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from paramdex.store.database import Database
from paramdex.store.words import Wanted, bare, check_words, continuation, is_marked, read_lines, words_of
from paramdex_schemas import QueryError
from paramdex_schemas.arguments import yes_or_no
from paramdex_schemas.errors import quoted
from paramdex_schemas.model import Model

Mask = npt.NDArray[np.bool_]
ALL = 10_000
"""More tokens, or pairs, than an atlas keeps of one side."""
_OPTIONS = {"tokens": "--top-k", "pairs": "--pair-k"}
"""What a list is of -> the option of a build that says how many of them are kept."""


@dataclass(frozen=True)
class TokenFilter:
    """Which tokens, and which pairs of tokens, are shown: those that every field that is set lets pass."""

    ascii: bool = False
    """only tokens of ASCII characters"""
    alnum: bool = False
    """only tokens of letters and digits"""
    word_starts: bool = False
    """only tokens that start a word"""
    words: str | PathLike[str] | Sequence[str] | None = None
    """only these words: a file with one a line, or a sequence; each matches as a word of ``find`` does, but is one word
    whatever white space it has"""
    no_undertrained: bool = False
    """no tokens that the model's training text hardly used (the table ``token_embeddings``)"""
    no_identical: bool = False
    """no pairs of a token with itself"""
    no_same_word: bool = False
    """no pairs of tokens that differ only in case or space, or not at all"""

    def __post_init__(self) -> None:
        """Raises QueryError or TokenError for a field of another type."""
        for name in (each.name for each in fields(self) if each.name != "words"):
            object.__setattr__(self, name, yes_or_no(name, getattr(self, name)))
        if self.words is not None and not isinstance(self.words, (str, PathLike)):
            object.__setattr__(self, "words", tuple(words_of(self.words)))

    def __bool__(self) -> bool:
        """Whether anything is left out."""
        return self != TokenFilter()

    @cached_property
    def word_list(self) -> list[str] | None:
        """The words that may pass; None where any may. Raises QueryError for a file that cannot be read or is empty."""
        if self.words is None:
            return None
        if isinstance(self.words, (str, PathLike)):
            lines = [line for line in read_lines(self.words, "word list") if line.strip()]
        else:
            lines = [word for word in self.words if word]  # of white space alone, it is an item of just that
        found = list(dict.fromkeys(lines))
        if not found:
            name = f" {self.words}" if isinstance(self.words, (str, PathLike)) else ""
            raise QueryError(f"the word list{name} holds no words; write one a line")
        return found


@dataclass
class Sieve:
    """A filter at work on one answer: it has a mask for each model, and counts the lists that ran short."""

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

    def mask(self, model: Model) -> Mask | None:
        """Which tokens of a model pass (V); None where all do."""
        if model.model_id not in self._masks:
            self._masks[model.model_id] = self._make(model)
        return self._masks[model.model_id]

    def tokens(self, model: Model, ids: Sequence[int], k: int) -> list[int]:
        """The places in ``ids``, a parameter's strongest tokens on one side, of the first k that pass."""
        return self._first((i for i, each in enumerate(ids) if self._passes(model, each)), len(ids), k, "tokens")

    def pairs(self, model: Model, pairs: Sequence[dict[str, Any]], k: int) -> list[int]:
        """As ``tokens``, of a head's strongest pairs: rows with source_id, target_id and perhaps same_word."""
        return self._first((i for i, pair in enumerate(pairs) if self.passes(model, pair)), len(pairs), k, "pairs")

    def passes(self, model: Model, pair: dict[str, Any]) -> bool:
        """Whether a pair does; both of its tokens must."""
        of = self.filter or TokenFilter()
        source, target = pair["source_id"], pair["target_id"]
        if (of.no_identical and source == target) or (of.no_same_word and pair.get("same_word")):
            return False
        return self._passes(model, source) and self._passes(model, target)

    def directions(self, model: Model, ids: Sequence[int], k: int) -> list[int]:
        """As ``tokens``, of a direction's few tokens: the places of all that pass, k of which are printed."""
        passing = [i for i, each in enumerate(ids) if self._passes(model, each)]
        self._first(iter(passing), len(ids), k, "tokens of a direction")
        return passing

    def _passes(self, model: Model, token_id: int) -> bool:
        mask = self.mask(model)
        return mask is None or bool(mask[token_id])

    def wanted(self, model: Model, item: Wanted) -> Wanted:
        """Of the items that were asked for those that pass in a model."""
        mask = self.mask(model)
        left = [(i, word) for i, word in zip(item.ids, item.words, strict=True) if mask is None or mask[i]]
        return replace(item, ids=[i for i, _ in left], words=[word for _, word in left])

    def notes(self) -> list[str]:
        """What the reader must know of the lists that were shown."""
        found = list(self._notes)
        for what, (short, total, k) in self._short.items():
            if short:
                lists = f"{short} of {total} lists have" if total > 1 else "the list has"
                more = f" (build with a larger {_OPTIONS[what]} to keep more)" if what in _OPTIONS else ""
                why = "for no more of those that the atlas keeps pass"
                found.append(f"filtered: {lists} fewer than {k} {what}, {why}{more}")
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
        import pyarrow.compute as pc  # here, as it takes longer to import than an atlas to open

        of, vocabulary = self.filter, model.vocabulary
        masks: list[Mask] = []
        for asked, column in ((of.ascii, "is_ascii"), (of.alnum, "is_alnum"), (of.word_starts, "is_word_start")):
            if asked:
                values = self.database.tokens(vocabulary, column)
                starts = values.drop_null()
                if column == "is_word_start" and not pc.any(starts).as_py():
                    note = f"the vocabulary of {model.name} does not say what starts a word; none is left out for it"
                    self._notes.append(note)
                else:
                    masks.append(pc.fill_null(values, fill_value=False).to_numpy(zero_copy_only=False))
        if of.word_list is not None:
            masks.append(_of_words(self.database, vocabulary, of.word_list))
        if of.no_undertrained:
            sql = "SELECT is_undertrained FROM store.token_embeddings WHERE model_id = ? ORDER BY token_id"
            masks.append(~self.database.kept(sql, model.model_id)["is_undertrained"].to_numpy())
        return np.logical_and.reduce(masks) if masks else None


def _of_words(database: Database, vocabulary: str, words: list[str]) -> Mask:
    """Which items of a vocabulary (V) the words stand for: a bare one for all that read as it, or where none does for
    what is spelled so or continues a word with it, a marked one for one.
    """
    import pyarrow.compute as pc

    check_words(words)
    known = set(database.tokens(vocabulary, "folded").to_pylist())
    marked = [word for word in words if is_marked(word)]
    alike = {word: bare(word) for word in words if not is_marked(word)}
    others = [word for word, reads in alike.items() if reads not in known]
    folded = [*alike.values(), *map(continuation, others)]
    spaces = [text for text in map(bare, marked) if text.isspace()]  # that markers stand for
    columns = [("folded", folded), ("token", marked + others), ("text", marked + spaces)]
    found = [pc.is_in(database.tokens(vocabulary, name), pa.array(values, pa.string())) for name, values in columns]
    return np.logical_or.reduce([each.to_numpy(zero_copy_only=False) for each in found])
