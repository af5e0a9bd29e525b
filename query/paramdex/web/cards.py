"""What stands on the card of a parameter and of a head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from paramdex import Atlas
from paramdex.atlas import Model
from paramdex.head_factors import displacements
from paramdex.web.shapes import (
    Cell,
    Direction,
    HeadCard,
    Near,
    NearHead,
    NearIn,
    Pair,
    Pairs,
    ParameterCard,
    Partner,
    Scored,
    Standing,
    Vectors,
)
from paramdex.web.store import described, param_id, rows, short, span, token
from paramdex_schemas import KINDS, MATRICES, Address

_DIRECTIONS, _DIRECTION_TOKENS = 4, 6
"""Directions of each matrix on a head's card, and tokens of each of their lists."""
_NEURON = ("ff_key", "ff_gate", "ff_value")
_NAMES = {
    "ff_key": "the neuron's key: what it reads", "ff_gate": "its gate: what the gate reads",
    "ff_value": "the neuron's value: what it writes", "attn_query": "the query dimension that meets this key",
    "attn_key": "the key dimension that meets this query", "attn_value": "what is read where this is written",
    "attn_output": "what is written for what this reads",
}  # fmt: skip
_OTHER = {"attn_query": "attn_key", "attn_key": "attn_query", "attn_value": "attn_output", "attn_output": "attn_value"}
_NEAR = 5
_MOST_COMPARED = 1_000_000
"""Entries of the small products, d_head x d_head for each head, that are made for one page: a tenth of a second."""


def parameter_card(atlas: Atlas, where: Address, k: int = 20) -> ParameterCard:
    """The card of a parameter that the atlas has."""
    model, kind = atlas.models[where.model], KINDS[str(where.kind)]
    own_id = model.param_id(where)
    ((address, norm, projected, mean, std),) = rows(
        atlas,
        "SELECT address, norm, projected_norm, mean, std FROM store.parameters WHERE param_id = ?",
        [own_id],
    )
    own = Address.parse(address)
    sides: dict[str, list[Scored]] = {"top": [], "bottom": []}
    for row in atlas.show(address, k).to_rows():
        sides[row["side"]].append(Scored(**{name: row[name] for name in Scored.model_fields}))
    same = [name for name, other in atlas.models.items() if other.vocabulary == model.vocabulary]
    block = model.layout.blocks[kind.name]
    first = model.first_param_id + block.first
    beside = [str(model.address(i)) if first <= i < first + block.n_rows else None for i in (own_id - 1, own_id + 1)]
    return ParameterCard(
        address=address, model=model.name, kind=kind.name, says=kind.says, role=kind.role, sentence=sentence(own),
        norm=_short(norm), projected_norm=_short(projected), mean=_short(mean), std=_short(std),
        vocabulary_size=model.vocabulary_size,
        standing=standing(atlas, "store.parameters", "param_id", "norm", span(model, kind.name, (own.stack, own.layer)),
                          own_id),
        top=sides["top"], bottom=sides["bottom"], head=_owner(own), partners=_partners(atlas, model, own),
        nearest=_nearest(atlas, model, own, own_id, same),
        elsewhere=[name for name in atlas.models if name not in same],
        before=beside[0], after=beside[1],
        sql=f"SELECT side, rank, text, score\nFROM parameter_tokens\nWHERE address = '{address}'\n"
        "ORDER BY side DESC, rank",
    )  # fmt: skip


def sentence(where: Address) -> str:
    """What a parameter is, in a sentence.

    >>> sentence(Address.parse("m/L3/H5/attn_query/17"))
    'Dimension 17 of the queries of head 5 in layer 3: what one query dimension of a head reads.'
    """
    kind = str(where.kind)
    expert = "" if where.expert is None else f" of expert {where.expert}"
    stack = "" if where.stack is None else f" of the {where.stack}"
    place = "" if where.layer is None else f" in layer {where.layer}{stack}"
    if kind in _NEURON:
        part = {"ff_key": "Key", "ff_gate": "Gate", "ff_value": "Value"}[kind]
        what = f"{part} of neuron {where.idx}{expert}{place}"
    elif kind in _OTHER:
        part = {"attn_query": "queries", "attn_key": "keys", "attn_value": "values", "attn_output": "outputs"}[kind]
        what = f"Dimension {where.idx} of the {part} of head {where.head}{place}"
    elif KINDS[kind].owner == "model":
        what = f"{kind.replace('_', ' ').capitalize()} {where.idx}{stack}"
    else:
        of = f" of head {where.head}" if where.head is not None else expert
        what = f"{kind.replace('_', ' ').capitalize().replace('Ff', 'Feed-forward').replace('Attn', 'Attention')}"
        what += f"{of}{place}"
    return f"{what}: {KINDS[kind].says}."


