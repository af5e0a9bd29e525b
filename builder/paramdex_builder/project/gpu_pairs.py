"""The scan of ``pair_scan`` by an engine that selects pairs where their screened scores are made: on a GPU, or on a
processor with VNNI.

The tiles are the same, and they are visited in the same order, best first. But many of them go together, as a *wave*:
one run of ``pairs_reaching`` (``kernels``), which writes down the pairs that reach a limit and nothing else. The first
wave is a few tiles; each next one is several times as large. The threshold then is the k-th best score of all waves
before. So we expect k pairs times the growth, and those that low precision cannot tell from them.

**Exact.** The limits of a tile are those of ``pair_scan``, rounded down to float32: a pair is left out only where

    s~ + error ||a'|| ||b'|| + gap + UNDERFLOW < threshold - what float32 rounds off

on its side, with the norms of the tile's first row and column. In a part of a tile no |s~| is over (1 + error) ||a'||
||b'|| + UNDERFLOW, with the norms of the part's first row and column. Where that is less than both limits, the part is
not computed. Pairs that are written down are scored as ``pair_scan`` does it. Where there is not enough room for them,
the wave is cut in two, and the second half meets the thresholds that the first has raised. A wave of one tile is left
to ``pair_scan``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from paramdex_builder.project import pair_scan
from paramdex_builder.project.arithmetic import UNDERFLOW
from paramdex_builder.project.engines import PairSelecting, full_float32
from paramdex_builder.project.pair_scan import Scan, Search, TokenPairs, Words
from paramdex_builder.project.pair_sides import Side

ROOM = 1 << 20
"""At most so many pairs of a wave can be written down."""
_FIRST, _GROWTH = 4, 8
"""Tiles of the first wave, and how many times as many each next one has."""


@dataclass
class _Sorted:
    """What the kernel takes, left and right, in order of the factors' rows."""

    factors: tuple[torch.Tensor, torch.Tensor]
    norms: tuple[torch.Tensor, torch.Tensor]
    words: tuple[torch.Tensor, torch.Tensor]


class WaveScan(Scan):
    """The scan of A B^T by waves of tiles, with an engine that selects."""

    def __init__(
        self, A: torch.Tensor | Side, B: torch.Tensor | Side, words: Words, k: int, engine: PairSelecting
    ) -> None:
        super().__init__(A, B, words, k, engine)
        self.selecting = engine

    def run(self) -> list[Search]:
        """Find the pairs of both sides, top first."""
        left, right = self.left, self.right
        here = self.A.device
        self.sorted = _Sorted(
            (left.rows.contiguous(), right.rows.contiguous()),
            (torch.from_numpy(left.norms).float().to(here), torch.from_numpy(right.norms).float().to(here)),
            (self.words.number[left.ids].int(), self.words.number[right.ids].int()),
        )
        self.tiles = self._ordered()
        start, size, n = 0, _FIRST, len(self.tiles.bounds)
        with full_float32():
            self._set_thresholds()
            while start < n:
                least = min(search.threshold for search in self.searches)
                reaching = int(np.searchsorted(-self.tiles.bounds, -least, side="right"))
                stop = min(start + size, reaching)
                if stop <= start:
                    break
                self._wave(start, stop)
                start, size = stop, size * _GROWTH
            for search in self.searches:
                self._score(search)
        return self.searches

    def _wave(self, start: int, stop: int) -> None:
        """Search the tiles from number ``start`` to before ``stop``."""
        limits = self._limits(start, stop)
        kept = np.flatnonzero((limits < np.inf).any(1))
        if not len(kept):
            return
        tiles, here = self.tiles, self.A.device
        places = np.stack([tiles.rows[start:stop], tiles.columns[start:stop]], 1)[kept].astype(np.int32)
        count, pair = self.selecting.pairs_reaching(
            self.sorted.factors,
            self.sorted.norms,
            self.sorted.words,
            torch.from_numpy(places).to(here),
            (pair_scan.TILE_ROWS, pair_scan.TILE_COLUMNS),
            torch.from_numpy(limits[kept]).to(here),
            ROOM,
            (1 + self.error, 2 * UNDERFLOW),
        )
        found = int(count)
        if found <= ROOM:
            self._offer(pair[:found])
        elif stop - start > 1:
            middle = (start + stop) // 2
            self._wave(start, middle)
            self._wave(middle, stop)
        else:
            row, column = places[0].tolist()
            self._visit(row, column, [self.searches[number] for number in np.flatnonzero(limits[0] < np.inf)])

    def _limits(self, start: int, stop: int) -> np.ndarray:
        """What s~ of the top and -s~ of the bottom must reach in every tile (n x 2, float32): infinity where no pair
        can be among the best.
        """
        tiles, part = self.tiles, slice(start, stop)
        norms = self.left.norms[tiles.rows[part]] * self.right.norms[tiles.columns[part]]
        slack = self.error * norms * (1 + 2.0**-50) + self.gap + UNDERFLOW
        limits = np.empty((len(slack), 2), np.float32)
        for number, search in enumerate(self.searches):
            exact = self._scaled(search.threshold) - slack
            near = exact.astype(np.float32)
            near = np.where(near > exact, np.nextafter(near, np.float32(-np.inf)), near)
            limits[:, number] = np.where(self._done(search, part), np.inf, near)
        return limits

    def _done(self, search: Search, part: slice) -> np.ndarray:
        """``Search.done_with`` of every tile."""
        bounds, sources, targets = (getattr(self.tiles, name)[part] for name in ("bounds", "sources", "targets"))
        if search.last is None or search.threshold == -math.inf:
            later = np.zeros(len(bounds), bool)
        else:
            later = (sources > search.last[0]) | ((sources == search.last[0]) & (targets > search.last[1]))
        done: np.ndarray = (bounds < search.threshold) | ((bounds == search.threshold) & later)
        return done

    def _offer(self, pair: torch.Tensor) -> None:
        """Score pairs of different words (row 2^32 + column), and offer them to both searches. Each keeps its own."""
        if len(pair):
            source, target = self.left.ids[pair >> 32], self.right.ids[pair & 0xFFFF_FFFF]
            found = TokenPairs(source, target, self.scores(source, target))
            for search in self.searches:
                search.offer(found.signed(search.sign))
