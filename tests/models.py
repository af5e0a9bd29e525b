"""Tiny, randomly initialised models of every family, on disk as transformers writes them, with their tokenizers.

Every parameter is drawn anew (biases and norms too, which transformers starts at 0 and 1), so that a forgotten bias or
a swapped matrix shows in the numbers. Vocabularies are hand-made: no training, the same tokens on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

WORDS = [
    "Canada", "Ottawa", "Toronto", "France", "Paris", "food", "bread", "butter", "music", "violin", "river", "ocean",
    "doctor", "nurse", "seven", "eight", "green", "yellow", "winter", "summer",
]  # fmt: skip
PADDING_ROWS = 7
"""Rows of the embedding past the tokenizer's length, as many published checkpoints have them."""


def byte_alphabet() -> list[str]:
    """The 256 characters of byte-level BPE, from the tokenizers library."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE as GPT-2 has it: every word as ``Word``, `` Word`` and `` word``, with merges that make them."""
    vocabulary = {"<|end|>": 0} | {character: i + 1 for i, character in enumerate(byte_alphabet())}
    merges = []
    for word in WORDS:
        for form in dict.fromkeys([word, "Ġ" + word, "Ġ" + word.lower()]):
            whole = form[0]
            for character in form[1:]:
                if whole + character not in vocabulary:
                    vocabulary[whole + character] = len(vocabulary)
                    merges.append((whole, character))
                whole += character
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>")


def wordpiece_tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece as BERT has it, lower-cased, with ``##`` continuations."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(i) for i in range(ord("a"), ord("z") + 1)]
    tokens = [*special, *letters, *("##" + letter for letter in letters), *(word.lower() for word in WORDS)]
    tokens += ["##ing", "##ed", "!", "?", "é", "東", "1", "##2", "bread-butter"]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )  # fmt: skip


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """BPE as Llama 2 has it: ``▁`` for a space, bytes as ``<0x..>``."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    letters = sorted({letter for word in WORDS for letter in word + word.lower()})
    tokens += letters
    merges = []
    vocabulary = {token: i for i, token in enumerate(tokens)}
    for word in WORDS:
        for form in ("▁" + word, word.lower()):
            whole = form[0]
            for character in form[1:]:
                if whole + character not in vocabulary:
                    vocabulary[whole + character] = len(vocabulary)
                    merges.append((whole, character))
                whole += character
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def word_tokenizer(n: int = 60) -> PreTrainedTokenizerFast:
    """Whole lower-case words and the numbers up to ``n`` entries in all: the smallest vocabulary that works."""
    tokens = ["[UNK]", "[END]", *(word.lower() for word in WORDS)]
    tokens += [f"word{i}" for i in range(n - len(tokens))]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[END]")


def gpt2(
    rows: int, *, width: int = 24, layers: int = 2, heads: int = 2, cls: type = GPT2LMHeadModel, **more: Any
) -> Any:
    """A GPT-2 shape with ``rows`` rows of embedding."""
    return cls(
        GPT2Config(vocab_size=rows, n_embd=width, n_layer=layers, n_head=heads, n_positions=32, bos_token_id=0,
                   eos_token_id=0, **more)
    )  # fmt: skip


def bert(rows: int, *, width: int = 24, layers: int = 2, heads: int = 3, cls: type = BertModel) -> Any:
    """A BERT shape; its feed-forward layer is 40 wide."""
    return cls(
        BertConfig(vocab_size=rows, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
                   intermediate_size=40, max_position_embeddings=32)
    )  # fmt: skip


def llama(rows: int, *, cls: type = LlamaForCausalLM, config: type = LlamaConfig, **more: Any) -> Any:
    """A Llama layout with four query heads on two key/value heads; 24 wide, its feed-forward layer 40."""
    settings: dict[str, Any] = {
        "vocab_size": rows, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 40, "max_position_embeddings": 32,
        "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    return cls(config(**(settings | more)))


MAKERS: dict[str, Callable[[int], Any]] = {
    "GPT2LMHeadModel": gpt2,
    "GPT2LMHeadModel, n_inner given": lambda rows: gpt2(rows, n_inner=56),
    "GPT2Model": lambda rows: gpt2(rows, cls=GPT2Model),
    "BertModel": bert,
    "BertForMaskedLM": lambda rows: bert(rows, cls=BertForMaskedLM),
    "LlamaForCausalLM": lambda rows: llama(rows, head_dim=8),
    "LlamaForCausalLM, all heads their own": lambda rows: llama(rows, num_key_value_heads=4),
    "MistralForCausalLM": lambda rows: llama(rows, cls=MistralForCausalLM, config=MistralConfig),
    "Qwen2ForCausalLM": lambda rows: llama(rows, cls=Qwen2ForCausalLM, config=Qwen2Config, tie_word_embeddings=True),
}
"""Every model class that the tests build, by name, from the number of rows of its embedding."""


def randomize(model: Any, seed: int, scale: float = 0.3) -> Any:
    """Draw every parameter of ``model`` anew from a normal distribution."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


def save(
    folder: Path, model: Any, tokenizer: PreTrainedTokenizerFast, seed: int, dtype: torch.dtype = torch.float32
) -> Path:
    """Write a randomized ``model`` and its tokenizer to ``folder``."""
    randomize(model, seed).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_word_model(folder: Path, seed: int = 0, maker: Callable[[int], Any] = gpt2) -> Path:
    """The quickest whole model: 60 words, one of the makers above (a two-layer GPT-2 by default)."""
    return save(folder, maker(60), word_tokenizer(60), seed)


def save_all(root: Path) -> dict[str, Path]:
    """The models of the shared atlas: name -> folder.

    gpt2-a, gpt2-b and gpt2-wide share a byte-level vocabulary (float32, float16, float32; the third is wider and
    deeper); llama-gqa (bfloat16, metaspace) and bert (float32, WordPiece) have others.
    """
    tokenizer = byte_level_tokenizer()
    rows = len(tokenizer) + PADDING_ROWS
    folders = {
        "gpt2-a": save(root / "gpt2-a", gpt2(rows), tokenizer, 1),
        "gpt2-b": save(root / "gpt2-b", gpt2(rows), tokenizer, 2, torch.float16),
        "gpt2-wide": save(root / "gpt2-wide", gpt2(rows, width=32, layers=3, heads=4), tokenizer, 3),
    }
    tokenizer = metaspace_tokenizer()
    rows = len(tokenizer) + PADDING_ROWS
    folders["llama-gqa"] = save(root / "llama-gqa", llama(rows, head_dim=8), tokenizer, 4, torch.bfloat16)
    tokenizer = wordpiece_tokenizer()
    folders["bert"] = save(root / "bert", bert(len(tokenizer)), tokenizer, 5)
    return folders
