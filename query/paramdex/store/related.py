"""For which models the atlas keeps neighbors and layer alignments: those whose vocabularies are nearly the same."""

from __future__ import annotations

from itertools import combinations, islice

from paramdex.store.database import Database
from paramdex.text import some
from paramdex_schemas.model import Model

_NAMED = 5
"""The most names, and lists of names, in a note."""


def related_on(database: Database, a: Model, b: Model) -> int | None:
    """The number of tokens on which the builder has compared two models: all tokens if they share a vocabulary. None
    if the atlas keeps nothing about the two.
    """
    found = database.about(a, b)
    return None if found is None else found.n_tokens


def unrelated(database: Database, models: list[Model]) -> list[str]:
    """Notes on the models for which no neighbors and alignments are kept, if there are any."""
    return [*_not_asked_for(database, models), *_too_different(database, models)]


def _not_asked_for(database: Database, models: list[Model]) -> list[str]:
    """The note on models of one vocabulary that nobody has related."""
    apart = (
        f"{a.name} and {b.name}"
        for a, b in combinations(models, 2)
        if a.vocabulary == b.vocabulary and database.relation(a, b) is None
    )
    named = list(islice(apart, _NAMED + 1))
    if not named:
        return []
    more = ", and others" if len(named) > _NAMED else ""
    note = (
        f"no neighbors or alignments are kept between {', '.join(named[:_NAMED])}{more}; similar and align compare them"
    )
    return [f"{note} when asked, and paramdex relate {database.atlas} keeps what they find"]


def _too_different(database: Database, models: list[Model]) -> list[str]:
    """The note on models whose vocabularies differ."""
    by_vocabulary: dict[str, list[Model]] = {}
    for model in models:
        by_vocabulary.setdefault(model.vocabulary, []).append(model)
    apart = []
    for number, own in enumerate(by_vocabulary.values()):
        earlier = [one for others in [*by_vocabulary.values()][:number] for one in others]
        others = [one.name for one in earlier if database.relation(one, own[0]) is None]
        if others:
            apart.append(f"{_each([one.name for one in own])} and {_each(others)}")
    if not apart:
        return []
    why = "their vocabularies differ too much; similar and align compare them when asked"
    return [f"no neighbors or alignments are kept between {some(apart, _NAMED, '; ')}: {why}"]


def _each(names: list[str]) -> str:
    """One name, or each of several.

    >>> _each(["a"]), _each(["a", "b"])
    ('a', 'each of a, b')
    """
    return names[0] if len(names) == 1 else f"each of {some(names, _NAMED)}"
