"""Which tokens and pairs are shown: the options of a filter, each declared once, as a field of ``TokenFilter``.

The command line makes its options of them (cli/options.py), a page its URL's parameters and its form (web/cards/
choices.py), and what passes is looked up by them (filters.py). Nothing slow is imported here, so that ``--help`` is
fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from os import PathLike
from typing import Any, Literal

from paramdex_schemas import QueryError
from paramdex_schemas.errors import quoted
from paramdex_schemas.model import RANKINGS, Ranking


@dataclass(frozen=True)
class Rule:
    """What one option of a filter lets pass, in words and in SQL."""

    help: str
    """What is shown, as it follows the word "show"."""
    label: str = ""
    """The same beside a box to tick, under the heading "Tokens"; empty where there is no such box."""
    table: Literal["tokens", "token_embeddings"] | None = None
    """The table that says which tokens pass: ``tokens`` for a vocabulary, ``token_embeddings`` for a model."""
    passes: str = ""
    """The SQL condition on that table's rows; on ``tokens`` it is a column."""
    unsaid: str = ""
    """What a vocabulary leaves unsaid if none of its tokens passes; there the rule leaves out nothing."""
    of_pairs: bool = False
    """Whether the rule is about pairs of tokens, rather than single tokens."""
    choices: tuple[str, ...] = ()
    """The values of an option that leaves nothing out, but says by what the strongest are."""


def _rule(**values: Any) -> dict[str, Rule]:
    return {"rule": Rule(**values)}


@dataclass(frozen=True)
class TokenFilter:
    """Which tokens, and which pairs of tokens, are shown: those that every field that is set lets pass, the strongest
    ``by`` one of two rankings.

    ``words`` is a file with one word per line, or a sequence of words. Each is read as a word of ``find`` is, but is
    one word whatever white space it has. ``no_undertrained`` leaves out tokens that the model's training text hardly
    used (the table ``token_embeddings``). A pair passes where both of its tokens do.

    ``by`` is score or token_z: how many standard deviations the score lies from the mean of the token's own scores over
    all vectors of the kind. None is each model's own: score where it was built with ``--reading embedding``, otherwise
    token_z. What has no token_z is ranked by score.
    """

    ascii: bool = field(
        default=False,
        metadata=_rule(help="only tokens of ASCII characters", label="ASCII", table="tokens", passes="is_ascii"),
    )
    alnum: bool = field(
        default=False,
        metadata=_rule(
            help="only tokens of letters and digits", label="letters and digits", table="tokens", passes="is_alnum"
        ),
    )
    word_starts: bool = field(
        default=False,
        metadata=_rule(
            help="only tokens that start a word",
            label="starts of words",
            table="tokens",
            passes="is_word_start",
            unsaid="what starts a word",
        ),
    )
    words: str | PathLike[str] | Sequence[str] | None = field(
        default=None, metadata=_rule(help="only the words of this file, one per line")
    )
    no_undertrained: bool = field(
        default=False,
        metadata=_rule(
            help="no tokens that training hardly used",
            label="no under-trained tokens",
            table="token_embeddings",
            passes="NOT is_undertrained",
        ),
    )
    no_identical: bool = field(default=False, metadata=_rule(help="no pairs of a token with itself", of_pairs=True))
    no_same_word: bool = field(
        default=False, metadata=_rule(help="no pairs that differ only in case or space", of_pairs=True)
    )
    by: Ranking | None = field(
        default=None,
        metadata=_rule(
            help="what is strongest by score, or by how unusual the score is for the token  [default: the model's own]",
            choices=RANKINGS,
        ),
    )

    def __post_init__(self) -> None:
        """Raises QueryError or TokenError for a field of another type."""
        from paramdex_schemas.arguments import yes_or_no  # here, as it loads numpy

        for name in FLAGS:
            object.__setattr__(self, name, yes_or_no(name, getattr(self, name)))
        if self.by is not None and not (isinstance(self.by, str) and self.by in RANKINGS):
            raise QueryError(f"by is {' or '.join(RANKINGS)}, not {quoted(self.by)}")
        if self.words is not None and not isinstance(self.words, (str, PathLike)):
            from paramdex.store.words import words_of  # here, as it loads DuckDB

            object.__setattr__(self, "words", tuple(words_of(self.words)))

    def __bool__(self) -> bool:
        """Whether anything is left out."""
        return any(getattr(self, each.name) != each.default for each in fields(self) if not RULES[each.name].choices)

    @cached_property
    def word_list(self) -> list[str] | None:
        """The words that may pass; None where any may. Raises QueryError for a file that cannot be read or is empty."""
        from paramdex.store.words import read_lines

        if self.words is None:
            return None
        if isinstance(self.words, (str, PathLike)):
            lines = [line for line in read_lines(self.words, "word list") if line.strip()]
        else:
            lines = [word for word in self.words if word]  # a word of white space alone is such a token
        found = list(dict.fromkeys(lines))
        if not found:
            name = f" {self.words}" if isinstance(self.words, (str, PathLike)) else ""
            raise QueryError(f"the word list{name} holds no words; write one per line")
        return found


RULES: dict[str, Rule] = {each.name: each.metadata["rule"] for each in fields(TokenFilter)}
"""Field -> its rule, in the order in which a reader meets them."""
FLAGS = [each.name for each in fields(TokenFilter) if each.default is False]
"""The fields that are on or off."""
TOKEN_RULES = {name: rule for name, rule in RULES.items() if rule.table is not None}
"""Those that a table decides, token by token."""
