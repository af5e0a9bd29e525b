"""The card of a parameter: its strongest tokens, its partners, and the nearest parameters of each model."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from paramdex import Atlas
from paramdex.plain import short
from paramdex.store.common_space import shared_note
from paramdex.store.filters import Sieve
from paramdex.store.moments import numbers
from paramdex.store.nearest import Hit
from paramdex.store.reading import SAYS, other_space, readable_says
from paramdex.store.related import related_on
from paramdex.store.scope import Scope
from paramdex.verbs.show import show_parameter
from paramdex.verbs.similar import hits_of_parameter
from paramdex.web.cards.choices import TokenChoice, ranked
from paramdex.web.cards.lookups import described, near, standing
from paramdex.web.cards.shapes import Named, Near, Scored, Shape, Standing
from paramdex_schemas import KINDS, Address
from paramdex_schemas.model import Model, Ranking

_NEURON = ("ff_key", "ff_gate", "ff_value")
_NAMES = {
    "ff_key": "the neuron's key: what it reads",
    "ff_gate": "its gate: what the gate reads",
    "ff_value": "the neuron's value: what it writes",
    "attn_query": "the query dimension that meets this key",
    "attn_key": "the key dimension that meets this query",
    "attn_value": "the value dimension: what is read when this is written",
    "attn_output": "the output dimension: what is written when this is read",
}
_OTHER = {"attn_query": "attn_key", "attn_key": "attn_query", "attn_value": "attn_output", "attn_output": "attn_value"}
_NEAR = 5


class Partner(Named):
    relation: str


class NearIn(Shape):
    """The nearest parameters in one model."""

    model: str
    rows: list[Near]
    note: str | None = None


class ParameterCard(Shape):
    type: Literal["parameter"] = "parameter"
    address: str
    model: str
    kind: str
    says: str
    role: Literal["reads", "writes"]
    sentence: str
    norm: float
    projected_norm: float
    mean: float
    std: float
    space: str
    """What its scores belong to."""
    space_says: str | None
    """What that means, where it is not the model's main space."""
    reads: float | None
    """The correlation of what it reads with its score of the token, on held-out text."""
    readable: float | None
    """The larger of ``top_readable`` and ``bottom_readable``."""
    readable_says: str | None
    vocabulary_size: int
    standing: Standing
    choice: TokenChoice
    ranked_by: Ranking
    """By what its lists of tokens are ranked."""
    own_ranking: Ranking
    """By what they are ranked unless the choice says otherwise."""
    notes: list[str]
    """What the filters left out, and which of them could not be applied."""
    top: list[Scored]
    bottom: list[Scored]
    head: str | None
    """The address of the head or layer that it belongs to."""
    partners: list[Partner]
    nearest: list[NearIn]
    """In its own model, and in models with the same or nearly the same vocabulary. /similar.json asks the others."""
    elsewhere: list[str]
    """Models whose vocabularies differ more."""
    before: str | None
    after: str | None
    sql: str


_NUMBERS = """
SELECT norm, projected_norm, mean, std, reads, top_readable, bottom_readable
FROM store.parameters WHERE param_id = ?
"""


