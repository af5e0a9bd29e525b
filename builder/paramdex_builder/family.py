"""Families of models are data: one JSON file each in ``families/``, found by listing the folder.

A file says where each kind's vectors lie in a checkpoint: the tensor's name within a layer and its axes, written as
einops writes them. Whatever the axes, the result is one row a vector, n x d_model. The axis ``part`` of a fused tensor
is a concatenation: ``"axes": "d_model (part n_heads d_head)", "parts": [1, 1, 1], "take": 0`` is the first third.

A file may be ``like`` another and give only what differs. ``config`` says which attributes of the transformers config
hold the model's numbers, where they are not the usual ones.
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

from paramdex_builder.tensors import TensorFiles
from paramdex_schemas import KINDS, FamilyError, ModelShape
from paramdex_schemas.errors import nearest

_KEYS = {"family", "about", "model_types", "like", "config", "require", "prefixes", "embedding", "layer", "tensors"}
_NEEDED = {"family", "about", "model_types", "prefixes", "embedding", "layer", "tensors"}
_CONFIG: dict[str, Any] = {
    "n_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": ["num_key_value_heads", "num_attention_heads"],
    "d_head": "head_dim",
    "d_ff": "intermediate_size",
    "rotary": 0,
}
"""The attributes of a transformers config that most families use; rotary: whether positions rotate queries and keys."""
_AXES = {"d_model", "d_ff", "n_heads", "n_kv_heads", "d_head", "group", "part"}
_AXIS = re.compile(r"[a-z_]+")
_ORDER = ("n_heads", "n_kv_heads", "part", "d_ff", "d_head")
"""The axes that number a kind's vectors, outermost first, in whatever order a file has them."""


@dataclass(frozen=True)
class TensorSpec:
    """Where vectors lie: ``tensor``, its ``axes``, and of a fused one its ``parts`` and which of them to ``take``."""

    tensor: str
    axes: str
    parts: tuple[int | str, ...] = ()
    take: int = 0

    def _part_sizes(self, shape: ModelShape) -> list[int]:
        return [part if isinstance(part, int) else int(getattr(shape, part)) for part in self.parts]

    def _sizes(self, shape: ModelShape) -> dict[str, int]:
        """Every axis with its size."""
        return {
            axis: sum(self._part_sizes(shape)) if axis == "part" else int(getattr(shape, axis))
            for axis in _AXIS.findall(self.axes)
        }

    def expected_shape(self, shape: ModelShape) -> tuple[int, ...]:
        """The shape that the checkpoint's tensor must have."""
        sizes = self._sizes(shape)
        groups = re.findall(r"\([^)]*\)|[a-z_]+", self.axes)
        return tuple(math.prod(sizes[axis] for axis in _AXIS.findall(group)) for group in groups)

    def rows(self, tensor: torch.Tensor, shape: ModelShape) -> torch.Tensor:
        """The kind's vectors as rows (n x d_model) of the checkpoint's ``tensor``."""
        sizes = self._sizes(shape)
        inner = [axis for axis in _ORDER if axis in sizes]
        spread = rearrange(tensor, f"{self.axes} -> {' '.join(inner)} d_model", **sizes)
        if self.parts:
            lengths = self._part_sizes(shape)
            spread = spread.narrow(inner.index("part"), sum(lengths[: self.take]), lengths[self.take])
        return spread.reshape(-1, shape.d_model)


