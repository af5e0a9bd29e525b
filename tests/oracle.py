"""The brute force that atlases are checked against: float64 NumPy straight from a model's files, by its own code.

Nothing of the builder is used here. Each family's slicing is written out by hand, V x V matrices are formed whole, and
sorting is by full sorts; slow, short and easy to believe.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.torch import load_file
from tokenizers import Tokenizer


@dataclass
class Truth:
    """A model's numbers: ``E`` (V x d) and ``rows[kind][layer]`` (n x d), float64, and its head counts."""

    E: np.ndarray
    rows: dict[str, list[np.ndarray]]
    n_heads: int
    n_kv_heads: int

    @property
    def d_head(self) -> int:
        return len(self.rows["attn_query"][0]) // self.n_heads

    def vector(self, kind: str, layer: int, kv_or_head: int | None, idx: int) -> np.ndarray:
        """One parameter's vector (d); attention kinds are counted by head or key/value head."""
        start = 0 if kv_or_head is None else kv_or_head * self.d_head
        return self.rows[kind][layer][start + idx]

    def head(self, matrix: str, layer: int, head: int) -> tuple[np.ndarray, np.ndarray]:
        """The two factors of a head's d x d matrix, d x d_head each: W_Q and W_K, or W_V and W_O^T."""
        kv_head = head * self.n_kv_heads // self.n_heads
        names = {"QK": ("attn_query", "attn_key"), "VO": ("attn_value", "attn_output")}[matrix]
        numbers = {"attn_query": head, "attn_output": head, "attn_key": kv_head, "attn_value": kv_head}
        cut = [self.rows[name][layer][numbers[name] * self.d_head :][: self.d_head].T for name in names]
        return cut[0], cut[1]

    def scores(self, vector: np.ndarray) -> np.ndarray:
        return self.E @ vector

    def pair_scores(self, matrix: str, layer: int, head: int) -> np.ndarray:
        """The whole V x V matrix."""
        left, right = self.head(matrix, layer, head)
        return self.E @ (left @ right.T) @ self.E.T


def read(folder: Path) -> Truth:
    """The truth of a model folder of one of the three families."""
    config = json.loads((folder / "config.json").read_text())
    tensors = {name: value.double().numpy() for name, value in load_file(folder / "model.safetensors").items()}
    n_tokens = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size(with_added_tokens=True)
    if config["model_type"] == "gpt2":
        return _gpt2(config, tensors, n_tokens)
    if config["model_type"] == "bert":
        return _bert(config, tensors, n_tokens)
    return _llama(config, tensors, n_tokens)


def _gpt2(config: dict, tensors: dict[str, np.ndarray], n_tokens: int) -> Truth:
    d, rows = config["n_embd"], _empty(gated=False)
    for layer in range(config["n_layer"]):
        block = f"transformer.h.{layer}."
        fused = tensors[block + "attn.c_attn.weight"]  # d x 3d
        rows["attn_query"].append(fused[:, :d].T)
        rows["attn_key"].append(fused[:, d : 2 * d].T)
        rows["attn_value"].append(fused[:, 2 * d :].T)
        rows["attn_output"].append(tensors[block + "attn.c_proj.weight"])
        rows["ff_key"].append(tensors[block + "mlp.c_fc.weight"].T)
        rows["ff_value"].append(tensors[block + "mlp.c_proj.weight"])
    return Truth(tensors["transformer.wte.weight"][:n_tokens], rows, config["n_head"], config["n_head"])


def _bert(config: dict, tensors: dict[str, np.ndarray], n_tokens: int) -> Truth:
    rows = _empty(gated=False)
    for layer in range(config["num_hidden_layers"]):
        block = f"encoder.layer.{layer}."
        for kind, name in (("attn_query", "query"), ("attn_key", "key"), ("attn_value", "value")):
            rows[kind].append(tensors[block + f"attention.self.{name}.weight"])
        rows["attn_output"].append(tensors[block + "attention.output.dense.weight"].T)
        rows["ff_key"].append(tensors[block + "intermediate.dense.weight"])
        rows["ff_value"].append(tensors[block + "output.dense.weight"].T)
    heads = config["num_attention_heads"]
    return Truth(tensors["embeddings.word_embeddings.weight"][:n_tokens], rows, heads, heads)


def _llama(config: dict, tensors: dict[str, np.ndarray], n_tokens: int) -> Truth:
    rows = _empty(gated=True)
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        for kind, name in (("attn_query", "q_proj"), ("attn_key", "k_proj"), ("attn_value", "v_proj")):
            rows[kind].append(tensors[block + f"self_attn.{name}.weight"])
        rows["attn_output"].append(tensors[block + "self_attn.o_proj.weight"].T)
        rows["ff_key"].append(tensors[block + "mlp.up_proj.weight"])
        rows["ff_gate"].append(tensors[block + "mlp.gate_proj.weight"])
        rows["ff_value"].append(tensors[block + "mlp.down_proj.weight"].T)
    name = "lm_head.weight" if "lm_head.weight" in tensors else "model.embed_tokens.weight"
    return Truth(tensors[name][:n_tokens], rows, config["num_attention_heads"], config["num_key_value_heads"])


def _empty(*, gated: bool) -> dict[str, list[np.ndarray]]:
    kinds = ["ff_key", "ff_gate", "ff_value", "attn_query", "attn_key", "attn_value", "attn_output"]
    return {kind: [] for kind in kinds if gated or kind != "ff_gate"}


def pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson of every row of ``a`` (n x m) with every row of ``b`` (k x m)."""
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    return (a @ b.T) / np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))


def assert_strongest(found: list[float], truth_at_found: np.ndarray, everything: np.ndarray, side: str) -> None:
    """A stored list is the strongest there is on its side.

    ``found`` are the stored scores in order of rank, ``truth_at_found`` the float64 scores of the stored items and
    ``everything`` those of all items. Each stored score is its item's own, and rank by rank the stored scores are the
    largest (or smallest) of all, to float32 rounding: so only items that tie there may have swapped.
    """
    sign = 1.0 if side == "top" else -1.0
    k = min(len(found), everything.size)
    best = sign * np.sort(sign * everything.ravel())[::-1][:k]
    # a float64 sum of d products may itself be off by 1e-15 of its largest terms
    close = {"rtol": 1.5e-7, "atol": 1e-14 * float(np.abs(everything).max())}
    np.testing.assert_allclose(found, truth_at_found, **close)
    np.testing.assert_allclose(found, best, **close)
