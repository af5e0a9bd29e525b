"""``match``: nearest, mutual and one-to-one counterparts of parameters, against float64 brute force."""

from __future__ import annotations

import duckdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

import oracle
from paramdex import AddressError, Atlas, QueryError
from paramdex.verbs import match
from query_helpers import ERROR, GPT2, Everything, shared_ids


def similarities(db: duckdb.DuckDBPyConnection, a: Everything, b: Everything, kind: str) -> np.ndarray:
    """Pearson of the scores of all parameters of a kind, on the tokens that both have (n x m)."""
    ids = shared_ids(db, a.model, b.model)
    if a.model in GPT2 and b.model in GPT2:
        ids = (list(range(a.scores.shape[1])),) * 2
    return oracle.pearson(a.scores[a.chosen(kind)][:, ids[0]], b.scores[b.chosen(kind)][:, ids[1]])


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(
    ("a", "b", "kind"),
    [
        ("gpt2-a", "gpt2-b", "ff_value"),
        ("gpt2-wide", "gpt2-a", "attn_key"),
        ("gpt2-b", "bert", "ff_key"),
        ("bert", "llama-gqa", "attn_output"),
        ("gpt2-a", "gpt2-b", "position"),
    ],
)
def test_agrees_with_brute_force(
    atlas: Atlas, db: duckdb.DuckDBPyConnection, wholes: dict[str, Everything], a: str, b: str, kind: str, signed: bool
) -> None:
    S = similarities(db, wholes[a], wholes[b], kind)
    strength = S if signed else np.abs(S)
    addresses = [[wholes[model].addresses[i] for i in wholes[model].chosen(kind)] for model in (a, b)]
    rows = atlas.match(a, b, kind, side="top" if signed else "both").to_rows()
    assert [row["address"] for row in rows] == addresses[0]
    nearest = [addresses[1].index(row["nearest"]) for row in rows]
    np.testing.assert_allclose([row["similarity"] for row in rows], S[range(len(S)), nearest], atol=ERROR)
    np.testing.assert_allclose(strength[range(len(S)), nearest], strength.max(axis=1), atol=ERROR)
    clear = np.sort(strength, axis=0)[-1] - np.sort(strength, axis=0)[-2] > 2 * ERROR
    for i, row in enumerate(rows):
        if clear[nearest[i]]:
            assert row["mutual"] == (strength[:, nearest[i]].argmax() == i)
    layers = [np.array([wholes[model].layers[i] or 0 for i in wholes[model].chosen(kind)]) for model in (a, b)]
    pairs = (
        [(0, 0)]
        if kind == "position"
        else [(row["layer_a"], row["layer_b"]) for row in atlas.align(a, b, kind) if row["matched"]]
    )
    for i, j in pairs:
        ours, theirs = np.flatnonzero(layers[0] == i), np.flatnonzero(layers[1] == j)
        best = strength[np.ix_(ours, theirs)]
        chosen = [(row, addresses[1].index(rows[row]["partner"])) for row in ours if rows[row]["partner"]]
        assert len(chosen) == len({column for _, column in chosen}) == min(best.shape)
        assert {column for _, column in chosen} <= set(theirs)
        total = sum(strength[pair] for pair in chosen)
        assert total == pytest.approx(best[linear_sum_assignment(best, maximize=True)].sum(), abs=ERROR * len(best))
        for row, column in chosen:
            assert rows[row]["partner_similarity"] == pytest.approx(S[row, column], abs=ERROR)


def test_of_one_pair_of_layers(atlas: Atlas, wholes: dict[str, Everything]) -> None:
    rows = atlas.match("gpt2-a", "gpt2-wide", "ff_key", layer_a=1, layer_b=0).to_rows()
    own = wholes["gpt2-a"]
    assert [row["address"] for row in rows] == [own.addresses[i] for i in own.chosen("ff_key", 1)]
    for row in rows:
        assert row["nearest"].startswith("gpt2-wide/L0/")
        assert row["partner"] is None or row["partner"].startswith("gpt2-wide/L0/")
    whole = {row["address"]: row for row in atlas.match("gpt2-a", "gpt2-wide", "ff_key")}
    rounding = 1e-6  # products of another shape may be summed in another order
    assert all(whole[row["address"]]["similarity"] >= row["similarity"] - rounding for row in rows)


def test_what_is_printed(atlas: Atlas) -> None:
    """The k most similar, and how many are mutual and in layers that align."""
    result = atlas.match("gpt2-a", "gpt2-b", "ff_value", 3)
    assert result.shown is not None
    best = sorted((row["similarity"] for row in result), reverse=True)[:3]
    assert result.shown["similarity"].to_pylist() == pytest.approx(best)
    mutual = sum(row["mutual"] for row in result)
    assert result.notes[0].startswith(f"{mutual} of {len(result)} are mutual, ")
    assert "between layers that align (by chance 50%)" in result.notes[0]
    assert result.notes[1].startswith("partners, one to one in ")


def test_layers_too_large_are_not_matched_one_to_one(atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(match, "MOST_ASSIGNED", 5)
    result = atlas.match("gpt2-a", "gpt2-b", "ff_value")
    assert {row["partner"] for row in result} == {None}
    assert result.notes[-1] == "layers of more than 5 parameters are not matched one to one"


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 40), st.booleans(), st.integers(0, 99))
def test_nearest_of_both_sides_whatever_the_blocks(n: int, m: int, block: int, signed: bool, seed: int) -> None:
    """With ties: of equal ones the first, on either side."""
    draw = np.random.default_rng(seed)
    left, right = (draw.integers(-2, 3, (size, 3)).astype(np.float32) for size in (n, m))
    S = left @ right.T
    strength = S if signed else np.abs(S)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(match, "_BLOCK", block * m)
        there, back = match.both_nearest(left, right, signed=signed)
    assert there.row.tolist() == strength.argmax(axis=1).tolist()
    assert back.row.tolist() == strength.argmax(axis=0).tolist()
    assert there.similarity.tolist() == S[range(n), strength.argmax(axis=1)].tolist()
    assert back.similarity.tolist() == S[strength.argmax(axis=0), range(m)].tolist()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("gpt2-a", "gpt2-a", "ff_key"), {}, QueryError, "match takes two different models, not gpt2-a twice"),
        (("gpt2-a", "gpt2-x", "ff_key"), {}, AddressError, "has no model 'gpt2-x'; did you mean"),
        (("gpt2-a", "gpt2-b", "ff_valu"), {}, QueryError, "there is no kind 'ff_valu'; did you mean ff_value"),
        (("gpt2-a", "llama-gqa", "ff_gate"), {}, QueryError, "gpt2-a has no parameters of kind 'ff_gate'; "),
        (("gpt2-a", "gpt2-b", "ff_key"), {"layer_b": 9}, AddressError, "there is no layer 9; gpt2-b has"),
        (("gpt2-a", "gpt2-b", "ff_key", 0), {}, QueryError, "at least 1, not 0"),
    ],
)
def test_what_is_not_there_is_said(
    atlas: Atlas, arguments: tuple, options: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        atlas.match(*arguments, **options)
