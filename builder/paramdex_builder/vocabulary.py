"""Vocabularies: what each row of the embedding stands for, as the tokenizer has it and as a person reads it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from paramdex_schemas import CheckpointError

_FILES = {"tokenizer.json", "vocab.json", "vocab.txt", "tekken.json"}
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@cache
def byte_alphabet() -> dict[str, int]:
    """Character -> byte in the alphabet of byte-level BPE: printable bytes stand for themselves, others follow 256."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def readable(data: bytes) -> str:
    r"""UTF-8 as text, with bytes that are none written as \\xNN."""
    return data.decode("utf-8", errors="backslashreplace")


def _types(node: Any) -> Iterator[str]:
    """Every ``type`` in a part of a tokenizer.json."""
    if isinstance(node, dict):
        if isinstance(node.get("type"), str):
            yield node["type"]
        for value in node.values():
            yield from _types(value)
    elif isinstance(node, list):
        for value in node:
            yield from _types(value)


@dataclass(frozen=True)
class Style:
    """How a tokenizer writes word boundaries and bytes."""

    byte_level: bool
    metaspace: bool
    continuation: str | None
    word_end: str | None
    byte_fallback: bool = False
    """What has no piece is written as bytes, ``<0x41>``."""

    @classmethod
    def of(cls, spec: dict[str, Any]) -> Style:
        """From a parsed tokenizer.json."""
        model = spec["model"]
        outside = {*_types(spec.get("decoder")), *_types(spec.get("pre_tokenizer"))}
        byte_level = "ByteLevel" in outside
        metaspace = not byte_level and (
            "Metaspace" in outside
            or "▁" in json.dumps([spec.get("normalizer"), spec.get("decoder")], ensure_ascii=False)
        )
        continuation = model.get("continuing_subword_prefix") or None
        byte_fallback = bool(model.get("byte_fallback")) or "ByteFallback" in outside
        return cls(byte_level, metaspace, continuation, model.get("end_of_word_suffix") or None, byte_fallback)

    def byte(self, token: str) -> int | None:
        """The byte that an ordinary token stands for by fallback, None where it is no such piece."""
        match = _BYTE_TOKEN.fullmatch(token) if self.byte_fallback else None
        return int(match[1], 16) if match else None

    def read(self, token: str) -> tuple[str, bool | None]:
        """(text, starts a word) of one ordinary token; None where only ends of words are marked.

        >>> Style(True, False, None, None).read("ĠCanada")
        (' Canada', True)
        """
        byte = self.byte(token)
        if byte is not None:
            return readable(bytes([byte])), False
        if self.byte_level and all(character in byte_alphabet() for character in token):
            text = readable(bytes(byte_alphabet()[character] for character in token))
            return text, text.startswith(" ")
        if self.metaspace:
            return token.replace("▁", " "), token.startswith("▁")
        if self.continuation and token.startswith(self.continuation):
            return token[len(self.continuation) :], False
        if self.word_end:
            return token.removesuffix(self.word_end) + (" " if token.endswith(self.word_end) else ""), None
        return token, True


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

    @property
    def name(self) -> str:
        """A hash of the id -> token list itself."""
        return hashlib.sha256(json.dumps(self.tokens, ensure_ascii=True).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.tokens)

    def words(self) -> npt.NDArray[np.int64]:
        """A number for each token, equal where two tokens are one word (after stripping and case-folding)."""
        numbers: dict[str, int] = {}
        return np.array(
            [numbers.setdefault(text.strip().casefold() or text, len(numbers)) for text in self.texts], dtype=np.int64
        )

    def table(self) -> pa.Table:
        """The rows of the table ``tokens``."""
        return pa.table(
            {
                "vocabulary": pa.array([self.name] * len(self), pa.string()),
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
    """The vocabulary of the tokenizer in ``folder``.

    Raises CheckpointError where there is no fast tokenizer or it has more entries than the embedding has rows.
    """
    from transformers import AutoTokenizer

    # Without any of these files transformers makes up an empty tokenizer for some types of models.
    if not any(file.name in _FILES or file.suffix == ".model" for file in folder.iterdir()):
        raise CheckpointError(f"{source} has no tokenizer; save it with tokenizer.save_pretrained(folder)")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        spec = json.loads(tokenizer.backend_tokenizer.to_str())
    except Exception as error:  # transformers and tokenizers raise many kinds of errors here
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{source}: its tokenizer cannot be read ({reason})") from error
    size = max(tokenizer.get_vocab().values(), default=-1) + 1  # ids may have gaps: no count of entries
    if size > embedding_rows:
        raise CheckpointError(
            f"{source}: the tokenizer has ids up to {size - 1} but the embedding only {embedding_rows} rows; "
            "they do not belong together"
        )
    if size == 0:
        raise CheckpointError(f"{source}: its tokenizer has no entries")
    style = Style.of(spec)
    added = {int(i): token for i, token in tokenizer.added_tokens_decoder.items()}
    special = set(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}
    tokens, texts, folded, word_start, byte = [], [], [], [], []
    for i, token in enumerate(tokenizer.convert_ids_to_tokens(list(range(size)))):
        name = f"<unused {i}>" if token is None else token
        if token is None:
            special.add(i)
        text, starts = (name, False) if token is None or i in added else style.read(name)
        continued = style.continuation is not None and i not in added and name.startswith(style.continuation)
        tokens.append(name)
        texts.append(text)
        folded.append((name if continued else text.strip() or text).casefold())
        word_start.append(False if i in special else starts)
        byte.append(i not in special and i not in added and style.byte(name) is not None)
    return Vocabulary(
        tokens, texts, folded, [i in special for i in range(size)], word_start, byte, [i in added for i in range(size)],
        hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
    )  # fmt: skip
