"""Relations of two sets of rows: the nearest both ways and the layer scores, from one pass over all similarities.

With rows a_i of one model and b_j of another, normalized, and T from the coordinates of the first's space into those of
the second's (``paramdex_schemas.isometry.transfer``), the similarities are S_ij = <T a_i, b_j>. They are computed once,
a block at a time, in float32 (T a_i in float64, then rounded), and each block gives its part of three results: the
nearest b of every a, the nearest a of every b (the same numbers, so a pair's similarity is the same from both sides),
and the mean |S| of every pair of layers.

The rows of either side may lie in several spaces, as those of layer 0 and of later layers do. Each block belongs to one
pair of spaces; ids count through all rows of a side, so what is nearest is nearest among them all.

The nearest are ordered by (similarity descending, id ascending), exactly. That order is one of integers: a candidate's
*key* holds its similarity in the high half, as an integer that sorts as the float does, and the id counted backwards in
the low half. Keys of different ids differ, so a plain top-k of keys is the answer whatever the order of the blocks.
Most similarities need no key: a block's candidates are cut into chunks of consecutive ids, and each chunk is
represented by its *head*, which is its largest similarity with its first id. No key in a chunk is above its head, and k
chunks whose heads are above another's hold k keys above everything in that other: each head's similarity is met in its
chunk, and where it only ties, the chunk with the higher head has the earlier ids throughout. So the best k lie in the k
chunks of highest heads, and a chunk whose head is not above the k-th best key so far adds nothing. A block is filled up
to whole chunks with -inf. Whatever ids these get, they are below everything that is there, and k rows are.

Only rounding depends on the blocks: BLAS may add in another order in a block of another shape, so a similarity can
differ in its last bits, and equal rows need not tie in float32. Given the similarities, the
nearest are the same for all blocks, and the layer scores are to float64 rounding.

All of this happens on the device that is given: on a GPU its products and top-k are PyTorch's, in larger blocks, and
only rows go there and results come back. FAISS's own GPU indexes would give the nearest one way alone, without the
layer scores, and break ties as they like.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import isqrt
from typing import NamedTuple

import numpy as np
import torch

from paramdex_schemas import isometry
from paramdex_schemas.progress import Advance

BLOCK_BYTES = 64 << 20
"""Bytes of a block of similarities on a CPU."""
GPU_BLOCK_BYTES = 1 << 30
"""The same on a GPU, where a block must hold enough work to outweigh copying its rows there."""
_CHUNK = 32
"""The longest chunk, a power of two."""
_LAST_ID = 2**31 - 1
_LOWEST = -(2**63)
"""Below every key: a place not yet taken."""
_STRIPES = 64
"""A block is summed in as many stripes, so that the float64 copy of one stays in the cache."""

Layers = Sequence[tuple[int, int]]
"""Rows [start, stop) of every layer."""
Move = Callable[[str, str], np.ndarray]
"""T (s x r, float64) from a space of the first side into one of the second, by their names."""


class Segment(NamedTuple):
    """Rows of one space: ``rows`` (n x r, float32, possibly memory-mapped), the id of the ``first``, and the name of
    the ``space``. The segments of a side have its ids from 0 on between them, each id once.
    """

    rows: np.ndarray
    first: int
    space: str

    @property
    def end(self) -> int:
        return self.first + len(self.rows)


@dataclass(frozen=True)
class Nearest:
    """The k nearest of each of n rows, nearest first: ``ids`` (n x k, int64) and ``scores`` (n x k, float32)."""

    ids: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Relations:
    """``of_a``: rows of b nearest to each a; ``of_b``: rows of a nearest to each b; ``layers``: mean |S| (La x Lb)."""

    of_a: Nearest
    of_b: Nearest
    layers: np.ndarray | None


# The segments and layers of both sides are plain lists, so that all can be told apart at a call; two have defaults.
def relate(
    a: Sequence[Segment],
    b: Sequence[Segment],
    move: Move | None,
    k: int,
    layers_a: Layers,
    layers_b: Layers,
    device: torch.device,
    advance: Advance = lambda _: None,
    block_bytes: int | None = None,
) -> Relations:
    """The relations of the n rows of ``a`` and the m rows of ``b``, of two sides or models, under ``move``.

    Without ``move`` all rows already share their coordinates. ``k`` is cut to the rows there are; with 0 nothing is
    ranked. ``layers`` is None where either side has no layers; a layer of no rows scores 0 by rule. ``advance`` is told
    of the rows of ``a``, as the pairs of rows are done.

    Memory: the results and, whatever n and m are, one T at a time and a few times ``block_bytes``.
    """
    if block_bytes is None:
        block_bytes = BLOCK_BYTES if device.type == "cpu" else GPU_BLOCK_BYTES
    side = _block_rows(block_bytes, max((segment.rows.shape[1] for segment in [*a, *b]), default=0))
    n, m = (max((segment.end for segment in segments), default=0) for segments in (a, b))
    of_a, of_b = _Best(n, min(k, m), side, device), _Best(m, min(k, n), side, device)
    score = _LayerScores(layers_a, layers_b, block_bytes // (4 * _STRIPES))
    room = torch.empty(_room(a, side), _room(b, side), device=device)
    pairs = 0
    for source, into in product(a, b):
        for i, A in _blocks(source, side, device, None if move is None else move(source.space, into.space)):
            for j, B in _blocks(into, side, device, None):
                block = room[: _whole_chunks(len(A)), : _whole_chunks(len(B))]
                block[len(A) :], block[:, len(B) :] = -torch.inf, -torch.inf  # ids past the last are never nearest
                S = block[: len(A), : len(B)]
                torch.mm(A, B.T, out=S)
                of_a.offer(i, block[: len(A)], j)
                of_b.offer(j, block[:, : len(B)].T, i)
                score.add(S, i, j)
            done, pairs = pairs // max(1, m), pairs + len(A) * len(into.rows)
            advance(pairs // max(1, m) - done)
    return Relations(of_a.found(), of_b.found(), score.means() if layers_a and layers_b else None)


def feature_blocks(rows: np.ndarray, inverse: np.ndarray, device: torch.device) -> Iterator[np.ndarray]:
    """The weights (n x d) that ``rows`` (n x r) are coordinates of, less their means and normalized, so that inner
    products are Pearson correlations over the d features; in blocks (float32).

    ``inverse`` is R^+ (d x r). Write the blocks to a scratch file, then relate two such files without ``move``.
    """
    inverse_T = torch.from_numpy(np.array(inverse, np.float64)).to(device).T
    for part in _even_parts(len(rows), _block_rows(BLOCK_BYTES, max(inverse.shape))):
        weights = _load(rows, part, device).double() @ inverse_T
        weights -= weights.mean(dim=1, keepdim=True)
        norms = weights.norm(dim=1, keepdim=True)
        yield (weights / norms.where(norms > 0, 1.0)).float().cpu().numpy()


def restricted_blocks(rows: np.ndarray, move: np.ndarray, device: torch.device) -> Iterator[np.ndarray]:
    """``rows`` (n x r) on some of the tokens, in blocks (float32): M c, normalized, for M = ``move`` (r' x r). Write
    them to a file, as ``feature_blocks``.
    """
    M = torch.from_numpy(move).to(device)
    for part in _even_parts(len(rows), _block_rows(BLOCK_BYTES, max(move.shape))):
        found = _load(rows, part, device).double() @ M.T
        norms = found.norm(dim=1, keepdim=True)
        found *= torch.where(norms > isometry.RESTRICTED_TO_NOTHING, 1 / norms, 0.0)
        yield found.float().cpu().numpy()


class _Best:
    """The keys (n x k, int64) of the best candidates so far of each of n rows, best first."""

    def __init__(self, n: int, k: int, side: int, device: torch.device) -> None:
        """``side`` is the most candidates per row that are offered at a time."""
        self.keys = torch.full((n, k), _LOWEST, device=device)
        self.chunk = _CHUNK
        # Balances the keys of heads (side / chunk) and of the candidates behind k of them (k * chunk).
        while self.chunk > 1 and k * self.chunk**2 > 2 * side:
            self.chunk //= 2

    def offer(self, row: int, scores: torch.Tensor, first: int) -> None:
        """Consider candidates with ids from ``first`` on for the rows from ``row`` on: ``scores`` (p x q), q in whole
        chunks.
        """
        best = self.keys[row : row + len(scores)]
        k = best.shape[1]
        if not k:
            return
        chunks = torch.unflatten(scores, 1, (-1, self.chunk))  # p x c x chunk
        starts = torch.arange(first, first + scores.shape[1], self.chunk, device=scores.device)
        largest = torch.empty_like(chunks[:, :, 0])  # in memory as the block lies: several times faster for columns
        heads = _keys(torch.amax(chunks, 2, out=largest), starts)  # p x c
        width = min(k, int((heads > best[:, -1:]).sum(1).max()))
        if not width:
            return
        chosen = heads.topk(width, sorted=False).indices  # p x w
        candidates = chunks.gather(1, chosen.unsqueeze(2).expand(-1, -1, self.chunk))  # p x w x chunk
        ids = starts[chosen].unsqueeze(2) + torch.arange(self.chunk, device=scores.device)
        best[:] = torch.cat([best, _keys(candidates, ids).flatten(1)], dim=1).topk(k).values

    def found(self) -> Nearest:
        scores = _sortable((self.keys >> 32).int()).view(torch.float32)
        ids = _LAST_ID - (self.keys & 0xFFFFFFFF)
        return Nearest(ids.cpu().numpy(), scores.cpu().numpy())


def _sortable(bits: torch.Tensor) -> torch.Tensor:
    """The bits of float32 numbers (int32) as integers in the numbers' order; its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _keys(scores: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Integers (int64) in the order of (score descending, id ascending) turned round; shapes broadcast."""
    bits = (scores + 0.0).view(torch.int32)  # -0.0 equals 0.0, so it gets its bits
    return (_sortable(bits).long() << 32).add_(_LAST_ID).sub_(ids)


class _LayerScores:
    """Sums of |S| over pairs of layers, in float64."""

    def __init__(self, layers_a: Layers, layers_b: Layers, stripe: int) -> None:
        self.layers_a, self.layers_b = layers_a, layers_b
        self.stripe = stripe
        self.sums = np.zeros((len(layers_a), len(layers_b)))

    def add(self, S: torch.Tensor, first_row: int, first_column: int) -> None:
        """Count in a block of similarities (p x q) that begins at these rows of a and b."""
        rows = _overlaps(self.layers_a, first_row, S.shape[0])
        columns = _overlaps(self.layers_b, first_column, S.shape[1])
        if not rows or not columns:
            return
        stripes = []
        for part in torch.split(S, max(1, self.stripe // S.shape[1])):
            size = part.abs()
            stripes.append(torch.stack([size[:, cut].sum(1, dtype=torch.float64) for cut in columns.values()], dim=1))
        sums = torch.cat(stripes)  # p x layers
        block = torch.stack([sums[cut].sum(0) for cut in rows.values()])
        self.sums[np.ix_(list(rows), list(columns))] += block.cpu().numpy()

    def means(self) -> np.ndarray:
        sizes = [np.diff(np.array(layers), axis=1).ravel() for layers in (self.layers_a, self.layers_b)]
        return self.sums / np.maximum(np.outer(*sizes), 1)


def _overlaps(layers: Layers, first: int, n: int) -> dict[int, slice]:
    """The part of every layer that lies in the ``n`` rows from ``first`` on, counted from there; others left out."""
    cut = {layer: (max(start - first, 0), min(stop - first, n)) for layer, (start, stop) in enumerate(layers)}
    return {layer: slice(start, stop) for layer, (start, stop) in cut.items() if start < stop}


def _blocks(
    segment: Segment, side: int, device: torch.device, move: np.ndarray | None
) -> Iterator[tuple[int, torch.Tensor]]:
    """The id of the first row and the rows of every block of at most ``side`` rows, taken by ``move`` where given."""
    T = None if move is None else torch.from_numpy(move).to(device).T
    for part in _even_parts(len(segment.rows), side):
        rows = _load(segment.rows, part, device)
        yield segment.first + part.start, rows if T is None else (rows.double() @ T).float()


def _load(rows: np.ndarray, part: slice, device: torch.device) -> torch.Tensor:
    """Some rows on the device: a copy, since mapped rows are read-only and need not be aligned."""
    return torch.from_numpy(np.array(rows[part], np.float32)).to(device)


def _block_rows(block_bytes: int, width: int) -> int:
    """Rows of a block such that neither they (x width) nor their similarities (square) take more, in whole chunks."""
    numbers = block_bytes // 4
    return max(1, min(isqrt(numbers), numbers // max(1, width)) // _CHUNK) * _CHUNK


def _even_parts(n: int, most: int) -> list[slice]:
    """Rows 0 to n in parts of at most ``most``, of about one size, all but the last in whole chunks."""
    step = _whole_chunks(-(-n // max(1, -(-n // most))))
    return [slice(start, min(start + step, n)) for start in range(0, n, max(1, step))]


def _whole_chunks(n: int) -> int:
    return -(-n // _CHUNK) * _CHUNK


def _room(segments: Sequence[Segment], side: int) -> int:
    """Rows of the largest block of ``segments``, in whole chunks."""
    parts = [part for segment in segments for part in _even_parts(len(segment.rows), side)]
    return max((_whole_chunks(part.stop - part.start) for part in parts), default=0)
