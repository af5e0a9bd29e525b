"""From what a person types to vocabulary items.

A bare word finds every item that reads like it, in upper or lower case, in Unicode's composed form or not, with or
without a space before it. It finds a WordPiece continuation only if no item of the vocabulary reads like it (``ium``
finds ``##ium``, as lists print it, but ``s`` does not find ``##s``), and never if whole words are meant. A word typed
with a marker (white space before it, ``Ġ``, ``▁`` or ``##``) finds only that item, if there is one. White space alone,
and markers that stand for spaces, find the item of exactly so many spaces.

A typed item with white space inside is one word if a vocabulary has it (``new york``), and otherwise several words.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike

from paramdex.store.database import Database
from paramdex.text import visible
from paramdex_schemas import QueryError, TokenError
from paramdex_schemas.arguments import given_items, given_path
from paramdex_schemas.checks import as_whole, check_text
from paramdex_schemas.errors import quoted
from paramdex_schemas.folding import CONTINUES, fold
from paramdex_schemas.foreign import read_bytes, reading

_SPACES = " Ġ▁"
"""A space, and what tokenizers write for one."""
_LONGEST = 100
"""Characters of a word that are compared to find the nearest words."""
_BETWEEN = re.compile(r"[\s,;|/]+")
"""What people write between words."""
_AROUND = re.compile(r"^\W+|\W+$")
"""What people write around a word: quotation marks, full stops."""


@dataclass(frozen=True)
class Wanted:
    """The items of one vocabulary that words ask for: ``ids[i]`` stands for ``words[i]``. ``missing`` words have no
    item, ``known`` is the number of words that have one.
    """

    vocabulary: str
    ids: list[int]
    words: list[str]
    missing: list[str]
    known: int


def is_marked(word: str) -> bool:
    """Whether a word was typed with a marker."""
    return word[:1].isspace() or word.startswith((*_SPACES, CONTINUES))


def bare(word: str) -> str:
    """A typed word as it stands in ``store.tokens.folded``: folded and without markers. Markers alone become the spaces
    that they stand for.

    >>> bare("▁Canada"), bare("##ium"), bare("##"), bare("▁▁")
    ('canada', 'ium', '##', '  ')
    """
    if word.startswith(CONTINUES):
        return fold(word.removeprefix(CONTINUES) or word)
    rest = word.lstrip(_SPACES)
    return fold(" " * (len(word) - len(rest)) + rest)


def _reading(database: Database, vocabulary: str, column: str, text: str) -> list[int]:
    """The ids of the items whose ``column`` is ``text``, by bisection of the column in order."""
    ordered = database.of_vocabulary(vocabulary).kept(
        f"SELECT {column}, token_id FROM store.tokens ORDER BY {column}, token_id"
    )
    texts, ids = (each.chunk(0) for each in ordered.columns)

    def at(place: int) -> str:
        return str(texts[place].as_py())

    first = end = bisect_left(range(len(texts)), text, key=at)
    while end < len(texts) and at(end) == text:
        end += 1
    return [i.as_py() for i in ids[first:end]]


def continuation(word: str) -> str:
    """How the WordPiece continuation that is printed as ``word`` stands in ``store.tokens.folded``."""
    return f"{CONTINUES}{bare(word)}"


def words_of(given: object) -> list[str]:
    """A list of words, from one word or a sequence of them. Raises TokenError for anything else."""
    if isinstance(given, str) or as_whole(given) is not None:
        return [word_of(given)]
    wrong = TokenError(f"words are a sequence of texts, not {quoted(given)}")
    return [word_of(each) for each in given_items(given, wrong)]


def word_of(given: object) -> str:
    """One word as text; a whole number becomes its digits. Raises TokenError for anything else."""
    if isinstance(given, str):
        return check_text(given, TokenError(f"{quoted(given)} is not valid UTF-8 text; type the word again"))
    with suppress(ValueError):  # of more digits than Python writes
        if (number := as_whole(given)) is not None:
            return str(number)
    raise TokenError(f"{quoted(given)} is not a word; write it as text or as a whole number")


def check_words(words: Iterable[str]) -> None:
    """Raises TokenError for a word that is not text."""
    for word in words:
        word_of(word)


def items(
    database: Database, vocabularies: list[str], words: list[str], *, whole: bool = False
) -> dict[tuple[str, str], list[int]]:
    """(vocabulary, word) -> the ids of its items. With ``whole`` a bare word finds no continuation.

    Most words are found by how they read; only words with a marker, and those not found, are compared as spelled.
    Raises TokenError for a word that is not text.
    """
    check_words(words)
    found = {(each, word): _reading(database, each, "folded", bare(word)) for each in vocabularies for word in words}
    known = {word for (_, word), alike in found.items() if alike}
    for (vocabulary, word), alike in found.items():
        if is_marked(word):
            found[vocabulary, word] = _exactly(database, vocabulary, word) or alike
        elif not alike:
            spelled = [] if word in known else _reading(database, vocabulary, "token", word)
            continued = [] if whole else _reading(database, vocabulary, "folded", continuation(word))
            found[vocabulary, word] = spelled or continued
    return found


def _exactly(database: Database, vocabulary: str, word: str) -> list[int]:
    """The ids of the items that are spelled like a marked word, or read like it."""
    texts = database.tokens(vocabulary, "text")
    reading = [i for i in _reading(database, vocabulary, "folded", fold(word)) if texts[i].as_py() == word]
    return sorted({*_reading(database, vocabulary, "token", word), *reading})


def nearest_words(database: Database, vocabularies: list[str], word: str) -> list[str]:
    """At most five words of some vocabularies that read most like ``word``."""
    found: dict[str, float] = {}
    for vocabulary in vocabularies:
        rows = database.of_vocabulary(vocabulary).rows(
            "SELECT folded, max(jaro_winkler_similarity(folded, $bare)) AS likeness FROM store.tokens "
            "WHERE NOT is_special AND length(folded) > 1 AND NOT starts_with(folded, $continues) "
            "GROUP BY folded HAVING likeness > 0 ORDER BY likeness DESC, folded LIMIT 5",
            {"bare": bare(word[:_LONGEST]), "continues": CONTINUES},
        )
        found |= dict(rows)
    return [visible(folded) for folded in sorted(found, key=lambda each: (-found[each], each))[:5]]


def separated(database: Database, vocabularies: list[str], typed: list[str]) -> dict[str, list[str]]:
    """Typed item -> the words that it stands for: itself, unless it has white space inside and no vocabulary has it. A
    space before the first word stays there, as its marker.
    """
    parts = {item: item.split() for item in typed}
    several = [item for item, words in parts.items() if len(words) > 1]
    known = {item for (_, item), ids in items(database, vocabularies, several).items() if ids}
    return {
        item: [" " * item.startswith(" ") + words[0], *words[1:]] if len(words) > 1 and item not in known else [item]
        for item, words in parts.items()
    }


def resolve(database: Database, vocabularies: list[str], words: list[str]) -> list[Wanted]:
    """The items of each vocabulary for ``words``. Vocabularies that have none of the words are left out.

    Raises TokenError for a word that no vocabulary has, and names the nearest words.
    """
    words = list(dict.fromkeys(word for word in words if word.strip() or word))
    if not words:
        raise TokenError("give at least one word")
    by_vocabulary = items(database, vocabularies, words)
    found = {v: {word: by_vocabulary[v, word] for word in words} for v in vocabularies}
    for word in words:
        if not any(found[v][word] for v in vocabularies):
            raise TokenError(f"no vocabulary here has {quoted(word)}{_instead(database, vocabularies, word)}")
    return [_wanted(v, by_word) for v, by_word in found.items() if any(by_word.values())]


def _instead(database: Database, vocabularies: list[str], word: str) -> str:
    """What to write for a word that no vocabulary has: the words between its commas and quotation marks if there are
    any, otherwise the nearest words.
    """
    apart = [part for each in _BETWEEN.split(word[:_LONGEST]) if (part := _AROUND.sub("", each))]
    known = {part for (_, part), ids in items(database, vocabularies, apart).items() if ids}
    if apart and apart != [word] and len(word) <= _LONGEST and known.issuperset(apart):
        return f"; write {' '.join(map(visible, apart))}" + (" for several words" if len(apart) > 1 else "")
    near = nearest_words(database, vocabularies, word)
    return f"; the nearest words are {', '.join(near)}" if near else ", nor one that is like it"


def _wanted(vocabulary: str, by_word: dict[str, list[int]]) -> Wanted:
    """The items of one vocabulary. An item that several words ask for (``Canada``, ``canada``) counts for the first."""
    owner: dict[int, str] = {}
    for word, ids in by_word.items():
        for i in ids:
            owner.setdefault(i, word)
    missing = [word for word, ids in by_word.items() if not ids]
    return Wanted(vocabulary, list(owner), list(owner.values()), missing, len(by_word) - len(missing))


def read_lines(path: str | PathLike[str], what: str) -> list[str]:
    """The lines of a file of words, which messages call ``what``. Raises QueryError if it cannot be read."""
    path = given_path(path, f"the {what}", QueryError)
    with reading(f"the {what} {path}", QueryError):
        raw = read_bytes(path)
        try:
            return raw.decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError("it is not UTF-8 text") from error
