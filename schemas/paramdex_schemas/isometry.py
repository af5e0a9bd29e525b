"""Isometric coordinates: what the numbers in an atlas's vector indexes mean.

A parameter w (d) has the V scores E w. They need not be stored: with Ec = E minus its column means,
G = Ec^T Ec and any R with R^T R = G, the coordinates c = R w satisfy

    <c1, c2> = w1^T G w2 = <Ec w1, Ec w2>,

so the inner product of two *normalized* coordinate vectors is the Pearson correlation of the two V-long score
vectors, exactly. R is taken from the eigendecomposition G = U diag(l) U^T as R = diag(sqrt(l)) U^T without the null
space (r x d, r the rank), and R^+ = U diag(1 / sqrt(l)) is its right inverse.

Across two models A and B with the same rows of E, the transfer matrix

    T = (Ec_B R_B^+)^T (Ec_A R_A^+) = R_B^+T (Ec_B^T Ec_A) R_A^+         (r_B x r_A)

is the Gram matrix of two orthonormal bases. For normalized coordinates a of A and b of B, <T a, b> is the Pearson
correlation of the two score vectors, exactly and whatever the widths; T^T goes the other way.

On some of the tokens alone the same holds of those rows of E, centred anew, and their root R'. M = R' R^+ takes
coordinates c to M c, which are normalized again; M is no longer than 1, because the Gram matrix of fewer centred rows
is no larger.

All functions are pure, in NumPy and float64 inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Root:
    """A root of a Gram matrix: ``root`` R = diag(sqrt(l)) U^T (r x d, float64), the largest l first."""

    root: Array

    @property
    def rank(self) -> int:
        return len(self.root)

    @cached_property
    def values(self) -> Array:
        """The eigenvalues l (r), the squares of the norms of R's rows."""
        values: Array = np.einsum("ij,ij->i", self.root, self.root)
        return values

    @cached_property
    def inverse(self) -> Array:
        """R^+ = R^T diag(1 / l) (d x r)."""
        return self.root.T / self.values

    @cached_property
    def keeps_features(self) -> bool:
        """Whether R w determines w up to its mean: R has no null space, or only the vector of ones, as for an embedding
        that follows a LayerNorm.
        """
        rank, d = self.root.shape
        ones = np.full(d, d**-0.5)
        return rank == d or (rank == d - 1 and bool(np.linalg.norm(self.root @ ones / np.sqrt(self.values)) < 1e-6))

    @cached_property
    def condition(self) -> float:
        """The largest eigenvalue over the smallest; 0 if there are none."""
        return float(self.values.max() / self.values.min()) if self.rank else 0.0

    @cached_property
    def rounding(self) -> float:
        """For w of norm 1, R w counts as zero up to this length: gamma_d ||R||_F, 4 times for R's own rounding. What R
        keeps is longer by far, unless w is almost at right angles to all of it.
        """
        return float(4 * max(self.root.shape) * np.finfo(np.float64).eps * np.linalg.norm(self.root))


def gram_root(gram: Array, n_rows: int) -> Root:
    """The root of G = Ec^T Ec (d x d, float64), by eigendecomposition, without its null space. G is overwritten.

    An eigenvalue counts as null below ``max(n_rows, d) * eps * l_max``, the size of the rounding errors in a float64
    sum of ``n_rows`` outer products.

    >>> r = gram_root(np.diag([4.0, 1.0, 0.0]), 10)
    >>> r.rank, r.condition, np.allclose(r.root.T @ r.root, np.diag([4.0, 1.0, 0.0]))
    (2, 4.0, True)
    """
    from scipy.linalg import eigh

    gram = np.require(gram, np.float64, ["C", "W"])
    # LAPACK has matrices by columns, which G's transpose is without a copy.
    values, vectors = eigh(gram.T, driver="evd", overwrite_a=True, check_finite=False)
    values, vectors = values[::-1], vectors[:, ::-1]
    cutoff = max(n_rows, len(values)) * np.finfo(np.float64).eps * max(values[0], 0.0)
    rank = int((values > cutoff).sum())
    return Root(np.sqrt(values[:rank, None]) * vectors[:, :rank].T)


def normalize(rows: Array, nothing: float = 0.0) -> Array:
    """Each row divided by its norm. A row no longer than ``nothing`` becomes zero: it correlates with nothing."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    found: Array = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > nothing)
    return found


def restriction(some: Root, whole: Root) -> Array:
    """M (r' x r) from coordinates under the root of all rows of E to those under the root of some of them."""
    return some.root @ whole.inverse


RESTRICTED_TO_NOTHING = 2.0**-23
"""For normalized coordinates c kept in float32, M c counts as zero up to this length, as of scores that are equal on
the tokens chosen: |c - c'| <= 2^-24, and M is no longer than 1.
"""


def transfer(cross_gram: Array, source: Root, target: Root) -> Array:
    """T (r_target x r_source) from the cross-Gram Ec_target^T Ec_source (d_target x d_source)."""
    return half_transfer(cross_gram, target) @ source.inverse


def half_transfer(cross_gram: Array, target: Root) -> Array:
    """R_target^+T C (r_target x d_source) of the cross-Gram C; T is that times R_source^+."""
    half = target.root @ np.asarray(cross_gram, np.float64)
    half /= target.values[:, None]
    return half


def times_vector(matrix: Array, vector: Array) -> Array:
    """M v (n, float64) of a matrix (n x m) and a vector (m), on one core.

    What a search begins with: the threads of a BLAS would spin on for a while, on the cores that it needs.
    """
    product: Array = np.einsum("ij,j->i", matrix, vector.astype(np.float64))
    return product


def mean_absolute(a: Array, b: Array) -> float:
    """Mean |<a_i, b_j>| over all pairs of rows of ``a`` (n x r) and ``b`` (m x r): the paper's layer similarity."""
    return float(np.abs(a @ b.T).mean(dtype=np.float64))


def layer_scores(a: list[Array], b: list[Array]) -> Array:
    """mean_absolute of every layer of ``a`` with every layer of ``b``, in the same coordinates (len(a) x len(b))."""
    return np.array([[mean_absolute(x, y) for y in b] for x in a])


def match_layers(scores: Array) -> npt.NDArray[np.bool_]:
    """The Hungarian assignment of rows to columns that maximizes the sum of ``scores``, as a mask of its shape.

    >>> match_layers(np.array([[0.1, 0.9], [0.8, 0.7]])).tolist()
    [[False, True], [True, False]]
    """
    from scipy.optimize import linear_sum_assignment

    matched = np.zeros(scores.shape, dtype=bool)
    matched[linear_sum_assignment(scores, maximize=True)] = True
    return matched


def strongest(values: np.ndarray, k: int, mask: np.ndarray | None = None) -> np.ndarray:
    """The ids of the k largest of ``values`` (V, float32), ties by the smaller id; ``mask`` (V) says which may be.

    >>> strongest(np.array([1.0, 3.0, 2.0, 3.0], np.float32), 3).tolist()
    [1, 3, 2]
    """
    ids = np.arange(len(values)) if mask is None else np.flatnonzero(mask)
    chosen = values[ids]
    if len(ids) > k:
        least = np.partition(chosen, len(ids) - k)[len(ids) - k]
        ids = ids[chosen >= least]
    return ids[np.lexsort((ids, -values[ids]))][:k]