@dataclass(frozen=True)
class Family:
    """One family file."""

    name: str
    about: str
    model_types: tuple[str, ...]
    config: dict[str, Any]
    require: dict[str, Any]
    prefixes: tuple[str, ...]
    input_embedding: str
    output_embeddings: tuple[str, ...]
    factor: tuple[str, str] | None
    """Tensor and axes of the map between an embedding of another width and the residual stream, where there is one."""
    layer: str
    tensors: dict[str, TensorSpec]

    @property
    def gated(self) -> bool:
        return "ff_gate" in self.tensors

    def rotary(self, config: Any) -> bool:
        """Whether positions rotate queries and keys in a model with this transformers config."""
        return bool(look_up(self.config["rotary"], config))

    def shape(self, config: Any) -> ModelShape:
        """The shape of a model from its transformers config.

        Raises FamilyError where the config's numbers do not fit together or the family.
        """
        for name, value in self.require.items():
            if getattr(config, name, value) != value:
                raise FamilyError(
                    f"config.json: {name} is {getattr(config, name)}; paramdex reads {self.name} models "
                    f"only where it is {value}"
                )
        numbers = {name: look_up(rule, config) for name, rule in self.config.items()}
        names = ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "d_ff")
        for name in names:
            if name == "d_head" and numbers[name] is None:
                if numbers["d_model"] % numbers["n_heads"]:
                    raise FamilyError(
                        f"config.json: hidden size {numbers['d_model']} is no multiple of "
                        f"{numbers['n_heads']} attention heads"
                    )
                numbers[name] = numbers["d_model"] // numbers["n_heads"]
            if not isinstance(numbers[name], int) or numbers[name] < 1:
                raise FamilyError(f"config.json: {name} of a {self.name} model is missing or no positive number")
        if numbers["n_heads"] % numbers["n_kv_heads"]:
            raise FamilyError(
                f"config.json: {numbers['n_heads']} heads cannot share {numbers['n_kv_heads']} key/value heads evenly"
            )
        return ModelShape(**{name: numbers[name] for name in names}, gated=self.gated)


def look_up(rule: Any, config: Any) -> Any:
    """A number of a transformers config by its rule: an attribute's name, a number, a list of rules of which the first
    that gives something counts, ``{"product": [rule, ...]}``, or ``{"when": {attribute: value}, "then": rule}``.
    """
    if isinstance(rule, str):
        return getattr(config, rule, None)
    if isinstance(rule, list):
        return next((found for found in (look_up(each, config) for each in rule) if found is not None), None)
    if isinstance(rule, dict):
        if "product" in rule:
            factors = [look_up(each, config) for each in rule["product"]]
            return None if None in factors else math.prod(factors)
        holds = all(getattr(config, name, None) == value for name, value in rule["when"].items())
        return look_up(rule["then"], config) if holds else None
    return rule


def parse(data: dict[str, Any], where: str) -> Family:
    """A family from the data of its file, what it is ``like`` filled in; unknown and missing keys are refused.

    Raises FamilyError naming ``where``.
    """
    unknown, missing = set(data) - _KEYS, _NEEDED - set(data)
    strange = set(data.get("config", {})) - set(_CONFIG)
    if unknown or missing or strange:
        raise FamilyError(f"{where}: unknown keys {sorted(unknown | strange)}, missing keys {sorted(missing)}")
    kinds = set(data["tensors"])
    if not set(KINDS) - {"ff_gate"} <= kinds <= set(KINDS):
        raise FamilyError(f"{where}: tensors must be {', '.join(KINDS)} (ff_gate where gated), not {sorted(kinds)}")
    for kind, spec in data["tensors"].items():
        _check_spec(spec, f"{where}: {kind}")
    factor = data["embedding"].get("factor")
    return Family(
        data["family"], data["about"], tuple(data["model_types"]), _CONFIG | data.get("config", {}),
        data.get("require", {}), tuple(data["prefixes"]), data["embedding"]["input"],
        tuple(data["embedding"]["output"]), factor and (factor["tensor"], factor["axes"]), data["layer"],
        {kind: TensorSpec(**{**spec, "parts": tuple(spec.get("parts", ()))}) for kind, spec in data["tensors"].items()},
    )  # fmt: skip


