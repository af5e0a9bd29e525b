"""Vocabularies: what each row of the embedding stands for, as the tokenizer has it and as a person reads it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from paramdex_builder.read.tokenizer import load_tokenizer, reading, special_ids
from paramdex_schemas import CheckpointError
from paramdex_schemas.folding import CONTINUES, fold

_ROUNDED_TO = (8, 16, 32, 64, 128, 256)
"""Multiples to which models round up the rows of their embedding."""
Replaced = tuple[str, str, bool]
"""A part of a token, what it stands for, and whether the part is a regular expression."""
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@cache
def byte_alphabet() -> dict[str, int]:
    """Character -> byte in the alphabet of byte-level BPE: printable bytes stand for themselves, others follow 256."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def readable(data: bytes) -> str:
    r"""UTF-8 as text, with invalid bytes written as \\xNN."""
    return data.decode("utf-8", errors="backslashreplace")


def _steps(node: Any) -> Iterator[dict[str, Any]]:
    """Every step, a part that has a ``type``, of a part of a tokenizer.json, in order."""
    if isinstance(node, dict):
        if isinstance(node.get("type"), str):
            yield node
        for value in node.values():
            yield from _steps(value)
    elif isinstance(node, list):
        for value in node:
            yield from _steps(value)


def _written(spec: dict[str, Any]) -> tuple[Replaced, ...]:
    """What a tokenizer's decoder puts in the place of parts of a token, in order; if it has no decoder, what its
    other steps write for a space.
    """
    found: list[Replaced] = []
    if spec.get("decoder") is not None:
        for step in _steps(spec["decoder"]):
            if step["type"] == "Metaspace":
                found.append((step["replacement"], " ", False))
            elif step["type"] == "Replace":
                (kind, pattern), *_ = step["pattern"].items()
                found.append((pattern, step["content"], kind == "Regex"))
        return tuple(found)
    for step in (*_steps(spec.get("pre_tokenizer")), *_steps(spec.get("normalizer"))):
        if step["type"] == "Metaspace":
            found.append((step["replacement"], " ", False))
        elif step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"]:
            found.append((step["content"], " ", False))
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Style:
    """How a tokenizer writes word boundaries and bytes."""

    byte_level: bool
    written: tuple[Replaced, ...] = ()
    """What parts of a token stand for: ``▁`` for a space."""
    continuation: str | None = None
    word_end: str | None = None
    byte_fallback: bool = False
    """What has no piece is written as bytes, ``<0x41>``."""

    @classmethod
    def of(cls, spec: dict[str, Any]) -> Style:
        """From a parsed tokenizer.json."""
        model = spec["model"]
        decoder = {step["type"]: step for step in _steps(spec.get("decoder"))}
        outside = {*decoder, *(step["type"] for step in _steps(spec.get("pre_tokenizer")))}
        byte_level = "ByteLevel" in outside
        continuation = decoder.get("WordPiece", {}).get("prefix") or model.get("continuing_subword_prefix") or None
        word_end = model.get("end_of_word_suffix") or None
        byte_fallback = bool(model.get("byte_fallback")) or "ByteFallback" in outside
        return cls(byte_level, () if byte_level else _written(spec), continuation, word_end, byte_fallback)

    @cached_property
    def _rewrite(self) -> Callable[[str], str]:
        """Puts what parts of a token stand for in their place, as the decoder does."""
        from tokenizers import Regex, normalizers

        steps = [normalizers.Replace(Regex(part) if regex else part, text) for part, text, regex in self.written]
        return normalizers.Sequence(steps).normalize_str if steps else str

    def byte(self, token: str) -> int | None:
        """The byte that an ordinary token stands for by fallback, None where it is no such piece."""
        match = _BYTE_TOKEN.fullmatch(token) if self.byte_fallback else None
        return int(match[1], 16) if match else None

    def read(self, token: str) -> tuple[str, bool | None]:
        """(text, starts a word) of one ordinary token; None where only ends of words are marked.

        >>> Style(byte_level=True).read("ĠCanada")
        (' Canada', True)
        """
        byte = self.byte(token)
        if byte is not None:
            return readable(bytes([byte])), False
        if self.word_end and token.endswith(self.word_end):
            return self.read(token.removesuffix(self.word_end))[0] + " ", None
        if self.byte_level and all(character in byte_alphabet() for character in token):
            data = bytes(byte_alphabet()[character] for character in token)
            return readable(data), None if self.word_end else data.startswith(b" ")
        text = self._rewrite(token)
        if any(stands == " " for _, stands, _ in self.written):
            return text, text.startswith(" ")
        if self.continuation and token.startswith(self.continuation):
            return text.removeprefix(self.continuation), False
        if self.word_end:
            return text, None
        return text, not self.byte_level or token.startswith(" ")

    def read_added(self, token: str) -> tuple[str, bool | None]:
        """As ``read``, of an added token: its decoder reads it as any other, but where that makes bytes that are no
        text (``café`` in byte-level BPE) it stands for itself. So does ``<0x41>``, which text has as it is spelled.

        >>> Style(byte_level=True).read_added("café")
        ('café', False)
        """
        if self.byte(token) is not None:
            return token, False
        if self.byte_level:
            alphabet = byte_alphabet()
            try:
                bytes(alphabet.get(character, 0) for character in token).decode()
            except UnicodeDecodeError:
                return token, token.startswith(" ")
        return self.read(token)


