"""Which tokens and pairs a card shows: the parameters of its URL, as a filter and as SQL.

``only`` and ``words`` are parameters of their own, as their types are not those of the filter's options; its other
options are declared in store/token_filter.py. ``contains`` and ``min_z`` are of a head's card alone. ``By`` is a
parameter of every address that shows lists of tokens or pairs.

FastAPI evaluates annotations, so they are not postponed in this module.
"""

import re
from dataclasses import dataclass, make_dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal
from unicodedata import normalize

from fastapi import Query
from pydantic import BeforeValidator

from paramdex import Atlas
from paramdex.store.filters import Sieve, says
from paramdex.store.token_filter import RULES, TOKEN_RULES, TokenFilter
from paramdex_schemas import QueryError
from paramdex_schemas.model import Model, Ranking

By = Annotated[
    Ranking | None,
    BeforeValidator(lambda value: value or None),  # a field of a form that was left empty
    Query(description=RULES["by"].help),
]
"""The ranking of what is shown; None is each model's own."""
_QUOTED = re.compile('"((?:[^"]|"")*)"')


def split_words(q: str) -> list[str]:
    """Split what a person typed into words, at white space. Text in double quotes is one word and keeps its spaces; two
    double quotes inside it stand for one. Raises QueryError for more than 50 words.

    >>> split_words('wine " Canada" ##ing " "","')
    ['wine', ' Canada', '##ing', ' ",']
    """
    words: list[str] = []
    rest = q
    while rest := rest.lstrip():
        if quoted := _QUOTED.match(rest):
            word, rest = quoted[1].replace('""', '"'), rest[quoted.end() :]
        else:
            word, *more = rest.split(None, 1)
            rest = more[0] if more else ""
        if word:
            words.append(word)
    if len(words) > 50:
        raise QueryError(f"ask for at most 50 words, not {len(words)}")
    return words


def searched(text: str) -> str:
    """A text in the form in which texts are searched: lower case and NFC, which SQL can compute too."""
    return normalize("NFC", text.lower())


if TYPE_CHECKING:

    class _Rules:
        """The fields of a filter that a table decides."""

else:
    _Rules = make_dataclass(
        "_Rules",
        [(name, Annotated[bool, Query(description=rule.help)], False) for name, rule in TOKEN_RULES.items()],
        frozen=True,
    )


@dataclass(frozen=True)
class TokenChoice(_Rules):
    """Which tokens are shown: those that pass all that is asked, as with the options of ``paramdex show``."""

    only: Annotated[
        str, Query(max_length=2000, description="only these words; double quotes keep the spaces of one")
    ] = ""
    by: By = None

    @property
    def _asked(self) -> dict[str, bool]:
        return {name: getattr(self, name) for name in TOKEN_RULES}

    @property
    def boxes(self) -> list[tuple[str, str, bool]]:
        """(name, label, whether it is ticked) of every box of the page's form."""
        return [(name, TOKEN_RULES[name].label, on) for name, on in self._asked.items()]

    @property
    def filtered(self) -> bool:
        """Whether a token may be left out."""
        return any(self._asked.values()) or bool(self.only.strip())

    def filter(self) -> TokenFilter:
        return TokenFilter(words=split_words(self.only) or None, by=self.by, **self._asked)

    def passing(self, atlas: Atlas, model: Model) -> list[str]:
        """SQL queries, each for the token_ids that a part of the choice lets pass. None are needed if all pass."""
        conditions: dict[str, list[str]] = {"tokens": [f"vocabulary = '{model.vocabulary}'"]}
        conditions["token_embeddings"] = [f"model = '{model.name}'"]
        for name, rule in TOKEN_RULES.items():
            if rule.table is not None and getattr(self, name) and says(atlas.database, model, rule):
                conditions[rule.table].append(rule.passes)
        found = [
            f"SELECT token_id FROM {table} WHERE {' AND '.join(asked)}"
            for table, asked in conditions.items()
            if len(asked) > 1
        ]
        if words := split_words(self.only):
            mask = Sieve(atlas.database, TokenFilter(words=words)).mask(model)
            ids = [] if mask is None else mask.nonzero()[0].tolist()
            found.append(", ".join(map(str, ids)) or "NULL")
        return found


def ranked(by: Ranking, rank: str = "rank") -> tuple[str, str]:
    """The column of a table that has the ranks of a ranking, and the columns with the numbers that it ranks.

    >>> ranked("score"), ranked("token_z", "rank_distinct")
    (('rank', 'score'), ('rank_distinct_token_z', 'score, token_z'))
    """
    return (rank, "score") if by == "score" else (f"{rank}_{by}", f"score, {by}")


@dataclass(frozen=True)
class PairChoice(TokenChoice):
    """Which pairs of a head are shown; both of their tokens must pass."""

    words: Annotated[
        Literal["different", "tokens", "all"],
        Query(description="head: pairs of different words, of different tokens, or all"),
    ] = "different"
    contains: Annotated[
        str, Query(max_length=100, description="head: only pairs with this text in one of their tokens")
    ] = ""
    min_z: Annotated[
        float,
        BeforeValidator(lambda value: value or 0.0),  # a field of a form that was left empty
        Query(
            ge=0,
            allow_inf_nan=False,
            description="head: only pairs whose score lies at least this many standard deviations from the mean",
        ),
    ] = 0.0

    @property
    def chosen(self) -> bool:
        """Whether anything was chosen."""
        return self != PairChoice()

    def filter(self) -> TokenFilter:
        return replace(super().filter(), no_identical=self.words == "tokens", no_same_word=self.words == "different")

    @property
    def rank(self) -> str:
        """The column by which pairs are in order, of those of one ranking."""
        return "rank_distinct" if self.words == "different" else "rank"

    def sql(self, atlas: Atlas, model: Model, address: str, k: int, ranked_by: Ranking) -> str:
        """The SQL query for what the card of a head shows, whose pairs are ranked as is said."""
        rank, score = ranked(ranked_by, self.rank)
        query = f"SELECT matrix, side, {rank}, source, target, {score}\nFROM head_pairs"
        where = [f"address = '{address}'", f"{rank} IS NOT NULL"]
        if self.words == "tokens":
            where.append("source_id <> target_id")
        passing = self.passing(atlas, model)
        where += [f"{end} IN ({token_ids})" for token_ids in passing for end in ("source_id", "target_id")]
        if self.contains:
            text = searched(self.contains).replace("'", "''")
            ends = (f"contains(nfc_normalize(lower({end})), '{text}')" for end in ("source", "target"))
            where.append(f"({' OR '.join(ends)})")
        if self.min_z:
            query += "\nJOIN (SELECT address, qk_mean, qk_std, vo_mean, vo_std FROM heads) USING (address)"
            z = "if(matrix = 'QK', (score - qk_mean) / nullif(qk_std, 0), (score - vo_mean) / nullif(vo_std, 0))"
            where.append(f"abs({z}) >= {self.min_z!r}")
        if len(where) == 2:
            where[1] = f"{rank} <= {k}"
        query += "\nWHERE " + "\n  AND ".join(where)
        if len(where) > 2:
            query += f"\nQUALIFY row_number() OVER (PARTITION BY matrix, side ORDER BY {rank}) <= {k}"
        return f"{query}\nORDER BY matrix, side DESC, {rank}"
