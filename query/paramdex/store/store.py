"""The open atlas: its models, its tables, its vectors, and the checks of what is asked. It answers no question itself.

A verb is any function that takes a ``Store`` and gives a ``Result``; paramdex's own are in ``paramdex.verbs``. An
``Atlas`` is a store too, so ``my_verb(paramdex.open("x.atlas"))`` works for a verb of your own.
"""

from __future__ import annotations

import copy
from functools import cached_property
from pathlib import Path
from typing import Self

from paramdex.store.database import Database
from paramdex.store.scope import Scope, scope_of
from paramdex.store.vectors import Vectors
from paramdex.store.words import Wanted, resolve, separated, words_of
from paramdex.text import visible
from paramdex_schemas import Address, AddressError, AtlasError, QueryError
from paramdex_schemas.arguments import given_path
from paramdex_schemas.checks import check_text, suggest, whole_number
from paramdex_schemas.contents import STRIDE, read_contents
from paramdex_schemas.errors import quoted
from paramdex_schemas.model import Model


class Store:
    """An open atlas. ``models`` has its models by name, in the order in which they were added.

    Threads that share a store wait for each other's look-ups. Give each thread a ``fork`` of its own and they do not.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises AtlasError if ``path`` is not an atlas, or the atlas is damaged or has another format."""
        self.path = given_path(path, "an atlas", AtlasError)
        self._database = Database(read_contents(self.path))
        self.models = self._database.contents.models

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path}: {', '.join(self.models)}>"

    def close(self) -> None:
        """Close the database. What other threads ask it is stopped; who asks it from then on gets an AtlasError."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fork(self) -> Self:
        """The same open atlas for another thread, with a connection of its own. Vectors that were read are shared.

        Closing a fork leaves the others open; closing the atlas that was opened closes all. Raises AtlasError if that
        was closed.
        """
        _ = self.vectors  # made before the copy, so that there is one
        twin = copy.copy(self)
        twin._database = self._database.fork()  # noqa: SLF001  # of this class
        return twin

    @property
    def database(self) -> Database:
        """The atlas's tables: those of each model, and what a user's SQL sees."""
        return self._database

    @cached_property
    def vectors(self) -> Vectors:
        """The vectors and embeddings of the atlas, which lie in files of their own."""
        return Vectors(self._database.contents)

    def model(self, name: str) -> Model:
        """The model of a name. Raises AddressError if there is none, and suggests the nearest names."""
        name = check_text(name, AddressError(f"a model's name is text, not {quoted(name)}"))
        if name not in self.models:
            raise AddressError(f"{self.path} has no model {quoted(name)}; {suggest(name, self.models)}")
        return self.models[name]

    def owner(self, param_id: int) -> Model:
        """The model of a parameter. Raises QueryError if there is no such parameter."""
        number = whole_number("the number of a parameter", param_id, 0)
        every = self._database.contents.numbered
        found = every[number // STRIDE] if number // STRIDE < len(every) else None
        if found is None or number >= found.span[1]:
            raise QueryError(f"there is no parameter number {quoted(number)}")
        return found

    def address(self, text: str | Address) -> Address:
        """Read an address and check that the atlas has it. Raises AddressError, and suggests the nearest names."""
        where = Address.parse(text)
        self.model(where.model).layout.check(where)
        return where

    def scope(
        self, model: str | None = None, kind: str | None = None, layer: int | None = None, *, matrices: bool = False
    ) -> Scope:
        """Where a question looks: in the model of a name, or in all; of a kind, or of any; in a layer, or in any.

        With ``matrices`` the heads' matrices QK and VO are kinds too. Raises AddressError for an unknown model or
        layer, QueryError for an unknown kind.
        """
        models = self.models.values() if model is None else [self.model(model)]
        return scope_of(models, kind, layer, matrices=matrices, named=model is not None)

    def scope_of_two(self, verb: str, model_a: str, model_b: str, kind: str | None = None) -> Scope:
        """Where a question about two models looks; ``verb`` is what asks. A kind may be that of one of them alone.

        Raises AddressError for an unknown model, QueryError for an unknown kind or where both are one model.
        """
        models = [self.model(model_a), self.model(model_b)]
        if models[0] is models[1]:
            raise QueryError(f"{verb} takes two different models, not {models[0].name} twice")
        return scope_of(models, kind, None)

    def resolve(self, scope: Scope, given: object) -> tuple[list[Wanted], list[str]]:
        """The items of each vocabulary that the words ``given`` ask for, and notes for the reader.

        Raises TokenError for anything that is not a word, and for a word that no vocabulary has.
        """
        vocabularies = scope.vocabularies
        read = separated(self._database, vocabularies, words_of(given))
        wanted = resolve(self._database, vocabularies, [word for words in read.values() for word in words])
        split = [item for item, words in read.items() if len(words) > 1] if len(read) > 1 else []
        notes = [f"{quoted(item)} is not a word here; read as {', '.join(map(visible, read[item]))}" for item in split]
        return wanted, [*notes, *_missing(wanted, scope)]


def _missing(wanted: list[Wanted], scope: Scope) -> list[str]:
    """Notes on the words that a vocabulary lacks."""
    notes = []
    for item in wanted:
        if item.missing:
            names = ", ".join(model.name for model in scope.of(item.vocabulary))
            notes.append(f"the vocabulary of {names} has no {', '.join(map(visible, item.missing))}")
    known = {item.vocabulary for item in wanted}
    silent = [model.name for model in scope.models if model.vocabulary not in known]
    if silent:
        notes.append(f"the vocabulary of {', '.join(silent)} has none of these words")
    return notes
