"""How texts are compared where a word is looked up: what a vocabulary stores and what a person types, folded alike."""

from __future__ import annotations

import unicodedata

CONTINUES = "##"
"""What a continuation of a word has before its folded text, whatever its tokenizer writes there."""


def fold(text: str) -> str:
    r"""A text without white space around it, its case folded, in Unicode's composed form (NFC); of white space alone
    all of it.

    Composed and decomposed are one text in Unicode (é and e with U+0301). Forms that are only alike (², full-width
    letters; NFKC) are other tokens, and stay apart, but for what folding of case makes equal: ß and ss, ﬁ and fi.
    Folding knows no language: I is i, never the dotless one of Turkish.

    >>> fold(" Cafe\u0301"), fold("  "), fold("Straße"), fold("x²")
    ('café', '  ', 'strasse', 'x²')
    """
    text = text.strip() or text
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())
