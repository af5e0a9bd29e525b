"""The brute force that atlases are checked against: float64 NumPy straight from a model's files, by its own code.

Nothing of the builder is used here. Each family's slicing is written out by hand, V x V matrices are formed whole, and
sorting is by full sorts; slow, short and easy to believe.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.torch import load_file
from tokenizers import Tokenizer

OF_HEADS = [
    "attn_query", "attn_key", "attn_value", "attn_output", "attn_query_bias", "attn_key_bias", "attn_value_bias",
]  # fmt: skip
SHARED = ["attn_key", "attn_value"]
"""Kinds whose vectors a group of heads has in common."""
OF_NO_LAYER = ["position", "token_type"]
KINDS = ["ff_key", "ff_gate", "ff_value", *OF_HEADS[:4], "ff_bias", "attn_bias", *OF_HEADS[4:], *OF_NO_LAYER]
"""The kinds that these families have, in the order of the numbering."""
WEIGHTS = KINDS[:7]
"""Those of which a layer has a whole matrix."""


@dataclass
class Truth:
    """A model's numbers: ``E`` (V x d) and ``rows[kind][layer]`` (n x d), float64, and its head counts.

    ``rows`` is in the order of the numbering; a kind of no layer has all its rows as its only entry.
    """

    E: np.ndarray
    rows: dict[str, list[np.ndarray]]
    n_heads: int
    n_kv_heads: int

    @property
    def d_head(self) -> int:
        return len(self.rows["attn_query"][0]) // self.n_heads

    @property
    def n_layers(self) -> int:
        return len(self.rows["ff_key"])

    @property
    def n_parameters(self) -> int:
        return sum(len(rows) for by_layer in self.rows.values() for rows in by_layer)

    def vector(self, kind: str, layer: int | None, kv_or_head: int | None, idx: int) -> np.ndarray:
        """One parameter's vector (d); attention kinds are counted by head or key/value head."""
        rows = self.rows[kind][layer or 0]
        n_owners = self.n_kv_heads if kind in SHARED else self.n_heads
        return rows[idx if kv_or_head is None else kv_or_head * (len(rows) // n_owners) + idx]

    def parameters(self) -> Iterator[tuple[str, int | None, int | None, int, np.ndarray]]:
        """(kind, layer, head, idx, vector) in the order of the numbering; what heads share is the first one's."""
        for kind, by_layer in self.rows.items():
            n_owners, step = (self.n_kv_heads, self.n_heads // self.n_kv_heads) if kind in SHARED else (self.n_heads, 1)
            for layer, rows in enumerate(by_layer):
                size = len(rows) // n_owners if kind in OF_HEADS else len(rows)
                for i, vector in enumerate(rows):
                    head = i // size * step if kind in OF_HEADS else None
                    yield kind, None if kind in OF_NO_LAYER else layer, head, i % size, vector

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


def read(folder: Path, sums: type = np.float32) -> Truth:
    """The truth of a model folder of one of the three families; ``sums`` is what sums of weights are rounded to."""
    config = json.loads((folder / "config.json").read_text())
    tensors = {name: value.double().numpy() for name, value in load_file(folder / "model.safetensors").items()}
    n_tokens = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size(with_added_tokens=True)
    if config["model_type"] == "gpt2":
        return _gpt2(config, tensors, n_tokens, sums)
    if config["model_type"] == "bert":
        return _bert(config, tensors, n_tokens, sums)
    return _llama(config, tensors, n_tokens)


def _gpt2(config: dict, tensors: dict[str, np.ndarray], n_tokens: int, sums: type) -> Truth:
    d, heads, rows = config["n_embd"], config["n_head"], _empty()
    for layer in range(config["n_layer"]):
        block = f"transformer.h.{layer}."
        fused, bias = tensors[block + "attn.c_attn.weight"], tensors[block + "attn.c_attn.bias"]  # d x 3d, 3d
        rows["attn_query"].append(fused[:, :d].T)
        rows["attn_key"].append(fused[:, d : 2 * d].T)
        rows["attn_value"].append(fused[:, 2 * d :].T)
        rows["attn_output"].append(tensors[block + "attn.c_proj.weight"])
        rows["ff_key"].append(tensors[block + "mlp.c_fc.weight"].T)
        rows["ff_value"].append(tensors[block + "mlp.c_proj.weight"])
        rows["ff_bias"].append(tensors[block + "mlp.c_proj.bias"][None, :])
        rows["attn_bias"].append(tensors[block + "attn.c_proj.bias"][None, :])
        _carry(rows, {"attn_query": bias[:d], "attn_key": bias[d : 2 * d], "attn_value": bias[2 * d :]}, heads, sums)
    rows["position"].append(tensors["transformer.wpe.weight"])
    return Truth(tensors["transformer.wte.weight"][:n_tokens], _full(rows), heads, heads)


def _bert(config: dict, tensors: dict[str, np.ndarray], n_tokens: int, sums: type) -> Truth:
    heads, rows = config["num_attention_heads"], _empty()
    for layer in range(config["num_hidden_layers"]):
        block = f"encoder.layer.{layer}."
        biases = {}
        for kind, name in (("attn_query", "query"), ("attn_key", "key"), ("attn_value", "value")):
            rows[kind].append(tensors[block + f"attention.self.{name}.weight"])
            biases[kind] = tensors[block + f"attention.self.{name}.bias"]
        rows["attn_output"].append(tensors[block + "attention.output.dense.weight"].T)
        rows["ff_key"].append(tensors[block + "intermediate.dense.weight"])
        rows["ff_value"].append(tensors[block + "output.dense.weight"].T)
        rows["ff_bias"].append(tensors[block + "output.dense.bias"][None, :])
        rows["attn_bias"].append(tensors[block + "attention.output.dense.bias"][None, :])
        _carry(rows, biases, heads, sums)
    rows["position"].append(tensors["embeddings.position_embeddings.weight"])
    rows["token_type"].append(tensors["embeddings.token_type_embeddings.weight"])
    return Truth(tensors["embeddings.word_embeddings.weight"][:n_tokens], _full(rows), heads, heads)


def _llama(config: dict, tensors: dict[str, np.ndarray], n_tokens: int) -> Truth:
    rows = _empty()
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        for kind, name in (("attn_query", "q_proj"), ("attn_key", "k_proj"), ("attn_value", "v_proj")):
            rows[kind].append(tensors[block + f"self_attn.{name}.weight"])
        rows["attn_output"].append(tensors[block + "self_attn.o_proj.weight"].T)
        rows["ff_key"].append(tensors[block + "mlp.up_proj.weight"])
        rows["ff_gate"].append(tensors[block + "mlp.gate_proj.weight"])
        rows["ff_value"].append(tensors[block + "mlp.down_proj.weight"].T)
    name = "lm_head.weight" if "lm_head.weight" in tensors else "model.embed_tokens.weight"
    return Truth(tensors[name][:n_tokens], _full(rows), config["num_attention_heads"], config["num_key_value_heads"])


def _empty() -> dict[str, list[np.ndarray]]:
    return {kind: [] for kind in KINDS}


def _full(rows: dict[str, list[np.ndarray]]) -> dict[str, list[np.ndarray]]:
    return {kind: by_layer for kind, by_layer in rows.items() if by_layer}


def _carry(rows: dict[str, list[np.ndarray]], biases: dict[str, np.ndarray], heads: int, sums: type) -> None:
    """Add a layer's biases within its heads, as what they come to in the residual stream: one vector a head.

    With q = W_Q x + b_Q and k = W_K y + b_K, a logit has the terms b_Q W_K y and x W_Q^T b_K: W_K^T b_Q is what y
    is asked for whatever x is, W_Q^T b_K the other way round. A head writes W_O b_V whatever it reads. An atlas has
    these ``sums`` in float32, as it has weights, and so has this; only where it subtracts them, float64.
    """
    through = {"attn_query": "attn_key", "attn_key": "attn_query", "attn_value": "attn_output"}
    for kind, other in through.items():
        b, W = np.split(biases[kind], heads), np.split(rows[other][-1], heads)
        carried = np.array([sum(b[h][j] * W[h][j] for j in range(len(b[h]))) for h in range(heads)])
        rows[f"{kind}_bias"].append(carried.astype(sums).astype(np.float64))


def address(model: str, kind: str, layer: int | None, head: int | None, idx: int) -> str:
    """A parameter's name, by the rules of the design."""
    place = ("" if layer is None else f"/L{layer}") + ("" if head is None else f"/H{head}")
    return f"{model}{place}/{kind}/{idx}"


def pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson of every row of ``a`` (n x m) with every row of ``b`` (k x m)."""
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    return (a @ b.T) / np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))


def feature_rows(rows: np.ndarray) -> np.ndarray:
    """Weight vectors (n x d) as rows whose inner product is their Pearson over the d features; rows of zeros stay."""
    centred = rows - rows.mean(1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.where(norms > 0, norms, 1.0)


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
