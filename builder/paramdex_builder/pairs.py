"""Pairs: the strongest token pairs of a head's matrix, both sides, exact, and never V x V numbers in memory.

A head's matrix over tokens is A B^T with A and B V x d_head (QK: A = E W_Q, B = E W_K; VO: A = E W_V, B = E W_O^T).
A stored score is the float64 value rounded to float32; pairs are ordered by (stored score, source id, target id).

Pairs of one word with itself are few and known, so they are scored directly; the scan below looks for pairs of
different words. Rows are sorted by norm and cut into tiles, and tiles are visited in order of the largest possible
|score| in them, max||a|| max||b|| (Cauchy-Schwarz). A running threshold T, the k-th best stored score found so far,
ends the scan at the first tile that cannot reach it. Within a tile, float32 screening is certified: the factors are
rounded from float64 and multiplied in float32, so the computed s~ of s = <a, b> has

    |s~ - s| <= gamma_{d_head + 2} ||a|| ||b||                                        (Higham 2002, section 3.1)

and a pair with s~ + bound < T can be left out. All others are scored in float64. What underflows adds its own small
term to the bound, and a tile whose numbers could overflow float32 is scored in float64 as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from paramdex_builder.project import LARGEST, SMALLEST, gamma

TILE_ROWS = 512
TILE_COLUMNS = 1024
_DENSE = 16
"""A tile with more than 1/_DENSE of its pairs over the threshold is scored in float64 as a whole."""


@dataclass
class Pairs:
    """Pairs in order, strongest first: ``source``, ``target`` (m, int64) and ``score`` (m, float32)."""

    source: torch.Tensor
    target: torch.Tensor
    score: torch.Tensor

    def __len__(self) -> int:
        return len(self.score)

    def best(self, k: int) -> Pairs:
        """The k best by (score descending, source, target)."""
        if len(self) > 4 * k:  # keep what is at least the k-th score, ties included, before the full sort
            kept = self.score >= self.score.topk(k).values[-1]
            source, target, score = self.source[kept], self.target[kept], self.score[kept]
        else:
            source, target, score = self.source, self.target, self.score
        order = target.argsort(stable=True)
        order = order[source[order].argsort(stable=True)]
        order = order[score[order].argsort(descending=True, stable=True)][:k]
        return Pairs(source[order], target[order], score[order])

    @staticmethod
    def cat(*parts: Pairs) -> Pairs:
        return Pairs(
            torch.cat([p.source for p in parts]),
            torch.cat([p.target for p in parts]),
            torch.cat([p.score for p in parts]),
        )

    @staticmethod
    def empty(device: torch.device) -> Pairs:
        none = torch.empty(0, dtype=torch.int64, device=device)
        return Pairs(none, none.clone(), torch.empty(0, device=device))


@dataclass
class Words:
    """Which tokens are one word: ``number`` (V), equal for one word, and every ordered pair of such tokens."""

    number: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor


def same_words(numbers: np.ndarray, device: torch.device) -> Words:
    """Every ordered pair of tokens of one word, each token with itself included, from the word numbers (V)."""
    order = np.argsort(numbers, kind="stable")
    starts = np.flatnonzero(np.diff(numbers[order], prepend=-1))
    groups = np.split(order, starts[1:])
    source = np.concatenate([np.repeat(group, len(group)) for group in groups])
    target = np.concatenate([np.tile(group, len(group)) for group in groups])
    as_tensor = lambda array: torch.from_numpy(np.ascontiguousarray(array)).to(device)  # noqa: E731
    return Words(as_tensor(numbers), as_tensor(source), as_tensor(target))


@dataclass
class _Side:
    """The search on one side: ``sign`` 1 for top, -1 for bottom; ``found`` holds sign * stored score."""

    sign: int
    k: int
    found: Pairs

    @property
    def threshold(self) -> float:
        """The k-th best so far; -inf until there are k."""
        return float(self.found.score[-1]) if len(self.found) == self.k else -np.inf

    def offer(self, new: Pairs) -> None:
        if len(new):
            self.found = Pairs.cat(self.found, new).best(self.k)

    def enters(self, signed: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Which of the stored scores ``signed`` (times sign) come before the last pair found; shapes broadcast."""
        if len(self.found) < self.k:
            return torch.ones_like(signed, dtype=torch.bool)
        last_source, last_target = self.found.source[-1], self.found.target[-1]
        earlier = (source < last_source) | ((source == last_source) & (target < last_target))
        return (signed > self.threshold) | ((signed == self.threshold) & earlier)

    def beyond(self, bound: float, source: int, target: int) -> bool:
        """Whether no pair with |score| <= ``bound`` and ids from (source, target) on can enter."""
        if len(self.found) < self.k:
            return False
        if bound != self.threshold:
            return bound < self.threshold
        return (source, target) > (int(self.found.source[-1]), int(self.found.target[-1]))


@dataclass
class _Factor:
    """One factor, its rows sorted by norm: float64 and float32 rows, their token ids, norms and tiles."""

    exact: torch.Tensor
    screen: torch.Tensor
    ids: torch.Tensor
    step: int
    largest: list[float]
    first_id: list[int]

    @classmethod
    def of(cls, rows: torch.Tensor, step: int) -> _Factor:
        norms = rows.norm(dim=1)
        ids = norms.argsort(descending=True, stable=True)
        exact = rows[ids]
        tiles = ids.split(step)
        return cls(
            exact, exact.float(), ids, step,
            [float(norms[tile[0]]) for tile in tiles], [int(tile.min()) for tile in tiles],
        )  # fmt: skip

    def tile(self, number: int) -> slice:
        return slice(number * self.step, (number + 1) * self.step)


