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
    reading="expected",
    reading_text="its own",
    top_k=5,
    pair_k=6,
    neighbor_k=7,
    directions_k=8,
    format=6,
)
FINGERPRINT = "464382d3be95fb37e77fc2bbf7e061cf2b6f546c681207a363423796d69b2ede"


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
