"""``show``: the strongest tokens of a parameter, also as a picture, and the strongest pairs of a head."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from paramdex.picture import any_glyphs, figure_class
from paramdex.result import Drawn, Result, table_of
from paramdex.store.described import pairs_of, same_word_counts
from paramdex.store.filters import ALL, Sieve
from paramdex.store.postings import SIDES, Postings
from paramdex.store.reading import READS, other_space, read_by, readable_says, reads_of_head
from paramdex.store.store import Store
from paramdex.store.token_filter import TokenFilter
from paramdex.text import arrow, visible
from paramdex.verbs.info import info_of
from paramdex_schemas import KINDS, MATRICES, Address, AddressError, QueryError
from paramdex_schemas.isometry import Array
from paramdex_schemas.model import Model, Ranking

_TOKENS = pa.schema(
    [
        ("side", pa.string()),
        ("rank", pa.int64()),
        ("token_id", pa.int32()),
        ("token", pa.string()),
        ("text", pa.string()),
        ("score", pa.float32()),
        ("z", pa.float32()),
        ("token_z", pa.float32()),
    ]
)

_PAIRS = pa.schema(
    [
        ("matrix", pa.string()),
        ("side", pa.string()),
        ("rank", pa.int16()),
        ("rank_distinct", pa.int16()),
        ("same_word", pa.bool_()),
        ("source_id", pa.int32()),
        ("source", pa.string()),
        ("target_id", pa.int32()),
        ("target", pa.string()),
        ("score", pa.float32()),
        ("token_z", pa.float32()),
    ]
)


@dataclass(frozen=True, repr=False)
class Card(Drawn):
    """Rows of side, rank, token, score: a parameter's strongest tokens. The picture shows them in the plane in which
    their embeddings differ most.
    """

    ranked_by: Ranking = "score"
    places: Callable[[], Array] = field(default=lambda: np.zeros((0, 2)), repr=False, compare=False)
    """Returns the place of each row's token in that plane (rows x 2)."""

    def __getstate__(self) -> dict[str, Any]:
        """For pickling the places are looked up now, because the atlas cannot be pickled."""
        return self.__dict__ | {"places": partial(np.asarray, self.places())}

    @property
    def _printed(self) -> pa.Table:
        """The two sides next to each other, with the scores and what they are ranked by, or else z."""
        n_top = self.table["side"].to_pylist().count("top")
        sides = [self.table.slice(0, n_top), self.table.slice(n_top)]
        n = max(map(len, sides))
        shown: dict[str, Any] = {_numbering(rows["rank"].to_pylist() for rows in sides): range(1, n + 1)}
        z = "z" if self.ranked_by == "score" else "token_z"
        for side, rows in zip(SIDES, sides, strict=True):
            for name, column in ((side, "text"), (f"{side} score", "score"), (f"{side} {z.replace('_', ' ')}", z)):
                shown[name] = pa.array(rows[column].to_pylist() + [None] * (n - len(rows)), rows[column].type)
        return pa.table(shown)

    def figure(self) -> Any:
        """The tokens in that plane."""
        return tokens_figure(self)


def _numbering(ranks: Iterable[list[int]]) -> str:
    """The name of the printed column 1, 2, ...: rank, or # if a list leaves some ranks out."""
    return "rank" if all(own == list(range(1, len(own) + 1)) for own in ranks) else "#"


def token_plane(rows: Array) -> Array:
    """Embeddings (n x d) on their first two principal components (n x 2). The largest entry of each is positive.

    >>> np.abs(token_plane(np.array([[0.0, 6, 7], [0, 0, 7], [1, 3, 7], [-1, 3, 7]]))).round(9).tolist()
    [[3.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    """
    centred = rows - rows.mean(axis=0)
    U, S, _ = np.linalg.svd(centred, full_matrices=False)
    found = np.zeros((len(rows), 2))
    found[:, : min(2, len(S))] = (U * S)[:, :2]
    largest = found[np.abs(found).argmax(axis=0), [0, 1]]
    return found * np.where(largest < 0, -1, 1)


def show(store: Store, address: str | Address, k: int, filter: TokenFilter | None, *, distinct: bool) -> Result:
    """See ``Atlas.show``."""
    where = store.address(address)
    model = store.models[where.model]
    if where.is_parameter:
        return show_parameter(store, model, where, k, Sieve(store.database, filter))
    if where.is_head:
        return show_head(store, model, where, k, Sieve(store.database, filter), distinct=distinct)
    if where == Address(where.model):
        return info_of(store, model)
    what = "an expert" if where.expert is not None else "a layer" if where.layer is not None else "a stack"
    example = model.layout.example(where)
    head = Address(where.model, example.layer, 0, stack=example.stack)
    examples = str(example) if where.expert is not None else f"{example} or {head}"
    raise AddressError(f"{where} is {what}; show takes a parameter or a head, {examples}, say")


