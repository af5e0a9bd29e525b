"""``similar`` of heads: the cosine of whole V x V matrices, against float64 brute force that forms them."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pytest

import oracle
import paramdex
from paramdex import AddressError, Atlas, QueryError
from paramdex.store.database import Database
from paramdex_schemas.model import Model
from query_helpers import ERROR, GPT2, shared_ids


def whole(truth: oracle.Truth, matrix: str, layer: int, head: int, ids: list[int] | None = None) -> np.ndarray:
    """A head's matrix over all pairs of some tokens, flat, with its means over rows and over columns taken off."""
    E = truth.E if ids is None else truth.E[ids]
    left, right = truth.head(matrix, layer, head)
    M = (E @ left) @ (E @ right).T
    M = M - M.mean(axis=0) - M.mean(axis=1, keepdims=True) + M.mean()
    return M.ravel()


def cosines(
    db: duckdb.DuckDBPyConnection, truths: dict[str, oracle.Truth], a: str, place: tuple[int, int], b: str, matrix: str
) -> dict[str, float]:
    """Address of each of b's heads -> its cosine with the head of a."""
    one_vocabulary = a == b or (a in GPT2 and b in GPT2)
    ids_a, ids_b = (None, None) if one_vocabulary else shared_ids(db, a, b)
    own = whole(truths[a], matrix, *place, ids_a)
    found = {}
    for layer in range(truths[b].n_layers):
        for head in range(truths[b].n_heads):
            other = whole(truths[b], matrix, layer, head, ids_b)
            found[f"{b}/L{layer}/H{head}"] = float(own @ other / (np.linalg.norm(own) * np.linalg.norm(other)))
    found.pop(f"{a}/L{place[0]}/H{place[1]}", None)
    return found


@pytest.mark.parametrize("side", ["top", "bottom", "both"])
@pytest.mark.parametrize(
    ("a", "b"),
    [("gpt2-a", "gpt2-a"), ("gpt2-a", "gpt2-wide"), ("gpt2-wide", "gpt2-b"), ("llama-gqa", "llama-gqa"),
     ("llama-gqa", "gpt2-a"), ("bert", "llama-gqa")],
)  # fmt: skip
def test_agrees_with_brute_force(
    atlas: Atlas, db: duckdb.DuckDBPyConnection, truths: dict[str, oracle.Truth], a: str, b: str, side: str
) -> None:
    """One vocabulary, other widths, shared keys and values, other vocabularies."""
    strength = {"top": lambda x: x, "bottom": lambda x: -x, "both": abs}[side]
    rows = atlas.similar(f"{a}/L1/H1", 3, model=b, side=side).to_rows()
    for matrix in ("QK", "VO"):
        truth = cosines(db, truths, a, (1, 1), b, matrix)
        own = [row for row in rows if row["matrix"] == matrix]
        assert [row["rank"] for row in own] == list(range(1, min(3, len(truth)) + 1))
        for row in own:
            assert row["similarity"] == pytest.approx(truth[row["address"]], abs=ERROR)
        best = sorted(map(strength, truth.values()), reverse=True)[: len(own)]
        np.testing.assert_allclose([strength(row["similarity"]) for row in own], best, atol=ERROR)


def test_one_matrix_one_layer(atlas: Atlas) -> None:
    rows = atlas.similar("gpt2-a/L0/H1", 50, model="all", kind="VO", layer=1).to_rows()
    assert {row["matrix"] for row in rows} == {"VO"}
    assert {row["address"].split("/")[1] for row in rows} == {"L1"}
    assert {row["address"].split("/")[0] for row in rows} == set(atlas.models)


def test_pairs_of_the_heads_are_shown(atlas: Atlas) -> None:
    row = atlas.similar("gpt2-a/L0/H1", 1, kind="QK").to_rows()[0]
    pairs = atlas.sql(
        "SELECT source, target FROM head_pairs WHERE address = ? AND matrix = 'QK' AND side = 'top' "
        "AND rank_distinct <= 3 ORDER BY rank_distinct",
        [row["address"]],
    ).to_rows()
    assert len(row["top"]) == len(pairs) == 3
    assert [text.count(" → ") for text in row["top"]] == [1, 1, 1]


@pytest.mark.parametrize(
    ("address", "options", "error", "message"),
    [
        ("gpt2-a/L0/H1", {"kind": "ff_value"}, QueryError, "a head has no matrix 'ff_value'; there are QK, VO"),
        ("gpt2-a/L0", {}, AddressError, "similar takes the address of a parameter or a head, gpt2-a"),
        ("gpt2-a/L0/H1", {"layer": 7}, AddressError, "there is no layer 7"),
    ],
)
def test_what_is_not_there_is_said(
    atlas: Atlas, address: str, options: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        atlas.similar(address, **options)


@pytest.mark.parametrize("address", ["bert/L0/H1", "bert/L0/ff_value/3"])
def test_models_that_share_too_few_tokens(small_atlas: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Among all models they are left out with a note, also where none is left; asked for by name they are an error."""

    def few(_: Database, a: Model, b: Model) -> None:
        raise QueryError(f"{a.name} and {b.name} share 1 tokens: too few to compare them on")

    monkeypatch.setattr("paramdex.store.common_space.shared_tokens", few)
    with paramdex.open(small_atlas) as atlas:
        others = [name for name in atlas.models if name != "bert"]
        result = atlas.similar(address, k=3, model="all")
        assert result.to_rows() == atlas.similar(address, k=3).to_rows()
        assert [note.startswith("left out: ") and "too few" in note for note in result.notes] == [True] * len(others)
        deep = max(atlas.models[name].layout.n_layers() for name in others) - 1
        assert deep >= atlas.models["bert"].layout.n_layers()
        result = atlas.similar(address, model="all", layer=deep)
        assert (len(result), len(result.notes) > 0) == (0, True)
        with pytest.raises(QueryError, match="too few"):
            atlas.similar(address, model=others[0])
