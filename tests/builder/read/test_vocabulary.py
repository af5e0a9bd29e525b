"""What each token reads as: text, word starts, specials and folded form, for every kind of tokenizer.

Expected values are written out, or taken from the tokenizers library's own decoders.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast

import models
from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.read.vocabulary import Vocabulary, byte_alphabet, read_vocabulary, readable
from tokenizer_styles import word_end_tokenizer

BYTE_LEVEL = {
    "<|end|>": ("<|end|>", False, True, "<|end|>"),
    "Canada": ("Canada", False, False, "canada"),
    "ĠCanada": (" Canada", True, False, "canada"),
    "Ġcanada": (" canada", True, False, "canada"),
    "Ġ": (" ", True, False, " "),
    "Ċ": ("\n", False, False, "\n"),
    "A": ("A", False, False, "a"),
    "Ã": ("\\xc3", False, False, "\\xc3"),
    "Ń": ("\\xad", False, False, "\\xad"),
}
WORDPIECE = {
    "[CLS]": ("[CLS]", False, True, "[cls]"),
    "canada": ("canada", True, False, "canada"),
    "##ing": ("ing", False, False, "##ing"),
    "##2": ("2", False, False, "##2"),
    "!": ("!", True, False, "!"),
    "é": ("é", True, False, "é"),
    "東": ("東", True, False, "東"),
}
METASPACE = {
    "<s>": ("<s>", False, True, "<s>"),
    "▁Canada": (" Canada", True, False, "canada"),
    "canada": ("canada", False, False, "canada"),
    "▁": (" ", True, False, " "),
    "<0x41>": ("A", False, False, "a"),
    "<0x0A>": ("\n", False, False, "\n"),
    "<0xC3>": ("\\xc3", False, False, "\\xc3"),
}
WORD_LEVEL = {
    "[UNK]": ("[UNK]", False, True, "[unk]"),
    "canada": ("canada", True, False, "canada"),
    "word7": ("word7", True, False, "word7"),
}
WORD_END = {
    "<unk>": ("<unk>", False, True, "<unk>"),
    "canada</w>": ("canada ", None, False, "canada"),
    "cana": ("cana", None, False, "cana"),
    "a</w>": ("a ", None, False, "a"),
    "a": ("a", None, False, "a"),
}


KINDS: dict[str, tuple[Callable, dict[str, tuple[str, bool | None, bool, str]]]] = {
    "byte-level BPE": (models.byte_level_tokenizer, BYTE_LEVEL),
    "WordPiece": (models.wordpiece_tokenizer, WORDPIECE),
    "metaspace": (models.metaspace_tokenizer, METASPACE),
    "word-level": (models.word_tokenizer, WORD_LEVEL),
    "ends of words": (word_end_tokenizer, WORD_END),
}
"""tokenizer -> token -> (text, starts a word, special, folded); starts is None where the tokenizer does not say."""


def read(tokenizer: PreTrainedTokenizerFast, folder: Path) -> Vocabulary:
    tokenizer.save_pretrained(folder)
    return read_vocabulary(str(folder), folder, max(tokenizer.get_vocab().values()) + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_as_a_person_reads_them(kind: str, tmp_path: Path) -> None:
    make, expected = KINDS[kind]
    vocabulary = read(make(), tmp_path)
    found = {
        token: (text, start, special, folded)
        for token, text, start, special, folded in zip(
            vocabulary.tokens,
            vocabulary.texts,
            vocabulary.word_start,
            vocabulary.special,
            vocabulary.folded,
            strict=True,
        )
    }
    assert {token: found[token] for token in expected} == expected


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_the_tokenizers(kind: str, tmp_path: Path) -> None:
    tokenizer = KINDS[kind][0]()
    vocabulary = read(tokenizer, tmp_path)
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert dict(enumerate(vocabulary.tokens)) == {i: token for token, i in backend.get_vocab().items()}
    specials = {i for i, special in enumerate(vocabulary.special) if special}
    assert specials == set(tokenizer.all_special_ids)


def test_ends_of_words_are_read_as_spaces(tmp_path: Path) -> None:
    tokenizer = word_end_tokenizer()
    vocabulary = read(tokenizer, tmp_path)
    ids = tokenizer.encode("canada rivera a")
    assert [vocabulary.tokens[i] for i in ids][:2] == ["canada</w>", "rive"]
    assert "".join(vocabulary.texts[i] for i in ids) == "canada rivera a " == tokenizer.decode(ids) + " "
    starts = vocabulary.table()["is_word_start"].to_pylist()
    assert starts == [False, *[None] * (len(vocabulary) - 1)]  # the first is special


@pytest.mark.parametrize("kind", ["byte-level BPE", "metaspace"])
def test_texts_are_what_the_decoder_says(kind: str, tmp_path: Path) -> None:
    """Two ordinary tokens together decode to their two texts together (alone, a decoder may strip the first space)."""
    tokenizer = KINDS[kind][0]()
    vocabulary = read(tokenizer, tmp_path)
    first = vocabulary.tokens.index(
        "Ġfood" if kind == "byte-level BPE" else "▁food" if "▁food" in vocabulary.tokens else "food"
    )
    compared = 0
    for i, text in enumerate(vocabulary.texts):
        if vocabulary.special[i] or "\\x" in text or not text.isprintable():
            continue
        expected = vocabulary.texts[first] + text
        assert tokenizer.backend_tokenizer.decode([first, i]).lstrip() == expected.lstrip()
        compared += 1
    assert compared > 150


def test_word_starts_cut_text_into_words(tmp_path: Path) -> None:
    """On tokenized text, the tokens that start a word are the first of each word but the very first."""
    tokenizer = models.byte_level_tokenizer()
    vocabulary = read(tokenizer, tmp_path)
    ids = tokenizer.encode(" canada music xyz Toronto")
    assert "".join(vocabulary.texts[i] for i in ids) == " canada music xyz Toronto"
    assert sum(vocabulary.word_start[i] for i in ids) == 4


def test_words_join_case_and_space(tmp_path: Path) -> None:
    """Canada, Ġcanada and ĠCanada are one word; white space is each its own."""
    vocabulary = read(models.byte_level_tokenizer(), tmp_path)
    words = vocabulary.words()
    number = {token: int(words[i]) for i, token in enumerate(vocabulary.tokens)}
    assert number["Canada"] == number["ĠCanada"] == number["Ġcanada"]
    assert number["a"] == number["A"]
    assert number["Ġ"] != number["Ċ"]
    assert number["Canada"] != number["Ottawa"]
    folded = [text.strip().casefold() or text for text in vocabulary.texts]
    assert len(np.unique(words)) == len(set(folded))


def test_added_tokens(tmp_path: Path) -> None:
    """An added token reads as its decoder has it; only a special one is special."""
    tokenizer = models.byte_level_tokenizer()
    size = len(tokenizer)
    tokenizer.add_tokens([AddedToken("Ġplain", special=False), AddedToken("<tool>", special=True), "  ", "café"])
    vocabulary = read(tokenizer, tmp_path)
    assert vocabulary.tokens[size:] == ["Ġplain", "<tool>", "  ", "café"]
    assert vocabulary.texts[size:] == [" plain", "<tool>", "  ", "café"]
    assert [tokenizer.decode([i]) for i in range(size, size + 4)] == [" plain", "<tool>", "  ", "caf�"]
    assert vocabulary.special[size:] == [False, True, False, False]
    assert vocabulary.word_start[size:] == [True, False, True, False]
    assert vocabulary.added == [token == "<|end|>" for token in vocabulary.tokens[:size]] + [True] * 4


@pytest.mark.parametrize("fallback", ["model and decoder", "model", "decoder", "neither"])
@pytest.mark.parametrize("metaspace", [True, False])
def test_bytes_are_what_the_tokenizer_says(fallback: str, metaspace: bool, tmp_path: Path) -> None:
    """``<0x41>`` is a byte where the tokenizer falls back on bytes, whatever its spaces are; else it is what it is."""
    tokens = ["[UNK]", *(f"<0x{byte:02X}>" for byte in range(256)), "A", "<0x4>", "<0x041>"]
    in_model = fallback.startswith("model")
    model = tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, [], byte_fallback=in_model)
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace() if metaspace else pre_tokenizers.Whitespace()
    if fallback.endswith("decoder"):
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    tokenizer.add_tokens(["<0x42>", AddedToken("<0xFFFF>", special=False)])  # one that there is: the tokenizer's own id
    vocabulary = read(tokenizer, tmp_path)
    added = tokens.index("<0x42>")
    bytes_are = [fallback != "neither" and 0 < i <= 256 and i != added for i in range(len(vocabulary))]
    assert vocabulary.byte == bytes_are
    texts = dict(zip(vocabulary.tokens, vocabulary.texts, strict=True))
    expected = {"<0x41>": "A", "<0x0A>": "\n", "<0xC3>": "\\xc3"} if any(bytes_are) else {"<0x41>": "<0x41>"}
    assert {token: texts[token] for token in expected} == expected
    assert all(texts[token] == token for token in ("<0x42>", "<0x4>", "<0x041>", "<0xFFFF>"))
    table = vocabulary.table().to_pylist()
    assert [row["is_byte"] for row in table] == bytes_are
    assert [row["token_id"] for row in table if row["is_added"]] == [0, added, len(tokens)]


def test_gap_in_the_ids(tmp_path: Path) -> None:
    """An id that no token has is a row of its own, and the tokens after it keep their places."""
    backend = Tokenizer(models.models.WordLevel({"[UNK]": 0, "[END]": 1, "canada": 2, "ottawa": 5}, unk_token="[UNK]"))
    tokenizer = models.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", eos_token="[END]")
    vocabulary = read(tokenizer, tmp_path)
    assert vocabulary.tokens == ["[UNK]", "[END]", "canada", "<unused 3>", "<unused 4>", "ottawa"]
    assert vocabulary.texts == vocabulary.tokens
    assert vocabulary.word_start == [False, False, True, False, False, True]
    assert vocabulary.special == [True, True, False, True, True, False]  # ids of no token stand for no text


def test_table_columns(tmp_path: Path) -> None:
    table = read(models.wordpiece_tokenizer(), tmp_path).table().to_pylist()
    rows = {row["token"]: row for row in table}
    flags = {
        token: (rows[token]["is_ascii"], rows[token]["is_alnum"])
        for token in ("canada", "é", "!", "bread-butter", "##2")
    }
    assert flags == {
        "canada": (True, True),
        "é": (False, True),
        "!": (True, False),
        "bread-butter": (True, False),
        "##2": (True, True),
    }
    assert [row["token_id"] for row in table] == list(range(len(table)))


def test_name_is_of_the_list_and_how_it_reads(tmp_path: Path) -> None:
    """The same list from two folders has one name, whatever is special; one more or other token, another, and so has
    another decoder.
    """
    tokenizers = [models.word_tokenizer(n) for n in (60, 60, 60, 61, 60)]
    tokenizers[2].pad_token = tokenizers[2].convert_ids_to_tokens(7)
    tokenizers[4].backend_tokenizer.decoder = decoders.Replace("e", " ")
    read_as = [read(each, tmp_path / str(i)) for i, each in enumerate(tokenizers)]
    assert [vocabulary.special[7] for vocabulary in read_as] == [False, False, True, False, False]
    names = [vocabulary.name for vocabulary in read_as]
    assert names[0] == names[1] == names[2]
    assert len(set(names)) == 3
    assert len(names[0]) == 16


def test_padding_rows_are_dropped(tmp_path: Path) -> None:
    """Rows of the embedding past the tokenizer's length take no part in any number."""
    from paramdex_builder import Options, build

    options = Options(top_k=5, pair_k=5, neighbor_k=1, device="cpu")
    tokenizer = models.word_tokenizer(60)
    folder = models.save(tmp_path / "padded", models.gpt2(75), tokenizer, 3)
    checkpoint = Checkpoint.open(str(folder))
    E, _, _ = checkpoint.embedding()
    assert len(E) == 75
    atlas = build([str(folder)], tmp_path / "x.atlas", options)
    from safetensors.torch import load_file

    space = load_file(atlas / "models" / "padded" / "space.safetensors")
    assert torch.equal(space["embedding"], E[:60])
    assert torch.allclose(space["means"], E[:60].double().mean(0), atol=1e-12)


@given(st.text(min_size=1))
def test_bytes_read_back(text: str) -> None:
    """The alphabet of byte-level BPE is the tokenizers library's: every text is written and read back."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = byte_alphabet()
    assert sorted(alphabet) == models.byte_alphabet()
    assert sorted(alphabet.values()) == list(range(256))
    pieces = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    data = bytes(alphabet[character] for piece, _ in pieces for character in piece)
    assert data == text.encode()
    assert readable(data) == text


def test_broken_bytes_are_written_out() -> None:
    assert readable(b"\xe6\x9d") == "\\xe6\\x9d"
    assert readable(b"ok\xff") == "ok\\xff"
