"""What a parameter or a head says, as a result; a parameter's tokens also as a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from paramdex.result import Drawn, Result, table_of
from paramdex.store.filters import ALL, Sieve
from paramdex.store.postings import Postings
from paramdex.text import arrow
from paramdex_schemas import KINDS, Address
from paramdex_schemas.isometry import Array

if TYPE_CHECKING:
    from paramdex.atlas import Atlas
    from paramdex_schemas.model import Model

_TOKENS = pa.schema(
    [
        ("side", pa.string()),
        ("rank", pa.int64()),
        ("token_id", pa.int32()),
        ("token", pa.string()),
        ("text", pa.string()),
        ("score", pa.float32()),
        ("z", pa.float32()),
    ]
)


@dataclass(frozen=True, repr=False)
class Card(Drawn):
    """Rows of side, rank, token, score: a parameter's strongest tokens. Its picture has them in the plane in which
    their embeddings differ most.
    """

    places: Callable[[], Array] = field(default=lambda: np.zeros((0, 2)), repr=False, compare=False)
    """Gives where each row's token lies in that plane (rows x 2)."""

    def __getstate__(self) -> dict[str, Any]:
        """To be pickled the places are looked up: the atlas cannot be."""
        return self.__dict__ | {"places": partial(np.asarray, self.places())}

    @property
    def _printed(self) -> pa.Table:
        """The two sides next to each other."""
        n_top = self.table["side"].to_pylist().count("top")
        sides = [self.table.slice(0, n_top), self.table.slice(n_top)]
        n = max(map(len, sides))
        shown: dict[str, Any] = {_numbering(rows["rank"].to_pylist() for rows in sides): range(1, n + 1)}
        for side, rows in zip(("top", "bottom"), sides, strict=True):
            for name, column in ((side, "text"), (f"{side} score", "score"), (f"{side} z", "z")):
                shown[name] = pa.array(rows[column].to_pylist() + [None] * (n - len(rows)), rows[column].type)
        return pa.table(shown)

    def figure(self) -> Any:
        from paramdex.picture import tokens_figure

        return tokens_figure(self)


def _numbering(ranks: Iterable[list[int]]) -> str:
    """What a printed column 1, 2, ... is: the rank, unless some were left out of a list."""
    return "rank" if all(own == list(range(1, len(own) + 1)) for own in ranks) else "#"


def token_plane(rows: Array) -> Array:
    """Embeddings (n x d) on their first two principal components (n x 2); of each the largest entry is positive.

    >>> np.abs(token_plane(np.array([[0.0, 6, 7], [0, 0, 7], [1, 3, 7], [-1, 3, 7]]))).round(9).tolist()
    [[3.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    """
    centred = rows - rows.mean(axis=0)
    U, S, _ = np.linalg.svd(centred, full_matrices=False)
    found = np.zeros((len(rows), 2))
    found[:, : min(2, len(S))] = (U * S)[:, :2]
    largest = found[np.abs(found).argmax(axis=0), [0, 1]]
    return found * np.where(largest < 0, -1, 1)


def show_parameter(atlas: Atlas, model: Model, where: Address, k: int, sieve: Sieve) -> Card:
    """The k strongest tokens of a parameter on each side that pass the sieve."""
    param_id = model.param_id(where)
    found = Postings(atlas.database).parameter(param_id, ALL if sieve else k)
    columns = {name: atlas.database.tokens(model.vocabulary, name) for name in ("token", "text")}
    rows = [(side, i) for side in ("top", "bottom") for i in sieve.tokens(model, found.tokens[side], k)]
    ids = [found.tokens[side][i] for side, i in rows]
    scores = [found.scores[side][i] for side, i in rows]
    z = ((np.array(scores, np.float32) - found.mean) / found.std).tolist() if found.std > 0 else [None] * len(rows)
    lines = [
        {"side": side, "rank": i + 1, "token_id": token_id, "score": score, "z": each}
        | {name: column[token_id].as_py() for name, column in columns.items()}  # take() would import pyarrow.compute
        for (side, i), token_id, score, each in zip(rows, ids, scores, z, strict=True)
    ]
    title = f"{model.address(param_id)}: {KINDS[str(where.kind)].says}"
    of_scores = f"mean {found.mean:.4g}, std {found.std:.4g}"
    numbers = f"norm {found.norm:.4g}; scores over {model.vocabulary_size:,} tokens: {of_scores}"
    notes = _of_fewer(len(found.tokens["top"]), min(k, model.vocabulary_size), sieve, "tokens", "--top-k")
    return Card(
        table_of(lines, _TOKENS),
        f"{title}\n{numbers}",
        [*notes, *sieve.notes()],
        places=lambda: token_plane(atlas.vectors.space(model.name).rows(ids)),
    )


def _of_fewer(n: int, k: int, sieve: Sieve, what: str, option: str) -> list[str]:
    """What to say where without a filter there are n, not k."""
    return [] if sieve or n >= k else [f"the atlas keeps {n} {what} a side; build with a larger {option} to keep more"]


def show_head(atlas: Atlas, model: Model, where: Address, k: int, sieve: Sieve, *, distinct: bool) -> Result:
    """The k strongest pairs of a head's QK and VO that pass the sieve; ``distinct`` ones are of two words."""
    head_id = model.head_id(where)
    table = atlas.database.named("head", {"head_id": head_id, "k": ALL if sieve else k, "distinct": distinct})
    shown: list[dict[str, Any]] = []
    chosen: list[int] = []
    every = table.to_pylist()
    ranks: list[list[int]] = []
    for matrix in ("QK", "VO"):
        lines: list[dict[str, Any]] = [{"matrix": matrix, "rank": n} for n in range(1, min(k, len(every)) + 1)]
        for side in ("top", "bottom"):
            numbers = [n for n, row in enumerate(every) if (row["matrix"], row["side"]) == (matrix, side)]
            numbers = [numbers[place] for place in sieve.pairs(model, [every[n] for n in numbers], k)]
            chosen += numbers
            ranks.append([every[n]["rank"] for n in numbers])
            for line, row in zip(lines, (every[n] for n in numbers), strict=False):
                line |= {side: arrow(row["source"], row["target"]), f"{side} score": row["score"]}
        shown += [line for line in lines if len(line) > 2]
    counts = atlas.database.rows(
        "SELECT matrix, count(*) FILTER (same_word), count(*) FROM store.pairs "
        "WHERE head_id = ? AND is_top AND rank IS NOT NULL GROUP BY matrix ORDER BY matrix",
        [head_id],
    )
    notes = [f"{matrix}: {same} of its top {count} pairs are of a word with itself" for matrix, same, count in counts]
    longest = max((line["rank"] for line in shown), default=0)
    notes += _of_fewer(longest, min(k, model.vocabulary_size), sieve, "pairs", "--pair-k")
    group = model.layout.heads((where.stack, where.layer)).group
    sharing = "" if group == 1 else f", sharing key/value head {int(where.head or 0) // group}"
    title = f"{where}: QK pairs are query → key, VO pairs read → written{sharing}"
    names = ("matrix", "rank", "top", "top score", "bottom", "bottom score")
    columns = {_numbering(ranks) if name == "rank" else name: [line.get(name) for line in shown] for name in names}
    return Result(table.take(pa.array(chosen, pa.int64())), title, [*notes, *sieve.notes()], pa.table(columns))
