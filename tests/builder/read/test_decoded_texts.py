"""What a token reads as is what its tokenizer's own decoder gives, for added tokens too, in every style."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import AddedToken, PreTrainedTokenizerFast

from paramdex_builder.read.vocabulary import Vocabulary, read_vocabulary
from tokenizer_styles import STYLES, other_prefix_tokenizer, underscore_tokenizer

ADDED = [
    "▁▁", "▁▁▁▁", "  ", "    ", "\n", "\n\n", "\t", "\t\t", " \n", "<tool>", "[x]", "Ġx", "ĠĠ", "▁the", "two words",
    " lead", "trail ", "café", "cafe\u0301", "東京", "<0x41>", "<0xC3>", "##y", "##", "<a▁b>", "Ċ", "é",
]  # fmt: skip


WORDS_APART = {"WordPiece", "word-level", "another prefix"}
"""Their decoders put a space between any two words, which is no part of a token."""


def read(tokenizer: PreTrainedTokenizerFast, folder: Path) -> Vocabulary:
    tokenizer.save_pretrained(folder)
    return read_vocabulary(str(folder), folder, len(tokenizer))


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_texts_are_what_the_decoder_gives(style: str, special: bool, tmp_path: Path) -> None:
    """Between two ordinary tokens, where a decoder neither strips nor adds a space, each token decodes to its text.

    Bytes that are no text alone are written out, but an added token of such bytes stands for itself.
    """
    make, between = STYLES[style]
    tokenizer = make()
    had = set(tokenizer.get_vocab())
    tokenizer.add_tokens([AddedToken(each, special=special, normalized=False) for each in ADDED if each not in had])
    vocabulary = read(tokenizer, tmp_path)
    backend = tokenizer.backend_tokenizer
    at = vocabulary.tokens.index(between)
    compared = 0
    for i, (token, text) in enumerate(zip(vocabulary.tokens, vocabulary.texts, strict=True)):
        decoded = backend.decode([at, i, at], skip_special_tokens=False)
        expected = vocabulary.texts[at] + text + vocabulary.texts[at]
        if "�" in decoded:
            assert "\\x" in text or (token in ADDED and text == token), (token, text)
            continue
        if style in WORDS_APART:
            decoded, expected = decoded.replace(" ", ""), expected.replace(" ", "")
        assert decoded.strip(" ") == expected.strip(" "), (token, text)
        compared += 1
    assert compared >= len(vocabulary) - (256 if "BPE" in style else 0)
    assert {vocabulary.special[i] for i, token in enumerate(vocabulary.tokens) if token not in had} == {special}


RUNS = {
    "byte-level BPE": {"ĠĠ": "  ", "  ": "  ", "▁▁": "▁▁", "\n\n": "\n\n", "Ċ": "\n"},
    "Gemma's BPE": {"▁▁": "  ", "▁▁▁▁": "    ", "▁▁▁": "   ", "  ": "  ", "ĠĠ": "ĠĠ", "\n\n": "\n\n"},
    "Llama's BPE": {"▁▁": "  ", "▁▁▁▁": "    ", "  ": "  ", "\t\t": "\t\t"},
    "Unigram": {"▁▁": "  ", "▁▁▁": "   ", "▁▁▁▁": "    ", " \n": " \n"},
    "WordPiece": {"  ": "  ", "▁▁": "▁▁", "##y": "y"},
    "ends of words": {"  ": "  ", "▁▁": "▁▁"},
    "underscores": {"__": "  ", "▁": "▁", "  ": "  "},
    "replacements": {"ĠĠ": "  ", "Ċ": "\n", "▁▁": "▁▁"},
}


@pytest.mark.parametrize("style", RUNS)
def test_runs_of_white_space(style: str, tmp_path: Path) -> None:
    tokenizer = STYLES[style][0]()
    had = tokenizer.get_vocab()
    tokenizer.add_tokens([AddedToken(each, normalized=False) for each in ADDED if each not in had])
    vocabulary = read(tokenizer, tmp_path)
    texts = dict(zip(vocabulary.tokens, vocabulary.texts, strict=True))
    assert {token: texts[token] for token in RUNS[style]} == RUNS[style]
    folded = dict(zip(vocabulary.tokens, vocabulary.folded, strict=True))
    for token, text in RUNS[style].items():
        if text.isspace():
            assert folded[token] == text


CLIP = {
    "<unk>": ("<unk>", False, "<unk>"),
    "the": ("the", None, "the"),
    "the</w>": ("the ", None, "the"),
    "Ã©</w>": ("é ", None, "é"),
    "Ã</w>": ("\\xc3 ", None, "\\xc3"),
    "Ġ": (" ", None, " "),
}


def test_ends_of_words_in_bytes(tmp_path: Path) -> None:
    """As CLIP has them; its own class puts a space in the place of ``</w>``, of which its decoder knows nothing."""
    ids = {token: i for i, token in enumerate(CLIP)}
    backend = Tokenizer(tokenizer_models.BPE(ids, [], unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    read_as = read(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"), tmp_path)
    found = zip(read_as.tokens, zip(read_as.texts, read_as.word_start, read_as.folded, strict=True), strict=True)
    assert dict(found) == CLIP


def test_underscores_start_words(tmp_path: Path) -> None:
    read_as = read(underscore_tokenizer(), tmp_path)
    starts = dict(zip(read_as.tokens, read_as.word_start, strict=True))
    assert {token for token, start in starts.items() if start} == {"_", "_the", "__"}


@pytest.mark.parametrize("step", ["pre-tokenizer", "normalizer", "neither"])
def test_spaces_without_a_decoder(step: str, tmp_path: Path) -> None:
    """Where there is no decoder, what the tokenizer writes for a space is one; what stands for another thing is not."""
    backend = Tokenizer(tokenizer_models.BPE({"<unk>": 0, "▁the": 1, "_x": 2}, [], unk_token="<unk>"))
    if step == "pre-tokenizer":
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
    rule = normalizers.Replace(" ", "▁") if step == "normalizer" else normalizers.Replace("▁", "x")
    backend.normalizer = normalizers.Sequence([rule, normalizers.Lowercase()])
    read_as = read(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"), tmp_path)
    assert read_as.texts == ["<unk>", "▁the" if step == "neither" else " the", "_x"]


def test_continuations_are_found_whatever_their_prefix(tmp_path: Path) -> None:
    read_as = read(other_prefix_tokenizer(), tmp_path)
    folded = dict(zip(read_as.tokens, read_as.folded, strict=True))
    assert {token: folded[token] for token in ("the", "@@y", "y@@")} == {"the": "the", "@@y": "##y", "y@@": "y@@"}
