"""The brute force over models whose readers are scored in spaces of their own: all V scores of all parameters.

Vectors and gains come straight from a model's files (see ``oracle``). Both Z, and the maps where those were fitted, are
taken from the atlas: how they come about is tested elsewhere.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file

import oracle
from query_helpers import Everything, everything

READERS = ["ff_key", "ff_gate", "attn_query", "attn_key", "attn_value", "attn_query_bias", "attn_key_bias"]
_GAINS = {
    "transformer.h.{}.ln_1.weight": ["attn_query", "attn_key", "attn_value", "attn_query_bias", "attn_key_bias"],
    "transformer.h.{}.ln_2.weight": ["ff_key"],
    "model.layers.{}.input_layernorm.weight": ["attn_query", "attn_key", "attn_value"],
    "model.layers.{}.post_attention_layernorm.weight": ["ff_key", "ff_gate"],
}
"""Tensor of a layer's norm -> the kinds that read what it gives, in GPT-2 and in Llama."""
_READ_AS = {"attn_query_bias": "attn_key", "attn_key_bias": "attn_query"}
"""Kinds that read what another kind reads."""


class Scored:
    """What scores the vectors of a model of the atlas folder ``atlas``, whose own folder is ``folder``.

    Writers, and what belongs to no layer, are scored by the model's own embedding, readers by Z after they were pulled
    back, which is one for layer 0 and another for later ones; where there is none, all by the model's own.
    """

    def __init__(self, model: str, truth: oracle.Truth, folder: Path, atlas: Path) -> None:
        files = atlas / "models" / model
        self.E = truth.E
        self.tensors = {name: each.double().numpy() for name, each in load_file(folder / "model.safetensors").items()}
        self.maps = load_arrays(files / "maps.safetensors") if (files / "maps.safetensors").exists() else None
        tables = {name: files / f"{name}.safetensors" for name in ("entering", "reading")}
        self.Z = {
            name: load_arrays(table)["embedding"].astype(np.float64) for name, table in tables.items() if table.exists()
        }

    def scores(self, kind: str, layer: int | None, rows: np.ndarray) -> np.ndarray:
        """The V scores of vectors of a kind and layer (V x n, of n x d; V, of d)."""
        if kind not in READERS or not self.Z:
            return self.E @ rows.T
        Z = self.Z["reading" if layer else "entering"]
        if self.maps is not None:
            return Z @ (rows @ _map(self.maps, kind, layer).T).T
        folded = gains(self.tensors, kind, layer) * rows
        is_layer_norm = "transformer.wte.weight" in self.tensors
        return Z @ (folded - folded.mean(-1, keepdims=True) if is_layer_norm else folded).T


def everything_read(model: str, truth: oracle.Truth, folder: Path, atlas: Path) -> Everything:
    """Every parameter of a model of the atlas folder ``atlas``, each with its scores in its own space."""
    found, scored = everything(model, truth), Scored(model, truth, folder, atlas)
    scores = [scored.scores(kind, layer, vector) for kind, layer, _, _, vector in truth.parameters()]
    return replace(found, scores=np.array(scores))


FACTORS = {"QK": ("attn_query", "attn_key"), "VO": ("attn_value", "attn_output")}
"""Matrix of a head -> the kinds that are its two factors."""


def head_factors(truth: oracle.Truth, whole: Everything, matrix: str, layer: int, head: int) -> list[np.ndarray]:
    """The V scores of the vectors of both sides of a head's matrix (d_head x V each)."""
    group = truth.n_heads // truth.n_kv_heads
    found = []
    for kind in FACTORS[matrix]:
        owner = head // group * group if kind in oracle.SHARED else head
        start = f"{whole.model}/L{layer}/H{owner}/{kind}/"
        rows = zip(whole.addresses, whole.scores, strict=True)
        found.append(np.array([own for address, own in rows if address.startswith(start)]))
    return found


def gains(tensors: dict[str, np.ndarray], kind: str, layer: int | None) -> np.ndarray:
    """The gains of the norm that a kind of a layer reads from, among the tensors of a model."""
    names = [name.format(layer) for name, kinds in _GAINS.items() if kind in kinds]
    return next(tensors[name] for name in names if name in tensors)


def _map(maps: dict[str, np.ndarray], kind: str, layer: int | None) -> np.ndarray:
    kind = _READ_AS.get(kind, kind)
    (found,) = (
        A for name, A in maps.items() if name.endswith(f"/{layer}") and kind in name.partition("/")[0].split("+")
    )
    return found.astype(np.float64)