@dataclass(frozen=True)
class Vocabulary:
    """The items of a vocabulary, by id. ``folded`` is what a typed word is compared with."""

    tokens: list[str]
    texts: list[str]
    folded: list[str]
    special: list[bool]
    """Special, or no token at all: an id that the tokenizer leaves out."""
    word_start: list[bool | None]
    """None where the tokenizer does not say."""
    byte: list[bool]
    """Pieces of byte fallback, which text uses for what has no piece of its own."""
    added: list[bool]
    """Added to the tokenizer's model, and found in text before all others."""
    tokenizer_sha256: str
    past_rows: list[str] = field(default_factory=list)
    """Added tokens that are not items, because their ids lie past the last row of the embedding."""

    @property
    def name(self) -> str:
        """A hash of the id -> token list and of the tokens' texts, which the decoder decides. Which tokens are special
        is not in it: two tokenizers of one vocabulary may differ in that.
        """
        return hashlib.sha256(json.dumps([self.tokens, self.texts]).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.tokens)

    def words(self) -> npt.NDArray[np.int64]:
        """A number for each token, equal where two tokens are one word (after stripping and case-folding)."""
        numbers: dict[str, int] = {}
        return np.array([numbers.setdefault(fold(text), len(numbers)) for text in self.texts], dtype=np.int64)

    def table(self) -> pa.Table:
        """The rows of the table ``tokens``."""
        return pa.table(
            {
                "token_id": pa.array(range(len(self)), pa.int32()),
                "token": self.tokens,
                "text": self.texts,
                "folded": self.folded,
                "is_special": self.special,
                "is_byte": self.byte,
                "is_added": self.added,
                "is_ascii": [text.isascii() for text in self.texts],
                "is_alnum": [text.strip().isalnum() for text in self.texts],
                "is_word_start": pa.array(self.word_start, pa.bool_()),
            }
        )


def read_vocabulary(source: str, folder: Path, embedding_rows: int) -> Vocabulary:
    """The vocabulary of the tokenizer in ``folder``, of which the embedding's rows are the items.

    Added tokens past the last row (a token for images in a model of text, a tune's token for padding) are left out.
    Raises CheckpointError where there is no fast tokenizer or it does not belong to the embedding: it has tokens of its
    own past the last row, special tokens alone, or so few that most rows have none.
    """
    tokenizer = load_tokenizer(source, folder)
    with reading(source):
        ids = tokenizer.get_vocab()
        added, special = set(tokenizer.added_tokens_decoder), special_ids(tokenizer)
        beyond = sorted(i for i in ids.values() if i >= embedding_rows)  # ids may have gaps, so entries are not counted
        too_far = beyond and beyond[-1] >= embedding_rows + len(ids)  # it would be written up to its highest id
        if too_far or any(i not in added for i in beyond):
            raise CheckpointError(
                f"{source}: the tokenizer has ids up to {beyond[-1]} but the embedding only {embedding_rows} rows; "
                "they do not belong together"
            )
        whole = tokenizer.backend_tokenizer.to_str()
        style = Style.of(json.loads(whole))
        size = max((i for i in ids.values() if i < embedding_rows), default=-1) + 1
        named = tokenizer.convert_ids_to_tokens(list(range(size)))
        past_rows = tokenizer.convert_ids_to_tokens(beyond)
    known = [i for i, token in enumerate(named) if token is not None]
    _check_size(source, len(known), sum(i in special for i in known), embedding_rows)
    tokens, texts, folded, word_start, byte = [], [], [], [], []
    for i, token in enumerate(named):
        name = f"<unused {i}>" if token is None else token
        if token is None:
            special.add(i)
        text, starts = (name, False) if token is None else style.read_added(name) if i in added else style.read(name)
        continued = style.continuation is not None and i not in special and name.startswith(style.continuation)
        tokens.append(name)
        texts.append(text)
        folded.append(f"{CONTINUES}{fold(text)}" if continued else fold(text))
        word_start.append(False if i in special else starts)
        byte.append(i not in special and i not in added and style.byte(name) is not None)
    return Vocabulary(
        tokens,
        texts,
        folded,
        [i in special for i in range(size)],
        word_start,
        byte,
        [i in added for i in range(size)],
        hashlib.sha256(whole.encode()).hexdigest(),
        past_rows,
    )


def _check_size(source: str, n_tokens: int, n_special: int, rows: int) -> None:
    """Raises CheckpointError for a vocabulary of special tokens alone, and for one of less than half the embedding's
    rows: rounding up adds a few per cent to a vocabulary of words. A tiny one (of letters, of amino acids) may be
    rounded up to a usual multiple, which is accepted.
    """
    if n_special == n_tokens:
        raise CheckpointError(
            f"{source}: its tokenizer has {n_tokens} special tokens and no other; its vocabulary file is missing or is "
            "no file of that tokenizer"
        )
    if 2 * n_tokens < rows and rows not in {-(-n_tokens // multiple) * multiple for multiple in _ROUNDED_TO}:
        raise CheckpointError(
            f"{source}: the tokenizer has only {n_tokens} tokens for the embedding's {rows} rows; they do not belong "
            "together (where they do, cut the rows first: model.resize_token_embeddings(len(tokenizer)))"
        )