def standing(atlas: Atlas, table: str, key: str, column: str, ids: tuple[int, int], of: int) -> Standing:
    """Where one row's number stands among those of the ids in a span."""
    ((larger, n, least, quartiles, most),) = rows(
        atlas,
        f"SELECT count(*) FILTER ({column} > (SELECT {column} FROM {table} WHERE {key} = $of)), count(*), "
        f"min({column}), quantile_cont({column}, [0.25, 0.5, 0.75]), max({column}) "
        f"FROM {table} WHERE {key} >= $first AND {key} < $last",
        {"of": of, "first": ids[0], "last": ids[1]},
    )
    return Standing(
        larger=larger, of=n, least=_short(least), quartiles=[_short(q) for q in quartiles], most=_short(most)
    )


def _owner(where: Address) -> str | None:
    if where.layer is None:
        return None
    return str(replace(where, kind=None, idx=None))


def _partners(atlas: Atlas, model: Model, where: Address) -> list[Partner]:
    """The other vectors of the same neuron, or of the same dimension of a head."""
    kind = str(where.kind)
    others = [each for each in _NEURON if each != kind] if kind in _NEURON else []
    others += [_OTHER[kind]] if kind in _OTHER else []
    relations: dict[str, str] = {}
    place = (where.stack, where.layer)
    for each in others:
        if each in model.layout.kinds and place in model.layout.places(each):
            relations[str(replace(where, kind=each))] = _NAMES[each]
    named = described(atlas, list(relations))
    # a shared key or value comes back under the address of its own head
    by_id = {param_id(atlas, address): relation for address, relation in relations.items()}
    return [Partner(**dict(item), relation=by_id[param_id(atlas, address)]) for address, item in named.items()]


def _nearest(atlas: Atlas, model: Model, where: Address, own_id: int, same: list[str]) -> list[NearIn]:
    """The nearest in the model itself, and in those of its vocabulary as the atlas keeps them."""
    own = [(row["address"], row["similarity"]) for row in atlas.similar(str(where), _NEAR).to_rows()]
    found: dict[str, list[tuple[str, float]]] = {model.name: own}
    for name, address, similarity in rows(
        atlas,
        "SELECT m.model, q.address, n.similarity FROM store.neighbors AS n "
        "JOIN store.parameters AS q ON q.param_id = n.neighbor_id "
        "JOIN store.models AS m ON m.model_id = n.neighbor_model_id "
        "WHERE n.param_id = ? AND n.rank <= ? ORDER BY n.neighbor_model_id, n.rank",
        [own_id, _NEAR],
    ):
        found.setdefault(name, []).append((address, _short(similarity)))
    named = described(atlas, [address for hits in found.values() for address, _ in hits])
    return [
        NearIn(
            model=name,
            rows=[
                Near(**dict(named[address]), rank=n, similarity=similarity)
                for n, (address, similarity) in enumerate(found.get(name, []), start=1)
            ],
            note=None if name in found else f"{name} has no {where.kind}",
        )
        for name in sorted(same, key=lambda name: name != model.name)
    ]


# ---- heads


