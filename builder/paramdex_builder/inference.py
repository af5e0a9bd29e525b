"""Which family a checkpoint of a model type that no family lists follows in every tensor, if any."""

from __future__ import annotations

from typing import Any

from paramdex_builder.family import Family, Stack, by_model_type, families
from paramdex_builder.tensors import TensorFiles
from paramdex_schemas import FamilyError
from paramdex_schemas.errors import nearest


def find_prefix(family: Family, files: TensorFiles) -> str | None:
    """What stands before the family's names in this checkpoint, told by where the input embedding is."""
    return next(
        (prefix for prefix in family.prefixes if any(prefix + name in files for name in family.input_embeddings)), None
    )


def find_stacks(family: Family, prefix: str, files: TensorFiles) -> list[Stack]:
    """The stacks that a checkpoint has: all of a model with one, of an encoder-decoder those with any tensor."""
    if len(family.stacks) == 1:
        return list(family.stacks)
    starts = [prefix + stack.layer.format(layer=0) for stack in family.stacks]  # of its first layer's names
    there = [any(name.startswith(start) for name in files.names()) for start in starts]
    return [stack for stack, found in zip(family.stacks, there, strict=True) if found]


def misfits(family: Family, config: Any, files: TensorFiles) -> list[str]:
    """Why a checkpoint is not of a family's layout: every reason; none where it is.

    It is where every tensor that the family names is there in every layer with the shape that config.json gives, and
    no layer has a matrix that the family does not name: something unknown would be left out without a word.
    """
    prefix = find_prefix(family, files)
    if prefix is None:
        return [f"there is no {family.prefixes[0]}{family.input_embeddings[0]}"]
    reasons: list[str] = []
    named: dict[str, tuple[int, ...]] = {}
    places: list[str] = []
    try:
        for stack in find_stacks(family, prefix, files):
            sizes = stack.sizes(config)
            for layer in range(sizes["n_layers"]):
                place = prefix + stack.layer.format(layer=layer)
                places.append(place)
                for source in stack.sources(layer, config):
                    experts = range(sizes["n_experts"] if source.spec.per_expert else 1)
                    names = [place + source.spec.tensor.format(expert=expert) for expert in experts]
                    named |= dict.fromkeys(names, source.spec.expected_shape(sizes))
    except FamilyError as error:
        return [str(error)]
    for name, expected in named.items():
        if name not in files:
            reasons.append(f"there is no {name}")
        elif files.shape(name) != expected:
            found, wanted = (" x ".join(map(str, size)) for size in (files.shape(name), expected))
            reasons.append(f"{name} is {found}, expected {wanted}")
    others = [name for name in files.names() if name.startswith(tuple(places)) and name not in named]
    return reasons + [f"{name} is not accounted for" for name in others if len(files.shape(name)) > 1]


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
