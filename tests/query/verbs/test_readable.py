"""``readable``: in SQL, in show, and on the page of a parameter."""

from __future__ import annotations

import numpy as np
import pytest

import paramdex
from paramdex.store.reading import readable_says
from paramdex.web.cards.parameter import parameter_card
from paramdex_schemas import Address


def test_columns(reading_atlas: paramdex.Atlas) -> None:
    """The larger of both sides; NULL where a kind is too small, and nowhere else."""
    rows = reading_atlas.sql(
        "SELECT model, kind, space, count(*) AS n, count(readable) AS known, "
        "bool_and(readable = greatest(top_readable, bottom_readable)) AS larger FROM parameters GROUP BY ALL"
    ).to_rows()
    assert {row["known"] for row in rows} > {0}
    for row in rows:
        assert row["known"] == (row["n"] if row["n"] >= 50 else 0)
        assert row["larger"] in (True, None)


def test_said_by_show_and_the_page(reading_atlas: paramdex.Atlas) -> None:
    rows = reading_atlas.sql(
        "SELECT address, top_readable AS top, bottom_readable AS bottom, reads FROM parameters "
        "WHERE kind = 'ff_key' AND readable IS NOT NULL"
    ).to_rows()
    assert np.ptp([row["top"] for row in rows]) > 1
    for row in rows[::97]:
        said = readable_says({"top": row["top"], "bottom": row["bottom"]}, row["reads"])
        assert said is not None
        assert said in str(reading_atlas.show(row["address"]).title)
        card = parameter_card(reading_atlas, Address.parse(row["address"]))
        assert card.readable_says == said
        assert card.readable == pytest.approx(max(row["top"], row["bottom"]), rel=1e-3)


def test_what_is_unknown_is_not_said(reading_atlas: paramdex.Atlas) -> None:
    ((address,),) = [
        tuple(row.values())
        for row in reading_atlas.sql("SELECT address FROM parameters WHERE readable IS NULL LIMIT 1").to_rows()
    ]
    assert "readable" not in str(reading_atlas.show(address).title)
    assert readable_says({"top": None, "bottom": None}) is None


def test_nothing_readable_only_where_nothing_tells() -> None:
    assert str(readable_says({"top": 0.3, "bottom": 1.9})).startswith("nothing readable here")
    assert str(readable_says({"top": 0.3, "bottom": 1.9}, 0.2)).startswith("nothing readable here")
    assert str(readable_says({"top": 0.3, "bottom": 1.9}, 0.7)).startswith("readable top 0.3")
    assert str(readable_says({"top": 0.3, "bottom": 2.1})).startswith("readable top 0.3")
