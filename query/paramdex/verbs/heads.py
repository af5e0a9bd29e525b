"""``heads``: every head scored on pairs of a source and a target word, as MAPS does (arXiv 2412.11965).

A head's matrix over tokens has the entry <a_s, b_t> for source s and target t. Here a_s = P x_s and b_t = Q y_t, and P
and Q are the head's vectors (d_head x d each: query and key, or value and output), and x_s and y_t the tokens' rows of
the spaces X and Y that score them: one for queries, keys and values, the model's own embedding for outputs. Of each
vector p the atlas keeps the normalized coordinates c in its space and the mean and standard deviation of its V scores.
So, with R^+ of the space,

    p' = R^+ c std sqrt(V),    <p, x> = <p', x - mean of X> + mean

for every token: p' differs from p only by what adds the same to all tokens. The results are as exact as the stored
float32 numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import pyarrow as pa

from paramdex.result import Result, table_of
from paramdex.store.head_matrices import coordinates, displacements, owners, rows_of_heads
from paramdex.store.nearest import signs_of
from paramdex.store.scope import MOST, Scope
from paramdex.store.store import Store
from paramdex.store.words import items, nearest_words, read_lines, word_of
from paramdex.text import some, visible
from paramdex_schemas import MATRICES, QueryError, TokenError
from paramdex_schemas.arguments import given_items
from paramdex_schemas.checks import whole_number
from paramdex_schemas.errors import quoted
from paramdex_schemas.isometry import Array
from paramdex_schemas.layout import Place
from paramdex_schemas.model import Model

WordPairs = str | PathLike[str] | Iterable[tuple[str, str]]
_NAMED = 10
"""The most words in a note."""
_SCHEMA = pa.schema(
    [
        ("rank", pa.int32()),
        ("z", pa.float32()),
        ("score", pa.float32()),
        ("share", pa.float32()),
        ("share_bottom", pa.float32()),
        ("pairs", pa.int32()),
        ("address", pa.string()),
        ("matrix", pa.string()),
    ]
)


@dataclass(frozen=True)
class _Tokens:
    """The pairs as tokens of one vocabulary: a pair of words stands for every pair of their spellings."""

    source: np.ndarray
    """Token ids (n); ``pair`` has the number of the word pair that each belongs to."""
    target: np.ndarray
    pair: np.ndarray
    n_pairs: int

    def means(self, scores: Array) -> Array:
        """The mean score of each word pair (heads x n_pairs), from the scores of tokens (heads x n)."""
        counts = np.bincount(self.pair, minlength=self.n_pairs)
        return np.stack([np.bincount(self.pair, row, self.n_pairs) for row in scores]) / counts

    def any(self, hits: np.ndarray) -> np.ndarray:
        """Whether each word pair has a hit (heads x n_pairs), from the hits of tokens (heads x n, bool)."""
        return np.stack([np.bincount(self.pair, row, self.n_pairs) > 0 for row in hits])


def read_pairs(pairs: WordPairs) -> list[tuple[str, str]]:
    """The pairs of a sequence, or of a file that has a source, a tab and a target on each line.

    Raises QueryError, and TokenError for anything that is not a word.
    """
    if not isinstance(pairs, (str, PathLike)):
        wrong = f"pairs are a file or a sequence of (source, target), not {quoted(pairs)}"
        found = [_pair(each) for each in given_items(pairs, QueryError(wrong))]
        if not found:
            raise QueryError("give at least one pair of words")
        return found
    read: list[tuple[str, str]] = []
    for number, line in enumerate(read_lines(pairs, "pairs"), start=1):
        if line.strip():
            source, tab, target = line.partition("\t")
            if not tab or "\t" in target or not source or not target:
                raise QueryError(f"line {number} of {pairs} is {quoted(line)}; write SOURCE, a tab and TARGET")
            read.append((source, target))
    if not read:
        raise QueryError(f"{pairs} holds no pairs; write one per line: SOURCE, a tab and TARGET")
    return read


def _pair(given: object) -> tuple[str, str]:
    wrong = QueryError(f"pairs are (source, target) of two words each, not {quoted(given)}; write [(source, target)]")
    if isinstance(given, AbstractSet):
        raise wrong
    words = [word_of(each) for each in given_items(given, wrong)]
    if len(words) != 2 or not all(words):
        raise wrong
    return words[0], words[1]


def heads(store: Store, pairs: WordPairs, scope: Scope, matrix: str, k: int, top: int, side: str) -> Result:
    """See ``Atlas.heads``."""
    top = min(whole_number("top", top, 0), MOST)
    if not isinstance(matrix, str) or matrix not in MATRICES:
        raise QueryError(f"matrix is {' or '.join(MATRICES)}, not {quoted(matrix)}")
    signs = signs_of(side)
    wanted = read_pairs(pairs)
    models, notes = _without_displacements(store, scope)
    known = {v: _resolve(store, v, wanted) for v in dict.fromkeys(model.vocabulary for model in models)}
    if not any(tokens.n_pairs for tokens, _ in known.values()):
        missing = next(iter(known.values()))[1]
        near = ", ".join(nearest_words(store.database, list(known), missing[0]))
        raise TokenError(
            f"no vocabulary here has both words of any pair; the words nearest to {quoted(missing[0])} are {near}"
        )
    rows: list[dict[str, Any]] = []
    for vocabulary, (tokens, missing) in known.items():
        owners = [model for model in models if model.vocabulary == vocabulary]
        if missing:
            names, left = ", ".join(model.name for model in owners), len(wanted) - tokens.n_pairs
            lacks = some([visible(word) if len(word) < 80 else quoted(word) for word in missing], _NAMED)
            notes.append(f"{left} of {len(wanted)} pairs are left out: the vocabulary of {names} has no {lacks}")
        for model in owners if tokens.n_pairs else []:
            rows += _of_model(store, model, tokens, matrix, top)
    strength = lambda row: max(sign * (row["z"] or 0.0) for sign in signs)  # noqa: E731
    rows = sorted(rows, key=strength, reverse=True)[:k]  # equal ones in order of the heads
    rows = [row | {"rank": n} for n, row in enumerate(rows, start=1)]
    table = table_of(rows, _SCHEMA)
    title = (
        f"{matrix} of every head on {len(wanted)} pairs, {'query → key' if matrix == 'QK' else 'read → written'}\n"
        "z: the mean score minus that of all token pairs, in standard errors of a mean of as many random pairs\n"
        f"share: the share of pairs whose target is among the {top} strongest of its source's row"
    )
    return Result(table, title, notes)


def _without_displacements(store: Store, scope: Scope) -> tuple[list[Model], list[str]]:
    """The models whose heads' matrices are products of their vectors: those of a displacement are not."""
    moved = displacements(store)
    out = [model.name for model in scope.models if model.name in moved]
    if out and (scope.named or len(out) == len(scope.models)):
        raise QueryError(
            f"{', '.join(out)}: the heads of a displacement are differences of matrices, not products of its vectors; "
            "name a model that is not a displacement"
        )
    notes = [f"left out because they are displacements: {', '.join(out)}"] if out else []
    return [model for model in scope.models if model.name not in moved], notes


