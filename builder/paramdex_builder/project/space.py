"""The spaces of a model on a device: the rows that score, their column means, the root of their Gram matrix, and
coordinates.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from paramdex_schemas import BuildError, isometry
from paramdex_schemas.errors import quoted
from paramdex_schemas.progress import Advance

_CHUNK = 2048
"""Rows of E that are held in float64 at a time."""
_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]+)?")


@dataclass(eq=False)
class TokenRows:
    """What vectors are scored by: a row x_t for every token, that of an ``embedding`` E (V x d, on the device, float32
    or what it is stored in), or f_t e_t where there are ``factors`` f (V, float64).
    """

    embedding: torch.Tensor
    means: torch.Tensor
    """Of the columns (d, float64)."""
    longest: float
    """Norm of the longest row."""
    factors: torch.Tensor | None = field(default=None, kw_only=True)
    plain: TokenRows | None = field(default=None, kw_only=True)
    """The rows e_t of the same embedding, where these are f_t e_t."""

    @property
    def size(self) -> int:
        return self.embedding.shape[0]

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> torch.Tensor:
        """Some of the rows (n x d, float64)."""
        rows = self.embedding[part].double()
        return rows if self.factors is None else rows * self.factors[part, None]

    def spread(self) -> isometry.Root:
        """R with ||R w|| / sqrt(V) the standard deviation of all scores of w."""
        return isometry.gram_root(centred_gram(self, self.means, self, self.means), self.size)


@dataclass(eq=False)
class Space(TokenRows):
    """The rows that a kind of vectors is scored by and compared in, with the root of their centred Gram matrix."""

    root: isometry.Root

    def spread(self) -> isometry.Root:
        return self.root

    def coordinates(self, rows: torch.Tensor) -> torch.Tensor:
        """R w of every row w of ``rows`` (n x d): n x r, float64."""
        return rows.double() @ self._root.to(rows.device).T

    @cached_property
    def grams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """X^T X / V and X'^T X' / V (d x d, float64) of the rows X, and of X' less their mean."""
        centred = self._root.T @ self._root / self.size
        return centred + torch.outer(self.means, self.means), centred

    @cached_property
    def _root(self) -> torch.Tensor:
        return torch.from_numpy(self.root.root).to(self.embedding.device)

    def describe(self, rows: torch.Tensor) -> Described:
        """What an atlas keeps of every row w of ``rows`` (n x d) beside its tokens, one block of rows at a time."""
        norms, means, stds = (torch.empty(len(rows), dtype=torch.float64, device=rows.device) for _ in range(3))
        normalized = torch.empty(len(rows), self.root.rank, device=rows.device)
        for start in range(0, len(rows), _CHUNK):
            here = slice(start, start + _CHUNK)
            w = rows[here].double()
            c = self.coordinates(w)
            norm, length = w.norm(dim=1), c.norm(dim=1)
            length = length.where(length > self.root.rounding * norm, 0.0)
            norms[here], means[here], stds[here] = norm, w @ self.means, length / self.size**0.5
            normalized[here] = torch.where(length > 0, 1 / length, 0.0)[:, None].mul(c)
        return Described(norms, means, stds, normalized)


@dataclass
class Described:
    """Of n rows w: ``norm`` ||w||, ``mean`` and population standard deviation ``std`` of the V scores E w (n each,
    float64), and ``coordinates``, normalized (n x r, float32; zero for a row of equal scores).

    mean = <column means of E, w>; std = ||Ec w|| / sqrt(V) = ||R w|| / sqrt(V).
    """

    norm: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    coordinates: torch.Tensor


def make_space(embedding: torch.Tensor, device: torch.device, advance: Advance = lambda _: None) -> Space:
    """The space of an output embedding E (V x d, of a floating dtype of at most 32 bits). ``advance`` is called with
    the ``space_work`` that is done.
    """
    E = embedding.to(device)
    means = column_means(E)
    gram = centred_gram(E, means, E, means, advance)
    root = isometry.gram_root(gram, len(E))
    advance(_decomposing(E.shape[1]))
    return Space(E, means, longest_row(TokenRows(E, means, 0.0)), root)


def scaled(rows: TokenRows, factors: torch.Tensor) -> TokenRows:
    """The rows f_t e_t of some plain rows e_t, for factors f (V, float64)."""
    found = TokenRows(rows.embedding, rows.means, 0.0, factors=factors, plain=rows)
    return replace(found, means=column_means(found), longest=longest_row(found))


def longest_row(rows: TokenRows) -> float:
    """The norm of the longest row."""
    starts = range(0, len(rows), _CHUNK)
    return max(float(torch.linalg.vector_norm(rows[start : start + _CHUNK], dim=1).max()) for start in starts)


def space_work(V: int, d: int) -> int:
    """The work that the space of E (V x d) takes, in rows of E: all go into the Gram matrix, which is decomposed."""
    return V + _decomposing(d)


def _decomposing(d: int) -> int:
    """Rows whose products take about as long as decomposing their Gram matrix (d x d)."""
    return 6 * d


def column_means(A: Any) -> torch.Tensor:
    """The means of the columns (d, float64) of A (V x d): a tensor, or anything whose slices are blocks of rows."""
    parts = (A[start : start + _CHUNK].double().sum(0) for start in range(0, len(A), _CHUNK))
    return sum(parts, torch.zeros(1, device=A.device)) / len(A)


def centred_gram(
    A: Any, mean_a: torch.Tensor, B: Any, mean_b: torch.Tensor, advance: Advance = lambda _: None
) -> np.ndarray:
    """(A - mean_a)^T (B - mean_b), d_A x d_B in float64, for A (V x d_A) and B (V x d_B) with the same rows.

    Both are tensors, or anything whose slices are blocks of rows. B may be the slice of a safetensors file, which is
    read one block at a time. ``advance`` is called with numbers of rows.
    """
    total: Any = 0.0
    for start in range(0, len(A), _CHUNK):
        a, b = (X[start : start + _CHUNK].to(A.device).double() for X in (A, B))
        total += (a - mean_a).T @ (b - mean_b)
        advance(len(a))
    found: np.ndarray = total.cpu().numpy()
    return found


def pick_device(name: str) -> torch.device:
    """The device for ``auto``, ``cpu``, ``cuda`` or ``cuda:1``: with ``auto`` a GPU where there is one.

    Raises BuildError for any other name, and for a GPU that is not there.
    """
    if not isinstance(name, str) or not _DEVICE.fullmatch(name):
        reason = "there are auto, cpu, cuda and cuda:N"
        raise BuildError(f"device {quoted(name)} cannot be used here ({reason}); try --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BuildError(f"device {name!r} cannot be used here ({reason}); try --device cpu") from error
    return device
