"""Families of models are data: one JSON file each in ``families/``, found by listing the folder.

A file says where each kind's vectors lie in a checkpoint: the tensor's name within a layer and its axes, written as
einops writes them. ``"d_model (3 n_heads d_head)"`` with ``"take": 0`` is the first third of a fused matrix. Whatever
the axes, the result is one row a vector, n x d_model.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import torch
from einops import rearrange

from paramdex_schemas import KINDS, FamilyError, ModelShape
from paramdex_schemas.errors import nearest

_KEYS = {
    "family", "about", "model_types", "rotary", "d_ff", "d_ff_factor", "prefixes", "embedding", "layer", "tensors",
}  # fmt: skip
_AXIS = re.compile(r"[a-z_]+|\d+")


@dataclass(frozen=True)
class TensorSpec:
    """Where one kind's vectors lie: ``tensor`` within a layer, its ``axes``, the part to ``take`` of a fused one."""

    tensor: str
    axes: str
    take: int | None = None

    def sizes(self, shape: ModelShape) -> dict[str, int]:
        """Every named axis with its size; a number stands for itself."""
        return {axis: int(axis) if axis.isdigit() else int(getattr(shape, axis)) for axis in _AXIS.findall(self.axes)}

    def expected_shape(self, shape: ModelShape) -> tuple[int, ...]:
        """The shape that the checkpoint's tensor must have."""
        sizes = self.sizes(shape)
        groups = re.findall(r"\([^)]*\)|[a-z_]+|\d+", self.axes)
        return tuple(math.prod(sizes[axis] for axis in _AXIS.findall(group)) for group in groups)

    def rows(self, tensor: torch.Tensor, shape: ModelShape) -> torch.Tensor:
        """The kind's vectors as rows (n x d_model) of the checkpoint's ``tensor``."""
        sizes = self.sizes(shape)
        part = next((axis for axis in sizes if axis.isdigit()), None)
        named = {("part" if axis == part else axis): size for axis, size in sizes.items()}
        axes = self.axes if part is None else re.sub(r"\b\d+\b", "part", self.axes)
        inner = " ".join(axis for axis in named if axis not in ("part", "d_model"))
        lead = "" if part is None else "part "
        rows = rearrange(tensor, f"{axes} -> {lead}({inner}) d_model", **named)
        return rows if self.take is None else rows[self.take]


@dataclass(frozen=True)
class Family:
    """One family file."""

    name: str
    about: str
    model_types: tuple[str, ...]
    rotary: bool
    d_ff: str
    d_ff_factor: int | None
    prefixes: tuple[str, ...]
    input_embedding: str
    output_embeddings: tuple[str, ...]
    layer: str
    tensors: dict[str, TensorSpec]

    @property
    def gated(self) -> bool:
        return "ff_gate" in self.tensors

    def shape(self, config: Any) -> ModelShape:
        """The shape of a model from its transformers config.

        Raises FamilyError where the config's numbers do not fit together.
        """
        d_model, n_heads = int(config.hidden_size), int(config.num_attention_heads)
        n_kv_heads = int(getattr(config, "num_key_value_heads", None) or n_heads)
        d_head = getattr(config, "head_dim", None)
        if d_head is None:
            if d_model % n_heads:
                raise FamilyError(f"config.json: hidden size {d_model} is no multiple of {n_heads} attention heads")
            d_head = d_model // n_heads
        if n_heads % n_kv_heads:
            raise FamilyError(f"config.json: {n_heads} heads cannot share {n_kv_heads} key/value heads evenly")
        d_ff = getattr(config, self.d_ff, None) or (self.d_ff_factor or 0) * d_model
        return ModelShape(
            int(config.num_hidden_layers), d_model, n_heads, n_kv_heads, int(d_head), int(d_ff), self.gated
        )


def parse(text: str, where: str) -> Family:
    """A family from the text of its file; unknown and missing keys are refused.

    Raises FamilyError naming ``where``.
    """
    data = json.loads(text)
    unknown = set(data) - _KEYS
    missing = _KEYS - set(data) - {"d_ff_factor"}
    if unknown or missing:
        raise FamilyError(f"{where}: unknown keys {sorted(unknown)}, missing keys {sorted(missing)}")
    kinds = set(data["tensors"])
    if not set(KINDS) - {"ff_gate"} <= kinds <= set(KINDS):
        raise FamilyError(f"{where}: tensors must be {', '.join(KINDS)} (ff_gate where gated), not {sorted(kinds)}")
    return Family(
        data["family"], data["about"], tuple(data["model_types"]), data["rotary"], data["d_ff"],
        data.get("d_ff_factor"), tuple(data["prefixes"]), data["embedding"]["input"],
        tuple(data["embedding"]["output"]), data["layer"],
        {kind: TensorSpec(**spec) for kind, spec in data["tensors"].items()},
    )  # fmt: skip


@cache
def families() -> dict[str, Family]:
    """Every family, by name."""
    folder = resources.files(__package__) / "families"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".json")), key=lambda file: file.name)
    found = [parse(file.read_text("utf-8"), file.name) for file in files]
    return {family.name: family for family in found}


def family_of(model_type: str) -> Family:
    """The family that reads models of ``model_type``.

    Raises FamilyError where there is none.
    """
    by_type = {name: family for family in families().values() for name in family.model_types}
    if model_type not in by_type:
        raise FamilyError(
            f"models of type {model_type!r} are not supported; {nearest(model_type, by_type)} "
            "(a family is one file in paramdex_builder/families; README says how to add one)"
        )
    return by_type[model_type]
