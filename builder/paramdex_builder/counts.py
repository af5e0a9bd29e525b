"""Counts in config.json held against the tensors, before anything is done as often as they say.

Whatever config.json says, loops then end where the tensors do: layers and experts are counted by the names of theirs,
and no size is looped over before the shape that it gives is a tensor's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from paramdex_builder.family import Stack, shown
from paramdex_builder.tensors import TensorFiles
from paramdex_schemas import FamilyError

_UNROLLED = ("num_labels", "attention_types")
"""What transformers itself makes a list or a table of, as long as it says, beside the layers."""
_MOST = 1 << 20
"""As long as those may be."""


def excess(stack: Stack, prefix: str, config: Any, files: TensorFiles) -> str | None:
    """Of what the config has more than the tensors, layers or experts, and how many those have; None where of nothing.

    What it does not say is left to ``Stack.sizes``.
    """
    said = stack.number("n_layers", config)
    found = n_layers(stack, prefix, files)
    if said is not None and not (_is_count(said) and said <= found):
        start = f"{prefix}{stack.layer.partition('{layer}')[0]}"
        return f"config.json says {shown(said)} layers, but the weights have {found}, by tensors {start}*"
    said = stack.number("n_experts", config)
    for spec in stack.experts.values():
        if spec.per_expert and _is_count(said):
            found = n_experts(stack, prefix, spec.tensor, files)
            if said > (found or len(files.names())):  # where no name is of an expert, the names say what is missing
                return f"config.json says {shown(said)} experts, but a layer has {found} tensors {spec.tensor}"
    return None


def n_layers(stack: Stack, prefix: str, files: TensorFiles) -> int:
    """How many different layers of a stack have tensors."""
    return len({number for number, _ in _numbered(files.names(), prefix, stack.layer, "{layer}")})


def n_experts(stack: Stack, prefix: str, tensor: str, files: TensorFiles) -> int:
    """The number of experts of the layer that has most, by the names of their tensors."""
    within = defaultdict(list)
    for layer, rest in _numbered(files.names(), prefix, stack.layer, "{layer}"):
        within[layer].append(rest)
    return max((len(set(_numbered(rests, "", tensor, "{expert}"))) for rests in within.values()), default=0)


def _numbered(names: list[str], prefix: str, pattern: str, mark: str) -> Iterator[tuple[str, str]]:
    """(the number in place of ``mark``, what follows the pattern) of every name that begins as the pattern says."""
    head, _, tail = pattern.partition(mark)
    for name in names:
        if name.startswith(prefix + head):
            number, found, rest = name.removeprefix(prefix + head).partition(tail)
            if found and number.isascii() and number.isdigit() and number == (number.lstrip("0") or "0"):
                yield number, rest


def check_unrolled(data: dict[str, Any]) -> None:
    """Raises FamilyError for a number of config.json by which reading it would not end."""
    for name in _UNROLLED:
        most = max(_integers(data.get(name)), default=0)
        if most > _MOST:
            raise FamilyError(f"config.json: {name} says {shown(most)}, which is too many; fetch it again")


def _integers(value: Any) -> Iterator[int]:
    """All whole numbers within lists."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            waiting += each
        elif isinstance(each, int):
            yield each


def check_vocabulary(config: Any, name: str, rows: int) -> None:
    """Raises FamilyError where the config has a larger vocabulary than the embedding, the tensor ``name``, has rows."""
    said = getattr(config, "vocab_size", None)
    if said is not None and not (_is_count(said) and said <= rows):
        raise FamilyError(f"config.json: vocab_size is {shown(said)}, but tensor {name} has {rows} rows")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
