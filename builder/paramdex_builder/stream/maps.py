"""The maps that guess what a layer's readers read from the current token, and how well they do on text apart.

The model is run over texts, part by part, and of what its readers are given only sums are kept (``ridge``). Parts are
run by several threads, and every sum is made by one, in the order of the parts: the numbers do not depend on how many
threads there are.

A fit looks at each text by itself: of z and x it takes what is left when their means over the text are taken away (the
within estimator of panel data, Mundlak 1978). What a text is about moves the states of all its tokens, and which tokens
it has, so that tokens seem to say what only their texts do. Without that, gates of SmolLM2-135M read with a mean
correlation of 0.630 where they do with 0.634 (see RIDGE), which is what half again as many texts give. How well a map
does is measured over all tokens alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from paramdex_builder.stream.forward import Batch, Runner
from paramdex_builder.stream.ridge import Given, Wanted, fit
from paramdex_builder.stream.space import READERS, Place, Tables, space_of, taken, taps
from paramdex_builder.stream.texts import Texts
from paramdex_builder.work.workers import one_thread_each, stop_if_unwanted
from paramdex_schemas import CheckpointError
from paramdex_schemas.progress import Progress

RIDGE = 0.1
"""The share of the mean variance of z that the regression pays for leaving the diagonal map. Of 0.003 to 3, fitted on
144 texts that the model wrote, it gives gates the highest mean correlation on film reviews, Shakespeare and Wikipedia
for SmolLM2-135M (layers 1, 10, 20 and 29: 0.634; 0.633 with 0.01, 0.620 with 1). Readers of tiny-a have 0.704 on film
reviews, and 0.709 with 0.003.
"""
PART = 8
"""How many texts are run together."""
_ROWS = 4096
"""Vectors that are looked at together."""
_ROUNDED = 1e-13
"""A variance that is this small a part of a sum of squares is what rounding leaves of 0."""
Group = tuple[Place, ...]
"""Places of one layer that read one state."""


@dataclass
class Sums:
    """Sums over texts, of the rows z of Z of their tokens, and of the states x that are read there."""

    z: dict[str, Given]
    """by space"""
    zx: dict[Group, Wanted]
    xx: dict[Group, torch.Tensor]
    """Group -> sum of x x^T (d x d, float64), where asked for."""

    def given(self, group: Group) -> Given:
        """The sums of the rows by which what a group reads is guessed."""
        return self.z[space_of(group[0][1])]


def summed(
    runner: Runner, tables: Tables, texts: Texts, what: str, progress: Progress, *, within: bool, squares: bool
) -> Sums:
    """The sums over texts of what the readers of all layers read, and with ``squares`` of its squares; ``within`` each
    text, that is less the means over it.
    """
    width = torch.get_num_threads()
    sums = Sums({space: Given.of(Z[:0]) for space, Z in tables.items()}, {}, {})
    parts = [texts[start : start + PART] for start in range(0, len(texts), PART)]
    with progress.step(what, len(texts)) as advance, taken(taps(runner, READERS)) as kept:

        def states(part: Texts) -> dict[Group, torch.Tensor]:
            stop_if_unwanted()
            runner.run(Batch(part.ids, torch.ones_like(part.ids)))
            found = {}
            for group, given in _shared(kept.given).items():
                found[group] = part.counted(given.reshape(*part.ids.shape, -1))
            kept.given = {}
            return found

        for start in range(0, len(parts), width):
            some = parts[start : start + width]
            ids = [part.counted(part.ids) for part in some]
            rows = [{space: _pairs(Z[each], within) for space, Z in tables.items()} for each in ids]
            _add(sums, rows, list(one_thread_each(states, some)), within, squares)
            advance(sum(map(len, some)))
    return sums


def _add(
    sums: Sums, rows: Sequence[Tables], states: Sequence[dict[Group, torch.Tensor]], within: bool, squares: bool
) -> None:
    """Add parts of the texts, one after the other: what ``_pairs`` makes of the rows z of their tokens, by space, and
    the states by group (texts x length x d).
    """
    for group in states[0]:
        if group not in sums.zx:
            none = rows[0][space_of(group[0][1])][:0]
            sums.zx[group] = Wanted.of(none, none)
            if squares:
                sums.xx[group] = none.T @ none

    def add_rows(space: str) -> None:
        for each in rows:
            sums.z[space].add(each[space])

    def add_states(group: Group) -> None:
        for each, found in zip(rows, states, strict=True):
            x = _pairs(found[group], within)
            sums.zx[group].add(each[space_of(group[0][1])], x)
            if squares:
                sums.xx[group].addmm_(x.T, x)

    todo = [*(partial(add_rows, space) for space in sums.z), *(partial(add_states, group) for group in states[0])]
    for _ in one_thread_each(lambda add: add(), todo):
        pass


def _pairs(values: torch.Tensor, within: bool) -> torch.Tensor:
    """Values of the tokens of some texts (texts x length x d) in rows (n x d, float64); ``within``, less the mean of
    each text.
    """
    rows = values.double()
    return (rows - rows.mean(dim=1, keepdim=True) if within else rows).flatten(0, 1)


def _shared(given: dict[Place, torch.Tensor]) -> dict[Group, torch.Tensor]:
    """The states that were read, each once, by the places of a layer that read it, in the order of READERS."""
    places: dict[tuple[int, int], list[Place]] = {}
    for place in sorted(given, key=lambda place: (place[1], READERS.index(place[0]))):
        places.setdefault((place[1], given[place].data_ptr()), []).append(place)
    return {tuple(some): given[some[0]] for some in places.values()}


def maps(sums: Sums, progress: Progress) -> Iterator[tuple[Group, torch.Tensor]]:
    """The map A (d x d, float32) of each group, which it takes from the sums: A w is what the vector w reads, in the
    space of Z. The prior is a diagonal map: what a norm's gains alone would do.

    Raises CheckpointError where the model's states were not finite.
    """

    def map_of(group: Group) -> torch.Tensor:
        return fit(sums.given(group), sums.zx[group], RIDGE, diagonal=True).float()

    groups = list(sums.zx)
    with progress.step("maps of what layers read", len(groups)) as advance:
        for group, A in zip(groups, one_thread_each(map_of, groups), strict=True):
            if not A.isfinite().all():
                raise CheckpointError(f"the states of layer {group[0][1]} are NaN or infinite on some text")
            del sums.zx[group]
            yield group, A
            advance(1)


@dataclass
class HeldOut:
    """What text that a fit never saw says of one group and its map: the covariances of <x, w> and <z, A w> as quadratic
    forms of w (d x d, float64).
    """

    both: torch.Tensor
    read: torch.Tensor
    scored: torch.Tensor
    least: tuple[float, float]
    """of the last two, what rounding may leave of 0 for a w of length 1"""

    @classmethod
    def of(cls, sums: Sums, group: Group, A: torch.Tensor) -> HeldOut:
        """From sums with squares, and the map A (d x d) of the group."""
        wanted, z, A = sums.zx[group], sums.given(group), A.double()
        read = sums.xx[group] - torch.outer(wanted.y, wanted.y) / z.n
        least = (_ROUNDED * float(sums.xx[group].norm()), _ROUNDED * float((A.T @ z.xx @ A).norm()))
        return cls(wanted.covariance(z).T @ A, read, A.T @ z.covariance() @ A, least)

    def correlations(self, rows: torch.Tensor) -> torch.Tensor:
        """Of each of ``rows`` w (n x d), the Pearson correlation (n, float32) of <x, w> and <z, A w>; NaN where either
        does not vary.
        """
        return torch.cat([self._of(part.double()) for part in torch.split(rows, _ROWS)])

    def _of(self, w: torch.Tensor) -> torch.Tensor:
        both, read, scored = (((w @ form) * w).sum(1) for form in (self.both, self.read, self.scored))
        size = w.square().sum(1)
        varies = (read > self.least[0] * size) & (scored > self.least[1] * size)
        sizes = torch.where(varies, read * scored, 1).sqrt()
        return torch.where(varies, both / sizes, torch.nan).clamp(-1, 1).float()