def parameter_card(atlas: Atlas, where: Address, choice: TokenChoice | None = None, k: int = 20) -> ParameterCard:
    """The card of a parameter, with the k strongest tokens of each side that pass ``choice``."""
    choice = choice or TokenChoice()
    model, kind = atlas.models[where.model], KINDS[str(where.kind)]
    own_id = model.param_id(where)
    own, address = model.address(own_id), str(model.address(own_id))
    ((norm, projected, mean, std, reads, top, bottom),) = atlas.database.of(model).rows(
        _NUMBERS, [own_id - model.first_param_id]
    )
    place = own.stack, own.layer
    sides: dict[str, list[Scored]] = {"top": [], "bottom": []}
    shown = show_parameter(atlas, model, own, k, Sieve(atlas.database, choice.filter()))
    for row in shown.to_rows():
        sides[row["side"]].append(Scored(**{name: row[name] for name in Scored.model_fields}))
    others = [other for other in atlas.models.values() if other is not model]
    related = [other for other in others if atlas.database.relation(model, other) is not None]
    layer = model.ids(kind.name, place)
    first, end = model.ids(kind.name)
    beside = [str(model.address(i)) if first <= i < end else None for i in (own_id - 1, own_id + 1)]
    partners, nearest = _partners(model, own), _nearest(atlas, model, own, own_id)
    named = described(atlas, [*partners, *(i for hits in nearest.values() for _, i in hits)], choice.by)
    return ParameterCard(
        address=address,
        model=model.name,
        kind=kind.name,
        says=kind.says,
        role=kind.role,
        sentence=sentence(own),
        norm=short(norm),
        projected_norm=short(projected),
        mean=short(mean),
        std=short(std),
        space=model.layout.space(kind.name, place),
        space_says=SAYS.get(other_space(model, kind.name, place) or ""),
        reads=None if reads is None else short(reads),
        readable=max((short(each) for each in (top, bottom) if each is not None), default=None),
        readable_says=readable_says({"top": top, "bottom": bottom}, reads),
        vocabulary_size=model.vocabulary_size,
        standing=standing(numbers(atlas.database, model, "norm", layer), own_id - layer[0]),
        top=sides["top"],
        bottom=sides["bottom"],
        head=_owner(own),
        partners=[Partner(**dict(named[i]), relation=relation) for i, relation in partners.items()],
        nearest=[
            NearIn(
                model=one.name,
                rows=near(nearest.get(one.name, []), named),
                note=_note(atlas, model, one) if one.name in nearest else f"{one.name} has no {kind.name}",
            )
            for one in [model, *related]
        ],
        elsewhere=[other.name for other in others if other not in related],
        before=beside[0],
        after=beside[1],
        choice=choice,
        ranked_by=shown.ranked_by,
        own_ranking=model.ranking,
        notes=list(shown.notes),
        sql=_sql(atlas, model, address, choice, k, shown.ranked_by),
    )


def _note(atlas: Atlas, model: Model, other: Model) -> str | None:
    """A note on the tokens that two models are compared by, where they do not share one vocabulary."""
    n_tokens = related_on(atlas.database, model, other)
    return None if model.vocabulary == other.vocabulary or n_tokens is None else shared_note(model, other, n_tokens)


def _sql(atlas: Atlas, model: Model, address: str, choice: TokenChoice, k: int, ranked_by: Ranking) -> str:
    """The SQL for the tokens of a card."""
    rank, score = ranked(ranked_by)
    passing = [f"\n  AND token_id IN ({token_ids})" for token_ids in choice.passing(atlas, model)]
    query = f"SELECT side, {rank}, text, {score}\nFROM parameter_tokens\nWHERE address = '{address}'"
    kept = f"\n  AND {rank} IS NOT NULL\nQUALIFY row_number() OVER (PARTITION BY side ORDER BY {rank})"
    place = kept if passing else f"\n  AND {rank}"
    return f"{query}{''.join(passing)}{place} <= {k}\nORDER BY side DESC, {rank}"


def sentence(where: Address) -> str:
    """What a parameter is, in one sentence.

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


def _owner(where: Address) -> str | None:
    if where.layer is None:
        return None
    return str(replace(where, kind=None, idx=None))


def _partners(model: Model, where: Address) -> dict[int, str]:
    """param_id -> relation, for the other vectors of the same neuron or of the same dimension of a head."""
    kind = str(where.kind)
    others = [each for each in _NEURON if each != kind] if kind in _NEURON else []
    others += [_OTHER[kind]] if kind in _OTHER else []
    place = (where.stack, where.layer)
    return {
        model.param_id(replace(where, kind=each)): _NAMES[each]
        for each in others
        if each in model.layout.kinds and place in model.layout.places(each)
    }


def _nearest(atlas: Atlas, model: Model, where: Address, own_id: int) -> dict[str, list[Hit]]:
    """Model -> the nearest parameters: computed for the model itself, read from the atlas for those related to it."""
    hits, _ = hits_of_parameter(atlas, where, _NEAR, Scope((model,), where.kind), "top")
    found = {model.name: hits}
    row = own_id - model.first_param_id
    for other in atlas.models.values():
        relation = atlas.database.relation(model, other)
        if relation is not None:
            is_a = atlas.database.contents.is_first(model.name, other.name)
            near = relation.rows(
                "SELECT similarity, neighbor_id FROM store.neighbors WHERE of_a = ? AND param_id = ? AND rank <= ? "
                "ORDER BY rank",
                [is_a, row, _NEAR],
            )
            if near:
                found[other.name] = [(similarity, other.first_param_id + i) for similarity, i in near]
    return found
