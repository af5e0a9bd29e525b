"""The spaces in which what reads a layer of a running model can be read.

What a parameter of layer 1 or later reads is no row of the embedding: layer 0 has come between. So tokens are given
another vector each. Let z_t be the state that leaves layer 0 when the model reads the token t alone, normalized, and Z
(V x d) all of them. (Alone, but for the special tokens that the tokenizer puts around any text: without [CLS] and [SEP]
an encoder makes something else of a token.) What layer 0 reads is nearer to the state that enters it, and for its
readers Z is made of that: of the embedding as the model's own code has it, with positions, multipliers and norms. Then
a reader w with its norm's gain g folded in has the scores

    effective    Z (g w)         from the weights alone
    expected     Z B w           where B (d x d) is the ridge regression on z_t of the states x that w really reads

at a token t of some text. z_t^T B is the best linear guess of x from the current token, and B w what w reads of it.
(In papers that read weights through the first layer the state is called the effective embedding.)

Where positions are added, what enters layer 0 differs by position, and its Z is made of the mean over positions. The
first position alone correlates as well (expected, tiny-a on film reviews: ff_key .876, with the mean .875), but its own
part makes lists worse: of the most active positions .62 hold a token of the list's top 1 %, with the mean .67; of
attn_value .73 and .81. Without a map, what heads write has .76 and .83. The embedding alone is as good as the mean, but
has no norms or multipliers. Where no positions are added, queries, keys and values are read exactly (SmolLM2-135M).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from paramdex_builder.read.family import Norm
from paramdex_builder.stream.forward import Batch, Runner, entering, leaving
from paramdex_builder.work.workers import one_thread_each, stop_if_unwanted
from paramdex_schemas import KINDS
from paramdex_schemas.progress import Advance, Progress

READERS = ("ff_key", "ff_gate", "attn_query", "attn_key", "attn_value", "router")
Place = tuple[str, int]
"""A kind and a layer."""
Tables = dict[str, torch.Tensor]
"""Space -> Z (V x d, float32)."""
_TOKENS = 2048
"""How many tokens are run alone at a time."""
_PLACES = 32
"""Over how many positions, at most, the state that enters layer 0 is a mean."""


class _Stop(Exception):  # noqa: N818  # it is no error
    """Ends a forward pass once what was asked for is there."""


def space_of(layer: int) -> str:
    """The space that scores what reads in a layer, one of ``OF_STATES``."""
    return "reading" if layer else "entering"


def alone(runner: Runner, n_tokens: int, progress: Progress) -> Tables:
    """Z (n_tokens x d) of each space: the normalized state that enters the first layer, and that leaves it, for each
    token that is read alone. Of models that add positions, the first is the mean over ``_PLACES`` of them.
    """
    around = sum(map(len, runner.around))
    n_places = min(_PLACES, runner.longest - around) if runner.checkpoint.layout.of("position") else 1
    with progress.step("what layer 0 makes of each token", 2 * n_tokens) as advance:
        return {
            "entering": _states(runner, n_tokens, n_places, "entering", advance),
            "reading": _states(runner, n_tokens, 1, "reading", advance),
        }


def _states(runner: Runner, n_tokens: int, n_places: int, space: str, advance: Advance) -> torch.Tensor:
    """The normalized states (n_tokens x d) of a space, of each token ``n_places`` times, as their mean."""
    before, after = runner.around
    norm, seen = runner.checkpoint.family.norm, _Seen()

    def of(tokens: torch.Tensor) -> torch.Tensor:
        stop_if_unwanted()
        sides = (torch.tensor([side], dtype=torch.int64).expand(len(tokens), -1) for side in (before, after))
        ids = torch.cat([next(sides), tokens.expand(-1, n_places), next(sides)], dim=1)
        with suppress(_Stop):
            runner.run(Batch(ids, torch.ones_like(ids)))
        return normalized(seen.states[:, len(before) : len(before) + n_places].mean(dim=1), norm)

    parts = torch.split(torch.arange(n_tokens)[:, None], _TOKENS // n_places)
    Z: torch.Tensor | None = None
    done = 0
    with _first_block(runner, seen, space):
        for rows in one_thread_each(of, parts):
            Z = rows.new_empty(n_tokens, rows.shape[1]) if Z is None else Z
            Z[done : done + len(rows)] = rows
            done += len(rows)
            advance(len(rows))
    return torch.zeros(0, 0) if Z is None else Z


def normalized(states: torch.Tensor, norm: Norm) -> torch.Tensor:
    """The rows (n x d), of mean square 1, as a norm without gains makes them; of a LayerNorm less their means."""
    rows = states.double()
    if norm == "layer":
        rows = rows - rows.mean(dim=1, keepdim=True)
    size = rows.square().mean(dim=1, keepdim=True).sqrt()
    return (rows / size.clamp_min(torch.finfo(torch.float32).tiny)).float()


def taps(runner: Runner, kinds: Iterable[str]) -> dict[Place, torch.nn.Module]:
    """(kind, layer) -> the module that holds a kind's vectors, where the layer has one. One that reads is given the
    state that it reads; one that writes, the coefficients of its vectors. Experts share a module that is given the
    coefficients of all; what they read is given to the router, which stands for them.
    """
    found = {}
    names = runner.checkpoint.names
    for layer, block in enumerate(runner.blocks):
        modules = dict(block.named_modules())
        for kind in kinds:
            module = _module(modules, names.module(kind, layer))
            if module is None and (kind, (None, layer), "expert") in names.specs and KINDS[kind].role == "reads":
                module = _module(modules, names.module("router", layer))
            if module is not None:
                found[kind, layer] = module
    return found


def _module(modules: dict[str, torch.nn.Module], name: str | None) -> torch.nn.Module | None:
    """The module of this name in a block; or, as transformers may call a part of a block otherwise than a checkpoint
    does, the only one whose name ends so.
    """
    if name is None or name in modules:
        return None if name is None else modules[name]
    last = name.rpartition(".")[2]
    ending = [module for path, module in modules.items() if path.rpartition(".")[2] == last]
    return ending[0] if len(ending) == 1 else None


class _Seen(threading.local):
    """The states that last entered or left the first block, in each thread for itself."""

    states: torch.Tensor


@contextmanager
def _first_block(runner: Runner, seen: _Seen, space: str) -> Iterator[None]:
    """While it is open, what enters the first block or leaves it, as ``space`` says, is kept, and a pass ends there."""

    def enter(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.states = entering(args, kwargs)
        raise _Stop

    def leave(_: object, __: object, output: object) -> None:
        seen.states = leaving(output)
        raise _Stop

    block = runner.blocks[0]
    if space == "entering":
        hook = block.register_forward_pre_hook(enter, with_kwargs=True)
    else:
        hook = block.register_forward_hook(leave)
    try:
        yield
    finally:
        hook.remove()


class Taken(threading.local):
    """What modules were last given, in each thread for itself. Modules that were given one tensor share it."""

    def __init__(self) -> None:
        self.given: dict[Place, torch.Tensor] = {}


@contextmanager
def taken(modules: dict[Place, torch.nn.Module]) -> Iterator[Taken]:
    """While it is open, what each module is given is kept, whichever thread runs the model."""
    kept = Taken()

    def keeper(place: Place) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], None]:
        def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kept.given[place] = (args[0] if args else next(iter(kwargs.values()))).detach()

        return keep

    hooks = [module.register_forward_pre_hook(keeper(place), with_kwargs=True) for place, module in modules.items()]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()
