"""Families of models are data: one JSON file each (``families`` says where they are).

A file says where each kind's vectors lie in a checkpoint (see ``tensor_spec``), and which attributes of the
transformers config hold the model's numbers, where they are not the usual ones. It may be ``like`` another and give
only what differs. ``embedding`` names the ``input`` embedding, those of single ``stacks`` where they may have their
own, what the ``output`` embedding may be called, and ``maps`` between these and the stream. ``experts`` and ``shared``
say what a mixture-of-experts layer has in place of a dense feed-forward part; ``stacks`` describes the stacks of an
encoder-decoder one by one. ``norms`` says which norm's output each kind reads:

    "ln_1.weight"                              of this layer
    {"previous": "ln_2.weight", "first": ...}  of the layer before; for the first layer the model's own ``first``
    {"then": "norm.weight", "first": ...}      of this layer, but for the first
    {"model": "final_norm.weight"}             of no layer; with "stack" only where the checkpoint has that stack
    {"last": "ln_2.weight", "stack": "encoder"}  of the last layer, of another stack where that is given
    [{"when": {"alibi": true}, "norm": ...}, ...]  the first whose condition the config meets

``norm`` says what its norms are: ``layer`` subtracts the mean of a state, ``rms`` does not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from paramdex_builder.read.tensor_spec import TensorSpec, read_spec
from paramdex_schemas import KINDS, FamilyError
from paramdex_schemas.addresses import STACKS

_STACK_KEYS = {"config", "layer", "tensors", "experts", "shared", "added", "norms"}
_NEEDED = {"family", "about", "model_types", "prefixes", "embedding", "norm"}
_KEYS = _NEEDED | {"like", "require", "stacks", "norm_offset", "final_norm"} | _STACK_KEYS
_CONFIG: dict[str, Any] = {
    "n_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": ["num_key_value_heads", "num_attention_heads"],
    "d_head": "head_dim",
    "d_ff": "intermediate_size",
    "n_experts": None,
    "d_expert": None,
    "d_shared": None,
    "dense_layers": None,
    "sparse_step": 1,
    "rotary": 0,
}
"""The attributes of a transformers config that most families use; rotary: whether positions rotate queries and keys."""
OURS = "paramdex"
"""The distribution that this is."""
_ATTENTION = ("attn_query", "attn_key", "attn_value", "attn_output")
_FEED_FORWARD = ("ff_key", "ff_gate", "ff_value")

Owner = Literal["head", "kv_head", "expert"]
Norm = Literal["layer", "rms"]
"""layer: the mean of a state is subtracted before it is scaled."""


@dataclass(frozen=True)
class Source:
    """Where a layer has its vectors of one kind, and what they belong to within the layer."""

    kind: str
    owner: Owner | None
    spec: TensorSpec


@dataclass(frozen=True)
class Stack:
    """One stack of layers: a whole model but for an encoder-decoder's encoder, decoder and cross attention."""

    name: str | None
    config: dict[str, Any]
    layer: str
    tensors: dict[str, tuple[TensorSpec, ...]]
    """kind -> where it lies; of several the first whose condition the config meets."""
    experts: dict[str, TensorSpec]
    shared: dict[str, TensorSpec]
    added: dict[str, dict[str, Any]]
    """position, token_type -> its tensor, and where its first rows stand for nothing the number of those to ``skip``,
    or how many at its end are the ``last`` that count (see ``look_up``); before those it has one of the numbers
    ``before`` of rows.
    """
    norms: dict[str, Any]

    def n_skipped(self, kind: str, n_rows: int, config: Any) -> int:
        """How many of the first rows of a table in ``added`` stand for nothing. Raises FamilyError."""
        added = self.added[kind]
        number = look_up(added.get("last", added.get("skip", 0)), config)
        skipped = n_rows - number if "last" in added and isinstance(number, int) else number
        there = added.get("before", range(n_rows))
        if not isinstance(skipped, int) or not 0 <= skipped < n_rows or skipped not in there:
            raise FamilyError(
                f"config.json: {json.dumps(added.get('last', added.get('skip')))} is {number}, but should say where "
                f"the positions begin in the {n_rows} rows of {added['tensor']}"
            )
        return skipped

    def number(self, name: str, config: Any) -> Any:
        return look_up(self.config[name], config)

    def is_sparse(self, layer: int, config: Any) -> bool:
        """Whether a layer is a mixture of experts. Raises FamilyError where the config's words for it mean nothing."""
        dense = self.number("dense_layers", config) or []
        step = self.number("sparse_step", config) or 1
        if not isinstance(dense, list) or not isinstance(step, int):
            raise FamilyError(f"config.json: dense layers are {shown(dense)} and sparse ones {shown(step)} apart")
        return bool(self.experts) and layer not in dense and (layer + 1) % step == 0

    def sizes(self, config: Any) -> dict[str, int]:
        """The size of every axis from a transformers config. Raises FamilyError where numbers do not fit together."""
        found = {name: self.number(name, config) for name in _CONFIG}
        needed = ["n_layers", "d_model", "n_heads", "n_kv_heads"]
        for name in needed:
            _check_number(name, found[name], self.config[name])
        if found["d_head"] is None:
            if found["d_model"] % found["n_heads"]:
                raise FamilyError(
                    f"config.json: hidden size {found['d_model']} is not a multiple of {found['n_heads']} "
                    "attention heads"
                )
            found["d_head"] = found["d_model"] // found["n_heads"]
        _check_number("d_head", found["d_head"], self.config["d_head"])
        if found["n_heads"] % found["n_kv_heads"]:
            raise FamilyError(
                f"config.json: {found['n_heads']} heads cannot share {found['n_kv_heads']} key/value heads evenly"
            )
        sparse = [self.is_sparse(layer, config) for layer in range(found["n_layers"])]
        used = {*needed, "d_head"}
        if any(kind in self.tensors for kind in _FEED_FORWARD) and not all(sparse):
            used.add("d_ff")
        if any(sparse):
            used |= {"n_experts", "d_expert"}
            if self.shared and found["d_shared"]:
                used.add("d_shared")
        for name in used:
            _check_number(name, found[name], self.config[name])
        return {name: found[name] for name in found if name in used} | {
            "group": found["n_heads"] // found["n_kv_heads"]
        }

    def sources(self, layer: int, config: Any) -> Iterator[Source]:
        """Where a layer has its vectors, kind by kind."""
        sparse = self.is_sparse(layer, config)
        for kind, alternatives in self.tensors.items():
            if kind in _FEED_FORWARD and sparse:
                continue
            chosen = next((spec for spec in alternatives if _holds(spec.when, config)), None)
            if chosen is not None:
                owner = KINDS[kind].owner
                yield Source(kind, owner if owner in ("head", "kv_head") else None, chosen)
        if sparse:
            if self.number("d_shared", config):
                yield from (Source(kind, None, spec) for kind, spec in self.shared.items())
            yield from (Source(kind, "expert", spec) for kind, spec in self.experts.items())


