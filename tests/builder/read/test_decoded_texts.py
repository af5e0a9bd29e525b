"""What a token reads as is what its tokenizer's own decoder gives, for added tokens too, in every style."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from test_vocabulary import word_end_tokenizer
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import AddedToken, PreTrainedTokenizerFast

import models
from paramdex_builder.read.vocabulary import Vocabulary, read_vocabulary

ADDED = [
    "▁▁", "▁▁▁▁", "  ", "    ", "\n", "\n\n", "\t", "\t\t", " \n", "<tool>", "[x]", "Ġx", "ĠĠ", "▁the", "two words",
    " lead", "trail ", "café", "cafe\u0301", "東京", "<0x41>", "<0xC3>", "##y", "##", "<a▁b>", "Ċ", "é",
]  # fmt: skip


def gemma_tokenizer() -> PreTrainedTokenizerFast:
    """BPE as Gemma has it: no pre-tokenizer of its own, ``▁`` for a space, bytes as ``<0x..>``, nothing stripped."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", "▁the", "the", "▁▁", "▁▁▁", "a", "b"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(tokenizer_models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """Unigram as T5 and XLM-RoBERTa have it, with runs of ``▁`` among its pieces."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", "▁the", "the", "▁▁", "▁▁▁", "a", "b", "é", "東"]
    tokenizer = Tokenizer(tokenizer_models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>")


def underscore_tokenizer() -> PreTrainedTokenizerFast:
    """Metaspace with ``_`` for a space: ``▁`` is a character as any other."""
    tokens = ["<unk>", "_", "_the", "the", "__", "a_b", "▁", "▁x", "a▁b"]
    backend = Tokenizer(tokenizer_models.BPE({token: i for i, token in enumerate(tokens)}, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="_")
    backend.decoder = decoders.Metaspace(replacement="_")
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def replacing_tokenizer() -> PreTrainedTokenizerFast:
    """BPE whose decoder puts several things in the place of others, by regular expressions too."""
    tokens = ["<unk>", "Ġthe", "the", "Ċ", "ĠĠ", "a@@", "@@", "▁x", "x~12", "##y"]
    backend = Tokenizer(tokenizer_models.BPE({token: i for i, token in enumerate(tokens)}, [], unk_token="<unk>"))
    steps = [decoders.Replace("Ġ", " "), decoders.Replace("Ċ", "\n"), decoders.Replace("@@", "")]
    backend.decoder = decoders.Sequence([*steps, decoders.Replace(Regex("~[0-9]"), "-"), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def other_prefix_tokenizer() -> PreTrainedTokenizerFast:
    """Words of which the decoder alone says what continues them."""
    tokens = ["[UNK]", "the", "@@y", "##y", "y@@", "@@", "▁x"]
    backend = Tokenizer(tokenizer_models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece(prefix="@@", cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


STYLES: dict[str, tuple[Callable[[], PreTrainedTokenizerFast], str]] = {
    "byte-level BPE": (models.byte_level_tokenizer, "bread"),
    "Gemma's BPE": (gemma_tokenizer, "the"),
    "Llama's BPE": (models.metaspace_tokenizer, "bread"),
    "Unigram": (unigram_tokenizer, "the"),
    "WordPiece": (models.wordpiece_tokenizer, "bread"),
    "word-level": (models.word_tokenizer, "bread"),
    "ends of words": (word_end_tokenizer, "bread</w>"),
    "underscores": (underscore_tokenizer, "the"),
    "replacements": (replacing_tokenizer, "the"),
    "another prefix": (other_prefix_tokenizer, "the"),
}
"""A maker, and an ordinary token that others are decoded between."""
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
