"""The card of a head: its strongest pairs of tokens (QK and OV circuits), its directions, and its vectors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from paramdex import Atlas
from paramdex.plain import short
from paramdex.store.described import pairs_of, same_word_counts
from paramdex.store.filters import ALL, Sieve
from paramdex.store.head_matrices import displacements, rows_of_heads
from paramdex.store.moments import numbers
from paramdex.store.reading import SAYS, other_space, reads_of_head
from paramdex.web.cards.choices import PairChoice, searched
from paramdex.web.cards.lookups import Items, standing, too_many_heads
from paramdex.web.cards.shapes import Cell, Shape, Side, Standing, Token
from paramdex_schemas import KINDS, MATRICES, Address
from paramdex_schemas.model import Model, Ranking

_DIRECTIONS, _DIRECTION_TOKENS = 4, 6
"""How many directions of each matrix a card shows, and how many tokens on each side of one."""


class Pair(Shape):
    source: Token
    target: Token
    score: float
    z: float | None
    token_z: float | None
    rank: int | None
    rank_distinct: int | None
    same_word: bool


class Pairs(Shape):
    matrix: Literal["QK", "VO"]
    side: Side
    pairs: list[Pair]


class Direction(Shape):
    """A singular direction of a head's matrix: its top sides go together, and so do its bottom sides."""

    matrix: Literal["QK", "VO"]
    direction: int
    singular_value: float
    share: float
    """Its share of the squared Frobenius norm of the centred matrix over tokens."""
    source_top: list[Token]
    source_bottom: list[Token]
    target_top: list[Token]
    target_bottom: list[Token]


class Vectors(Shape):
    """The vectors of one kind that a head has."""

    kind: str
    says: str
    vectors: list[Cell]


class HeadCard(Shape):
    type: Literal["head"] = "head"
    address: str
    model: str
    layer: str
    kv_head: int
    sharing: list[str]
    """The other heads that share its keys and values (grouped-query attention)."""
    qk_norm: float
    vo_norm: float
    space: str
    """What the scores of its queries, keys and values belong to."""
    space_says: str | None
    """What that means, where it is not the model's main space."""
    reads: dict[str, float]
    """Kind -> the mean correlation of what its vectors read with their scores of the token, on held-out text."""
    standing: dict[str, Standing]
    choice: PairChoice
    ranked_by: Ranking
    """By what its lists of pairs are ranked: each pair's ranks are those."""
    own_ranking: Ranking
    """By what they are ranked unless the choice says otherwise."""
    same_word: dict[str, tuple[int, int]]
    """Matrix -> how many of its top pairs are a word with itself, and how many top pairs the atlas keeps."""
    lists: list[Pairs]
    notes: list[str]
    """What the filters left out, and which of them could not be applied."""
    directions: list[Direction]
    """Empty where the atlas was built without directions."""
    comparable: list[str] | None
    """The models whose heads /similar compares with this one, its own first, without those that have too many heads to
    compare while a reader waits. Null for a head of a displacement.
    """
    vectors: list[Vectors]
    before: str | None
    after: str | None
    sql: str