@dataclass(frozen=True)
class Family:
    """One family file."""

    name: str
    about: str
    model_types: tuple[str, ...]
    require: dict[str, Any]
    prefixes: tuple[str, ...]
    input_embeddings: tuple[str, ...]
    """First the one of all stacks, then those of single ones."""
    stack_embeddings: dict[str, str]
    """Stack -> the table by which tokens enter it where it has one of its own."""
    output_embeddings: tuple[str, ...]
    maps: dict[str, str]
    """The maps between an embedding of another width, e, and the residual stream, where there are any: ``inward``
    (d_model x e), which the input embedding passes, and ``outward`` (e x d_model), through which the output's is read.
    """
    stacks: tuple[Stack, ...]
    norm: Norm
    norm_offset: float
    """What is added to a norm's stored gains."""
    final_norm: Any
    """The norm at the end of the blocks, whose output the output embedding reads, of an encoder through its head."""
    distribution: str = OURS
    """what brings the file"""

    def rotary(self, config: Any) -> bool:
        """Whether positions rotate queries and keys in a model with this transformers config."""
        return any(bool(stack.number("rotary", config)) for stack in self.stacks)

    def check_config(self, config: Any) -> None:
        """Raises FamilyError where the config asks for something that this family's reading leaves out."""
        for name, value in self.require.items():
            if getattr(config, name, value) != value:
                raise FamilyError(
                    f"config.json: {name} is {getattr(config, name)}; paramdex reads {self.name} models "
                    f"only where it is {value}"
                )


def shown(value: Any) -> str:
    """A value of config.json as a message shows it, in which it may be very long."""
    text = repr(value)
    return text if len(text) <= 40 else text[:36] + " ..."


def _check_number(name: str, value: Any, rule: Any) -> None:
    """Raises FamilyError for what cannot be the size of anything; ``rule`` says where config.json has it."""
    if value is None:
        first = rule[0] if isinstance(rule, list) else rule
        raise FamilyError(f"config.json: {first if isinstance(first, str) else name} is missing")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**63:
        raise FamilyError(f"config.json: {name} is {shown(value)}, which cannot be right")


