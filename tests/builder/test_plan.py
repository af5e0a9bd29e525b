"""The plan of a build: its fingerprint is the same in every version, or builds that were interrupted start anew."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from paramdex_builder.plan import Plan

PLAN = Plan(
    weights_sha256="aa",
    base_sha256=None,
    tokenizer_sha256="bb",
    vocabulary="cc",
    vocabulary_size=60,
    family="gpt2",
    numbers={"n_layers": 2, "d_model": 24, "gated": False, "stacks": None},
    embedding="output",
    tied=True,
    fold_norm=False,
    top_k=5,
    pair_k=6,
    neighbor_k=7,
    directions_k=8,
    format=5,
)
FINGERPRINT = "fa6b5ac9790fca2c69a17a718df73d7fa8f057e9abfb1023a87ed0ccd6ba5763"


def test_the_fingerprint_stays() -> None:
    assert PLAN.fingerprint() == FINGERPRINT


@pytest.mark.parametrize("name", [field.name for field in fields(Plan)])
def test_every_entry_counts(name: str) -> None:
    assert replace(PLAN, **{name: "another"}).fingerprint() != FINGERPRINT


def test_the_row_has_the_numbers_as_columns() -> None:
    row = PLAN.row()
    assert row.pop("plan_sha256") == FINGERPRINT
    assert row == {name: value for name, value in PLAN.entries().items() if name not in ("format", "numbers")} | {
        "n_layers": 2,
        "d_model": 24,
        "gated": False,
        "stacks": None,
    }
