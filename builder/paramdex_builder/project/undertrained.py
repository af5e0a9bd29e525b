"""Under-trained tokens: entries of the vocabulary that the training text hardly used, found from E alone.

After Land and Bartolo, "Fishing for Magikarp" (EMNLP 2024, arXiv 2405.05417): what is never a target is moved by every
step in the same direction and by nothing else, so such rows all point one way. Their measure is the cosine of a row
with the mean of rows that are known to be unused, both without the first principal component of E, which nearly all
rows have in common. What is known to be unused differs from tokenizer to tokenizer; here it is found as well:

* Without the first component, the SEEDS shortest rows are taken: training makes rows longer.
* Where their directions have a mean cosine of COHERENT with each other, they are under-trained. The shortest rows of a
  vocabulary that is trained throughout have nothing in common (0.03 to 0.07 in the demo models, 0.75 in MiniLM), and
  the model has no under-trained tokens.
* Their mean direction is the first guess; ROUNDS times, that of all rows whose cosine with it is LEAST takes its place.

Under-trained rows that are not shorter than trained ones are not found.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq

from paramdex_schemas.isometry import Root

SEEDS = 16
"""Rows of which the first guess is made; few, since a vocabulary may have few such tokens."""
COHERENT = 0.4
"""Mean cosine between the seeds from which on they are taken for under-trained."""
LEAST = 0.7
"""Score of an under-trained token; in MiniLM hardly any token has one between 0.3 and 0.7."""
ROUNDS = 5
_CHUNK = 2048
"""Rows of E that are held in float64 at a time."""


@dataclass(frozen=True)
class TokenEmbeddings:
    """What the rows of E say of their tokens: ``norm`` (V, float32) and ``score`` (V, float32), a cosine from -1 to 1
    with the direction of the under-trained ones; None where there are none.
    """

    norm: np.ndarray
    score: np.ndarray | None

    @property
    def undertrained(self) -> np.ndarray:
        """Which tokens are under-trained (V, bool)."""
        return np.zeros(len(self.norm), bool) if self.score is None else self.score >= np.float32(LEAST)


def token_embeddings(E: torch.Tensor, means: np.ndarray, root: Root) -> TokenEmbeddings:
    """Of E (V x d), its column means and the root of its centred Gram matrix. The first component c is that of E as it
    is.

    A row of zeros, or of nothing but c, has the score 0.
    """
    first = first_component(means, root, len(E))
    norm, along = _norms(E), _products(E, first)
    rest = np.sqrt(np.maximum(norm**2 - along**2, 0.0))
    there = rest > 1e-12 * norm.max(initial=0.0)
    seeds = np.flatnonzero(there)
    seeds = np.sort(seeds[np.argsort(rest[seeds].astype(np.float32), kind="stable")[:SEEDS]])
    score = None
    if len(E) >= 4 * SEEDS and len(seeds) == SEEDS:
        directions = _without(E, seeds, first, rest)
        total = directions.sum(axis=0)
        if (total @ total - SEEDS) / (SEEDS * (SEEDS - 1)) >= COHERENT:
            score = _cosines(E, total, rest, there)
            for _ in range(ROUNDS):
                alike = np.flatnonzero(score >= np.float32(LEAST))
                if not len(alike):
                    break
                # the sum of the directions is a weighted sum of the rows of E, without c
                total = _weighted(E, alike, rest)
                total -= first * (first @ total)
                score = _cosines(E, total, rest, there)
    return TokenEmbeddings(norm.astype(np.float32), score)


def first_component(means: np.ndarray, root: Root, V: int) -> np.ndarray:
    """The eigenvector (d) of the largest eigenvalue of E^T E = R^T R + V m m^T, from R (r x d) and the means m (d) of E
    (V x d); zeros where E is zero.

    With R = diag(sqrt(l)) U^T, l_1 the largest, and m = U z + z_0 u_0, u_0 at right angles to U, it is in the basis U,
    u_0 a diagonal matrix, of l and of l_0 = 0, and V z z^T. Its largest eigenvalue is l_1 + x for the one x > 0 with
    sum of V z_i^2 / (x + l_1 - l_i) = 1, and (z_i / (x + l_1 - l_i)) the eigenvector (Golub 1973). The sum falls with
    x, is at least 1 at V z_1^2, and at most 1 at V ||m||^2. Where there is no such x, z_1 is 0, and the first row of U
    is the eigenvector.
    """
    scale = np.sqrt(root.values)
    inside = root.root @ means / scale
    outside = means - (inside / scale) @ root.root
    z = np.append(inside, np.linalg.norm(outside))
    gaps = root.values.max(initial=0.0) - np.append(root.values, 0.0)
    weights = V * z**2

    def excess(x: float) -> float:
        return float(np.divide(weights, x + gaps, out=np.zeros_like(z), where=weights > 0).sum()) - 1

    least, most = float(weights[gaps == 0].sum()), float(weights.sum())
    if most == 0 or (least == 0 and excess(0) <= 0):
        return root.root[gaps[:-1].argmin()] / scale.max() if root.rank else np.zeros_like(means)
    if excess(least) <= 0:
        x = least
    elif excess(most) >= 0:  # by rounding
        x = most
    else:
        x = brentq(excess, least, most, xtol=np.finfo(np.float64).tiny, maxiter=5000)
    first: np.ndarray = (inside / (x + gaps[:-1]) / scale) @ root.root + outside / (x + gaps[-1])
    first /= np.linalg.norm(first)
    return first


def _norms(E: torch.Tensor) -> np.ndarray:
    """||e|| of every row (V, float64)."""
    parts = [torch.linalg.vector_norm(part.double(), dim=1) for part in torch.split(E, _CHUNK)]
    return torch.cat(parts).cpu().numpy()


def _products(E: torch.Tensor, direction: np.ndarray) -> np.ndarray:
    """<e, direction> of every row (V, float64)."""
    on_device = torch.from_numpy(np.ascontiguousarray(direction)).to(E.device)
    return torch.cat([part.double() @ on_device for part in torch.split(E, _CHUNK)]).cpu().numpy()


def _without(E: torch.Tensor, rows: np.ndarray, first: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """The directions (len(rows) x d, float64) of some rows without their part along ``first``."""
    chosen = E[torch.from_numpy(rows).to(E.device)].double().cpu().numpy()
    chosen -= np.outer(chosen @ first, first)
    chosen /= rest[rows, None]
    return chosen


def _weighted(E: torch.Tensor, rows: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """The sum (d, float64) of some rows, each over its length without the first component."""
    total = np.zeros(E.shape[1])
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        total += (1 / rest[part]) @ E[torch.from_numpy(part).to(E.device)].double().cpu().numpy()
    return total


def _cosines(E: torch.Tensor, direction: np.ndarray, rest: np.ndarray, there: np.ndarray) -> np.ndarray:
    """The cosine (V, float32) of every row without its first component with ``direction``, which has none of it."""
    products = _products(E, direction / np.linalg.norm(direction))
    cosines: np.ndarray = np.divide(products, rest, out=np.zeros_like(products), where=there)
    return cosines.clip(-1, 1).astype(np.float32)