def _holds(when: Any, config: Any) -> bool:
    """Whether the config has these values. As transformers has it, null, 0 and what is not said are no."""
    found = {name: getattr(config, name, None) for name in when}
    return all((bool(found[name]) if isinstance(value, bool) else found[name]) == value for name, value in when.items())


def look_up(rule: Any, config: Any) -> Any:
    """A number of a transformers config by its rule: an attribute's name, a number, a list of rules of which the first
    that gives something counts, ``{"product": [rule, ...]}``, ``{"sum": [rule, ...]}``, or
    ``{"when": {attribute: value}, "then": rule}``.
    """
    if isinstance(rule, str):
        return getattr(config, rule, None)
    if isinstance(rule, list):
        return next((found for found in (look_up(each, config) for each in rule) if found is not None), None)
    if isinstance(rule, dict):
        for name, combine in (("product", math.prod), ("sum", sum)):
            if name in rule:
                found = [look_up(each, config) for each in rule[name]]
                return combine(found) if all(isinstance(each, int) for each in found) else None
        return look_up(rule["then"], config) if _holds(rule["when"], config) else None
    return rule


def choose_norm(rule: Any, config: Any) -> Any:
    """The rule of a norm, of several alternatives the one whose condition the config meets."""
    if not isinstance(rule, list):
        return rule
    return next((each["norm"] for each in rule if _holds(each.get("when", {}), config)), None)


def parse(data: dict[str, Any], where: str) -> Family:
    """A family from the data of its file, what it is ``like`` filled in; unknown and missing keys are refused.

    Raises FamilyError naming ``where``.
    """
    # Not msgspec, which stops at the first unknown key; nor pydantic, which names them all but would need this code as
    # a validator, because the keys of a stack may also stand at the top of the file.
    unknown, missing = set(data) - _KEYS, _NEEDED - set(data)
    described = data.get("stacks", {None: {}})
    for description in described.values():
        unknown |= set(description) - _STACK_KEYS
        unknown |= set({**data.get("config", {}), **description.get("config", {})}) - set(_CONFIG)
        missing |= {"layer", "tensors"} - set(data) - set(description)
    unknown |= set(described) - {*STACKS, None}
    if unknown or missing:
        raise FamilyError(f"{where}: unknown keys {sorted(map(str, unknown))}, missing keys {sorted(missing)}")
    if data["norm"] not in get_args(Norm):
        raise FamilyError(f"{where}: norm is {data['norm']!r}; there are {', '.join(get_args(Norm))}")
    embedding = data["embedding"]
    of_stacks = embedding.get("stacks", {})
    return Family(
        name=data["family"],
        about=data["about"],
        model_types=tuple(data["model_types"]),
        require=data.get("require", {}),
        prefixes=tuple(data["prefixes"]),
        input_embeddings=(embedding["input"], *of_stacks.values()),
        stack_embeddings=of_stacks,
        output_embeddings=tuple(embedding["output"]),
        maps=embedding.get("maps", {}),
        stacks=tuple(_stack(name, {**data, **each}, data.get("config", {}), where) for name, each in described.items()),
        norm=data["norm"],
        norm_offset=data.get("norm_offset", 0),
        final_norm=data.get("final_norm"),
    )


def _stack(name: str | None, data: dict[str, Any], config: dict[str, Any], where: str) -> Stack:
    """One stack. Raises FamilyError where it lacks a kind or has one that there is not."""
    groups = {
        group: {
            kind: tuple(read_spec(each, f"{where}: {kind}") for each in (spec if isinstance(spec, list) else [spec]))
            for kind, spec in data.get(group, {}).items()
        }
        for group in ("tensors", "experts", "shared")
    }
    kinds = set(groups["tensors"])
    needed = {*_ATTENTION} | ({"ff_key", "ff_value"} if not groups["experts"] and name != "cross" else set())
    if not needed <= kinds <= {*_ATTENTION, *_FEED_FORWARD}:
        raise FamilyError(
            f"{where}: tensors must be {', '.join([*_FEED_FORWARD, *_ATTENTION])} (ff_gate where gated), "
            f"not {sorted(kinds)}"
        )
    for group in ("experts", "shared"):
        if not set(groups[group]) <= {*_FEED_FORWARD, "router"}:
            raise FamilyError(f"{where}: {group} are ff_key, ff_gate, ff_value and router, not {sorted(groups[group])}")
    return Stack(
        name=name,
        config=_CONFIG | config | data.get("config", {}),
        layer=data["layer"],
        tensors=groups["tensors"],
        experts={kind: specs[0] for kind, specs in groups["experts"].items()},
        shared={kind: specs[0] for kind, specs in groups["shared"].items()},
        added=data.get("added", {}),
        norms=data.get("norms", {}),
    )
