"""What look-ups rest on: addresses from numbers, spans of kinds and layers, the index of parameters."""

from __future__ import annotations

import duckdb
import pytest

from paramdex import Atlas


def test_every_number_has_its_address(atlas: Atlas, db: duckdb.DuckDBPyConnection) -> None:
    rows = db.execute("SELECT param_id, address, model FROM parameters ORDER BY param_id").fetchall()
    assert [str(atlas.models[model].address(param_id)) for param_id, _, model in rows] == [row[1] for row in rows]


@pytest.mark.parametrize("layer", [None, 0, 1, 7])
@pytest.mark.parametrize("kind", [None, "ff_key", "attn_key", "position", "ff_gate"])
def test_spans_hold_what_is_asked_for(
    atlas: Atlas, db: duckdb.DuckDBPyConnection, kind: str | None, layer: int | None
) -> None:
    for model in atlas.models.values():
        ids = [i for first, end in model.spans(kind, layer) for i in range(first, end)]
        expected = db.execute(
            "SELECT param_id FROM parameters WHERE model = $m AND ($k IS NULL OR kind = $k) "
            "AND ($l IS NULL OR layer = $l) ORDER BY param_id",
            {"m": model.name, "k": kind, "l": layer},
        ).fetchall()
        assert ids == [row[0] for row in expected]
        if layer is None:
            assert len(model.spans(kind, layer)) <= 1


def test_a_parameter_is_found_by_an_index(db: duckdb.DuckDBPyConnection) -> None:
    sql = 'EXPLAIN ANALYZE SELECT norm FROM "models/gpt2-a".store.parameters WHERE param_id = 17'
    assert "Index Scan" in db.execute(sql).fetchall()[0][1]
    found = db.execute("SELECT DISTINCT is_unique, expressions FROM duckdb_indexes()").fetchall()
    assert found == [(True, "[param_id]")]