def _resolve(store: Store, vocabulary: str, wanted: list[tuple[str, str]]) -> tuple[_Tokens, list[str]]:
    """The pairs of which the vocabulary has both words, and the words that it lacks."""
    words = list(dict.fromkeys(word for pair in wanted for word in pair))
    found = items(store.database, [vocabulary], words, whole=True)
    entries: list[tuple[int, int, int]] = []
    n_pairs = 0
    for source, target in wanted:
        spellings = [(s, t, n_pairs) for s in found[vocabulary, source] for t in found[vocabulary, target]]
        entries += spellings
        n_pairs += bool(spellings)
    columns = np.array(entries, np.int64).reshape(-1, 3)
    tokens = _Tokens(columns[:, 0], columns[:, 1], columns[:, 2], n_pairs)
    return tokens, [word for word in words if not found[vocabulary, word]]


def _of_model(store: Store, model: Model, tokens: _Tokens, matrix: str, top: int) -> Iterator[dict[str, Any]]:
    """A row for each head of a model."""
    name = matrix.lower()
    known = rows_of_heads(store, model).select(["address", f"{name}_mean", f"{name}_std"]).to_pylist()
    number = 0
    for place in model.layout.attention_places:
        scores, above, below = _of_place(store, model, place, matrix, tokens, top)
        means = tokens.means(scores).mean(axis=1)
        shares = [tokens.any(hits).mean(axis=1) if top else [None] * len(means) for hits in (above, below)]
        for head, mean in enumerate(means):
            address, of_all, std = known[number].values()
            yield {
                "address": address,
                "matrix": matrix,
                "score": mean,
                "pairs": tokens.n_pairs,
                "z": (mean - of_all) / std * tokens.n_pairs**0.5 if std > 0 else None,
                "share": shares[0][head],
                "share_bottom": shares[1][head],
            }
            number += 1


def _of_place(
    store: Store, model: Model, place: Place, matrix: str, tokens: _Tokens, top: int
) -> tuple[Array, np.ndarray, np.ndarray]:
    """For each head of a layer the scores of the token pairs, whether each target is among the ``top`` strongest of its
    source's row, and whether it is among the most negative (heads x n each).
    """
    run, kinds = model.layout.heads(place), MATRICES[matrix]
    X, Y = (store.vectors.space(model.name, model.layout.space(kind, place)) for kind in kinds)
    (P, p_mean), (Q, q_mean) = (coordinates(store, model, kind, place) for kind in kinds)
    P, Q = P @ X.root.inverse.T, Q @ Y.root.inverse.T  # the vectors, apart from what changes no centred score
    ids, where = np.unique(np.concatenate([tokens.source, tokens.target]), return_inverse=True)
    rows_x, rows_y = (space.rows(ids.tolist()) - space.means for space in (X, Y))
    n, d_head = len(tokens.source), run.size
    A, B = rows_x @ P.T + p_mean, rows_y @ Q.T + q_mean
    owns = [owners(model, kind, place) for kind in kinds]
    cuts = [[slice(o * d_head, (o + 1) * d_head) for o in own] for own in owns]
    sources = [A[where[:n], cut] for cut in cuts[0]]
    scores = np.stack([(a * B[where[n:], cut]).sum(axis=1) for a, cut in zip(sources, cuts[1], strict=True)])
    above, below = (np.zeros(scores.shape, np.int64) for _ in range(2))
    if top:
        own = scores.astype(np.float32)
        start = 0
        for block in Y.blocks():
            every = (block - Y.means) @ Q.T + q_mean
            earlier = np.arange(start, start + len(block))[:, None] < tokens.target
            for head, (a, cut) in enumerate(zip(sources, cuts[1], strict=True)):
                values = (every[:, cut] @ a.T).astype(np.float32)
                ties = (values == own[head]) & earlier
                above[head] += ((values > own[head]) | ties).sum(axis=0)
                below[head] += ((values < own[head]) | ties).sum(axis=0)
            start += len(block)
    return scores, above < top, below < top