def show_parameter(store: Store, model: Model, where: Address, k: int, sieve: Sieve) -> Card:
    """The k strongest tokens of a parameter on each side that pass the sieve."""
    param_id = model.param_id(where)
    found = Postings(store, sieve.ranking).parameter(model, param_id)
    by = sieve.ranking(model) if found.has_token_z else "score"
    columns = {name: store.database.tokens(model.vocabulary, name) for name in ("token", "text")}
    lines: list[dict[str, Any]] = []
    for side, own in found.sides.items():
        for i in sieve.tokens(model, own.ids, k):
            token_z = None if own.token_z is None else own.token_z[i]
            line = {"side": side, "rank": i + 1, "token_id": own.ids[i], "score": own.scores[i], "token_z": token_z}
            line |= {name: column[own.ids[i]].as_py() for name, column in columns.items()}  # take() imports much
            lines.append(line)
    if found.std > 0:
        z = (np.array([line["score"] for line in lines], np.float32) - found.mean) / found.std
        for line, each in zip(lines, z.tolist(), strict=True):
            line["z"] = each
    title = f"{model.address(param_id)}: {KINDS[str(where.kind)].says}"
    of_scores = f"mean {found.mean:.4g}, std {found.std:.4g}"
    numbers = f"norm {found.norm:.4g}; scores over {model.vocabulary_size:,} tokens: {of_scores}"
    space = read_by(other_space(model, str(where.kind), (where.stack, where.layer)))
    reads = None if found.reads is None else f"reads {found.reads:.4g}: {READS}"
    ranked_by = _ranked_by(by, f"how unusual the score is for the token, over all vectors of kind {where.kind}")
    lines_above = (title, numbers, space, reads, readable_says(found.readable, found.reads), ranked_by)
    above = "\n".join(line for line in lines_above if line)
    notes = _of_ranking(model, sieve, found.has_token_z, str(where.kind))
    notes += _of_fewer(len(found.sides["top"].ids), min(k, model.vocabulary_size), sieve, "tokens", "--top-k")
    return Card(
        table_of(lines, _TOKENS),
        above,
        [*notes, *sieve.notes()],
        ranked_by=by,
        places=lambda: token_plane(store.vectors.space(model.name).rows([line["token_id"] for line in lines])),
    )


def _ranked_by(by: Ranking, token_z: str) -> str | None:
    """What stands above lists that are not ranked by score; ``token_z`` says what that is of them."""
    return None if by == "score" else f"ranked by token_z: {token_z}"


def _of_ranking(model: Model, sieve: Sieve, has_token_z: bool, what: str) -> list[str]:
    """The note on lists that were asked for by token_z and have none."""
    if has_token_z or sieve.filter is None or sieve.filter.by != "token_z":
        return []
    return [f"ranked by score, because {model.name} has too few {what} to say what is usual for a token"]


def _of_fewer(n: int, k: int, sieve: Sieve, what: str, option: str) -> list[str]:
    """The note on a list that has n entries instead of k although no filter is set."""
    return (
        [] if sieve or n >= k else [f"the atlas keeps {n} {what} per side; build with a larger {option} to keep more"]
    )


