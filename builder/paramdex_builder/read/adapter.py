"""LoRA adapters: the weights of a base model with an adapter's products added, as PEFT adds them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paramdex_builder.read.checkpoint import Checkpoint
from paramdex_builder.read.hub import ADAPTER_CONFIG, Origin
from paramdex_builder.read.tensors import TensorFiles, Tensors, same_name
from paramdex_schemas import CheckpointError
from paramdex_schemas.foreign import read_json, reading

_STEMS = ("adapter_model.safetensors", "adapter_model.bin")
_OTHER_SUMS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "arrow_config",
    "alora_invocation_tokens",
    "kasa_config",
    "monteclora_config",
)
"""PEFT's options under which a tuned weight is not the base's plus one scaled product."""
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that leave the base's weights as they are; PiSSA and its like subtract the first
product from them, which the adapter does not hold.
"""
_LARGEST_ALPHA = 1e30
"""Far more than anybody uses, and still a float."""


@dataclass
class AdaptedFiles:
    """The weight files of a base model with a LoRA adapter's products added: W + s B A, in float64."""

    base: Tensors
    paths: list[Path]
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]]
    """Name of a base model's tensor -> two factors, float64, whose product is added: s B and A, or their transposes."""
    replaced: dict[str, torch.Tensor]
    """Name -> the tensor that the adapter has in place of the base's: trained biases, modules saved whole."""

    @classmethod
    def open(cls, origin: Origin, base: Checkpoint) -> AdaptedFiles:
        """A PEFT LoRA folder over an opened base.

        Raises CheckpointError where it is no LoRA, is of a kind that this does not read, or does not fit the base.
        """
        source = origin.source
        config = _read_config(origin)
        files = TensorFiles.open(origin, _STEMS)
        paths = [origin.path(ADAPTER_CONFIG), *files.paths]
        names = base.files.names()
        inputs_first = base.inputs_first()
        adapted = cls(base.files, paths, {}, {})
        for name in files.names():
            module, lora, part = name.removeprefix("base_model.model.").replace(".base_layer.", ".").partition(".lora_")
            wanted = f"{module}.weight" if lora else module
            target = _find(source, wanted, names)
            if target is None:
                # A classifier or a pooler is not part of the base and has no vectors, but all that is in a layer has.
                if any(step.isdigit() for step in wanted.split(".")):
                    raise CheckpointError(f"{source}: its base {base.source} has no tensor {wanted}")
            elif not lora:
                adapted.replaced[target] = files.tensor(name).double()
            elif part in ("A.weight", "embedding_A"):
                A, B = files.tensor(name), files.tensor(_counterpart(source, name, "A", "B", files))
                # PEFT saves fan_in_fan_out of the last module only; the family says it for each tensor.
                flip = part == "embedding_A" or inputs_first.get(target, bool(config.get("fan_in_fan_out")))
                alpha = _alpha(source, config, module)
                adapted.factors[target] = _factors(source, target, A, B, alpha, config, flip=flip)
                _check_shape(source, target, adapted.factors[target], base.files.shape(target))
            elif part in ("B.weight", "embedding_B"):
                _counterpart(source, name, "B", "A", files)
            else:
                raise CheckpointError(f"{source}: LoRA adapters with {name} are not read; merge it into its base")
        if not adapted.factors and not adapted.replaced:
            raise CheckpointError(f"{source}: its adapter holds nothing of the base {base.source}")
        return adapted

    def __contains__(self, name: str) -> bool:
        return name in self.base

    def names(self) -> list[str]:
        return self.base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.replaced[name].shape) if name in self.replaced else self.base.shape(name)

    def dtype(self, name: str) -> str:
        return self.base.dtype(name)

    def alias(self, name: str, of: str) -> None:
        self.base.alias(name, of)

    def check_copies(self) -> None:
        self.base.check_copies()

    def tensor(self, name: str, part: int | None = None) -> torch.Tensor:
        """As ``TensorFiles.tensor``; float64 where the adapter changes it."""
        if name not in self.replaced and name not in self.factors:
            return self.base.tensor(name, part)
        whole = self.replaced[name] if name in self.replaced else self.base.tensor(name).double()
        if name in self.factors:
            left, right = self.factors[name]
            whole = whole + left @ right
        return whole if part is None else whole[part : part + 1]


