"""What a visitor's SQL may use. Everything that is not listed is refused, and the SQL that was checked is what runs.

Some of DuckDB's functions tell about the machine (``current_setting``), read files, run text as SQL (``query``), take
memory addresses (``pandas_scan``) or wait (``sleep_ms``). Those in ``functions.txt`` only compute values from values.
What a later DuckDB adds is refused until it is listed there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

import duckdb

from paramdex.store.everything import check_types
from paramdex.store.statements import Reading, one_statement, read_statement, syntax_tree, without_end
from paramdex_schemas import QueryError

_ACCOUNTS = {
    "duckdb_columns",
    "duckdb_functions",
    "duckdb_keywords",
    "duckdb_tables",
    "duckdb_types",
    "duckdb_views",
    "pragma_version",
}
"""DuckDB's views and functions about itself that show no path of the machine."""
_TABLE_FUNCTIONS = frozenset(
    _ACCOUNTS | {"generate_series", "json_each", "json_tree", "range", "repeat", "repeat_row", "unnest"}
)
"""Table functions that read no files, and no table whose name they get as text."""
_QUERIES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
_SHOWN = {"", '"databases"', '"schemas"', '"tables"', '"variables"', "__show_tables_expanded"}
"""What SHOW may show, beside the columns of a query."""


@cache
def _functions() -> frozenset[str]:
    """The functions and operators that compute values from values, in lower case."""
    listed = (resources.files(__package__) / "functions.txt").read_text("utf-8")
    return frozenset([*listed.split(), "count_star", "is distinct from", "is not distinct from"])


def internal_views(connection: duckdb.DuckDBPyConnection) -> frozenset[str]:
    """DuckDB's own views that a visitor may not read, in lower case."""
    found = connection.execute(
        "SELECT view_name FROM duckdb_views() WHERE internal AND schema_name <> 'information_schema'"
    ).fetchall()
    return frozenset(name.lower() for (name,) in found) - _ACCOUNTS


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """All nodes of a syntax tree."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
        waiting += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def _function(node: dict[str, Any]) -> str | None:
    """The name of the function that a node calls, where visitors may not call it."""
    if node.get("type") == "TABLE_FUNCTION":
        name, known = str(node["function"].get("function_name")).lower(), _TABLE_FUNCTIONS
    else:
        name, known = str(node.get("function_name", "abs")).lower(), _functions() | _TABLE_FUNCTIONS
    return None if name in known else name


def check(tree: str, hidden: frozenset[str]) -> None:
    """Raises QueryError where a syntax tree names what visitors may not use; ``hidden`` are the views among that."""
    try:
        read = json.loads(tree)
    except RecursionError:
        raise QueryError("this is nested too deeply; take it apart with WITH") from None
    for node in _nodes(read):
        kind = str(node.get("type", ""))
        if kind.endswith("_NODE") and kind not in _QUERIES:
            raise QueryError("an atlas is read-only: only SELECT, and EXPLAIN of a SELECT, are allowed")
        refused = _function(node)
        if "table_name" in node:
            name = str(node["table_name"])
            within = [node.get("catalog_name"), node.get("schema_name"), *node["qualified_name"].get("path", [])[:-1]]
            if any(str(part).startswith(("models/", "relations/")) for part in within):
                raise QueryError(f"write the name of the table {name} alone; it has the rows of all models")
            if name.lower() in hidden:
                refused = name
            elif kind == "SHOW_REF" and name not in _SHOWN:  # which may be a setting
                raise QueryError(
                    f"SHOW works only with TABLES, SCHEMAS and DATABASES here; for a table write DESCRIBE {name}"
                )
        if refused:
            raise QueryError(f"{refused} is not allowed here: SQL reads the atlas's own tables")


def readable(connection: duckdb.DuckDBPyConnection, sql: str, hidden: frozenset[str]) -> Reading:
    """The SQL, parsed. Raises QueryError unless it is one statement that only reads, and nothing about the machine."""
    asked = read_statement(connection, sql)
    check(asked.tree, hidden)
    return asked


def first_rows(
    connection: duckdb.DuckDBPyConnection, asked: Reading, rows: int, hidden: frozenset[str]
) -> duckdb.DuckDBPyRelation:
    """The first rows of a statement that ``readable`` has checked. Where it can, DuckDB computes no more than these.

    Raises QueryError for values that Arrow does not hold, duckdb.Error for SQL that fails.
    """
    whole = connection.sql(asked.statement)  # its names and types are those of the visitor's own text
    check_types(whole)
    limited = f"SELECT * FROM (\n{without_end(asked.text)}\n) LIMIT {rows}"
    tree = syntax_tree(connection, limited) if asked.is_query else None
    if tree is None:  # an EXPLAIN, or a PIVOT, whose rows are there already
        return whole
    check(tree, hidden)
    return connection.sql(one_statement(connection, limited))