def head_card(
    atlas: Atlas, where: Address, words: Literal["different", "all"] = "different", contains: str | None = None,
    k: int = 20,
) -> HeadCard:  # fmt: skip
    """The card of a head. ``contains`` keeps pairs of which a token has this text."""
    model = atlas.models[where.model]
    head_id = model.head_id(where)
    ((address, kv_head, qk_norm, vo_norm, qk_mean, qk_std, vo_mean, vo_std),) = rows(
        atlas,
        "SELECT address, kv_head, qk_norm, vo_norm, qk_mean, qk_std, vo_mean, vo_std FROM store.heads "
        "WHERE head_id = ?",
        [head_id],
    )
    rank = "rank_distinct" if words == "different" else "rank"
    spread = {"QK": (qk_mean, qk_std), "VO": (vo_mean, vo_std)}
    lists: dict[tuple[str, str], list[Pair]] = {(m, side): [] for m in MATRICES for side in ("top", "bottom")}
    for matrix, is_top, score, place, distinct, same_word, source_id, target_id in rows(
        atlas,
        "SELECT matrix, is_top, score, rank, rank_distinct, same_word, source_id, target_id FROM store.pairs "
        f"WHERE head_id = ? AND {rank} IS NOT NULL ORDER BY {rank}",
        [head_id],
    ):
        pairs = lists[matrix, "top" if is_top else "bottom"]
        if len(pairs) == k:
            continue
        source, target = (token(atlas, model.vocabulary, i) for i in (source_id, target_id))
        if contains and contains.casefold() not in f"{source.text}\n{target.text}".casefold():
            continue
        mean, std = spread[matrix]
        pairs.append(
            Pair(source=source, target=target, score=_short(score), z=short((score - mean) / std) if std else None,
                 rank=place, rank_distinct=distinct, same_word=same_word)
        )  # fmt: skip
    counts = rows(
        atlas,
        "SELECT matrix, count(*) FILTER (same_word), count(*) FROM store.pairs "
        "WHERE head_id = ? AND is_top AND rank IS NOT NULL GROUP BY matrix ORDER BY matrix",
        [head_id],
    )
    place_ = (where.stack, where.layer)
    run = model.layout.heads(place_)
    at = int(where.head or 0)
    shared = [h for h in range(run.n_owners) if h // run.group == at // run.group and h != at] if run.group > 1 else []
    first = head_id - at
    return HeadCard(
        address=address, model=model.name, layer=str(replace(where, head=None)), kv_head=kv_head,
        sharing=[str(replace(where, head=h)) for h in shared], qk_norm=_short(qk_norm), vo_norm=_short(vo_norm),
        standing={
            matrix: standing(atlas, "store.heads", "head_id", column, (first, first + run.n_owners), head_id)
            for matrix, column in (("QK", "qk_norm"), ("VO", "vo_norm"))
        },
        words=words, contains=contains, same_word={matrix: (same, n) for matrix, same, n in counts},
        lists=[Pairs.model_validate({"matrix": matrix, "side": side, "pairs": pairs})
               for (matrix, side), pairs in lists.items()],
        directions=_directions(atlas, model, head_id), nearest=_nearest_heads(atlas, model, where),
        vectors=_vectors(atlas, model, where),
        before=str(replace(where, head=at - 1)) if at else None,
        after=str(replace(where, head=at + 1)) if at + 1 < run.n_owners else None,
        sql=f"SELECT matrix, side, {rank}, source, target, score\nFROM head_pairs\nWHERE address = '{address}' "
        f"AND {rank} <= {k}\nORDER BY matrix, side DESC, {rank}",
    )  # fmt: skip


def _directions(atlas: Atlas, model: Model, head_id: int) -> list[Direction]:
    """The head's first singular directions, of both matrices, with some tokens of each list."""
    lists: dict[tuple[str, int], dict[str, list[Any]]] = {}
    for matrix, direction, is_source, is_top, token_id in rows(
        atlas,
        "SELECT matrix, direction, is_source, is_top, token_id FROM store.direction_tokens "
        "WHERE head_id = ? AND direction <= ? AND rank <= ? ORDER BY rank",
        [head_id, _DIRECTIONS, _DIRECTION_TOKENS],
    ):
        name = f"{'source' if is_source else 'target'}_{'top' if is_top else 'bottom'}"
        own = lists.setdefault((matrix, direction), {})
        own.setdefault(name, []).append(token(atlas, model.vocabulary, token_id))
    numbers = rows(
        atlas,
        "SELECT matrix, direction, singular_value, share FROM store.directions WHERE head_id = ? AND direction <= ? "
        "ORDER BY matrix, direction",
        [head_id, _DIRECTIONS],
    )
    return [
        Direction.model_validate(
            {"matrix": matrix, "direction": n, "singular_value": _short(value), "share": _short(share)}
            | lists[matrix, n]
        )
        for matrix, n, value, share in numbers
    ]


def _nearest_heads(atlas: Atlas, model: Model, where: Address) -> list[NearHead] | None:
    """The heads of the same model that are most like this one; None where there are too many to compare at once."""
    if model.name in displacements(atlas):
        return []
    runs = [model.layout.heads(place) for place in model.layout.attention_places]
    if sum(run.n_owners * run.size**2 for run in runs) > _MOST_COMPARED:
        return None
    return [
        NearHead(pairs=row.pop("top"), **row | {"similarity": _short(row["similarity"])})
        for row in atlas.similar(str(where), _NEAR).to_rows()
    ]


def _vectors(atlas: Atlas, model: Model, where: Address) -> list[Vectors]:
    """The vectors of a head, shared ones too, with their norms."""
    found = []
    for kind in model.layout.kinds:
        if KINDS[kind].owner not in ("head", "kv_head") or (where.stack, where.layer) not in model.layout.places(kind):
            continue
        start = model.param_id(replace(where, kind=kind, idx=0))
        run = next(run for run in model.layout.of(kind) if run.place == (where.stack, where.layer))
        cells = rows(
            atlas,
            "SELECT address, norm FROM store.parameters WHERE param_id >= ? AND param_id < ? ORDER BY param_id",
            [start, start + run.size],
        )
        vectors = [Cell(address=address, value=_short(norm)) for address, norm in cells]
        found.append(Vectors(kind=kind, says=KINDS[kind].says, vectors=vectors))
    return found


def _short(value: Any) -> float:
    return float(short(value) or 0.0)
