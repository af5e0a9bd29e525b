"""The space in which what reads a layer of a running model can be read.

What a parameter of layer 1 or later reads is no row of the embedding: layer 0 has come between. So tokens are given
another vector each. Let z_t be the state that leaves layer 0 when the model reads the token t alone, normalized, and Z
(V x d) all of them. (Alone, but for the special tokens that the tokenizer puts around any text: without [CLS] and [SEP]
an encoder makes something else of a token.) Then a reader w with its norm's gain g folded in has the scores

    effective    Z (g w)         from the weights alone
    expected     Z B w           where B (d x d) is the ridge regression on z_t of the states x that w really reads

at a token t of some text. z_t^T B is the best linear guess of x from the current token, and B w what w reads of it.
(In papers that read weights through the first layer the state is called the effective embedding.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from paramdex_builder.read.family import Norm
from paramdex_builder.stream.forward import Batch, Runner
from paramdex_builder.stream.ridge import Given, Wanted, fit
from paramdex_builder.work.progress import Progress

READERS = ("ff_key", "ff_gate", "attn_query", "attn_key", "attn_value", "router")
RIDGE = 0.1
"""The share of the mean variance of z that the regression pays for leaving the diagonal map. Correlations on text of
another domain, fitted on 12,288 tokens: for gates of SmolLM2-135M it is the best of 0.01, 0.03, 0.1 and 0.3 in layers 1
and 10; for ff_key of tiny-a 0.003 is better by 0.02 or less.
"""
Place = tuple[str, int]
"""A kind and a layer."""
_TOKENS = 2048
"""How many tokens are run alone at a time."""
_TEXTS = 16


class _Stop(Exception):  # noqa: N818  # it is no error
    """Ends a forward pass once what was asked for is there."""


@torch.no_grad()
def alone(runner: Runner, n_tokens: int) -> torch.Tensor:
    """The state (n_tokens x d) that leaves the first layer for each token that is read alone."""
    found: list[torch.Tensor] = []
    before, after = runner.around

    def keep(_: object, __: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        found.append((output[0] if isinstance(output, (tuple, list)) else output)[:, len(before)])
        raise _Stop

    hook = runner.blocks[0].register_forward_hook(keep)
    try:
        for tokens in torch.split(torch.arange(n_tokens)[:, None], _TOKENS):
            sides = (torch.tensor([side], dtype=torch.int64).expand(len(tokens), -1) for side in (before, after))
            ids = torch.cat([next(sides), tokens, next(sides)], dim=1)
            try:
                runner.run(Batch(ids, torch.ones_like(ids)))
            except _Stop:
                continue
    finally:
        hook.remove()
    return torch.cat(found)


def normalized(states: torch.Tensor, norm: Norm) -> torch.Tensor:
    """The rows (n x d), of mean square 1, as a norm without gains makes them; of a LayerNorm less their means."""
    rows = states.double()
    if norm == "layer":
        rows = rows - rows.mean(dim=1, keepdim=True)
    size = rows.square().mean(dim=1, keepdim=True).sqrt()
    return (rows / size.clamp_min(torch.finfo(torch.float32).tiny)).float()


def taps(runner: Runner, kinds: Iterable[str]) -> dict[Place, torch.nn.Module]:
    """(kind, layer) -> the module that holds a kind's vectors, where the layer has one: experts have none. One that
    reads is given the state that it reads; one that writes, the coefficients of its vectors.
    """
    found = {}
    for layer, block in enumerate(runner.blocks):
        modules = dict(block.named_modules())
        for kind in kinds:
            name = runner.checkpoint.names.module(kind, layer)
            if name in modules:
                found[kind, layer] = modules[name]
    return found


@contextmanager
def taken(modules: dict[Place, torch.nn.Module]) -> Iterator[dict[Place, torch.Tensor]]:
    """While it is open, what each module was last given. Modules that were given one tensor share it."""
    given: dict[Place, torch.Tensor] = {}

    def keeper(place: Place) -> Callable[[Any, tuple[Any, ...]], None]:
        def keep(_: Any, args: tuple[Any, ...]) -> None:
            given[place] = args[0].detach()

        return keep

    hooks = [module.register_forward_pre_hook(keeper(place)) for place, module in modules.items()]
    try:
        yield given
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class HeldOut:
    """Sums over text that a fit never saw, of the states x that are read at a place and the rows z of Z."""

    given: Given
    wanted: Wanted
    xx: torch.Tensor
    """of x x^T (d x d)"""

    def correlations(self, rows: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
        """Of each of ``rows`` w (n x d), the Pearson correlation (n, float32) of <x, w> and <z, A w>; NaN where either
        does not vary.
        """
        w, n = rows.double(), self.given.n
        r = w @ A.double().T
        zx = self.wanted.xy - torch.outer(self.given.x, self.wanted.y) / n
        xx = self.xx - torch.outer(self.wanted.y, self.wanted.y) / n
        along = ((r @ zx) * w).sum(1)
        sizes = ((r @ self.given.covariance()) * r).sum(1) * ((w @ xx) * w).sum(1)
        return torch.where(sizes > 0, along / sizes.clamp_min(0).sqrt(), torch.nan).clamp(-1, 1).float()


Fitted = tuple[tuple[str, ...], int, torch.Tensor, HeldOut]
"""Kinds that read one state, their layer, the map A = B (d x d, float32), and what it is measured on."""


def fitted(runner: Runner, Z: torch.Tensor, texts: torch.Tensor, n_held: int, progress: Progress) -> Iterator[Fitted]:
    """What guesses what each layer's readers read from the current token's row of Z, over ``texts`` (n x length ids)
    without the last ``n_held``.

    The prior is a diagonal map: what a norm's gains alone would do.
    """
    modules = taps(runner, READERS)
    known: dict[bool, Given] = {}
    sums: dict[tuple[Place, ...], dict[bool, Wanted]] = {}
    squares: dict[tuple[Place, ...], torch.Tensor] = {}
    first_held = len(texts) - n_held
    parts = [*torch.split(texts[:first_held], _TEXTS), *torch.split(texts[first_held:], _TEXTS)]
    with progress.step("fitting what layers read", len(texts)) as advance:
        for number, ids in enumerate(parts):
            is_held = number * _TEXTS >= first_held
            with taken(modules) as given:
                runner.run(Batch(ids, torch.ones_like(ids)))
            z = Z[ids.flatten()]
            known[is_held] = known[is_held] + Given.of(z) if is_held in known else Given.of(z)
            for places, states in _shared(given).items():
                x = states.reshape(len(z), -1)
                own = sums.setdefault(places, {})
                own[is_held] = own[is_held] + Wanted.of(z, x) if is_held in own else Wanted.of(z, x)
                if is_held:
                    squares[places] = squares.get(places, 0) + x.double().T @ x.double()
            advance(len(ids))
    for places, found in sums.items():
        A = fit(known[False], found[False], RIDGE, diagonal=True).float()
        kinds = tuple(kind for kind, _ in places)
        yield kinds, places[0][1], A, HeldOut(known[True], found[True], squares[places])


def _shared(given: dict[Place, torch.Tensor]) -> dict[tuple[Place, ...], torch.Tensor]:
    """The states that were read, each once, by the places of a layer that read it."""
    places: dict[tuple[int, int], list[Place]] = {}
    for place, states in given.items():
        places.setdefault((place[1], states.data_ptr()), []).append(place)
    return {tuple(some): given[some[0]] for some in places.values()}
