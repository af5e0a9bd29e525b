"""Weights that are finite with numbers made of them that are not: refused, and nothing is left behind."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

import models
import oracle
import paramdex
from paramdex_builder import Options, build
from paramdex_builder.project.finite import check_lengths, check_table
from paramdex_schemas import CheckpointError

OPTIONS = Options(top_k=60, pair_k=5, neighbor_k=1, directions_k=2, device="cpu")
Change = Callable[[dict[str, torch.Tensor]], object]
END = "; the weights are damaged or of another scale: fetch the model again"
H0, H1 = "transformer.h.0.", "transformer.h.1."
WTE = "transformer.wte.weight"


def edit(folder: Path, change: Change) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def times(name: str, factor: float) -> Change:
    return lambda tensors: tensors[name].mul_(factor)


def message_of(sources: list[str], root: Path, options: Options = OPTIONS) -> str:
    """What a build is refused with, in one line; it leaves nothing, and no warning is shown."""
    before = sorted(root.iterdir())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CheckpointError) as caught:
            build(sources, root / "x.atlas", options)
    assert sorted(root.iterdir()) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


TOO_LARGE: dict[str, tuple[Change, str]] = {
    "what a neuron writes": (times(H1 + "mlp.c_proj.weight", 1e38), "ff_value of layer 1: projected_norm"),
    "what a neuron reads": (times(H0 + "mlp.c_fc.weight", 1e38), "ff_key of layer 0: projected_norm"),
    "one vector": (lambda t: t[H0 + "mlp.c_fc.weight"][:, 5].fill_(3e38), "ff_key of layer 0: norm"),
    "a written bias": (times(H0 + "mlp.c_proj.bias", 3e38), "ff_bias of layer 0: norm"),
    "positions": (times("transformer.wpe.weight", 2e38), "position: "),
    "pairs of a head": (times(H1 + "attn.c_attn.weight", 1.5e19), "pairs of layer 1: score"),
    "pairs by the embedding": (times(WTE, 1e20), "pairs of layer 0: score"),
    "all alike": (lambda t: [each.mul_(1e30) for each in t.values()], "ff_key of layer 0: mean"),
    "one token": (lambda t: t[WTE][7].fill_(3e38), "output embedding: the norm of its rows"),
}


@pytest.mark.parametrize("what", TOO_LARGE)
def test_what_is_too_large_for_float32_is_refused(tmp_path: Path, what: str) -> None:
    change, message = TOO_LARGE[what]
    folder = models.save_word_model(tmp_path / "model", 1)
    edit(folder, change)
    found = message_of([str(folder)], tmp_path)
    assert found.startswith(f"{folder}: {message}")
    assert found.endswith(END)


def test_directions_and_heads_are_checked_beside_their_pairs(tmp_path: Path) -> None:
    """A singular value is of all pairs together, and may be too large where none of them is."""
    folder = models.save_word_model(tmp_path / "model", 1)
    at = lambda factor: edit(folder, times(H0 + "attn.c_attn.weight", factor))  # noqa: E731
    at(1e18)
    build([str(folder)], tmp_path / "good.atlas", OPTIONS)
    rows = paramdex.open(tmp_path / "good.atlas").sql(
        "SELECT max(singular_value) AS value, (SELECT max(abs(score)) FROM head_pairs) AS score FROM head_directions"
    )
    (row,) = rows.to_rows()
    most = float(np.finfo(np.float32).max)
    between = (most / (row["value"] * row["score"]) ** 0.5) ** 0.5
    assert row["score"] * between**2 < most < row["value"] * between**2
    at(between)
    assert "directions of layer 0: singular_value is too large" in message_of([str(folder)], tmp_path)


def test_products_of_weights_are_checked(tmp_path: Path) -> None:
    """Gains with vectors, biases through their heads, a table through its map: sums that are infinite already."""
    folder = models.save_word_model(tmp_path / "gained", 1)
    edit(folder, lambda t: [t[H1 + name].mul_(1e25) for name in ("ln_2.weight", "mlp.c_fc.weight")])
    found = message_of([str(folder)], tmp_path, replace(OPTIONS, fold_norm=True))
    assert found.startswith(f"{folder}: what is multiplied with tensor {H1}ln_2.weight has ")
    folder = models.save_word_model(tmp_path / "final", 1)
    edit(folder, lambda t: [t[name].mul_(1e25) for name in ("transformer.ln_f.weight", WTE)])
    found = message_of([str(folder)], tmp_path, replace(OPTIONS, fold_norm=True))
    assert found.startswith(f"{folder}: what is multiplied with tensor transformer.ln_f.weight has ")
    folder = models.save_word_model(tmp_path / "biases", 1)
    edit(folder, lambda t: [t[H0 + f"attn.c_attn.{end}"].mul_(1e25) for end in ("weight", "bias")])
    found = message_of([str(folder)], tmp_path)
    assert found.startswith(f"{folder}: what tensor {H0}attn.c_attn.bias comes to in the stream has ")
    folder = models.save_word_model(tmp_path / "mapped", 1, models.MAKERS["OPTForCausalLM, narrower embedding"])
    names = ("model.decoder.embed_tokens.weight", "model.decoder.project_out.weight")
    edit(folder, lambda t: [t[name].mul_(1e25) for name in names])
    found = message_of([str(folder)], tmp_path)
    assert found.startswith(f"{folder}: tensor {names[0]} through {names[1]} has ")


@pytest.mark.parametrize("factor", [1e38, 1e60, 1e200])
def test_differences_of_weights_are_checked(tmp_path: Path, factor: float) -> None:
    """A displacement is worked out in float64, in which more is finite."""
    base = models.save_word_model(tmp_path / "base", 1)
    tuned = models.save_word_model(tmp_path / "tuned", 2)
    edit(tuned, lambda t: t.update({H0 + "mlp.c_proj.weight": t[H0 + "mlp.c_proj.weight"].double() * factor}))
    found = message_of([str(tuned)], tmp_path, replace(OPTIONS, base=str(base)))
    if factor == 1e38:
        assert found == f"{tuned}: ff_value of layer 0: projected_norm is too large for float32 in 51 places{END}"
    else:
        assert found == f"{tuned}: tensor {H0}mlp.c_proj.weight has 2304 values that are NaN or infinite"


def test_what_is_too_small_for_float32_is_what_float32_rounds_it_to(tmp_path: Path) -> None:
    """Down to 0, ordered by token where that makes scores equal; and no similarity knows of it."""
    folder = models.save_word_model(tmp_path / "model", 1)
    edit(folder, lambda t: t[H0 + "mlp.c_proj.weight"][:3].mul_(torch.tensor([[1e-36], [1e-44], [0.0]])))
    build([str(folder)], tmp_path / "x.atlas", OPTIONS)
    atlas = paramdex.open(tmp_path / "x.atlas")
    truth = oracle.read(folder)
    for idx in range(3):
        w = truth.rows["ff_value"][0][idx]
        exact = truth.scores(w)
        stored = exact.astype(np.float32)
        rows = atlas.sql(
            "SELECT token_id, score FROM parameter_tokens WHERE address = ? AND side = 'top' ORDER BY rank",
            [f"model/L0/ff_value/{idx}"],
        ).to_rows()
        np.testing.assert_array_equal(np.array([row["score"] for row in rows], np.float32), -np.sort(-stored))
        order = np.lexsort((np.arange(60), -stored))
        assert [row["token_id"] for row in rows] == order.tolist()
        (row,) = atlas.sql("SELECT * FROM parameters WHERE address = ?", [f"model/L0/ff_value/{idx}"]).to_rows()
        assert np.float32(row["norm"]) == np.float32(np.linalg.norm(w))
        assert row["std"] == pytest.approx(exact.std(), rel=1e-6, abs=1.5e-45)
    others = np.concatenate([truth.rows["ff_value"][0][3:], truth.rows["ff_value"][1]]) @ truth.E.T
    for idx in range(2):
        (row,) = atlas.similar(f"model/L0/ff_value/{idx}", k=1, side="top").to_rows()
        similarity = oracle.pearson(truth.scores(truth.rows["ff_value"][0][idx])[None], others).max()
        assert row["similarity"] == pytest.approx(similarity, abs=1e-6)


def test_tables_and_rows_are_checked_whole() -> None:
    table = pa.table({"id": [1, 2], "x": pa.array([1.0, 3e38], pa.float32()), "l": [[1.0], [2.0, 3.0]]})
    check_table(table, "here")
    for bad in (float("inf"), float("-inf"), float("nan")):
        worse = table.set_column(2, "l", pa.array([[1.0], [2.0, bad]], pa.list_(pa.float32())))
        with pytest.raises(CheckpointError, match=r"^here: l is too large for float32 in 1 places; "):
            check_table(worse, "here")
        with pytest.raises(CheckpointError, match=r"^here: x is too large for float32 in 2 places; "):
            check_table(pa.table({"x": pa.array([bad, bad, 0], pa.float32())}), "here")
    E = torch.ones(5000, 4)
    check_lengths(E, "E")
    E[4999] = 2e38
    with pytest.raises(CheckpointError, match=r"^E: the norm of its rows is too large for float32 in 1 places; "):
        check_lengths(E, "E")
