"""``lens``: tokens and nearest parameters of a user's own vectors, against float64 over the whole vocabulary."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import oracle
from paramdex import AddressError, Atlas, QueryError, TokenFilter
from paramdex.cli import cli
from query_helpers import MODELS, Everything, assert_ranking


def vectors(width: int, draw: random.Random, n: int = 3) -> np.ndarray:
    return np.random.default_rng(draw.randrange(1 << 32)).normal(size=(n, width))


@pytest.mark.parametrize("model", MODELS)
def test_tokens_are_exact(atlas: Atlas, truths: dict[str, oracle.Truth], draw: random.Random, model: str) -> None:
    E = truths[model].E
    for w in vectors(E.shape[1], draw):
        scores = E @ w
        result = atlas.lens(w, model, k=7)
        rows = [row for row in result.to_rows() if row["what"] == "token"]
        assert [(row["side"], row["rank"]) for row in rows] == [(s, n) for s in ("top", "bottom") for n in range(1, 8)]
        for side in ("top", "bottom"):
            own = [row for row in rows if row["side"] == side]
            ids = [row["token_id"] for row in own]
            oracle.assert_strongest([row["score"] for row in own], scores[ids], scores, side)
            z = (scores[ids] - scores.mean()) / scores.std()
            np.testing.assert_allclose([row["z"] for row in own], z, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["top", "bottom", "both"])
@pytest.mark.parametrize("model", MODELS)
def test_nearest_parameters_are_exact(
    atlas: Atlas,
    truths: dict[str, oracle.Truth],
    wholes: dict[str, Everything],
    draw: random.Random,
    model: str,
    side: str,
) -> None:
    """Of all kinds, by the Pearson correlation of whole score vectors; and of one kind in one layer."""
    whole = wholes[model]
    (w,) = vectors(truths[model].E.shape[1], draw, 1)
    for kind, layer in ((None, None), ("ff_value", 1), (None, 0)):
        chosen = whole.chosen(kind, layer)
        truth = oracle.pearson((truths[model].E @ w)[None, :], whole.scores[chosen])[0]
        named = dict(zip([whole.addresses[i] for i in chosen], truth, strict=True))
        result = atlas.lens(w, model, k=9, kind=kind, layer=layer, side=side)
        rows = [row for row in result.to_rows() if row["what"] == "parameter"]
        assert_ranking(rows, named, 9, side)


def test_a_parameters_own_vector_finds_it(atlas: Atlas, truths: dict[str, oracle.Truth]) -> None:
    w = truths["bert"].vector("ff_value", 1, None, 5)
    result = atlas.lens(w, "bert", k=5)
    parameters = [row for row in result.to_rows() if row["what"] == "parameter"]
    assert parameters[0]["address"] == "bert/L1/ff_value/5"
    assert parameters[0]["similarity"] == pytest.approx(1, abs=1e-6)
    shown = atlas.show("bert/L1/ff_value/5", k=5).to_rows()
    tokens = [row for row in result.to_rows() if row["what"] == "token"]
    assert [row["token_id"] for row in tokens] == [row["token_id"] for row in shown]
    lines = str(result).splitlines()
    assert lines[0] == "the vector: a vector of bert"
    assert any("bert/L1/ff_value/5" in line for line in lines)
    assert "<table>" in result._repr_html_()


def test_a_filter_reaches_through_the_whole_vocabulary(atlas: Atlas, truths: dict[str, oracle.Truth]) -> None:
    w = truths["gpt2-a"].vector("ff_value", 0, None, 0)
    rows = atlas.lens(w, "gpt2-a", k=20, filter=TokenFilter(words=["canada", "bread", "green"])).to_rows()
    texts = [row["text"] for row in rows if row["what"] == "token" and row["side"] == "top"]
    items = atlas.sql(
        "SELECT text FROM tokens JOIN models USING (vocabulary) WHERE model = 'gpt2-a' "
        "AND lower(trim(text)) IN ('canada', 'bread', 'green')"
    ).to_rows()
    assert sorted(texts) == sorted(row["text"] for row in items)


def test_equal_rows_are_in_order_of_their_ids() -> None:
    from paramdex_schemas.isometry import strongest

    values = np.array([0, 2, 1, 2, 2, -1, 1], np.float32)
    assert strongest(values, 3).tolist() == [1, 3, 4]
    assert strongest(values, 5).tolist() == [1, 3, 4, 2, 6]
    assert strongest(values, 2, values < 2).tolist() == [2, 6]
    assert strongest(values, 99).tolist() == [1, 3, 4, 2, 6, 0, 5]


def test_files(atlas: Atlas, tmp_path: Path, draw: random.Random) -> None:
    """Every dtype that weights are kept in, and rows of a matrix."""
    matrix = vectors(24, draw, 4).astype(np.float16).astype(np.float64)
    truth = [atlas.lens(w, "gpt2-a").to_rows() for w in matrix]
    for dtype in (np.float16, np.float32, np.float64, ">f4"):
        np.save(tmp_path / "x.npy", matrix.astype(dtype))
        assert atlas.lens(tmp_path / "x.npy", "gpt2-a", row=2).to_rows() == truth[2]
    np.save(tmp_path / "one.npy", matrix[1])
    assert atlas.lens(str(tmp_path / "one.npy"), "gpt2-a").to_rows() == truth[1]
    halves = torch.from_numpy(matrix).to(torch.bfloat16)
    save_file({"a": torch.from_numpy(matrix), "b": halves, "c": halves[3].clone()}, tmp_path / "x.safetensors")
    assert atlas.lens(tmp_path / "x.safetensors", "gpt2-a", name="a", row=3).to_rows() == truth[3]
    as_brain = halves[3].double().numpy()
    for more in ({"name": "b", "row": 3}, {"name": "c"}):
        assert atlas.lens(tmp_path / "x.safetensors", "gpt2-a", **more).to_rows() == (
            atlas.lens(as_brain, "gpt2-a").to_rows()
        )


def test_a_matrix_has_a_line_a_row(atlas: Atlas, draw: random.Random) -> None:
    matrix = vectors(24, draw, 20)
    matrix[7] = 0
    result = atlas.lens(matrix, "gpt2-a", side="both")
    assert [row["row"] for row in result.to_rows()] == list(range(20))
    for row in result.to_rows():
        if row["row"] == 7:
            assert row["top"] is None
            assert row["nearest"] is None
            continue
        alone = atlas.lens(matrix, "gpt2-a", k=5, row=row["row"], side="both").to_rows()
        for side in ("top", "bottom"):
            assert row[side] == [each["text"] for each in alone if each["what"] == "token" and each["side"] == side]
        (first,) = (each for each in alone if each["what"] == "parameter" and each["rank"] == 1)
        assert (row["nearest"], row["similarity"]) == (first["address"], first["similarity"])
        assert row["norm"] == pytest.approx(np.linalg.norm(matrix[row["row"]]), rel=1e-6)
    assert list(result.notes) == ["rows of zeros, which say nothing: 7"]


def test_what_is_no_vector_is_refused(atlas: Atlas, tmp_path: Path) -> None:
    good, bad = np.ones(24), np.ones(24)
    bad[3], bad[4] = np.nan, np.inf
    np.save(tmp_path / "good.npy", good)
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("1 2 3")
    (tmp_path / "x.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0 not a header ..")
    (tmp_path / "vector.pt").write_bytes(b"")
    save_file({"W_dec": torch.ones(5, 24), "W_enc": torch.ones(24, 5)}, tmp_path / "sae.safetensors")
    cases = [
        (np.ones(25), {}, "the vector has the shape 25, and vectors of gpt2-a have 24 numbers"),
        (np.ones((24, 5)), {}, "shape 24 x 5, and vectors of gpt2-a have 24 numbers; its columns are that wide"),
        (np.ones((2, 3, 24)), {}, "shape 2 x 3 x 24; expected 24 numbers, or rows of 24"),
        (1.5, {}, "shape a single number; expected 24 numbers"),
        (np.ones((0, 24)), {}, "has no rows"),
        (bad, {}, "the vector has 2 of 24 entries that are NaN or infinite"),
        (np.stack([good, bad]), {}, "row 1 of the vector has 2 of 24 entries that are NaN or infinite"),
        (np.zeros(24), {}, "the vector is zero, and a zero vector says nothing"),
        (np.zeros((2, 24)), {"row": 1}, "row 1 of the vector is zero"),
        (np.ones((2, 24)), {"row": 2}, "has no row 2; its rows are 0 to 1"),
        (good, {"row": 0}, "is one vector; ask for it without a row"),
        (np.array(["a"] * 24), {}, "entries of type <U1; expected real numbers"),
        (np.ones(24) * 1j, {}, "entries of type complex128"),
        (np.ones((201, 24)), {}, "has 201 rows; choose one with row 0 to 200"),
        (good, {"name": "x"}, "an array has none"),
        (tmp_path / "none.npy", {}, "there is no file .*none.npy"),
        (tmp_path / "vector.pt", {}, "neither a .npy nor a .safetensors file"),
        (tmp_path / "object.npy", {}, "object.npy cannot be read: Object arrays"),
        (tmp_path / "text.npy", {}, "text.npy cannot be read"),
        (tmp_path / "x.safetensors", {}, "x.safetensors cannot be read"),
        (tmp_path / "good.npy", {"name": "x"}, "good.npy has none"),
        (tmp_path / "sae.safetensors", {}, "has 2 tensors; choose one by its name: there are W_dec, W_enc"),
        (tmp_path / "sae.safetensors", {"name": "W_decc"}, "has no tensor 'W_decc'; did you mean W_dec"),
        (tmp_path / "sae.safetensors", {"name": "W_enc"}, "W_enc of .* transpose it"),
    ]
    for given, more, message in cases:
        with pytest.raises(QueryError, match=message):
            atlas.lens(given, "gpt2-a", **more)
    with pytest.raises(AddressError, match="no model 'gpt'"):
        atlas.lens(good, "gpt")
    with pytest.raises(QueryError, match="no parameters of kind 'ff_gate'"):
        atlas.lens(good, "gpt2-a", kind="ff_gate")


def test_command_line(small_atlas: Path, atlas: Atlas, tmp_path: Path, draw: random.Random) -> None:
    np.save(tmp_path / "x.npy", vectors(24, draw, 3))

    def run(*more: str) -> str:
        arguments = ["lens", str(small_atlas), str(tmp_path / "x.npy"), "--model", "bert", *more]
        result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    asked = {"row": 1, "k": 4, "side": "both", "filter": TokenFilter(ascii=True)}
    expected = atlas.lens(tmp_path / "x.npy", "bert", **asked)
    options = ["--row", "1", "-k", "4", "--side", "both", "--ascii"]
    assert run(*options, "--format", "json").strip() == expected.to_json()
    assert run(*options).strip() == str(expected).strip()
    assert [row["row"] for row in json.loads(run("--format", "json"))] == [0, 1, 2]
