"""Measure the peak memory of building a model of Llama 3 8B's width, which must not grow with its number of layers.

    python benchmarks/memory.py [LAYERS]

Writes random weights (width 4096, 32 heads on 8 key/value heads, 14,336 neurons, V = 128,256, untied, bfloat16), builds
an atlas of them with no more memory than the bound, a layer and the embedding in float32 and 1 GiB, and prints the peak
beside it. The norms of E's rows lie about their mean as in trained models, by a quarter. The projection takes minutes a
layer on a CPU; 14 GiB of disk are used.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

V, D, D_FF, N_HEADS, N_KV_HEADS, D_HEAD = 128_256, 4096, 14_336, 32, 8, 128


def write_model(folder: Path, n_layers: int) -> None:
    """A random model in Llama's layout with its tokenizer, one shard a layer."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "self_attn.q_proj": (N_HEADS * D_HEAD, D), "self_attn.k_proj": (N_KV_HEADS * D_HEAD, D),
        "self_attn.v_proj": (N_KV_HEADS * D_HEAD, D), "self_attn.o_proj": (D, N_HEADS * D_HEAD),
        "mlp.gate_proj": (D_FF, D), "mlp.up_proj": (D_FF, D), "mlp.down_proj": (D, D_FF),
    }  # fmt: skip
    index: dict[str, str] = {}

    def shard(name: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, folder / name)
        index.update(dict.fromkeys(tensors, name))

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.02).bfloat16()

    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        scale = torch.exp(0.25 * torch.randn(V, 1, generator=generator))
        shard(f"{name}.safetensors", {name: (random(V, D) * scale).bfloat16()})
    for layer in range(n_layers):
        named = {f"model.layers.{layer}.{name}.weight": random(*shape) for name, shape in shapes.items()}
        named |= {f"model.layers.{layer}.{n}_layernorm.weight": torch.ones(D) for n in ("input", "post_attention")}
        shard(f"layer-{layer}.safetensors", named)
    shard("norm.safetensors", {"model.norm.weight": torch.ones(D)})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config = {
        "model_type": "llama", "hidden_size": D, "intermediate_size": D_FF, "num_hidden_layers": n_layers,
        "num_attention_heads": N_HEADS, "num_key_value_heads": N_KV_HEADS, "vocab_size": V, "head_dim": D_HEAD,
        "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(models.WordLevel({f"word{i}": i for i in range(V)}, unk_token="word0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def main() -> None:
    n_layers = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    if len(sys.argv) > 2:
        write_model(Path(sys.argv[2]), n_layers)
        return
    layer = (3 * D_FF + 2 * N_HEADS * D_HEAD + 2 * N_KV_HEADS * D_HEAD) * D * 4 / 2**30
    embedding = V * D * 4 / 2**30
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # in a process of its own: what a program held when it started another counts for that one too
        subprocess.run([sys.executable, __file__, str(n_layers), str(folder / "wide")], check=True)
        started = time.perf_counter()
        command = [sys.executable, "-m", "paramdex", "build", str(folder / "wide"), "-o", str(folder / "wide.atlas")]
        process = subprocess.Popen([*command, "--device", "cpu", "--memory", f"{layer + embedding + 1:.3f}G"])
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit("error: the build failed")
        print(f"{n_layers} layer(s) of width {D:,}, V = {V:,}: built in {time.perf_counter() - started:.0f} s")
        print(f"peak {usage.ru_maxrss / 2**20:.2f} GiB; bound {layer + embedding + 1:.2f} GiB: a layer {layer:.2f},")
        print(f"the embedding {embedding:.2f}, and 1")


if __name__ == "__main__":
    main()
