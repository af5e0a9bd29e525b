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

Where positions are added, what enters layer 0 is the state of the first one. Through a map that says as much as the
mean over positions, or the embedding alone: correlations of what layer 0 of tiny-a reads of film reviews are .901, .902
and .903 for queries, .749, .750 and .751 for keys, .881, .880 and .879 for ff_key. Without one the first position is
behind, by .013, .022 and .012. Where no positions are added (SmolLM2-135M), queries, keys and values are read exactly.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from paramdex_builder.read.family import Norm
from paramdex_builder.stream.forward import Batch, Runner, entering, leaving
from paramdex_builder.work.progress import Progress
from paramdex_builder.work.workers import one_thread_each, stop_if_unwanted
from paramdex_schemas import KINDS

READERS = ("ff_key", "ff_gate", "attn_query", "attn_key", "attn_value", "router")
Place = tuple[str, int]
"""A kind and a layer."""
Tables = dict[str, torch.Tensor]
"""Space -> Z (V x d, float32)."""
_TOKENS = 2048
"""How many tokens are run alone at a time."""


class _Stop(Exception):  # noqa: N818  # it is no error
    """Ends a forward pass once what was asked for is there."""


def space_of(layer: int) -> str:
    """The space that scores what reads in a layer, one of ``OF_STATES``."""
    return "reading" if layer else "entering"


def alone(runner: Runner, n_tokens: int, progress: Progress) -> Tables:
    """Z (n_tokens x d) of each space: the normalized state that enters the first layer, and that leaves it, for each
    token that is read alone.
    """
    before, after = runner.around
    norm, seen = runner.checkpoint.family.norm, _Seen()

    def of(tokens: torch.Tensor) -> Tables:
        stop_if_unwanted()
        sides = (torch.tensor([side], dtype=torch.int64).expand(len(tokens), -1) for side in (before, after))
        ids = torch.cat([next(sides), tokens, next(sides)], dim=1)
        with suppress(_Stop):
            runner.run(Batch(ids, torch.ones_like(ids)))
        return {space: normalized(state[:, len(before)], norm) for space, state in seen.states.items()}

    parts = torch.split(torch.arange(n_tokens)[:, None], _TOKENS)
    tables: Tables = {}
    with progress.step("what layer 0 makes of each token", n_tokens) as advance, _first_block(runner, seen):
        done = 0
        for found in one_thread_each(of, parts):
            for space, rows in found.items():
                table = tables.setdefault(space, rows.new_empty(n_tokens, rows.shape[1]))
                table[done : done + len(rows)] = rows
            done += len(rows)
            advance(len(rows))
    return tables


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
    """By space, the states that entered and left the first block last, in each thread for itself."""

    def __init__(self) -> None:
        self.states: Tables = {}


@contextmanager
def _first_block(runner: Runner, seen: _Seen) -> Iterator[None]:
    """While it is open, what enters and leaves the first block is kept, and a pass ends there."""

    def enter(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.states = {"entering": entering(args, kwargs)}

    def leave(_: object, __: object, output: object) -> None:
        seen.states["reading"] = leaving(output)
        raise _Stop

    block = runner.blocks[0]
    hooks = [block.register_forward_pre_hook(enter, with_kwargs=True), block.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
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
