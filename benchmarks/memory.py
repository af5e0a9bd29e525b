"""Measure the peak memory of builds against the least that they may be given.

    python benchmarks/memory.py [SHAPE...]

Each shape is a model of random weights that makes another step of a build the largest: ``layers`` are two of Llama 3
8B's with a quarter of its heads, in which the pieces of a layer count and their number must not; ``float32`` is that
embedding held in float32; ``heads`` has an embedding and heads as Gemma has them, whose factors over the vocabulary are
the most; ``width`` a Gram matrix of width 8192 to decompose. The atlas is built on the processor with exactly the
memory below which the build refuses. The norms of E's rows lie about their mean as in trained models, by a quarter. All
of them take about forty minutes on two cores, and 14 GiB of disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from paramdex.result import Result


@dataclass(frozen=True)
class Shape:
    """A model in Llama's layout."""

    V: int
    d: int
    d_ff: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    n_layers: int = 1
    dtype: torch.dtype = torch.bfloat16
    tied: bool = True


SHAPES = {
    "layers": Shape(128_256, 4096, 14_336, 8, 2, 128, n_layers=2, tied=False),
    "float32": Shape(128_256, 4096, 1024, 2, 1, 128, dtype=torch.float32),
    "heads": Shape(256_000, 2048, 1024, 1, 1, 256),
    "width": Shape(16_384, 8192, 1024, 1, 1, 128),
}


def write_model(folder: Path, shape: Shape) -> None:
    """A random model with its tokenizer, one shard a layer."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    V, d, d_ff, d_head = shape.V, shape.d, shape.d_ff, shape.d_head
    shapes = {
        "self_attn.q_proj": (shape.n_heads * d_head, d),
        "self_attn.k_proj": (shape.n_kv_heads * d_head, d),
        "self_attn.v_proj": (shape.n_kv_heads * d_head, d),
        "self_attn.o_proj": (d, shape.n_heads * d_head),
        "mlp.gate_proj": (d_ff, d),
        "mlp.up_proj": (d_ff, d),
        "mlp.down_proj": (d, d_ff),
    }
    index: dict[str, str] = {}

    def shard(name: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, folder / name)
        index.update(dict.fromkeys(tensors, name))

    def random(*size: int) -> torch.Tensor:
        return (torch.randn(size, generator=generator) * 0.02).to(shape.dtype)

    for name in ("model.embed_tokens.weight", "lm_head.weight")[: 1 if shape.tied else 2]:
        scale = torch.exp(0.25 * torch.randn(V, 1, generator=generator))
        shard(f"{name}.safetensors", {name: (random(V, d) * scale).to(shape.dtype)})
    for layer in range(shape.n_layers):
        named = {f"model.layers.{layer}.{name}.weight": random(*size) for name, size in shapes.items()}
        named |= {f"model.layers.{layer}.{n}_layernorm.weight": torch.ones(d) for n in ("input", "post_attention")}
        shard(f"layer-{layer}.safetensors", named)
    shard("norm.safetensors", {"model.norm.weight": torch.ones(d)})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config = {
        "model_type": "llama", "hidden_size": d, "intermediate_size": d_ff, "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads, "num_key_value_heads": shape.n_kv_heads, "vocab_size": V,
        "head_dim": d_head, "tie_word_embeddings": shape.tied,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(models.WordLevel({f"word{i}": i for i in range(V)}, unk_token="word0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def prepare(folder: Path, shape: Shape) -> None:
    """Write the model, and print the bytes that a build of it needs."""
    from paramdex_builder import Options, Progress
    from paramdex_builder.estimates import memory_needed
    from paramdex_builder.plan import plan_model
    from paramdex_builder.read.checkpoint import Checkpoint

    write_model(folder, shape)
    each = plan_model("model", Checkpoint.open(str(folder)), Options(), Progress())
    print(memory_needed(each.weights, each.layout, len(each.vocabulary), each.stored, torch.device("cpu")))


def measure(name: str, folder: Path) -> dict[str, str]:
    """Build the shape ``name``: its row of the table."""
    # in a process of its own: what a program held when it started another counts for that one too
    arguments = [sys.executable, __file__, name, str(folder / "model")]
    needed = int(subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True).stdout)
    command = [sys.executable, "-m", "paramdex", "build", str(folder / "model"), "-o", str(folder / "model.atlas")]
    started = time.perf_counter()
    process = subprocess.Popen([*command, "--device", "cpu", "--memory", f"{-(-needed // 1024)}K"])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("error: the build failed")
    seconds, peak, shape = time.perf_counter() - started, usage.ru_maxrss * 1024, SHAPES[name]
    return {
        "model": f"{name}: V {shape.V:,}, d {shape.d:,}, d_ff {shape.d_ff:,}, d_head {shape.d_head}",
        "built in": f"{seconds:,.0f} s",
        "peak, GiB": f"{peak / 2**30:.2f}",
        "allowed, GiB": f"{needed / 2**30:.2f}",
        "peak / allowed": f"{peak / needed:.2f}",
    }


def main() -> None:
    if len(sys.argv) == 3 and "/" in sys.argv[2]:
        prepare(Path(sys.argv[2]), SHAPES[sys.argv[1]])
        return
    names = sys.argv[1:] or list(SHAPES)
    unknown = [name for name in names if name not in SHAPES]
    if unknown:
        raise SystemExit(f"error: there is no shape {unknown[0]}; there are {', '.join(SHAPES)}")
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(name, Path(folder)))
    print(Result(pa.Table.from_pylist(rows), "Builds with the least memory that they may be given"))


if __name__ == "__main__":
    main()
