"""Scores that are all equal, and lists longer than half the vocabulary: rounding is no correlation, z has a side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import paramdex
from paramdex import Atlas
from paramdex_builder import Options, build
from paramdex_builder.project.directions import Factor, singular_values
from paramdex_builder.project.pairs import pair_moments
from paramdex_builder.project.space import Space, make_space

CPU = torch.device("cpu")


def space(value: float) -> Space:
    """The space of a random embedding (41 x 8) with one value in all of column 3."""
    E = torch.randn(41, 8, generator=torch.Generator().manual_seed(0))
    E[:, 3] = value
    return make_space(E, CPU)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
@pytest.mark.parametrize("size", [1e-20, 1.0, 1.7, 1e20])
def test_equal_scores_have_no_spread_and_no_coordinates(value: float, size: float) -> None:
    rows = torch.zeros(2, 8)
    rows[0, 3], rows[1, 2] = size, size
    found = space(value).describe(rows)
    assert (found.std[0], found.coordinates[0].abs().max()) == (0, 0)
    assert found.std[1] > 0
    torch.testing.assert_close(found.coordinates[1].norm(), torch.tensor(1.0))


def test_what_hardly_varies_still_does() -> None:
    """A column a million times smaller than the others is no rounding."""
    E = torch.randn(41, 8, generator=torch.Generator().manual_seed(0))
    E[:, 3] *= 1e-6
    rows = torch.eye(8)[3:4]
    found = make_space(E, CPU).describe(rows)
    torch.testing.assert_close(found.std[0], E[:, 3].double().std(correction=0), rtol=1e-3, atol=0)


def side(rows: torch.Tensor, value: float) -> Factor:
    scored_by = space(value)
    return Factor(rows, scored_by, scored_by.embedding.double() @ rows.double().T)


@pytest.mark.parametrize("value", [0.1, 1e4])
def test_matrix_of_equal_scores_has_no_directions(value: float) -> None:
    P, Q = torch.zeros(2, 8), torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    P[:, 3] = torch.tensor([1.0, -2.0])
    for X, Y in ((P, Q), (Q, P), (P, P)):
        assert [each.shape[-1] for each in singular_values(side(X, value), side(Y, value), 4)] == [0] * 3
    assert len(singular_values(side(Q, value), side(Q, value), 4)[0]) == 2


@pytest.mark.parametrize("value", [0.1, 3.0, 1e4])
def test_pairs_of_equal_scores_have_no_spread(value: float) -> None:
    rows = torch.full((1001, 8), value, dtype=torch.float64) * torch.arange(1, 9) / 3
    mean, std = pair_moments(rows, rows)
    np.testing.assert_allclose(mean, float(rows[0] @ rows[0]), rtol=1e-12)
    assert std == 0
    rows[0, 0] *= 1 + 1e-9
    assert pair_moments(rows, rows)[1] > 0


@pytest.fixture(scope="module")
def flat_atlas(word_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model all of whose embedding's rows are equal."""
    folder = tmp_path_factory.mktemp("flat")
    for file in word_model_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():
        if name.endswith("wte.weight"):
            tensor[:] = tensor[0].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    options = Options(top_k=3, pair_k=3, neighbor_k=1, device="cpu")
    return build([f"flat={folder}"], tmp_path_factory.mktemp("atlas") / "flat.atlas", options)


@pytest.fixture(scope="module")
def word_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import models

    return models.save_word_model(tmp_path_factory.mktemp("model") / "words", 0)


def test_embedding_of_equal_rows(flat_atlas: Path) -> None:
    with paramdex.open(flat_atlas) as atlas:
        assert {row["similarity"] for row in atlas.similar("flat/L0/ff_value/0", 5).to_rows()} == {0.0}
        assert {row["similarity"] for row in atlas.similar("flat/L0/H0", 5).to_rows()} == {0.0}
        assert len(atlas.directions("flat/L0/H0")) == 0
        assert {row["std"] for row in atlas.sql("SELECT std FROM parameters").to_rows()} == {0.0}
        assert {row["z"] for row in atlas.show("flat/L0/ff_value/0").to_rows()} == {None}
        d = len(atlas.vectors.space("flat").means)
        assert {row["similarity"] for row in atlas.lens(np.ones(d), "flat").parameters.to_rows()} == {0.0}


def test_z_is_towards_the_side_of_the_list(word_model_folder: Path, tmp_path: Path) -> None:
    """Lists of all tokens have those of the other end last, with a z below 0."""
    options = Options(top_k=60, pair_k=3, neighbor_k=1, device="cpu")
    with paramdex.open(build([f"m={word_model_folder}"], tmp_path / "a.atlas", options)) as atlas:
        word = atlas.sql("SELECT text FROM tokens WHERE token_id = 17").to_rows()[0]["text"].strip()
        found = atlas.find(word, 10_000, kind="ff_value").to_rows()
        moments = {row["address"]: row for row in atlas.sql("SELECT address, mean, std FROM parameters").to_rows()}
        scores = {
            (row["address"], row["side"]): row["score"]
            for row in atlas.sql("SELECT address, side, score FROM parameter_tokens WHERE token_id = 17").to_rows()
        }
        assert len(found) == 2 * len({row["address"] for row in found})
        for row in found:
            own = moments[row["address"]]
            towards = 1 if row["side"] == "top" else -1
            z = towards * (scores[row["address"], row["side"]] - own["mean"]) / own["std"]
            assert row["z"] == pytest.approx(z, rel=1e-4, abs=1e-5)
        assert [row["z"] for row in found] == sorted((row["z"] for row in found), reverse=True)


def test_one_word_typed_twice_is_one_word(small_atlas: Path) -> None:
    def ask(atlas: Atlas, *words: str) -> list[dict]:
        return atlas.find(words, 20).to_rows()

    with paramdex.open(small_atlas) as atlas:
        assert ask(atlas, "canada", "Canada", "CANADA") == ask(atlas, "canada")
        assert ask(atlas, "Canada", "ottawa", "canada") == ask(atlas, "canada", "ottawa")
