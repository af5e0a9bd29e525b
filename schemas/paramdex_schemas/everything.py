"""The public tables over all models of an atlas: each is a view of those that every model's ``tables.duckdb`` has.

The files are attached under the names that ``catalog`` gives them. Numbers of parameters and heads are made to tell the
models apart. The name of the model is a constant in each part of a view, so that DuckDB leaves out the parts that a
question with ``model = 'x'`` does not concern.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from paramdex_schemas import atlas_files
from paramdex_schemas.contents import STRIDE, Contents

NUMBERED = {
    "models": None,
    "layout": "first_param_id",
    "token_embeddings": None,
    "parameters": "param_id",
    "readings": None,
    "parameter_tokens": "param_id",
    "heads": "head_id",
    "head_pairs": "head_id",
    "head_directions": "head_id",
    "head_direction_tokens": "head_id",
}
"""Public view of a model -> its column of numbers that count within the model."""
_NEIGHBORS = """
    SELECT n.param_id + {at_own} AS param_id, '{own}/' || p.path AS address, n.neighbor_id + {at_other} AS neighbor_id,
        '{other}/' || q.path AS neighbor, '{other}' AS neighbor_model, n.rank, n.similarity
    FROM {relation}.store.neighbors AS n
    JOIN {own_tables}.store.parameters AS p USING (param_id)
    JOIN {other_tables}.store.parameters AS q ON q.param_id = n.neighbor_id
    WHERE n.of_a = {of_a}"""
_ALIGNMENTS = """
    SELECT '{own}' AS model_a, '{other}' AS model_b, kind, stack_a, layer_a, stack_b, layer_b, score, matched,
        feature_score, feature_matched
    FROM {relation}.store.layer_alignments"""
_NO_NEIGHBORS = """
    SELECT 0::BIGINT AS param_id, '' AS address, 0::BIGINT AS neighbor_id, '' AS neighbor, '' AS neighbor_model,
        0::SMALLINT AS rank, 0::FLOAT AS similarity
    WHERE false"""
_NO_ALIGNMENTS = """
    SELECT '' AS model_a, '' AS model_b, '' AS kind, '' AS stack_a, 0::SMALLINT AS layer_a, '' AS stack_b,
        0::SMALLINT AS layer_b, 0::FLOAT AS score, false AS matched, 0::FLOAT AS feature_score, false AS feature_matched
    WHERE false"""


def catalog(of: str) -> str:
    """The quoted name under which the tables of a model's or a relation's folder, within the atlas, are attached."""
    return '"' + of.replace('"', '""') + '"'


def views(contents: Contents) -> Iterator[str]:
    """The statements that make the public views over all that an atlas holds, which is attached."""
    at = {name: number * STRIDE for number, name in enumerate(contents.models)}
    tables = {name: catalog(contents.folder(name).as_posix()) for name in contents.models}
    for view, numbered in NUMBERED.items():
        parts = [_part(view, numbered, name, tables[name], at[name]) for name in contents.models]
        yield f"CREATE VIEW {view} AS{' UNION ALL'.join(parts)}"
    yield f"CREATE VIEW tokens AS{' UNION ALL'.join(_vocabularies(contents, tables))}"
    names = contents.names
    neighbors, alignments = [], []
    for a, b in contents.related:
        own, other = names[a], names[b]
        relation = catalog(atlas_files.relation_folder(Path(), a, b).as_posix())
        for one, two, of_a in ((own, other, "true"), (other, own, "false")):
            of = {"own": one, "other": two, "own_tables": tables[one], "other_tables": tables[two]}
            neighbors.append(_NEIGHBORS.format(relation=relation, at_own=at[one], at_other=at[two], of_a=of_a, **of))
        alignments.append(_ALIGNMENTS.format(relation=relation, own=own, other=other))
    yield f"CREATE VIEW neighbors AS{' UNION ALL'.join(neighbors or [_NO_NEIGHBORS])}"
    yield f"CREATE VIEW layer_alignments AS{' UNION ALL'.join(alignments or [_NO_ALIGNMENTS])}"


def attached(contents: Contents) -> Mapping[str, str]:
    """The name under which each file of tables is attached -> its path within the atlas."""
    folders = [contents.folder(name).as_posix() for name in contents.models]
    folders += [atlas_files.relation_folder(Path(), a, b).as_posix() for a, b in contents.related]
    return {folder: f"{folder}/{atlas_files.TABLES}" for folder in folders}


def script(contents: Contents) -> str:
    """The text of ``attach.sql``."""
    lines = ["-- In the folder of the atlas: duckdb -init attach.sql"]
    lines += [f"ATTACH '{path}' AS {catalog(name)} (READ_ONLY);" for name, path in attached(contents).items()]
    return "\n".join([*lines, *(f"{view};" for view in views(contents))]) + "\n"


def _part(view: str, numbered: str | None, model: str, tables: str, at: int) -> str:
    """What a model has of a view; model names have no character that SQL reads otherwise."""
    replaced = [f"'{model}' AS model"] + ([f"{numbered} + {at} AS {numbered}"] if numbered and at else [])
    return f"\n    SELECT * REPLACE ({', '.join(replaced)}) FROM {tables}.{view}"


def _vocabularies(contents: Contents, tables: Mapping[str, str]) -> Iterator[str]:
    """The items of each vocabulary, those of its first model; under-trained is what is so in all."""
    having: dict[str, list[str]] = {}
    for name, model in contents.models.items():
        having.setdefault(model.vocabulary, []).append(tables[name])
    for first, *others in having.values():
        yield f"\n    SELECT * {_undertrained(others)}FROM {first}.tokens AS t"


def _undertrained(others: Sequence[str]) -> str:
    if not others:
        return ""
    trained = " UNION ALL ".join(
        f"SELECT token_id FROM {each}.store.token_embeddings WHERE NOT is_undertrained" for each in others
    )
    return f"REPLACE (t.is_undertrained AND t.token_id NOT IN ({trained}) AS is_undertrained) "
