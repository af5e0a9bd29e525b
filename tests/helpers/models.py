"""Tiny, randomly initialised models of every family, on disk as transformers writes them, with their tokenizers.

Every parameter is drawn anew (biases and norms too, which transformers starts at 0 and 1), so that a forgotten bias or
a swapped matrix shows in the numbers. Vocabularies are hand-made: no training, the same tokens on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

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
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


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


def make(cls: str, rows: int, **settings: Any) -> Any:
    """A model of the transformers class ``cls``, its embedding ``rows`` long, with ``settings`` in its config."""
    model = getattr(transformers, cls)
    return model(model.config_class(vocab_size=rows, **settings))


def gpt2(
    rows: int, *, width: int = 24, layers: int = 2, heads: int = 2, cls: str = "GPT2LMHeadModel", **more: Any
) -> Any:
    """A GPT-2 shape with ``rows`` rows of embedding; GPT-J and the first GPT have settings of the same names."""
    settings = {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": 32}
    ends = {} if cls.startswith("OpenAI") else {"bos_token_id": 0, "eos_token_id": 0}
    return make(cls, rows, **(settings | ends | more))


def encoder(rows: int, *, cls: str = "BertModel", heads: int = 3, **more: Any) -> Any:
    """A BERT shape, 24 wide; its feed-forward layer is 40 wide."""
    settings = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "intermediate_size": 40,
        "max_position_embeddings": 32,
    }
    return make(cls, rows, **(settings | more))


def llama(rows: int, *, cls: str = "LlamaForCausalLM", **more: Any) -> Any:
    """A Llama layout with four query heads on two key/value heads; 24 wide, its feed-forward layer 40."""
    settings: dict[str, Any] = {
        "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 40, "max_position_embeddings": 32, "tie_word_embeddings": False, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    return make(cls, rows, **(settings | more))


def neox(rows: int, **more: Any) -> Any:
    """GPT-NeoX, four heads of eight, a quarter of each rotated."""
    settings = {"num_attention_heads": 4, "intermediate_size": 40, "max_position_embeddings": 32}
    return make("GPTNeoXForCausalLM", rows, **(settings | {"hidden_size": 32, "num_hidden_layers": 2} | more))


def falcon(rows: int, **more: Any) -> Any:
    """Falcon, 32 wide with four heads; more says which of its three kinds of attention."""
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 32}
    return make("FalconForCausalLM", rows, **(settings | more))


def opt(rows: int, cls: str = "OPTForCausalLM", **more: Any) -> Any:
    """OPT, 24 wide; word_embed_proj_dim in ``more`` gives its embedding another width."""
    settings = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 40,
        "max_position_embeddings": 32,
        "word_embed_proj_dim": 24,
    }
    return make(cls, rows, **(settings | more))


def t5(rows: int, cls: str = "T5ForConditionalGeneration", **more: Any) -> Any:
    """T5, 24 wide with four heads of eight; its decoder has another number of layers than its encoder."""
    settings = {
        "d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4,
        "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
    }  # fmt: skip
    return make(cls, rows, **(settings | more))


def bart(rows: int, cls: str = "BartForConditionalGeneration", **more: Any) -> Any:
    """BART, 24 wide; encoder and decoder differ in every number that they can differ in."""
    settings = {
        "d_model": 24, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 3,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 32, "max_position_embeddings": 32,
        "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
    }  # fmt: skip
    return make(cls, rows, **(settings | more))


MAKERS: dict[str, Callable[..., Any]] = {
    "GPT2LMHeadModel": gpt2,
    "GPT2LMHeadModel, n_inner given": partial(gpt2, n_inner=56),
    "GPT2Model": partial(gpt2, cls="GPT2Model"),
    "OpenAIGPTLMHeadModel": partial(gpt2, cls="OpenAIGPTLMHeadModel"),
    "GPTNeoForCausalLM": partial(
        make, "GPTNeoForCausalLM", hidden_size=24, num_layers=2, num_heads=4, max_position_embeddings=32,
        attention_types=[[["global", "local"], 1]], window_size=3,
    ),
    "GPTNeoForCausalLM, intermediate_size given": partial(
        make, "GPTNeoForCausalLM", hidden_size=24, num_layers=2, num_heads=4, max_position_embeddings=32,
        attention_types=[[["global", "local"], 1]], intermediate_size=40,
    ),
    "GPTJForCausalLM": partial(gpt2, cls="GPTJForCausalLM", rotary_dim=4),
    "GPTJForCausalLM, n_inner given": partial(gpt2, cls="GPTJForCausalLM", rotary_dim=4, n_inner=56),
    "GPTNeoXForCausalLM": neox,
    "GPTNeoXForCausalLM, tied, no bias": partial(neox, tie_word_embeddings=True, attention_bias=False),
    "OPTForCausalLM": opt,
    "OPTForCausalLM, narrower embedding": partial(opt, word_embed_proj_dim=16, do_layer_norm_before=False),
    "OPTModel, narrower embedding": partial(opt, cls="OPTModel", word_embed_proj_dim=16),
    "BloomForCausalLM": partial(make, "BloomForCausalLM", hidden_size=24, n_layer=2, n_head=4),
    "BloomModel": partial(make, "BloomModel", hidden_size=24, n_layer=2, n_head=3),
    "FalconForCausalLM, multi-query": falcon,
    "FalconForCausalLM, multi-query, bias": partial(falcon, bias=True, parallel_attn=False),
    "FalconForCausalLM, new_decoder_architecture": partial(falcon, new_decoder_architecture=True, num_kv_heads=2),
    "FalconForCausalLM, multi-head": partial(falcon, multi_query=False, ffn_hidden_size=40),
    "FalconForCausalLM, multi-head, alibi": partial(falcon, multi_query=False, alibi=True, bias=True),
    "MptForCausalLM": partial(make, "MptForCausalLM", d_model=24, n_layers=2, n_heads=4, max_seq_len=32),
    "MptForCausalLM, another expansion_ratio": partial(
        make, "MptForCausalLM", d_model=24, n_layers=2, n_heads=4, max_seq_len=32, expansion_ratio=2
    ),
    "LlamaForCausalLM": partial(llama, head_dim=8),
    "LlamaForCausalLM, all heads their own": partial(llama, num_key_value_heads=4),
    "MistralForCausalLM": partial(llama, cls="MistralForCausalLM"),
    "Qwen2ForCausalLM": partial(llama, cls="Qwen2ForCausalLM", tie_word_embeddings=True),
    "Qwen3ForCausalLM": partial(llama, cls="Qwen3ForCausalLM", head_dim=8),
    "MixtralForCausalLM": partial(llama, cls="MixtralForCausalLM", num_local_experts=3),
    "Qwen2MoeForCausalLM": partial(
        llama, cls="Qwen2MoeForCausalLM", num_experts=3, num_experts_per_tok=2, moe_intermediate_size=12,
        shared_expert_intermediate_size=20, mlp_only_layers=[0],
    ),
    "Qwen2MoeForCausalLM, every other layer sparse": partial(
        llama, cls="Qwen2MoeForCausalLM", num_experts=4, num_experts_per_tok=3, moe_intermediate_size=12,
        shared_expert_intermediate_size=20, decoder_sparse_step=2, num_hidden_layers=4, norm_topk_prob=True,
    ),
    "Qwen3MoeForCausalLM": partial(
        llama, cls="Qwen3MoeForCausalLM", head_dim=8, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=12,
        mlp_only_layers=[1],
    ),
    "Qwen3MoeForCausalLM, all layers sparse": partial(
        llama, cls="Qwen3MoeForCausalLM", head_dim=8, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=12,
    ),
    "GptOssForCausalLM": partial(
        llama, cls="GptOssForCausalLM", head_dim=8, num_local_experts=3, num_experts_per_tok=3, sliding_window=4,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    ),
    "GemmaForCausalLM": partial(
        llama, cls="GemmaForCausalLM", head_dim=8, num_key_value_heads=1, tie_word_embeddings=True
    ),
    "Gemma2ForCausalLM": partial(
        llama, cls="Gemma2ForCausalLM", head_dim=8, num_key_value_heads=1, tie_word_embeddings=True,
        query_pre_attn_scalar=5, attn_logit_softcapping=2.0, sliding_window=3,
    ),
    "Gemma3ForCausalLM": partial(
        llama, cls="Gemma3ForCausalLM", head_dim=8, tie_word_embeddings=True, query_pre_attn_scalar=5,
        sliding_window=3, layer_types=["sliding_attention", "full_attention"],
    ),
    "PhiForCausalLM": partial(
        llama, cls="PhiForCausalLM", hidden_size=32, rope_parameters={"rope_type": "default", "rope_theta": 1e4,
        "partial_rotary_factor": 0.5},
    ),
    "Phi3ForCausalLM": partial(llama, cls="Phi3ForCausalLM"),
    "Phi3ForCausalLM, all heads their own": partial(llama, cls="Phi3ForCausalLM", num_key_value_heads=4),
    "Olmo2ForCausalLM": partial(llama, cls="Olmo2ForCausalLM"),
    "StableLmForCausalLM": partial(
        llama, cls="StableLmForCausalLM", hidden_size=32, rope_parameters={"rope_type": "default", "rope_theta": 1e4,
        "partial_rotary_factor": 0.25},
    ),
    "StableLmForCausalLM, biases, parallel": partial(
        llama, cls="StableLmForCausalLM", use_qkv_bias=True, use_parallel_residual=True, hidden_size=32,
    ),
    "Starcoder2ForCausalLM": partial(llama, cls="Starcoder2ForCausalLM", tie_word_embeddings=True),
    "SmolLM3ForCausalLM": partial(llama, cls="SmolLM3ForCausalLM", no_rope_layers=[1, 0]),
    "GraniteForCausalLM": partial(
        llama, cls="GraniteForCausalLM", attention_multiplier=0.7, residual_multiplier=0.5, embedding_multiplier=3.0
    ),
    "CohereForCausalLM": partial(llama, cls="CohereForCausalLM", tie_word_embeddings=True),
    "CohereForCausalLM, queries and keys normed": partial(
        llama, cls="CohereForCausalLM", tie_word_embeddings=True, use_qk_norm=True
    ),
    "BertModel": encoder,
    "BertForMaskedLM": partial(encoder, cls="BertForMaskedLM"),
    "RobertaForMaskedLM": partial(encoder, cls="RobertaForMaskedLM"),
    "RobertaModel, another id of padding": partial(encoder, cls="RobertaModel", pad_token_id=0),
    "XLMRobertaForMaskedLM": partial(encoder, cls="XLMRobertaForMaskedLM"),
    "CamembertModel": partial(encoder, cls="CamembertModel"),
    "Data2VecTextForMaskedLM": partial(encoder, cls="Data2VecTextForMaskedLM"),
    "RobertaPreLayerNormForMaskedLM": partial(encoder, cls="RobertaPreLayerNormForMaskedLM"),
    "RobertaPreLayerNormModel": partial(encoder, cls="RobertaPreLayerNormModel"),
    "XLMRobertaXLForMaskedLM": partial(encoder, cls="XLMRobertaXLForMaskedLM"),
    "DistilBertForMaskedLM": partial(
        make, "DistilBertForMaskedLM", dim=24, n_layers=2, n_heads=3, hidden_dim=40, max_position_embeddings=32
    ),
    "ElectraForMaskedLM": partial(encoder, cls="ElectraForMaskedLM", embedding_size=24),
    "ElectraForMaskedLM, narrower embedding": partial(encoder, cls="ElectraForMaskedLM", embedding_size=16),
    "ElectraForMaskedLM, narrower embedding, untied": partial(
        encoder, cls="ElectraForMaskedLM", embedding_size=16, tie_word_embeddings=False
    ),
    "ElectraForPreTraining, narrower embedding": partial(encoder, cls="ElectraForPreTraining", embedding_size=16),
    "AlbertForMaskedLM": partial(encoder, cls="AlbertForMaskedLM", embedding_size=16),
    "AlbertModel, two groups": partial(
        encoder, cls="AlbertModel", embedding_size=16, num_hidden_groups=2, num_hidden_layers=4
    ),
    "ModernBertForMaskedLM": partial(
        encoder, cls="ModernBertForMaskedLM", local_attention=4, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        cls_token_id=1, sep_token_id=2,
    ),
    "T5ForConditionalGeneration": t5,
    "T5ForConditionalGeneration, gated": partial(t5, feed_forward_proj="gated-gelu"),
    "T5EncoderModel": partial(t5, cls="T5EncoderModel"),
    "MT5ForConditionalGeneration": partial(t5, cls="MT5ForConditionalGeneration", feed_forward_proj="gated-gelu"),
    "BartForConditionalGeneration": bart,
    "BartModel": partial(bart, cls="BartModel"),
    "BartForCausalLM": partial(bart, cls="BartForCausalLM"),
}  # fmt: skip
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


def split(folder: Path) -> dict[str, str]:
    """Put the weights of ``folder`` into two shards; an index is the caller's to write: tensor -> its shard."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {name: f"model-{i % 2 + 1:05}-of-00002.safetensors" for i, name in enumerate(sorted(state))}
    for shard in sorted(set(where.values())):
        save_file({name: state[name] for name in state if where[name] == shard}, folder / shard)
    return where


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
    folders["bert"] = save(root / "bert", encoder(len(tokenizer)), tokenizer, 5)
    return folders


def save_planted(folder: Path, rows: range, seed: int) -> Path:
    """A two-layer GPT-2 of 120 words, with some rows of its embedding short and in one direction."""
    save(folder, gpt2(120), word_tokenizer(120), seed)
    tensors = load_file(folder / "model.safetensors")
    E = tensors["transformer.wte.weight"]
    way = torch.randn(E.shape[1], generator=torch.Generator().manual_seed(seed))
    noise = torch.randn(len(rows), E.shape[1], generator=torch.Generator().manual_seed(seed + 1))
    E[list(rows)] = 0.2 * E.norm(dim=1).median() * (way + 0.2 * noise) / way.norm()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder
