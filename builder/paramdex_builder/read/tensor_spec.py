"""Where a checkpoint has vectors: a tensor's name within a layer, and its axes written as einops writes them.

Whatever the axes, the result is one row per vector, n x d_model. The axis ``part`` of a fused tensor is a
concatenation: ``"axes": "d_model (part n_heads d_head)", "parts": [1, 1, 1], "take": 0`` is the first third. A tensor
whose name has ``{expert}`` in it stands once for every expert; one with an axis ``n_experts`` holds them all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from paramdex_schemas import FamilyError

Sizes = Mapping[str, int]
"""The size of every axis, by name."""

AXES = {"d_model", "d_ff", "d_expert", "d_shared", "n_heads", "n_kv_heads", "n_experts", "d_head", "group", "part"}
_AXIS = re.compile(r"[a-z_]+")
_ORDER = ("n_experts", "n_heads", "n_kv_heads", "part", "d_ff", "d_expert", "d_shared", "d_head")
"""The axes that number a kind's vectors, outermost first, in whatever order a file has them."""
_KEYS = {"tensor", "axes", "parts", "take", "bias", "when"}


@dataclass(frozen=True)
class TensorSpec:
    """Where vectors lie: ``tensor``, its ``axes``, and of a fused one its ``parts`` and which of them to ``take``.

    ``bias`` names the tensor of their biases where it is not the usual one; ``when`` says for which values of the
    config the vectors are there.
    """

    tensor: str
    axes: str
    parts: tuple[int | str, ...] = ()
    take: int = 0
    bias: str | None = None
    when: Mapping[str, Any] = field(default_factory=dict)

    def _part_sizes(self, sizes: Sizes) -> list[int]:
        return [part if isinstance(part, int) else sizes[part] for part in self.parts]

    def _sizes(self, sizes: Sizes) -> dict[str, int]:
        """Every axis with its size."""
        return {
            axis: sum(self._part_sizes(sizes)) if axis == "part" else sizes[axis] for axis in _AXIS.findall(self.axes)
        }

    @property
    def per_expert(self) -> bool:
        """Whether each expert has a tensor of its own."""
        return "{expert}" in self.tensor

    @property
    def all_experts(self) -> bool:
        """Whether one tensor holds every expert's vectors, outermost."""
        return self.axes.startswith("n_experts")

    def inputs_first(self, role: str) -> bool:
        """Whether the matrix of vectors of this ``role`` is input x output, as Conv1D stores it and Linear does not."""
        return self.axes.startswith("d_model ") if role == "reads" else self.axes.endswith(" d_model")

    def expected_shape(self, sizes: Sizes) -> tuple[int, ...]:
        """The shape that the checkpoint's tensor must have."""
        by_axis = self._sizes(sizes)
        groups = re.findall(r"\([^)]*\)|[a-z_]+|1", self.axes)
        return tuple(math.prod(by_axis[axis] for axis in _AXIS.findall(group)) for group in groups)

    def rows(self, tensor: torch.Tensor, sizes: Sizes) -> torch.Tensor:
        """The vectors as rows (n x d_model) of the checkpoint's ``tensor``; where it has no such axis, n numbers."""
        by_axis = self._sizes(sizes)
        inner = [axis for axis in _ORDER if axis in by_axis]
        outer = ["d_model"] if "d_model" in by_axis else []
        axes = list(by_axis)
        spread = tensor.reshape([*by_axis.values()]).permute([axes.index(axis) for axis in (*inner, *outer)])
        if self.parts:
            lengths = self._part_sizes(sizes)
            spread = spread.narrow(inner.index("part"), sum(lengths[: self.take]), lengths[self.take])
        return spread.reshape(-1, sizes["d_model"]) if outer else spread.reshape(-1)

    def of_bias(self, *, written: bool) -> TensorSpec:
        """Where the biases of these vectors lie: one number per vector, or a vector where the bias is ``written``."""
        name = self.bias or f"{self.tensor.removesuffix('.weight')}.bias"
        if written:
            return replace(self, tensor=name, axes="n_experts d_model" if self.all_experts else "d_model", parts=())
        return replace(self, tensor=name, axes=" ".join(re.sub(r"\bd_model\b", "", self.axes).split()))


def read_spec(data: dict[str, Any], where: str) -> TensorSpec:
    """A spec from a family file. Raises FamilyError for keys or axes that there are not."""
    if not {"tensor", "axes"} <= set(data) <= _KEYS:
        raise FamilyError(
            f"{where} has the keys {sorted(data)}; give tensor and axes, and of a fused tensor parts and take"
        )
    axes = set(_AXIS.findall(data["axes"])) | {part for part in data.get("parts", ()) if isinstance(part, str)}
    unknown = axes - AXES
    if unknown:
        raise FamilyError(f"{where} has unknown axes {sorted(unknown)}; there are {', '.join(sorted(AXES))}")
    fused = "part" in axes
    if fused != bool(data.get("parts")) or not 0 <= data.get("take", 0) < max(1, len(data.get("parts", ()))):
        raise FamilyError(
            f"{where}: an axis part goes with the sizes of its parts, and take says which of them is meant"
        )
    return TensorSpec(**{**data, "parts": tuple(data.get("parts", ()))})
