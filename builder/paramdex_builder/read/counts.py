"""Checks the counts in config.json against the tensors before any loop runs that many times.

So loops end where the tensors do, whatever config.json says. Layers and experts are counted by the names of their
tensors, and no loop runs over a size before a tensor is found to have it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from paramdex_builder.read.family import Stack, shown
from paramdex_builder.read.tensors import Tensors
from paramdex_schemas import FamilyError

_UNROLLED = ("num_labels", "attention_types")
"""Numbers besides the layer count from which transformers itself builds lists or tables."""
_MOST = 1 << 20
"""The longest that those may be."""
_MOST_NUMBERED = 2**15 - 1


def excess(stack: Stack, prefix: str, config: Any, files: Tensors) -> str | None:
    """A message if config.json says more layers or experts than the tensors have, else None. Counts that it leaves out
    are left to ``Stack.sizes``.
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
            if said > (found or len(files.names())):  # without any expert, missing names are the better message
                return f"config.json says {shown(said)} experts, but a layer has {found} tensors {spec.tensor}"
    return None


def n_layers(stack: Stack, prefix: str, files: Tensors) -> int:
    """How many different layers of a stack have tensors."""
    return len(_numbered(tuple(files.names()), *_around(prefix + stack.layer, "{layer}")))


def n_experts(stack: Stack, prefix: str, tensor: str, files: Tensors) -> int:
    """The number of experts of the layer that has most, by the names of their tensors."""
    return _most(tuple(files.names()), *_around(prefix + stack.layer, "{layer}"), *_around(tensor, "{expert}"))


def _around(pattern: str, mark: str) -> tuple[str, str]:
    head, _, tail = pattern.partition(mark)
    return head, tail


@lru_cache(maxsize=32)
def _numbered(names: tuple[str, ...], head: str, tail: str) -> dict[str, tuple[str, ...]]:
    """Number -> the ends of the names that consist of ``head``, that number, ``tail`` and an end."""
    found = defaultdict(list)
    for name in names:
        if name.startswith(head):
            number, there, rest = name.removeprefix(head).partition(tail)
            if there and number.isascii() and number.isdigit() and number == (number.lstrip("0") or "0"):
                found[number].append(rest)
    return {number: tuple(rests) for number, rests in found.items()}


@lru_cache(maxsize=32)
def _most(names: tuple[str, ...], head: str, tail: str, inner_head: str, inner_tail: str) -> int:
    """The largest count of inner numbers under one outer number."""
    each = (_numbered.__wrapped__(rests, inner_head, inner_tail) for rests in _numbered(names, head, tail).values())
    return max((len(found) for found in each), default=0)


def check_unrolled(data: dict[str, Any]) -> None:
    """Raises FamilyError for a number in config.json so large that reading would never end."""
    for name in _UNROLLED:
        most = max(_integers(data.get(name)), default=0)
        if most > _MOST:
            raise FamilyError(f"config.json: {name} says {shown(most)}, which is too many; fetch it again")


def check_numbered(sizes: dict[str, int]) -> None:
    """Raises FamilyError for more layers, heads or experts than an atlas has numbers for (SMALLINT)."""
    for name in ("n_layers", "n_heads", "n_experts"):
        if sizes.get(name, 0) > _MOST_NUMBERED:
            raise FamilyError(f"config.json: {name} is {sizes[name]}; paramdex numbers {_MOST_NUMBERED} at most")


def _integers(value: Any) -> Iterator[int]:
    """All whole numbers within lists."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            waiting += each
        elif isinstance(each, int):
            yield each


def check_vocabulary(config: Any, attribute: str, name: str, rows: int) -> None:
    """Raises FamilyError where the config's ``attribute`` says more tokens than the tensor ``name`` has rows."""
    said = getattr(config, attribute, None)
    if said is not None and not (_is_count(said) and said <= rows):
        raise FamilyError(f"config.json: {attribute} is {shown(said)}, but tensor {name} has {rows} rows")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
