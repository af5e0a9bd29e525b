"""How words are compared in a look-up: the vocabulary's text and the typed text are folded in the same way."""

from __future__ import annotations

import unicodedata

CONTINUES = "##"
"""Stands before the folded text of a continuation of a word, whatever mark its tokenizer uses."""


def fold(text: str) -> str:
    r"""A text without the white space around it, case folded, in Unicode's composed form (NFC). White space alone is
    kept as it is.

    Composed and decomposed characters (é, and e with U+0301) are the same text in Unicode. Characters that only look
    alike (², full-width letters; NFKC) are other tokens and stay different, unless folding of case makes them equal: ß
    and ss, ﬁ and fi. Folding ignores languages: I becomes i, never the dotless i of Turkish.

    >>> fold(" Cafe\u0301"), fold("  "), fold("Straße"), fold("x²")
    ('café', '  ', 'strasse', 'x²')
    """
    text = text.strip() or text
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())
