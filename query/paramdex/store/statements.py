"""A user's SQL as DuckDB's own parser reads it: whether it is one statement that reads, and its syntax tree.

DuckDB gives the tree only of a SELECT. An EXPLAIN is taken apart by its tokens and put together again around a SELECT
that has a tree. For DuckDB a PIVOT without lists of values is several statements: types made of the values, and the
SELECT. It has a tree if lists of values are put into it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, takewhile

import duckdb

from paramdex_schemas import QueryError
from paramdex_schemas.checks import check_text
from paramdex_schemas.errors import quoted

_FORMATS = {"TEXT", "JSON", "HTML", "GRAPHVIZ", "YAML", "MERMAID"}
_AFTER_PIVOT = {"GROUP", "ORDER", "LIMIT", "OFFSET", "UNION", "EXCEPT", "INTERSECT", ";"}
"""Words that may follow the columns of PIVOT ... ON, or its USING."""
_UNCLEAR = {"CALL", "LOAD", "MULTI", "PRAGMA", "SET"}
"""Statement types under which DuckDB gathers several statements."""


@dataclass(frozen=True)
class Reading:
    """A statement that reads: the ``text`` to run, and the ``tree`` of the SELECT in it, as JSON."""

    statement: duckdb.Statement
    text: str
    tree: str

    @property
    def is_query(self) -> bool:
        """Whether it is a SELECT and not an EXPLAIN, so that it can stand in brackets."""
        return bool(self.statement.type == duckdb.StatementType.SELECT)


@dataclass(frozen=True)
class _Token:
    """A word in capitals, the bytes where it and the next word begin, and how many brackets it stands in."""

    word: str
    start: int
    end: int
    depth: int


def _tokens(sql: str) -> list[_Token]:
    """The words of a statement as DuckDB's tokenizer finds them, without comments."""
    text, found = sql.encode(), duckdb.tokenize(sql)
    ends = [start for start, _ in found[1:]] + [len(text)]
    tokens, depth = [], 0
    for (start, kind), end in zip(found, ends, strict=True):
        if kind != duckdb.token_type.comment:
            word = text[start:end].decode().strip().upper()
            depth -= word in (")", "]", "}")
            tokens.append(_Token(word, start, end, depth))
            depth += word in ("(", "[", "{")
    return tokens


def without_end(sql: str) -> str:
    """A statement without the semicolons and comments after its last word.

    >>> without_end("SELECT ';' ; -- x")
    "SELECT ';' "
    """
    tokens = _tokens(sql)
    while tokens and tokens[-1].word == ";":
        tokens.pop()
    return sql.encode()[: tokens[-1].end].decode() if tokens else ""


def _pivoted(tokens: list[_Token]) -> Iterator[tuple[int, int, bool]]:
    """The columns of all PIVOTs: the bytes where each begins and ends, and whether it seems to list values."""
    for n, pivot in enumerate(tokens):
        if pivot.word not in ("PIVOT", "PIVOT_WIDER"):
            continue
        own = [*takewhile(lambda token: token.depth >= pivot.depth, tokens[n + 1 :])]  # noqa: B023  # used at once

        def level(token: _Token, depth: int = pivot.depth) -> str:
            return token.word if token.depth == depth else ""

        whole = [*takewhile(lambda token: level(token) not in _AFTER_PIVOT, own)]
        # joins have ON and USING too
        on = max((i for i, token in enumerate(whole, 1) if level(token) == "ON"), default=len(whole))
        columns = takewhile(lambda token: level(token) != "USING", whole[on:])
        for comma, column in groupby(columns, key=lambda token: level(token) == ","):
            if not comma:
                words = list(column)
                yield words[0].start, words[-1].end, any(level(token) == "IN" for token in words)


def _serialized(connection: duckdb.DuckDBPyConnection, sql: str) -> str | None:
    # DuckDB reads what it wrote: a sum of a thousand terms is deeper than Python's reader of JSON goes
    ((text, error, n),) = connection.execute(
        "SELECT t, t->>'error', json_array_length(t, 'statements') FROM (SELECT json_serialize_sql(?) AS t)", [sql]
    ).fetchall()
    return str(text) if error == "false" and n == 1 else None


def syntax_tree(connection: duckdb.DuckDBPyConnection, sql: str) -> str | None:
    """The tree of one SELECT as JSON; None for anything else. A PIVOT gets a list of values where it has none."""
    tree = _serialized(connection, sql)
    columns = [] if tree else sorted(set(_pivoted(_tokens(sql))), reverse=True)
    for also_listed in (False, True):  # IN may belong to the column: PIVOT t ON a || b IN ('x')
        if tree is None and columns:
            text = sql.encode()
            for start, end, listed in columns:
                if also_listed or not listed:
                    text = b"%s (%s) IN ('') %s" % (text[:start], text[start:end], text[end:])
            tree = _serialized(connection, text.decode())
    return tree


def _explained(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[str, str] | None:
    """An EXPLAIN of a SELECT, rewritten around the SELECT, and the tree of the SELECT. None for anything else."""
    tokens = _tokens(sql)
    if not tokens or tokens[0].word != "EXPLAIN":
        return None
    for n, first in enumerate(tokens[1:9], 1):
        inner = sql.encode()[first.start :].decode()
        tree = syntax_tree(connection, inner)
        if tree is not None:
            said = [token.word.strip("'\"") for token in tokens[1:n] if token.word not in ("(", ")", ",", "FORMAT")]
            if set(said) - {"ANALYZE"} - _FORMATS or len(set(said) & _FORMATS) > 1:
                return None
            options = [f"FORMAT {each}" if each in _FORMATS else each for each in said] or ["FORMAT TEXT"]
            return f"EXPLAIN ({', '.join(options)}) {inner}", tree
    return None


def one_statement(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
    """The one statement of a user's SQL. Raises QueryError if there are more; duckdb.Error if it is not SQL."""
    check_text(sql, QueryError(f"this SQL is not valid UTF-8 text: {quoted(sql)}"))
    statements = connection.extract_statements(sql)  # duckdb.extract_statements opens a database of its own
    if len(statements) != 1:
        raise QueryError(f"give one SQL statement, not {len(statements)}")
    return statements[0]


def read_statement(connection: duckdb.DuckDBPyConnection, sql: str) -> Reading:
    """The one statement of a user's SQL. Raises QueryError unless it is a SELECT or an EXPLAIN of one; duckdb.Error
    if it is not SQL.
    """
    statement = one_statement(connection, sql)
    tree = syntax_tree(connection, sql)
    if tree is not None:
        return Reading(statement, sql, tree)
    explained = _explained(connection, sql)
    if explained is None:
        name = _name(statement)
        if name == "PIVOT":
            raise QueryError("this PIVOT is not understood; list the values of its columns: ON column IN (value, ...)")
        what = "EXPLAIN of anything but a SELECT" if name == "EXPLAIN" else name
        raise QueryError(f"an atlas is read-only: {what} is not allowed, only SELECT and EXPLAIN are")
    return Reading(one_statement(connection, explained[0]), *explained)


def _name(statement: duckdb.Statement) -> str:
    """What a person calls a statement: INSERT, COPY, INSTALL, ..."""
    kind = str(statement.type).rsplit(".", 1)[-1]
    word = re.match(r"\s*([A-Za-z]+)", statement.query)
    return word[1].upper() if kind in _UNCLEAR and word else kind.replace("_", " ")