def _counterpart(source: str, name: str, own: str, other: str, files: TensorFiles) -> str:
    """The name of the factor B that belongs to a factor A, or the other way round. Raises CheckpointError where there
    is none.
    """
    found = re.sub(rf"(\.lora_|\.lora_embedding_){own}(?=\.|$)", rf"\g<1>{other}", name)
    if found not in files:
        raise CheckpointError(f"{source}: {name} has no lora_{other} beside it; save the adapter again")
    return found


def _read_config(origin: Origin) -> dict[str, Any]:
    """adapter_config.json. Raises CheckpointError where it is no LoRA's, or of one that is not a plain product."""
    source = origin.source
    config = read_json(origin.path(ADAPTER_CONFIG), f"{source}: {ADAPTER_CONFIG}", CheckpointError, "cannot be read")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{source} is a {kind} adapter; paramdex reads LoRA adapters: merge it into its base")
    unread = [name for name in _OTHER_SUMS if config.get(name)]
    start = config.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        unread.append(f"init_lora_weights {start}")
    if unread:
        raise CheckpointError(f"{source}: LoRA adapters with {', '.join(unread)} are not read; merge it into its base")
    return config


def _alpha(source: str, config: dict[str, Any], module: str) -> float:
    """The alpha of a module, as PEFT finds it: that of the first pattern that its name ends in. Raises CheckpointError
    where it is no number, or a pattern is none.
    """
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{source}: {ADAPTER_CONFIG} says alpha_pattern {patterns!r}, which is not an object")
    alpha = config.get("lora_alpha")
    for pattern, value in patterns.items():
        # A pattern that repeats a repetition, or repeats often, may take years to try.
        if re.search(r"\)[*+?{]", pattern) or len(re.findall(r"[*+{]", pattern)) > 3:
            raise CheckpointError(f"{source}: {ADAPTER_CONFIG} has the pattern {pattern!r}; write names of modules")
        with reading(f"{source}: {ADAPTER_CONFIG}: the pattern {pattern!r}", CheckpointError):
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = value
                break
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not abs(alpha) <= _LARGEST_ALPHA:
        raise CheckpointError(f"{source}: {ADAPTER_CONFIG} says lora_alpha {alpha!r:.80}, which is not a usable number")
    return alpha


def _factors(
    source: str, target: str, A: torch.Tensor, B: torch.Tensor, alpha: float, config: dict[str, Any], *, flip: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(s B, A), float64, for A (r x in) and B (out x r); where the base's weight is stored as in x out, ``flip``,
    (A^T, s B^T). r is the module's own, whatever pattern gave it. Raises CheckpointError.
    """
    if A.ndim != 2 or B.ndim != 2 or len(A) != B.shape[1] or not len(A):
        raise CheckpointError(f"{source}: its factors for {target} are no LoRA of a linear layer")
    scaled = B.double() * (alpha / (len(A) ** 0.5 if config.get("use_rslora") else len(A)))
    return (A.double().T, scaled.T) if flip else (scaled, A.double())


def _check_shape(
    source: str, target: str, factors: tuple[torch.Tensor, torch.Tensor], expected: tuple[int, ...]
) -> None:
    """Raises CheckpointError where a product has not the shape of the base's tensor."""
    found = (factors[0].shape[0], factors[1].shape[1])
    if found != expected:
        raise CheckpointError(
            f"{source}: its product for {target} is {' x '.join(map(str, found))}, the base's tensor "
            f"{' x '.join(map(str, expected))}; it was trained on another base"
        )


def _find(source: str, name: str, names: list[str]) -> str | None:
    """The base's tensor that an adapter means: of this name, or with more or fewer parts before it, which models with
    and without a head differ in. Raises CheckpointError where several could be meant.
    """
    if name in names:
        return name
    found = [each for each in names if same_name(each, name)]
    if len(found) > 1:
        raise CheckpointError(f"{source}: its {name} could be {' or '.join(found)} of the base")
    return found[0] if found else None