def _check_spec(spec: dict[str, Any], where: str) -> None:
    """Raises FamilyError for keys or axes that there are not."""
    if not {"tensor", "axes"} <= set(spec) <= {"tensor", "axes", "parts", "take"}:
        raise FamilyError(
            f"{where} has the keys {sorted(spec)}; give tensor and axes, and of a fused tensor parts and take"
        )
    axes = set(_AXIS.findall(spec["axes"])) | {part for part in spec.get("parts", ()) if isinstance(part, str)}
    unknown = axes - _AXES
    if unknown:
        raise FamilyError(f"{where} has unknown axes {sorted(unknown)}; there are {', '.join(sorted(_AXES))}")
    fused = "part" in axes
    if fused != bool(spec.get("parts")) or not 0 <= spec.get("take", 0) < max(1, len(spec.get("parts", ()))):
        raise FamilyError(
            f"{where}: an axis part goes with the sizes of its parts, and take says which of them is meant"
        )


def inherit(data: dict[str, Any], files: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The data of a file with what it is ``like`` filled in; ``config`` and ``tensors`` are merged entry by entry."""
    if "like" not in data:
        return data
    if data["like"] not in files:
        raise FamilyError(f"{data['family']}.json is like {data['like']!r}; {nearest(data['like'], files)}")
    base = inherit(files[data["like"]], files)
    merged = {**base, **data}
    for key in ("config", "tensors"):
        entries = {**base.get(key, {}), **data.get(key, {})}
        merged[key] = {name: value for name, value in entries.items() if value is not None}
    return merged


@cache
def families() -> dict[str, Family]:
    """Every family, by name."""
    folder = resources.files(__package__) / "families"
    files = {
        file.name.removesuffix(".json"): json.loads(file.read_text("utf-8"))
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".json")
    }
    found = [parse(inherit(data, files), f"{name}.json") for name, data in files.items()]
    return {family.name: family for family in found}


def by_model_type() -> dict[str, Family]:
    """Model type -> the family that reads it."""
    return {name: family for family in families().values() for name in family.model_types}


def find_prefix(family: Family, files: TensorFiles) -> str | None:
    """What stands before the family's names in this checkpoint, told by where the input embedding is."""
    return next((prefix for prefix in family.prefixes if prefix + family.input_embedding in files), None)


def misfits(family: Family, config: Any, files: TensorFiles) -> list[str]:
    """Why a checkpoint is not of a family's layout: every reason; none where it is.

    It is where every tensor that the family names is there in every layer with the shape that config.json gives, and
    no layer has a matrix that the family does not name: something unknown would be left out without a word.
    """
    try:
        shape = family.shape(config)
    except FamilyError as error:
        return [str(error)]
    prefix = find_prefix(family, files)
    if prefix is None:
        return [f"there is no {family.prefixes[0]}{family.input_embedding}"]
    reasons = []
    for layer in range(shape.n_layers):
        place = prefix + family.layer.format(layer=layer)
        named = {place + spec.tensor: spec.expected_shape(shape) for spec in family.tensors.values()}
        for name, expected in named.items():
            if name not in files:
                reasons.append(f"there is no {name}")
            elif files.shape(name) != expected:
                sizes = [" x ".join(map(str, size)) for size in (files.shape(name), expected)]
                reasons.append(f"{name} is {sizes[0]}, expected {sizes[1]}")
        others = [name for name in files.names() if name.startswith(place) and name not in named]
        reasons += [f"{name} is not accounted for" for name in others if len(files.shape(name)) > 1]
    return reasons


def infer_family(model_type: str, config: Any, files: TensorFiles) -> Family:
    """The family whose layout a checkpoint of an unlisted model type follows in every tensor.

    Raises FamilyError with what did not fit the nearest family.
    """
    layouts = sorted(families().values(), key=lambda family: (family.name != "llama", family.name))
    found = [(misfits(family, config, files), family) for family in layouts]
    for reasons, family in found:
        if not reasons:
            return family
    reasons, family = min(found, key=lambda entry: len(entry[0]))
    raise FamilyError(
        f"models of type {model_type!r} are not supported; {nearest(model_type, by_model_type())} "
        "The weights do not follow a known layout either; "
        f"nearest is {family.name}: {'; '.join(reasons[:3])}{'; ...' if len(reasons) > 3 else ''} "
        "(a family is one file in paramdex_builder/families; README says how to add one)"
    )
