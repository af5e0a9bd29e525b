"""The brute force over models whose readers are scored in spaces of their own: all V scores of all parameters.

Vectors and gains come straight from a model's files (see ``oracle``). Z, and the maps where those were fitted, are
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


def everything_read(model: str, truth: oracle.Truth, folder: Path, atlas: Path) -> Everything:
    """Every parameter of a model of the atlas folder ``atlas``, each with its scores in its own space.

    Writers, and what belongs to no layer, are scored by the model's own embedding, readers of layer 0 by the input
    embedding, those of later layers by Z after they were pulled back.
    """
    found, files = everything(model, truth), atlas / "models" / model
    tensors = {name: value.double().numpy() for name, value in load_file(folder / "model.safetensors").items()}
    maps = load_arrays(files / "maps.safetensors") if (files / "maps.safetensors").exists() else None
    Z = load_arrays(files / "reading.safetensors")["embedding"].astype(np.float64)
    entering = next(
        tensors[name] for name in ("transformer.wte.weight", "model.embed_tokens.weight") if name in tensors
    )
    scores = found.scores.copy()
    for i, (kind, layer, _, _, vector) in enumerate(truth.parameters()):
        if kind not in READERS:
            continue
        if layer == 0:
            scores[i] = entering[: len(truth.E)] @ vector
        elif maps is None:
            scores[i] = Z @ (_gains(tensors, kind, layer) * vector)
        else:
            scores[i] = Z @ (_map(maps, kind, layer) @ vector)
    return replace(found, scores=scores)


def _gains(tensors: dict[str, np.ndarray], kind: str, layer: int | None) -> np.ndarray:
    names = [name.format(layer) for name, kinds in _GAINS.items() if kind in kinds]
    return next(tensors[name] for name in names if name in tensors)


def _map(maps: dict[str, np.ndarray], kind: str, layer: int | None) -> np.ndarray:
    kind = _READ_AS.get(kind, kind)
    (found,) = (
        A for name, A in maps.items() if name.endswith(f"/{layer}") and kind in name.partition("/")[0].split("+")
    )
    return found.astype(np.float64)