def head_card(atlas: Atlas, where: Address, choice: PairChoice | None = None, k: int = 20) -> HeadCard:
    """The card of a head, with the k strongest pairs of each matrix and side that pass ``choice``."""
    choice = choice or PairChoice()
    model = atlas.models[where.model]
    head_id = model.head_id(where)
    place = where.stack, where.layer
    run = model.layout.heads(place)
    at = int(where.head or 0)
    layer = rows_of_heads(atlas, model).slice(head_id - at - model.first_head_id, run.n_owners)
    (own,) = layer.slice(at, 1).to_pylist()
    sieve = Sieve(atlas.database, choice.filter())
    asked = sieve.ranking(model)
    pairs = pairs_of(atlas, model, head_id, asked)
    ranked_by: Ranking = asked if pairs["token_z"].null_count < len(pairs) else "score"
    shared = [h for h in range(run.n_owners) if h // run.group == at // run.group and h != at] if run.group > 1 else []
    return HeadCard(
        address=own["address"],
        model=model.name,
        layer=str(replace(where, head=None)),
        kv_head=own["kv_head"],
        sharing=[str(replace(where, head=h)) for h in shared],
        qk_norm=short(own["qk_norm"]),
        vo_norm=short(own["vo_norm"]),
        space=model.layout.space("attn_query", place),
        space_says=SAYS.get(other_space(model, "attn_query", place) or ""),
        reads={kind: short(mean) for kind, mean in reads_of_head(atlas, model, where).items()},
        standing={matrix: standing(layer[f"{matrix.lower()}_norm"].to_numpy(), at) for matrix in MATRICES},
        choice=choice,
        ranked_by=ranked_by,
        own_ranking=model.ranking,
        same_word=same_word_counts(pairs.select(["matrix", "is_top", "rank", "same_word"]).to_pylist()),
        lists=_lists(atlas, model, pairs, choice, sieve, own, k),
        notes=sieve.notes(),
        directions=_directions(atlas, model, head_id),
        comparable=_comparable(atlas, model),
        vectors=_vectors(atlas, model, where),
        before=str(replace(where, head=at - 1)) if at else None,
        after=str(replace(where, head=at + 1)) if at + 1 < run.n_owners else None,
        sql=choice.sql(atlas, model, own["address"], k, ranked_by),
    )


def _lists(
    atlas: Atlas, model: Model, pairs: pa.Table, choice: PairChoice, sieve: Sieve, head: dict[str, Any], k: int
) -> list[Pairs]:
    """The k strongest pairs of each matrix and side that pass. ``head`` has the mean and std of all scores."""
    kept: dict[tuple[str, str], list[dict[str, Any]]] = {(m, side): [] for m in MATRICES for side in ("top", "bottom")}
    narrowed = choice.filtered or choice.contains or choice.min_z or choice.words == "tokens"
    within = pc.less_equal(pairs[choice.rank], ALL if narrowed else k)  # null where there is no rank: left out
    for row in pairs.filter(within).sort_by(choice.rank).to_pylist():
        mean, std = (head[f"{row['matrix'].lower()}_{name}"] for name in ("mean", "std"))
        row["z"] = (row["score"] - mean) / std if std and mean is not None else None
        if abs(row["z"] or 0.0) >= choice.min_z:
            kept[row["matrix"], "top" if row["is_top"] else "bottom"].append(row)
    items = Items(atlas, model.vocabulary)
    found: dict[tuple[str, str], list[Pair]] = {}
    text = searched(choice.contains)
    for of, own in kept.items():
        asked = [
            row
            for row in own
            if not text or any(text in searched(items[row[end]].text) for end in ("source_id", "target_id"))
        ]
        found[of] = [
            Pair(
                source=items[row["source_id"]],
                target=items[row["target_id"]],
                score=short(row["score"]),
                z=None if row["z"] is None else short(row["z"]),
                token_z=None if row["token_z"] is None else short(row["token_z"]),
                **{name: row[name] for name in ("rank", "rank_distinct", "same_word")},
            )
            for row in (asked[place] for place in sieve.pairs(model, asked, k))
        ]
    return [Pairs.model_validate({"matrix": m, "side": side, "pairs": pairs}) for (m, side), pairs in found.items()]


def _directions(atlas: Atlas, model: Model, head_id: int) -> list[Direction]:
    """The first singular directions of both matrices, with some tokens of each list."""
    lists: dict[tuple[str, int], dict[str, list[Any]]] = {}
    items = Items(atlas, model.vocabulary)
    tables, row = atlas.database.of(model), head_id - model.first_head_id
    for matrix, direction, is_source, is_top, token_id in tables.rows(
        "SELECT matrix, direction, is_source, is_top, token_id FROM store.direction_tokens "
        "WHERE head_id = ? AND direction <= ? AND rank <= ? ORDER BY rank",
        [row, _DIRECTIONS, _DIRECTION_TOKENS],
    ):
        name = f"{'source' if is_source else 'target'}_{'top' if is_top else 'bottom'}"
        own = lists.setdefault((matrix, direction), {})
        own.setdefault(name, []).append(items[token_id])
    found = tables.rows(
        "SELECT matrix, direction, singular_value, share FROM store.directions WHERE head_id = ? AND direction <= ? "
        "ORDER BY matrix, direction",
        [row, _DIRECTIONS],
    )
    return [
        Direction.model_validate(
            {"matrix": matrix, "direction": n, "singular_value": short(value), "share": short(share)} | lists[matrix, n]
        )
        for matrix, n, value, share in found
    ]


def _comparable(atlas: Atlas, model: Model) -> list[str] | None:
    """The models whose heads /similar compares with this one's, its own first. None for a displacement: the matrices of
    its heads are not products of their vectors.
    """
    left_out = displacements(atlas)
    if model.name in left_out:
        return None
    asked = [one for one in atlas.models.values() if one.layout.attention_places and one.name not in left_out]
    found = [one.name for one in asked if not too_many_heads(one)]
    return sorted(found, key=lambda name: name != model.name)


def _vectors(atlas: Atlas, model: Model, where: Address) -> list[Vectors]:
    """The vectors of a head, including those that it shares with other heads, with their norms."""
    found = []
    for kind in model.layout.kinds:
        if KINDS[kind].owner not in ("head", "kv_head") or (where.stack, where.layer) not in model.layout.places(kind):
            continue
        start = model.param_id(replace(where, kind=kind, idx=0))
        run = next(run for run in model.layout.of(kind) if run.place == (where.stack, where.layer))
        sizes = numbers(atlas.database, model, "norm", (start, start + run.size))
        vectors = [Cell(address=str(model.address(start + n)), value=short(norm)) for n, norm in enumerate(sizes)]
        found.append(Vectors(kind=kind, says=KINDS[kind].says, vectors=vectors))
    return found
