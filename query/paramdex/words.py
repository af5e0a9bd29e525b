"""From what a person types to vocabulary items.

A bare word finds every item that reads as it, whatever the case and whether or not a space comes before it, but no
WordPiece continuation (``##s`` is no ``s``); a word typed with a marker of its own (a leading space, ``Ġ``, ``▁`` or
``##``) finds just that item where there is one.
"""

from __future__ import annotations

from dataclasses import dataclass

from paramdex.database import Database
from paramdex_schemas import TokenError

_MARKERS = (" ", "Ġ", "▁", "##")


@dataclass(frozen=True)
class Wanted:
    """Items of one vocabulary that were asked for: ``ids[i]`` stands for ``words[i]``; ``missing`` words have none."""

    vocabulary: str
    ids: list[int]
    words: list[str]
    missing: list[str]


def _bare(word: str) -> str:
    for marker in _MARKERS:
        word = word.removeprefix(marker)
    return (word.strip() or word).casefold()


def _items(database: Database, vocabulary: str, word: str) -> list[int]:
    rows = database.rows(
        "SELECT token_id, token = $word OR text = $word FROM store.tokens WHERE vocabulary = $vocabulary "
        "AND (token = $word OR (text = $word AND $word[1] = ' ') OR folded = $bare) ORDER BY token_id",
        {"word": word, "vocabulary": vocabulary, "bare": _bare(word)},
    )
    exact = [token_id for token_id, same in rows if same]
    if word.startswith(_MARKERS) and exact:
        return exact
    return [token_id for token_id, _ in rows]


def _nearest(database: Database, vocabularies: list[str], word: str) -> list[str]:
    rows = database.rows(
        "SELECT folded, max(jaro_winkler_similarity(folded, $bare)) AS likeness FROM store.tokens "
        "WHERE vocabulary IN (SELECT unnest($vocabularies)) AND NOT is_special AND length(folded) > 1 "
        "GROUP BY folded ORDER BY likeness DESC, folded LIMIT 5",
        {"bare": _bare(word), "vocabularies": vocabularies},
    )
    return [folded for folded, _ in rows]


def resolve(database: Database, vocabularies: list[str], words: list[str]) -> list[Wanted]:
    """The items of each vocabulary for ``words``; vocabularies that know none of them are left out.

    Raises TokenError for a word that no vocabulary knows, naming the nearest words there are.
    """
    words = list(dict.fromkeys(word for word in words if word.strip() or word))
    if not words:
        raise TokenError("give at least one word")
    for word in words:
        if any("\ud800" <= character <= "\udfff" for character in word):
            raise TokenError(f"{word!r} is not valid UTF-8 text; type the word again")
    found = {v: {word: _items(database, v, word) for word in words} for v in vocabularies}
    for word in words:
        if not any(found[v][word] for v in vocabularies):
            near = ", ".join(_nearest(database, vocabularies, word))
            raise TokenError(f"no vocabulary here has {word!r}; the nearest words are {near}")
    return [
        Wanted(
            v,
            [i for word in words for i in items[word]],
            [word for word in words for _ in items[word]],
            [word for word in words if not items[word]],
        )
        for v, items in found.items()
        if any(items.values())
    ]
