"""Inference: finds the family whose layout the tensors follow exactly, if no family lists the model's type."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

from paramdex_builder.read import counts
from paramdex_builder.read.embeddings import Embeddings
from paramdex_builder.read.families import by_model_type, families
from paramdex_builder.read.family import OURS, Family, Stack
from paramdex_builder.read.tensors import Tensors
from paramdex_schemas import FamilyError
from paramdex_schemas.checks import listing, suggest

_BESIDE = re.compile(
    r"(^|[._])(q|k|query|key)_?(layer)?_?norm\.(weight|bias)$"
    r"|(^|\.)(sinks|softmax_offset|e_score_correction_bias|rotary_emb\.inv_freq)$"
)
"""Tensors of one dimension that change how much is attended to, or which expert is called, and no vector: norms of
queries and keys, what the softmax is given besides, what is added to a router's scores, frequencies.
"""
_ENOUGH = 1000
"""A layout with so many reasons against it is not the nearest."""
_NORM = re.compile(r"norm|(^|[._])ln[._]", re.IGNORECASE)


def find_prefix(family: Family, files: Tensors) -> str | None:
    """What stands before the family's names in this checkpoint. The input embedding tells; where it has only the output
    embedding's name, the layers do.
    """
    for prefix in family.prefixes:
        if any(prefix + name in files for name in family.input_embeddings):
            return prefix
    return next((prefix for prefix in family.prefixes if _has_layers(family, prefix, files)), None)


def _has_layers(family: Family, prefix: str, files: Tensors) -> bool:
    starts = tuple(prefix + stack.layer.format(layer=0) for stack in family.stacks)
    return any(name.startswith(starts) for name in files.names())


def find_stacks(family: Family, prefix: str, files: Tensors) -> list[Stack]:
    """The stacks that a checkpoint has: of an encoder-decoder, those with any tensor."""
    if len(family.stacks) == 1:
        return list(family.stacks)
    starts = [prefix + stack.layer.format(layer=0) for stack in family.stacks]  # of the names in its first layer
    there = [any(name.startswith(start) for name in files.names()) for start in starts]
    return [stack for stack, found in zip(family.stacks, there, strict=True) if found]


def counted_stacks(source: str, family: Family, config: Any, files: Tensors) -> tuple[str, list[Stack]]:
    """What stands before the family's names, and the stacks that there are. Raises FamilyError where there is no such
    embedding, or the config has more layers or experts than the tensors.
    """
    prefix = find_prefix(family, files)
    if prefix is None:
        ends = tuple(f".{name}" for name in family.input_embeddings)
        other = next((name for name in files.names() if name.endswith(ends)), None)
        said = f"its config says {config.model_type}, its weights do not"
        raise FamilyError(
            f"{source}: there is no tensor {family.prefixes[0]}{family.input_embeddings[0]}"
            f"{f', but {other}; save it with names as transformers has them' if other else f'; {said}'}"
        )
    stacks = find_stacks(family, prefix, files)
    for stack in stacks:
        excess = counts.excess(stack, prefix, config, files)
        if excess is not None:
            raise FamilyError(f"{source}: {excess}")
    return prefix, stacks


def misfits(family: Family, config: Any, files: Tensors) -> list[str]:
    """Why a checkpoint does not follow a family's layout: every reason, or some thousand; none if it follows.

    It follows if each layer has every tensor that the family names, with the shape that config.json gives, and no other
    tensor than their biases, norms of the stream between its parts, and what changes no vector. Anything else that is
    unknown would be left out without a word.

    Raises FamilyError where it cannot even be compared: it has no such embedding or no layers.
    """
    prefix = find_prefix(family, files)
    if prefix is None:
        raise FamilyError(f"there is no {family.prefixes[0]}{family.input_embeddings[0]}")
    reasons: list[str] = []
    named: dict[str, tuple[int, ...] | None] = {}
    places: set[str] = set()
    beside: set[str] = set()
    blocks: set[str] = set()
    stacks = find_stacks(family, prefix, files)
    for stack in stacks:
        excess = counts.excess(stack, prefix, config, files)
        n_layers = counts.n_layers(stack, prefix, files)
        if excess is not None and n_layers:
            return [excess]
        if excess is not None:
            raise FamilyError(excess)
        of_each = [spec.tensor for spec in stack.experts.values() if spec.per_expert]
        n_experts = max([1, *(counts.n_experts(stack, prefix, tensor, files) for tensor in of_each)])
        sizes: dict[str, int] = {}
        try:
            sizes = stack.sizes(config)
        except FamilyError as error:  # names may still fit, or tell more
            reasons.append(str(error))
        for layer in range(sizes.get("n_layers", n_layers)):
            place = prefix + stack.layer.format(layer=layer)
            places.add(place)
            beside |= {place + name for name in _norms()}
            for source in stack.sources(layer, config):
                spec, bias = source.spec, source.spec.of_bias(written=False).tensor
                blocks.add(place + spec.tensor.split(".")[0] + ".")
                for expert in range(sizes.get("n_experts", n_experts) if spec.per_expert else 1):
                    named[place + spec.tensor.format(expert=expert)] = spec.expected_shape(sizes) if sizes else None
                    beside.add(place + bias.format(expert=expert))
    if not places:
        raise FamilyError(f"there is no layer {prefix}{family.stacks[0].layer.format(layer=0).rstrip('.')}")
    d, names = stacks[0].number("d_model", config), [stack.name for stack in stacks]
    d = d if isinstance(d, int) else 0  # already one of the reasons
    if Embeddings("", family, prefix, names, files, d, bool(config.tie_word_embeddings)).find_entry() is None:
        reasons.append(f"there is no {prefix}{family.input_embeddings[0]}")
    for name, expected in named.items():
        if name not in files:
            reasons.append(f"there is no {name}")
        elif expected is not None and files.shape(name) != expected:
            found, wanted = (" x ".join(map(str, size)) for size in (files.shape(name), expected))
            reasons.append(f"{name} is {found}, expected {wanted}")
    starts, within = tuple(places), tuple(blocks)
    for name in files.names():
        if len(reasons) > _ENOUGH:
            break
        shape = files.shape(name)
        if not shape or name in named or not name.startswith(starts):
            continue
        between = len(shape) == 1 and _NORM.search(name) and not name.startswith(within)  # of the stream
        if len(shape) > 1 or not (between or name in beside or _BESIDE.search(name)):
            reasons.append(f"{name} is not accounted for")
    return reasons


@cache
def _norms() -> frozenset[str]:
    """The norms that any family names, under whatever conditions, and their biases, from within a layer."""

    def named(rule: Any) -> Iterator[str]:
        if isinstance(rule, str):
            yield from (rule, rule.removesuffix("weight") + "bias")
        elif isinstance(rule, (list, dict)):
            for each in rule.values() if isinstance(rule, dict) else rule:
                yield from named(each)

    return frozenset(name for family in families().values() for stack in family.stacks for name in named(stack.norms))


def _typo(model_type: str, name: str) -> bool:
    """Whether a model type is another one misspelled: with one letter more or fewer, or letters in another order. A
    type that transformers knows is not misspelled; nor is one with another number, which is a type of its own.
    """
    from transformers import CONFIG_MAPPING

    ours, theirs = (Counter(re.sub(r"[\W_]", "", each.casefold())) for each in (model_type, name))
    differ = [*(ours - theirs).elements(), *(theirs - ours).elements()]
    return model_type not in CONFIG_MAPPING and len(differ) <= 1 and not any(each.isdigit() for each in differ)


def infer_family(model_type: str, config: Any, files: Tensors) -> Family:
    """The family whose layout a checkpoint of an unlisted model type follows in every tensor.

    Raises FamilyError with what did not fit the nearest family.
    """
    layouts = sorted(families().values(), key=lambda each: (each.name != "llama", each.distribution != OURS, each.name))
    found = []
    for family in layouts:
        try:
            reasons = misfits(family, config, files)
        except FamilyError as error:
            found.append((2 if find_prefix(family, files) is None else 1, [str(error)], family))
            continue
        if not reasons:
            return family
        found.append((0, reasons, family))
    _, reasons, family = min(found, key=lambda entry: (entry[0], len(entry[1])))
    known = [*by_model_type()]
    typos = [name for name in known if _typo(model_type, name)]
    raise FamilyError(
        f"models of type {model_type!r} are not supported; {suggest(model_type, typos) if typos else listing(known)} "
        "The weights do not follow a known layout either; "
        f"nearest is {family.name}: {'; '.join(reasons[:3])}{'; ...' if len(reasons) > 3 else ''} "
        "(a family is one file in paramdex_builder/families; README says how to add one)"
    )
