"""Tokenizers of every style in which words begin, go on and end, tiny and made by hand."""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

import models


def word_end_tokenizer() -> PreTrainedTokenizerFast:
    """BPE as the first GPT has it: ``</w>`` where a word ends, and nothing where one begins."""
    letters = sorted({letter for word in models.WORDS for letter in word.lower()})
    vocabulary = {token: i for i, token in enumerate(["<unk>", *letters, *(letter + "</w>" for letter in letters)])}
    merges = []
    for word in (word.lower() for word in models.WORDS):
        whole = word[0]
        for piece in [*word[1:-1], word[-1] + "</w>"]:
            if whole + piece not in vocabulary:
                vocabulary[whole + piece] = len(vocabulary)
                merges.append((whole, piece))
            whole += piece
    model = tokenizer_models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", end_of_word_suffix="</w>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


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