def show_head(store: Store, model: Model, where: Address, k: int, sieve: Sieve, *, distinct: bool) -> Result:
    """The k strongest pairs of a head's QK and VO that pass the sieve; ``distinct`` ones are of two words."""
    rank, most = "rank_distinct" if distinct else "rank", ALL if sieve else k
    by = sieve.ranking(model)
    every = pairs_of(store, model, model.head_id(where), by).to_pylist()
    has_token_z = any(row["token_z"] is not None for row in every)
    printed: Ranking = "token_z" if has_token_z and by == "token_z" else "score"
    rows = [row for row in every if row[rank] is not None and row[rank] <= most]
    rows.sort(key=lambda row: (row["matrix"], not row["is_top"], row[rank]))
    for end in ("source", "target"):
        texts = store.database.texts(model.vocabulary, (row[f"{end}_id"] for row in rows))
        for row, text in zip(rows, texts, strict=True):
            row |= {end: text, "side": "top" if row["is_top"] else "bottom"}
    value = printed.replace("_", " ")
    shown: list[dict[str, Any]] = []
    chosen: list[int] = []
    ranks: list[list[int]] = []
    for matrix in MATRICES:
        lines: list[dict[str, Any]] = [{"matrix": matrix, "rank": n} for n in range(1, min(k, len(rows)) + 1)]
        for side in ("top", "bottom"):
            numbers = [n for n, row in enumerate(rows) if (row["matrix"], row["side"]) == (matrix, side)]
            numbers = [numbers[place] for place in sieve.pairs(model, [rows[n] for n in numbers], k)]
            chosen += numbers
            ranks.append([rows[n]["rank"] for n in numbers])
            for line, row in zip(lines, (rows[n] for n in numbers), strict=False):
                line |= {side: arrow(row["source"], row["target"]), f"{side} {value}": row[printed]}
        shown += [line for line in lines if len(line) > 2]
    longest = max((line["rank"] for line in shown), default=0)
    notes = [*_of_ranking(model, sieve, has_token_z or not every, "heads"), *_of_same_word(every)]
    notes += _of_fewer(longest, min(k, model.vocabulary_size), sieve, "pairs", "--pair-k")
    names = ("matrix", "rank", "top", f"top {value}", "bottom", f"bottom {value}")
    columns = {_numbering(ranks) if name == "rank" else name: [line.get(name) for line in shown] for name in names}
    table = table_of([rows[n] for n in chosen], _PAIRS)
    above = _head_says(
        store, model, where, _ranked_by(printed, "the score beside what is usual for the two tokens, over all heads")
    )
    return Result(table, above, [*notes, *sieve.notes()], pa.table(columns))


def _head_says(store: Store, model: Model, where: Address, ranked_by: str | None) -> str:
    """What stands above the pairs of a head."""
    place = where.stack, where.layer
    group = model.layout.heads(place).group
    sharing = "" if group == 1 else f", sharing key/value head {int(where.head or 0) // group}"
    by, reads = read_by(other_space(model, "attn_query", place)), reads_of_head(store, model, where)
    lines = [
        f"{where}: QK pairs are query → key, VO pairs read → written{sharing}",
        by and f"queries, keys and what VO reads: {by}",
        reads and f"reads {', '.join(f'{kind} {mean:.4g}' for kind, mean in reads.items())}: {READS}",
        ranked_by,
    ]
    return "\n".join(line for line in lines if line)


def _of_same_word(pairs: list[dict[str, Any]]) -> list[str]:
    """Notes on how many of each matrix's top pairs are of one word."""
    return [
        f"{matrix}: {same} of its top {n} pairs are of a word with itself"
        for matrix, (same, n) in same_word_counts(pairs).items()
    ]


def tokens_figure(card: Card) -> Any:
    """A parameter's strongest tokens in the plane in which their embeddings differ most; stronger ones are larger."""
    rows = card.to_rows()
    if not rows:
        raise QueryError("there are no tokens to draw")
    figure = figure_class()(figsize=(7.5, 6), layout="constrained")
    axis = figure.subplots()
    places = card.places()
    strengths = np.abs([row["score"] for row in rows])
    sizes = 7 + 5 * (strengths - strengths.min()) / max(np.ptp(strengths), 1e-300)
    labels = []
    for side, color in (("top", "C0"), ("bottom", "C3")):
        own = [n for n, row in enumerate(rows) if row["side"] == side]
        axis.scatter(places[own, 0], places[own, 1], s=12, color=color, label=side)
        labels += [
            axis.annotate(
                visible(rows[n]["text"]),
                places[n],
                (4, 0),
                textcoords="offset points",
                color=color,
                va="center",
                fontsize=float(sizes[n]),
                parse_math=False,
            )
            for n in own
        ]
    axis.margins(0.15)
    axis.legend(fontsize=8)
    axis.set_xlabel("first principal component of these tokens' embeddings")
    axis.set_ylabel("second")
    figure.suptitle((card.title or "").partition("\n")[0])
    with any_glyphs():
        figure.draw_without_rendering()
    figure.set_layout_engine("none")  # from here on nothing moves
    _spread(labels)
    return figure


def _spread(labels: list[Any]) -> None:
    """Move labels up or down, as little as possible, until none covers an earlier one."""
    taken: list[Any] = []
    for label in labels:
        x, height = label.get_position()[0], label.get_fontsize()
        for step in range(41):
            label.set_position((x, (-1) ** step * ((step + 1) // 2) * height * 0.55))
            with any_glyphs():
                box = label.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
