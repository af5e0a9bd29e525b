"""Whether parameters can be read in embedding space: the measures of Dar et al. 2022 on any model and text, and whether
a parameter fires on what its table says.

states    At a token, the parameters of a layer that are most active there share strongest tokens with the state that
          leaves the layer (the paper's figure of hidden states and parameters): the share of the state's k strongest
          tokens that are among the k strongest of any of its ``active`` most active parameters.
pairs     Vectors that belong to one neuron, or to one dimension of a head, have strongest tokens in common: Jaccard's
          |A & B| / |A | B| of the ``pair_k`` tokens with the largest |score| (its appendix on related pairs).
keep_k    Whether E^T may stand for the inverse of E: vectors X, projected, only the k largest |scores| kept, are
          compared by the cosine between X X^T and keep_k(X E) keep_k(X E')^T, for E' = E^T and for the pseudo-inverse
          (its appendix A).
reads     Over the tokens of a text, the correlation of a parameter's activation, w x for the state x that its layer
          reads, with what a table says of the current token: the token's score. The mean over the parameters.
hits      Of the HITS tokens at which a parameter is most active, the share that is in the top TOP of its table. The
          mean over parameters.

Other modules have ``coherence``, ``hubs`` and ``writes``.

The formulas of the first three are those of the paper's notebook ``interpretation-experiments``, in its row form, E
d x V; here E is V x d.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

_CHUNK = 512
HITS, TOP = 20, 0.01
KEPT = (10, 30, 100, 300, 1000, 3000, 10_000, 30_000)
"""How many scores are kept, where the vocabulary has more; and then all."""


@dataclass(frozen=True)
class Measured:
    """A value, its baseline's mean and standard deviation over draws, and the share of draws that reach the value,
    counting the value itself as one of them.
    """

    value: float
    baseline: float
    deviation: float | None = None
    p_value: float | None = None


def strongest(rows: torch.Tensor, E: torch.Tensor, k: int, *, absolute: bool = False) -> torch.Tensor:
    """The ids (n x k, in no order) of the k largest scores E w, or |scores|, of each row w of ``rows`` (n x d)."""
    found = []
    for chunk in torch.split(rows, _CHUNK):
        scores = chunk.to(E.dtype) @ E.T
        found.append(torch.topk(scores.abs() if absolute else scores, k, dim=1, sorted=False).indices)
    return torch.cat(found) if found else torch.zeros(0, k, dtype=torch.int64)


def marks(ids: torch.Tensor, size: int) -> torch.Tensor:
    """Sets of ids (n x k) as rows of booleans (n x size)."""
    return torch.zeros(len(ids), size, dtype=torch.bool).scatter_(1, ids, True)


def covered(held: torch.Tensor, chosen: torch.Tensor, wanted: torch.Tensor) -> float:
    """The mean share of ``wanted[i]`` (n x k ids) that any of the sets ``held[chosen[i]]`` holds.

    ``held`` are sets as booleans (m x V), ``chosen`` are rows of it (n x a).
    """
    hits = torch.zeros(wanted.shape, dtype=torch.bool)
    for column in chosen.T:
        hits |= held[column[:, None], wanted]
    return float(hits.double().mean())


def jaccard(held: torch.Tensor, ids: torch.Tensor) -> float:
    """The mean of |A & B| / |A | B| for the sets A = ``held[i]`` (n x V booleans, k each true) and B = ``ids[i]``
    (n x k).
    """
    both = held.gather(1, ids).sum(1).double()
    return float((both / (2 * ids.shape[1] - both)).mean())


def against(value: float, draw: Callable[[], float], draws: int) -> Measured:
    """A value beside ``draws`` of its baseline."""
    return beside(value, torch.tensor([draw() for _ in range(draws)], dtype=torch.float64))


def beside(value: float, drawn: torch.Tensor) -> Measured:
    """A value beside what was ``drawn`` of its baseline (float64)."""
    reached = int((drawn >= value).sum())
    return Measured(value, float(drawn.mean()), float(drawn.std(correction=0)), (reached + 1) / (len(drawn) + 1))


def state_overlap(
    active: torch.Tensor,
    rows: torch.Tensor,
    of_state: torch.Tensor,
    E: torch.Tensor,
    k: int,
    draws: int,
    generator: torch.Generator,
) -> dict[str, Measured]:
    """``states`` of one kind in one layer, for the numbers of the parameters active at each token (n x a), the kind's
    rows (m x d) and the strongest ids of each token's state (n x k): against parameters drawn at random, and against
    those that are active at another token.
    """
    sample = torch.randperm(len(rows), generator=generator)[: max(len(active), 1)]
    used, places = torch.unique(torch.cat([active.flatten(), sample]), return_inverse=True)
    held = marks(strongest(rows[used], E, k), len(E))
    chosen, drawn = places[: active.numel()].view(active.shape), places[active.numel() :]
    value = covered(held, chosen, of_state)

    def random() -> float:
        order = drawn[torch.randperm(len(drawn), generator=generator)]
        start = torch.randint(len(drawn), (len(chosen), 1), generator=generator)
        neighbors = (start + torch.arange(min(active.shape[1], len(drawn)))) % len(drawn)  # distinct at each token
        return covered(held, order[neighbors], of_state)

    def elsewhere() -> float:
        return covered(held, chosen[torch.randperm(len(chosen), generator=generator)], of_state)

    return {
        "random": against(value, random, draws),
        "active elsewhere": against(value, elsewhere, draws),
    }


def pair_overlap(
    left: torch.Tensor, right: torch.Tensor, E: torch.Tensor, k: int, draws: int, generator: torch.Generator
) -> Measured:
    """``pairs`` of the rows of ``left`` and ``right`` (n x d each), against the same rows in shuffled pairs."""
    held = marks(strongest(left, E, k, absolute=True), len(E))
    ids = strongest(right, E, k, absolute=True)

    def shuffled() -> float:
        return jaccard(held, ids[torch.randperm(len(ids), generator=generator)])

    return against(jaccard(held, ids), shuffled, draws)


def keep_k(scores: torch.Tensor, k: int) -> torch.Tensor:
    """The scores (n x V) with all but the k largest in size of each row set to 0."""
    ids = torch.topk(scores.abs(), k, dim=1, sorted=False).indices
    return torch.zeros_like(scores).scatter_(1, ids, scores.gather(1, ids))


def robustness(X: torch.Tensor, E: torch.Tensor, kept: Sequence[int]) -> dict[int, Measured]:
    """``keep_k`` of the vectors X (n x d) for every k of ``kept``: with E^T, against the pseudo-inverse."""
    E = E.float()
    gram = E.double().T @ E.double()
    inner = (X.double() @ X.double().T).flatten()
    by_transpose = X.float() @ E.T
    by_inverse = (X.double() @ torch.linalg.pinv(gram, hermitian=True, rtol=1e-12)).float() @ E.T
    found = {}
    for k in kept:
        left = keep_k(by_transpose, k)
        transpose, inverse = (
            float(torch.nn.functional.cosine_similarity(inner, product.double().flatten(), dim=0))
            for product in (left @ left.T, left @ keep_k(by_inverse, k).T)
        )
        found[k] = Measured(transpose, inverse)
    return found


def standard(values: torch.Tensor) -> torch.Tensor:
    """Columns (n x m, float64) of mean 0 and length 1; a constant column is 0."""
    rows = values.double()
    rows = rows - rows.mean(dim=0)
    size = rows.norm(dim=0)
    return rows / torch.where(size > 0, size, 1)


def correlation(activations: torch.Tensor, scores: torch.Tensor, draws: int, generator: torch.Generator) -> Measured:
    """``reads``: the mean over m parameters of the correlation of their activations and their tables' scores of the
    tokens at n positions (both n x m).

    With both standardized, all that any order of the tokens gives stands in A S^T (n x n): the mean correlation is the
    sum along the order, over m.
    """
    between = standard(activations) @ standard(scores).T
    n, m = activations.shape

    def shuffled() -> float:
        return float(between[torch.arange(n), torch.randperm(n, generator=generator)].sum()) / m

    return against(float(between.diagonal().sum()) / m, shuffled, draws)


def hits(
    activations: torch.Tensor,
    scores: torch.Tensor,
    least: torch.Tensor,
    draws: int,
    generator: torch.Generator,
) -> Measured:
    """``hits`` of m parameters, for their activations and their scores of the tokens at n positions (both n x m), and
    the ``least`` score (m) in the top of each one's table.
    """
    top = scores >= least
    active = activations.topk(min(HITS, len(activations)), dim=0).indices

    def share(order: torch.Tensor | None = None) -> float:
        return float((top if order is None else top[order]).gather(0, active).double().mean())

    shuffled: Callable[[], float] = lambda: share(torch.randperm(len(top), generator=generator))  # noqa: E731
    return against(share(), shuffled, draws)