def _tile(A: _Factor, B: _Factor, i: int, j: int, sides: list[_Side], words: Words) -> None:
    """Search one tile of A B^T on both sides."""
    rows, columns = A.tile(i), B.tile(j)
    sources, targets = A.ids[rows], B.ids[columns]
    a, b, n = A.largest[i], B.largest[j], A.exact.shape[1] + 2
    # Twice the norms' product covers the rounding of the norms themselves and of a threshold held in float32; the
    # second term covers factors, products and thresholds that underflow.
    slack = 2 * gamma(n) * a * b + n * SMALLEST * (1 + a + b)
    screens = max(a, b, a * b) < LARGEST  # else float32 may hold infinities, of which no sum is known
    screened = A.screen[rows] @ B.screen[columns].T
    low, high = screened.amin(dim=1), screened.amax(dim=1)  # faster than aminmax along a dimension
    exact: torch.Tensor | None = None
    for side in sides:
        hot = ((high if side.sign > 0 else -low) + slack >= side.threshold).nonzero().flatten()
        if screens and not len(hot):
            continue
        limit = side.threshold - slack
        part = screened[hot]
        over = part >= limit if side.sign > 0 else part <= -limit
        if screens and int(over.sum()) * _DENSE <= screened.numel():
            r, c = over.nonzero(as_tuple=True)
            r = hot[r]
            different = words.number[sources[r]] != words.number[targets[c]]
            r, c = r[different], c[different]
            score = (A.exact[rows][r] * B.exact[columns][c]).sum(1).float() * side.sign
            side.offer(Pairs(sources[r], targets[c], score))
            continue
        if exact is None:
            exact = (A.exact[rows] @ B.exact[columns].T).float()
        signed = exact * side.sign
        over = side.enters(signed, sources[:, None], targets[None, :])
        over &= words.number[sources][:, None] != words.number[targets][None, :]
        if int(over.sum()) > side.k:
            over &= signed >= signed[over].topk(side.k).values[-1]
        r, c = over.nonzero(as_tuple=True)
        side.offer(Pairs(sources[r], targets[c], signed[r, c]))


@dataclass
class HeadPairs:
    """One side of a head's matrix: the best ``distinct`` (of different words), and the best of ``all`` pairs."""

    distinct: Pairs
    all: Pairs


def above(bound: float) -> float:
    """A float32 value at least as large as every stored score of size <= ``bound`` (0 stays 0)."""
    if not bound:
        return 0.0
    with np.errstate(over="ignore"):
        return float(np.nextafter(np.float32(bound), np.float32(np.inf)))


def strongest_pairs(A: torch.Tensor, B: torch.Tensor, words: Words, k: int) -> dict[str, HeadPairs]:
    """The k strongest pairs of A B^T (A, B: V x d_head, float64), overall and of different words, both sides.

    Fewer where there are fewer pairs. Works on the device of ``A``.
    """
    sides = [_Side(sign, k, Pairs.empty(A.device)) for sign in (1, -1)]
    left, right = _Factor.of(A, TILE_ROWS), _Factor.of(B, TILE_COLUMNS)
    # 1 + 1e-12 covers the rounding of the float64 norms and of their product.
    bounds = np.outer(left.largest, right.largest) * (1 + 1e-12)
    for flat in np.argsort(-bounds, axis=None, kind="stable"):
        i, j = np.unravel_index(flat, bounds.shape)
        bound = above(float(bounds[i, j]))
        alive = [side for side in sides if not side.beyond(bound, left.first_id[i], right.first_id[j])]
        if alive:
            _tile(left, right, int(i), int(j), alive, words)
        elif bound < min(side.threshold for side in sides):
            break
    same_score = torch.cat(
        [
            (A[s] * B[t]).sum(1).float()
            for s, t in zip(words.source.split(1 << 16), words.target.split(1 << 16), strict=True)
        ]
    )
    result = {}
    for name, side in zip(("top", "bottom"), sides, strict=True):
        same = Pairs(words.source, words.target, same_score * side.sign).best(k)
        both = Pairs.cat(side.found, same).best(k)
        result[name] = HeadPairs(
            Pairs(side.found.source, side.found.target, side.found.score * side.sign),
            Pairs(both.source, both.target, both.score * side.sign),
        )
    return result


def pair_moments(A: torch.Tensor, B: torch.Tensor) -> tuple[float, float]:
    """Mean and population standard deviation of all V^2 scores of A B^T, in closed form from two small Grams.

    With A = 1 a^T + A', B = 1 b^T + B' (a, b the column means), the score <a_i, b_j> is <a, b> + <a, b'_j> + <a'_i, b>
    + <a'_i, b'_j>; the last three have mean 0 and are uncorrelated, so the variance is the sum of their mean squares.
    """
    a, b = A.mean(0), B.mean(0)
    cov_a, cov_b = (A - a).T @ (A - a) / len(A), (B - b).T @ (B - b) / len(B)
    variance = float(a @ cov_b @ a + b @ cov_a @ b + (cov_a * cov_b).sum())
    return float(a @ b), max(variance, 0.0) ** 0.5


def frobenius(P: torch.Tensor, Q: torch.Tensor) -> float:
    """||P^T Q||_F for P, Q (d_head x d): the norm of the d x d matrix they make, from two small Grams."""
    P, Q = P.double(), Q.double()
    return max(float(((P @ P.T) * (Q @ Q.T)).sum()), 0.0) ** 0.5
